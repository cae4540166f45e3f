# shellcheck shell=bash
# Containers and images, by their ids, and how an image is built.

# containers [SERVICE [all]]: ids of this project's containers, running ones unless all are asked for.
containers() {
    local filters=(--filter "label=com.docker.compose.project=$project")
    if [[ -n ${1:-} ]]; then filters+=(--filter "label=com.docker.compose.service=$1"); fi
    # Not those of `compose run`; podman-compose does not tell them apart.
    if [[ $compose_kind != podman-compose && -n ${1:-} ]]; then filters+=(--filter label=com.docker.compose.oneoff=False); fi
    if [[ ${2:-} == all ]]; then filters+=(-a); fi
    engine ps -q --no-trunc "${filters[@]}"
}

field() { engine inspect --format "$2" "$1" 2>/dev/null; }
label() { field "$1" "{{index .Config.Labels \"$2\"}}" | sed 's/^<no value>$//'; }
container_name() { field "$1" '{{.Name}}' | sed 's|^/||'; }
image_of() { plain_id "$(field "$1" '{{.Image}}')"; }
image_id() { plain_id "$(engine image inspect --format '{{.Id}}' "$1" 2>/dev/null || true)"; }
# docker says sha256:…, podman does not always.
plain_id() { printf '%s\n' "${1#sha256:}"; }
revision_of() { label "$1" org.opencontainers.image.revision; }
short() { printf '%.12s' "$1"; }

# named ID: "abc1234 (image 0123456789ab)"
named() {
    local revision
    revision=$(engine image inspect --format '{{index .Config.Labels "org.opencontainers.image.revision"}}' "$1" 2>/dev/null) || revision=""
    case $revision in
        "" | "<no value>") printf 'image %s' "$(short "$1")" ;;
        *) printf 'revision %s (image %s)' "$revision" "$(short "$1")" ;;
    esac
}

# Prints the image that the service's containers have, running or not.
image_in_use() {
    local container
    container=$(containers "$service" | first)
    if [[ -z $container ]]; then container=$(containers "$service" all | first); fi
    if [[ -n $container ]]; then image_of "$container"; fi
}

untag() { engine rmi "$1" >/dev/null 2>&1 || true; }

# retag NAME ID: NAME means ID; no ID: NAME means nothing.
retag() {
    if [[ -n $2 ]]; then engine tag "$2" "$1"; elif [[ -n $(image_id "$1") ]]; then untag "$1"; fi
}

# Prints the revision that is built; -dirty where files differ from it.
revision() {
    local dirty=""
    git rev-parse --verify -q HEAD >/dev/null 2>&1 || { printf 'unknown\n'; return; }
    if [[ -n $(git status --porcelain 2>/dev/null) ]]; then dirty=-dirty; fi
    printf '%s%s\n' "$(git rev-parse --short=12 HEAD)" "$dirty"
}

# build_image NAME...: build, and give the image these names.
build_image() {
    local name arguments=(--target production)
    [[ -f Dockerfile ]] || fail "Dockerfile is not here, so nothing can be built." "Take deploy.sh's whole repository, or use --no-build."
    for name in "$@"; do arguments+=(-t "$name"); done
    arguments+=(--build-arg "REVISION=$(revision)" --build-arg "VERSION=$(sed -n 's/^VERSION = "\(.*\)"/\1/p' main.py)")
    # The commit's date, not today's: the same sources give the same image, and nothing is restarted without need.
    arguments+=(--build-arg "CREATED=$(git log -1 --format=%cI 2>/dev/null || true)")
    # podman 4.3 takes a LABEL from its cache, whatever the arguments in it are now; with this the revision is right there, too.
    arguments+=(--label "org.opencontainers.image.revision=$(revision)")
    for name in PRELOAD_MODELS HF_ENDPOINT; do
        if [[ -n $(setting "$name" "") ]]; then arguments+=(--build-arg "$name=$(setting "$name" "")"); fi
    done
    # podman's own format has no health check.
    if is_podman; then arguments+=(--format docker); fi
    say "Building $1 ..."
    # Attestations carry the time of the build; with them no build is like the one before.
    if ! BUILDX_NO_DEFAULT_ATTESTATIONS=1 engine build "${arguments[@]}" . 2>&1 | tee "$scratch/build" >&2; then
        explain "$scratch/build"
        if grep -Eq 'cli download.*(exit (code|status)|non-zero|did not complete)' "$scratch/build"; then
            say "  -> PRELOAD_MODELS=$(setting PRELOAD_MODELS ""): the lines above say which name is wrong or cannot be downloaded."
        fi
        fail "The build failed; the lines above say why. What runs was not touched."
    fi
}

build() {
    read_options "--image" "$@"
    read_settings
    lock
    find_engine
    build_image "$image" "$repository:$(revision)"
    good "Built $(named "$(image_id "$image")") as $image."
    printf '%s\n' "$image"
}

# Prints the name of the image to deploy.
candidate() {
    if [[ $builds == no ]]; then
        if [[ -z $(image_id "$image") ]]; then
            say "Fetching $image ..."
            engine pull "$image" 2>&1 | tee "$scratch/pull" >&2 || {
                explain "$scratch/pull"
                fail "$image is neither here nor to be fetched." "Build it (without --no-build), or load it: $engine load -i FILE."
            }
        fi
        printf '%s\n' "$image"
    else
        build_image "$repository:$(revision)"
        printf '%s\n' "$repository:$(revision)"
    fi
}
