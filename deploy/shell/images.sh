# shellcheck shell=bash
# Queries containers and images by id, and builds or pulls the image.

# containers [SERVICE [all]]: print the ids of this project's running containers, or of all.
containers() {
    local filters=(--filter "label=com.docker.compose.project=$project")
    if [[ -n ${1:-} ]]; then filters+=(--filter "label=com.docker.compose.service=$1"); fi
    # Excludes the containers of `compose run`; podman-compose does not label those.
    if [[ $compose_kind != podman-compose && -n ${1:-} ]]; then filters+=(--filter label=com.docker.compose.oneoff=False); fi
    if [[ ${2:-} == all ]]; then filters+=(-a); fi
    engine ps -q --no-trunc "${filters[@]}"
}

field() { engine inspect --format "$2" "$1" 2>/dev/null; }
label() { field "$1" "{{index .Config.Labels \"$2\"}}" | sed 's/^<no value>$//'; }
container_name() { field "$1" '{{.Name}}' | sed 's|^/||'; }
plain_id() { printf '%s\n' "${1#sha256:}"; } # podman does not always print sha256:
image_of() { plain_id "$(field "$1" '{{.Image}}')"; }
image_id() { plain_id "$(engine image inspect --format '{{.Id}}' "$1" 2>/dev/null || true)"; }
revision_of() { engine image inspect --format '{{index .Config.Labels "org.opencontainers.image.revision"}}' "$1" 2>/dev/null; }

# describe_image ID: print "revision abc1234 (image 0123456789ab)"
describe_image() {
    local revision
    revision=$(revision_of "$1") || revision=""
    case $revision in
        "" | "<no value>") printf 'image %.12s' "$1" ;;
        *) printf 'revision %s (image %.12s)' "$revision" "$1" ;;
    esac
}

# Print the image id of the service's containers, running or stopped.
image_in_use() {
    local container
    container=$(containers "$service" | first_line)
    if [[ -z $container ]]; then container=$(containers "$service" all | first_line); fi
    if [[ -n $container ]]; then image_of "$container"; fi
}

untag() { engine rmi "$1" >/dev/null 2>&1 || true; }

# retag NAME ID: point the tag NAME to ID; with an empty ID, remove the tag.
retag() {
    if [[ -n $2 ]]; then engine tag "$2" "$1"; elif [[ -n $(image_id "$1") ]]; then untag "$1"; fi
}

# Print this folder's git revision, with -dirty if files differ from it.
revision() {
    local dirty=""
    git rev-parse --verify -q HEAD >/dev/null 2>&1 || { printf 'unknown\n'; return; }
    if [[ -n $(git status --porcelain 2>/dev/null) ]]; then dirty=-dirty; fi
    printf '%s%s\n' "$(git rev-parse --short=12 HEAD)" "$dirty"
}

# build_image NAME...: build the image and give it these names.
build_image() {
    local name arguments=(--target production)
    [[ -f Dockerfile ]] || fail "Dockerfile is missing." "deploy.sh needs the whole repository; use --no-build to deploy an existing image."
    for name in "$@"; do arguments+=(-t "$name"); done
    arguments+=(--build-arg "REVISION=$(revision)" --build-arg "VERSION=$(sed -n 's/^VERSION = "\(.*\)"/\1/p' main.py)")
    # The commit's date instead of today's: the same sources give the same image, so nothing restarts without need.
    arguments+=(--build-arg "CREATED=$(git log -1 --format=%cI 2>/dev/null || true)")
    # podman 4.3 caches a LABEL regardless of its build arguments; --label is always current.
    arguments+=(--label "org.opencontainers.image.revision=$(revision)")
    for name in PRELOAD_MODELS EXTRAS HF_ENDPOINT; do
        if [[ -n $(setting "$name" "") ]]; then arguments+=(--build-arg "$name=$(setting "$name" "")"); fi
    done
    if is_podman; then arguments+=(--format docker); fi # podman's own format has no health check
    say "Building $1 ..."
    # Attestations contain the build time, so with them every build would give another image.
    if ! BUILDX_NO_DEFAULT_ATTESTATIONS=1 engine build "${arguments[@]}" . 2>&1 | tee "$temp_dir/build" >&2; then
        explain_failure "$temp_dir/build"
        advise "$temp_dir/build" 'cli download.*(exit (code|status)|non-zero|did not complete)' \
            "PRELOAD_MODELS=$(setting PRELOAD_MODELS ""): the lines above show which model name is wrong or cannot be downloaded."
        fail "The build failed; see the lines above. The running service was not changed."
    fi
}

build() {
    parse_options "--image" "$@"
    read_settings
    lock
    find_engine
    build_image "$image" "$repository:$(revision)"
    success "Built $(describe_image "$(image_id "$image")") as $image."
    printf '%s\n' "$image"
}

# Provide the image to deploy, and print its name.
build_or_pull() {
    if [[ $build_first == yes ]]; then
        build_image "$repository:$(revision)"
        printf '%s\n' "$repository:$(revision)"
        return
    fi
    if [[ -z $(image_id "$image") ]]; then
        say "Pulling $image ..."
        engine pull "$image" 2>&1 | tee "$temp_dir/pull" >&2 || {
            explain_failure "$temp_dir/pull"
            fail "$image does not exist locally and cannot be pulled." "Build it (without --no-build), or load it: $engine load -i FILE."
        }
    fi
    printf '%s\n' "$image"
}
