#!/usr/bin/env bash
# Builds the image, puts it in the place of what runs, and looks after it. `./deploy.sh help` tells the rest.
set -euo pipefail

self=$(readlink -f -- "${BASH_SOURCE[0]}" 2>/dev/null) || self=${BASH_SOURCE[0]}
CDPATH='' cd -- "$(dirname -- "$self")"

readonly service=fast-embedding proxy=nginx
# Seconds beyond SHUTDOWN_TIMEOUT until a container that does not end is killed.
readonly grace_seconds=10

engine="" engine_version="" engine_problem="" compose_kind="" project="" image="" repository="" profiles="" replicas="" wait_seconds=""
compose_command=()
# What on_exit has to put right: nothing, a rehearsal's container, or a service that is half replaced.
phase=idle
# The images by their ids: the one that ran before, the one to run, and what the tags meant before.
old="" new="" image_before="" previous_before=""
config_hash="" scratch=""
told_profile="" told_scale="" told_wait="" told_image="" told_url="" builds=yes asks=yes is_full=no
# More for `compose up` when replicas have been replaced.
settle=()

usage() {
    cat <<'USAGE'
Usage: ./deploy.sh COMMAND [OPTIONS]

  deploy      build the image, try its start, put it in the place of what runs and wait for health;
              if that never comes, show the logs and go back to the image before
  build       build the image only
  rollback    go back to the image that was deployed before
  status      what runs, of which revision, how healthy, with which models and how much memory
  logs [ARGS] the last 100 lines; ARGS go to compose, such as -f or --since 10m
  restart     restart the containers, one at a time, with the image and settings they have
  stop        stop the containers; requests that were accepted are answered first
  test        send requests to the deployed service (API_KEY=... where it wants a key)
  clean       remove containers, networks, volumes and images of this project; asks first
  help        show this

Options (or variables of the environment or of .env):
  --profile ha      COMPOSE_PROFILES  nginx before several replicas, and Redis; none: one container
  --scale N         REPLICAS          replicas with --profile ha: as many as run, or 3
  --image NAME      IMAGE             the image; fast-embedding:latest
  --no-build                          deploy: take the image that is here, or fetch it
  --wait SECONDS    WAIT_SECONDS      time for the trial start, and again for health; 180
  --url URL                           test: another address than the published port
  --full                              test: run test_api.py against a service with default settings
  --yes                               clean: do not ask

PRELOAD_MODELS="NAME NAME" bakes models into the image; CONTAINER_ENGINE=podman prefers it to docker.
Exit codes: 0 done, 1 failed (status, test: not healthy), 2 wrong use.
USAGE
}

# --- Telling -------------------------------------------------------------------------------------------------------

say() { printf '%s\n' "$*" >&2; }

# In colour on a terminal only, where nobody has asked for none.
tell() {
    local colour=$1
    shift
    if [[ -t 2 && -z ${NO_COLOR:-} ]]; then printf '\033[%sm%s\033[0m\n' "$colour" "$*" >&2; else say "$*"; fi
}

good() { tell 32 "$*"; }
bad() { tell 31 "$*"; }

fail() {
    bad "deploy.sh: $1"
    shift
    local line
    for line in "$@"; do say "  $line"; done
    exit 1
}

wrong_use() {
    say "deploy.sh: $*"
    say "./deploy.sh help tells all commands and options."
    exit 2
}

# explain FILE: what to do about failures that are known by their words. Silent about others: FILE was shown already.
explain() {
    local settings
    settings=$(grep -o 'Bad settings: .*' "$1" | tail -n 1) || settings=""
    if [[ -n $settings ]]; then
        bad "$settings"
        say "  -> Correct it in .env (or in the environment), then ./deploy.sh deploy."
    fi
    known "$1" 'FAIL +values' "Correct it in .env (or in the environment), then ./deploy.sh deploy."
    known "$1" 'no space left on device' \
        "The disk is full. $engine system df shows what takes it; $engine image prune and $engine builder prune free some."
    known "$1" 'range of CPUs is from' "The machine has fewer cores than CPUS (2 by default): set it lower in .env."
    known "$1" 'port is already allocated|address already in use|failed to bind|ports are not available' \
        "Another program has the port. Stop it, or set PORT in .env to a free one."
    known "$1" 'FAIL +(memory|MODEL_MEMORY_BUDGET)|out of memory|oom-?killed|MemoryError|too little memory|std::bad_alloc' \
        "Too little memory. Raise the limit in docker-compose.yml (and on the machine), or require fewer or smaller models (REQUIRED_MODELS)."
    known "$1" 'FAIL +(HUB_CACHE_DIR|MODELS_DIR)|HUB_CACHE_DIR cannot be written|(permission denied|read-only file system).*/data|/data.*(permission denied|read-only|not writable|cannot be written)' \
        "A folder under /data cannot be written by user 10001. For a folder of this machine: sudo chown -R 10001:10001 FOLDER."
    known "$1" 'buildkit is enabled but the buildx component is missing|buildx.*(missing|broken)|requires buildx' \
        "Docker's build plugin is missing: install docker-buildx-plugin, or build with DOCKER_BUILDKIT=0."
    known "$1" 'temporary failure in name resolution|could not resolve|no such host|network is unreachable|i/o timeout|tls handshake timeout|ProxyError' \
        "The network cannot be reached. Images and packages must be here already, or come through a proxy (HTTPS_PROXY)."
    known "$1" 'toomanyrequests|pull access denied|manifest unknown|unauthorized:|repository does not exist' \
        "An image cannot be fetched. Look at its name; '$engine login' if it is private."
    known "$1" 'pool overlaps|address pools have been|could not find an available' \
        "No address is free for another network. '$engine network prune' removes those that nobody uses."
    known "$1" 'env[_ ]file.*(not found|no such file)|\.env.*(not found|no such file)' \
        "There is no .env: cp .env.example .env (all values in it are defaults)."
}

known() {
    if grep -Eiq -- "$2" "$1"; then say "  -> $3"; fi
}

# Not `head -n 1`, which would end before its writer does: a failure, with pipefail.
first() { sed -n 1p; }

# --- What is asked for ---------------------------------------------------------------------------------------------

# setting NAME DEFAULT: as compose finds it: in the environment, in .env, else the default.
setting() {
    local value=${!1:-}
    if [[ -z $value && -r .env ]]; then
        value=$(sed -n "s/^[[:space:]]*\(export[[:space:]][[:space:]]*\)\{0,1\}$1[[:space:]]*=[[:space:]]*//p" .env | tail -n 1)
        value=${value%$'\r'}
        case $value in
            \"*) value=${value#\"} value=${value%%\"*} ;;
            \'*) value=${value#\'} value=${value%%\'*} ;;
            *)
                value=${value%%[[:space:]]#*}
                value=${value%"${value##*[![:space:]]}"}
                ;;
        esac
    fi
    printf '%s\n' "${value:-$2}"
}

# read_options ALLOWED [ARGS]: ALLOWED are the options that this command takes.
read_options() {
    local allowed=" $1 " option
    shift
    while (($#)); do
        option=${1%%=*}
        [[ $option == -* ]] || wrong_use "$command takes no '$1'."
        [[ $allowed == *" $option "* ]] || wrong_use "$command has no option $option."
        case $1 in
            --no-build) builds=no ;;
            --full) is_full=yes ;;
            --yes | -y) asks=no ;;
            --*=?*) take "$option" "${1#*=}" ;;
            *)
                [[ -n ${2:-} ]] || wrong_use "$option needs a value."
                take "$option" "$2"
                shift
                ;;
        esac
        shift
    done
}

take() {
    case $1 in
        --profile) told_profile=${told_profile:+$told_profile,}$2 ;;
        --scale) told_scale=$2 ;;
        --wait) told_wait=$2 ;;
        --image) told_image=$2 ;;
        --url) told_url=${2%/} ;;
        *) wrong_use "$1 takes no value." ;;
    esac
}

read_settings() {
    image=${told_image:-$(setting IMAGE fast-embedding:latest)}
    [[ $image =~ ^[A-Za-z0-9][A-Za-z0-9._:/@-]*$ ]] || wrong_use "IMAGE=$image is no name of an image, such as fast-embedding:latest."
    # A colon before the last slash belongs to a registry's port, not to a tag.
    if [[ ${image##*/} != *:* ]]; then image=$image:latest; fi
    repository=${image%:*}
    export IMAGE=$image
    wait_seconds=${told_wait:-$(setting WAIT_SECONDS 180)}
    [[ $wait_seconds =~ ^[1-9][0-9]{0,4}$ ]] || wrong_use "--wait $wait_seconds: give whole seconds, 1 to 99999."
    project=$(project_name)
    # What compose itself stops must have the time to drain, too.
    STOP_GRACE_PERIOD=$(setting STOP_GRACE_PERIOD "$(stop_seconds)s")
    export STOP_GRACE_PERIOD
}

# Seconds that a container gets from the signal to its end.
stop_seconds() {
    local drain
    drain=$(setting SHUTDOWN_TIMEOUT 30)
    if [[ ! $drain =~ ^[1-9][0-9]{0,8}$ ]]; then drain=30; fi # its trial start says what is wrong
    printf '%s\n' "$((drain + grace_seconds))"
}

# As compose finds it, so that both always mean the same containers.
project_name() {
    local name
    name=$(setting COMPOSE_PROJECT_NAME "$(sed -n 's/^name:[[:space:]]*\([^[:space:]]*\).*/\1/p' docker-compose.yml 2>/dev/null)")
    if [[ -z $name ]]; then
        name=$(basename -- "$PWD" | tr '[:upper:]' '[:lower:]' | tr -cd '[:alnum:]_-')
        while [[ $name == [_-]* ]]; do name=${name#?}; done
    fi
    [[ $name =~ ^[a-z0-9][a-z0-9_-]*$ ]] ||
        fail "The project has no usable name ('$name')." "Set COMPOSE_PROJECT_NAME to small letters, digits, - and _."
    printf '%s\n' "$name"
}

# What is not told stays as it runs: a plain `deploy` must not take three replicas behind nginx down to one.
read_shape() {
    local running=0
    profiles=${told_profile:-$(setting COMPOSE_PROFILES "")}
    if [[ -n $(containers "$proxy") ]]; then
        running=$(containers "$service" | wc -l | tr -d ' ')
        if [[ -z $profiles ]]; then profiles=ha; fi
    fi
    if [[ $profiles == none ]]; then profiles=""; fi
    replicas=1
    if is_ha; then
        replicas=${told_scale:-$(setting REPLICAS "$((running > 0 ? running : 3))")}
    elif [[ -n $told_scale ]]; then
        wrong_use "--scale needs --profile ha: without nginx one port leads to one container."
    fi
    [[ $replicas =~ ^[1-9][0-9]?$ ]] || wrong_use "--scale $replicas: give 1 to 99 replicas."
}

is_ha() { [[ ,$profiles, == *,ha,* ]]; }

# --- Engine and compose --------------------------------------------------------------------------------------------

# The lock's descriptor is closed: podman's monitors would hold it as long as a container runs.
engine() { "$engine" "$@" 9<&-; }
compose() { "${compose_command[@]}" "$@" 9<&-; }

find_engine() {
    local candidate found=""
    for candidate in ${CONTAINER_ENGINE:-docker podman}; do
        command -v "$candidate" >/dev/null || continue
        if "$candidate" ps -q >/dev/null 2>"$scratch/engine"; then
            engine=$candidate engine_version=$("$candidate" --version | first)
            return
        fi
        if [[ -z $found ]]; then found=$candidate engine_problem=$(<"$scratch/engine"); fi
    done
    if [[ -z $found && -n ${CONTAINER_ENGINE:-} ]]; then
        fail "CONTAINER_ENGINE=$CONTAINER_ENGINE is no program." "Name docker or podman, or leave it out."
    fi
    [[ -n $found ]] || fail "Neither docker nor podman is here." \
        "Install Docker (https://docs.docker.com/engine/install/), or podman and podman-compose."
    say "$engine_problem"
    case $engine_problem in
        *[Pp]"ermission denied"*)
            fail "$found is here, but you may not use it." \
                "Join its group (sudo usermod -aG docker \"\$USER\", then log in again), or use sudo, or a rootless engine." ;;
        *"podman machine"*) fail "podman's virtual machine does not run." "podman machine init (once), then podman machine start." ;;
        *)
            fail "$found is here, but its engine does not answer." \
                "Start it: sudo systemctl start docker, or Docker Desktop. DOCKER_HOST=${DOCKER_HOST:-} and '$found context ls' tell where it is looked for." ;;
    esac
}

find_compose() {
    local candidate told
    # shellcheck disable=SC2086 # words of a command
    for candidate in "$engine compose" docker-compose podman-compose; do
        if ! is_podman && [[ $candidate == podman-compose ]]; then continue; fi
        # docker-compose finds podman only where DOCKER_HOST names its socket.
        if is_podman && [[ $candidate == docker-compose && -z ${DOCKER_HOST:-} ]]; then continue; fi
        told=$($candidate version 2>/dev/null) || continue
        case $told in
            *podman-compose*) compose_kind=podman-compose ;;
            *[Vv]"ersion 1."*) compose_kind=v1 ;;
            *) compose_kind=v2 ;;
        esac
        if [[ $compose_kind == v1 && $told =~ version\ 1\.([0-9]+) ]] && ((BASH_REMATCH[1] < 28)); then
            fail "$(head -n 1 <<<"$told") is too old: profiles came with 1.28." "Install the compose plugin: https://docs.docker.com/compose/install/"
        fi
        IFS=' ' read -r -a compose_command <<<"$candidate -p $project"
        return
    done
    if [[ -n $engine_problem ]]; then say "$engine_problem"; fi # of docker, which comes before podman
    fail "$engine is here, but no compose." \
        "Install one: docker-compose-plugin (https://docs.docker.com/compose/install/), or podman-compose for podman."
}

is_podman() { [[ $engine_version == podman* ]]; } # it may be called docker, too

use_profiles() {
    local profile
    # docker-compose.override.yml gives the service alone its port, which only one of several replicas could have.
    if is_ha && [[ -z $(setting COMPOSE_FILE "") ]]; then compose_command+=(-f docker-compose.yml); fi
    for profile in ${profiles//,/ }; do compose_command+=(--profile "$profile"); done
}

# Where --profile is not told, compose reads COMPOSE_PROFILES, too; both name the same ones.
prepare() {
    [[ -f docker-compose.yml ]] || fail "docker-compose.yml is not here." "Take deploy.sh's whole repository."
    find_engine
    find_compose
    read_shape
    use_profiles
}

# Held until this process ends. The folder itself is locked, so nothing is left over, whatever happens.
lock() {
    exec 9<.
    if command -v flock >/dev/null; then
        flock -n 9 && return
    elif command -v perl >/dev/null; then # macOS
        perl -MFcntl=:flock -e 'open my $folder, "<&=9" or exit 1; flock($folder, LOCK_EX | LOCK_NB) or exit 1' && return
    else
        return 0
    fi
    fail "Another deploy.sh is at work here; two at once would undo each other." "Wait until it has ended, then try again."
}

# --- Containers and images -----------------------------------------------------------------------------------------

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

# --- Building ------------------------------------------------------------------------------------------------------

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
    [[ $image != *@* ]] || fail "IMAGE=$image names one fixed image; nothing can be built under that name." "Use --no-build, or name a tag."
    [[ -f Dockerfile ]] || fail "Dockerfile is not here, so nothing can be built." "Take deploy.sh's whole repository, or use --no-build."
    for name in "$@"; do arguments+=(-t "$name"); done
    arguments+=(--build-arg "REVISION=$(revision)" --build-arg "VERSION=$(sed -n 's/^VERSION = "\(.*\)"/\1/p' main.py)")
    # The commit's date, not today's: the same sources give the same image, and nothing is restarted without need.
    arguments+=(--build-arg "CREATED=$(git log -1 --format=%cI 2>/dev/null || true)")
    for name in PRELOAD_MODELS HF_ENDPOINT; do
        if [[ -n $(setting "$name" "") ]]; then arguments+=(--build-arg "$name=$(setting "$name" "")"); fi
    done
    # podman's own format has no health check.
    if is_podman; then arguments+=(--format docker); fi
    say "Building $1 ..."
    # Attestations carry the time of the build; with them no build is like the one before.
    if ! BUILDX_NO_DEFAULT_ATTESTATIONS=1 engine build "${arguments[@]}" . 2>&1 | tee "$scratch/build" >&2; then
        explain "$scratch/build"
        if grep -Eq 'PRELOADED_DIR.*(exit (code|status)|non-zero|did not complete)' "$scratch/build"; then
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

# --- Health --------------------------------------------------------------------------------------------------------

# within SECONDS PROGRAM...: as timeout(1), which macOS lacks; 124 when the time is over.
within() {
    local end=$((SECONDS + $1)) pid
    shift
    "$@" 9<&- &
    pid=$!
    while kill -0 "$pid" 2>/dev/null; do
        if ((SECONDS >= end)); then
            kill "$pid" 2>/dev/null || true
            wait "$pid" 2>/dev/null || true
            return 124
        fi
        sleep 0.05
    done
    wait "$pid"
}

# Runs the container's own health check now; the engine's next turn may be half a minute away, and podman without
# systemd has none.
is_healthy() {
    local part check=()
    while IFS= read -r part; do check+=("$part"); done \
        < <(field "$1" '{{with .Config.Healthcheck}}{{range .Test}}{{println .}}{{end}}{{end}}' | sed '/^$/d')
    case ${check[0]:-NONE} in
        CMD) within 10 "$engine" exec "$1" "${check[@]:1}" >/dev/null 2>&1 ;;
        CMD-SHELL) within 10 "$engine" exec "$1" sh -c "${check[1]}" >/dev/null 2>&1 ;;
        *) [[ $(field "$1" '{{.State.Status}}') == running ]] ;;
    esac
}

# wait_for_health CONTAINER...: all of them, in wait_seconds; gives up at once on one that has ended.
wait_for_health() {
    local end=$((SECONDS + wait_seconds)) container restarts="" begun=$SECONDS
    for container in "$@"; do restarts+=" $container=$(field "$container" '{{.RestartCount}}')"; done
    say "Waiting for health (up to $wait_seconds s) ..."
    for container in "$@"; do
        until is_healthy "$container"; do
            case $(field "$container" '{{.State.Status}} {{.RestartCount}}') in
                "running "* | "created "* | "initialized "*)
                    [[ $restarts == *" $container=$(field "$container" '{{.RestartCount}}')"* ]] ||
                        { gave_up "$container" "ended and was restarted"; return 1; } ;;
                *) gave_up "$container" "has ended"; return 1 ;;
            esac
            if ((SECONDS >= end)); then gave_up "$container" "is not healthy after $wait_seconds s"; return 1; fi
            sleep 1
        done
    done
    good "Healthy after $((SECONDS - begun)) s."
}

# gave_up CONTAINER WHY: tells why, with its last lines.
gave_up() {
    local state
    bad "$(container_name "$1") $2. Its last lines:"
    engine logs "$1" 2>&1 | tail -n 50 >"$scratch/logs" || true
    sed 's/^/  | /' "$scratch/logs" >&2
    state=$(field "$1" '{{.State.OOMKilled}} {{.State.ExitCode}}')
    if [[ $state == "true "* || $state == *" 137" ]]; then printf 'oom-killed (exit code %s)\n' "${state##* }" >>"$scratch/logs"; fi
    explain "$scratch/logs"
}

# --- Putting one image in the place of another ---------------------------------------------------------------------

# try_out SERVICE PROGRAM [ARGS]: run this in a container like the service's, and leave its output in $scratch/tried. 124
# when it does not end in wait_seconds. Not in the foreground: not every engine hands the exit code through then.
try_out() {
    local tried=$project-rehearsal end=$((SECONDS + wait_seconds)) state status=1
    end_rehearsal # of one that was killed
    phase=rehearsing
    compose run -d --no-deps --name "$tried" --entrypoint "$2" "$1" "${@:3}" >"$scratch/tried" 2>&1 || return 1
    while :; do
        state=$(field "$tried" '{{.State.Status}} {{.RestartCount}}')
        case $state in
            "running 0" | "created 0" | "initialized 0" | "configured 0") ;;
            *)
                status=$(field "$tried" '{{.State.ExitCode}}') || status=1
                break
                ;;
        esac
        if ((SECONDS >= end)); then
            status=124
            break
        fi
        sleep 0.2
    done
    engine logs "$tried" >"$scratch/tried" 2>&1 || true
    end_rehearsal
    return "$status"
}

# rehearse NAME: would this image start, with these settings and this volume? Asked beside what runs, which stays.
rehearse() {
    local status=0
    say "Trying its start: settings, folders, memory, models (up to $wait_seconds s) ..."
    IMAGE=$1 try_out "$service" python main.py check || status=$?
    if ((status == 0)); then
        grep '^warn ' "$scratch/tried" >&2 || true
        return
    fi
    cat "$scratch/tried" >&2
    explain "$scratch/tried"
    # The network that it was tried in.
    if [[ -z $(containers "" all) ]]; then compose down >/dev/null 2>&1 || true; fi
    if ((status == 124)); then
        fail "The trial start did not end within $wait_seconds s. What runs was not touched." \
            "If models are being downloaded, give it more time: --wait 600."
    fi
    fail "This image would not start with these settings. What runs was not touched." \
        "The lines above say what is wrong; a line with FAIL names the setting."
}

end_rehearsal() {
    phase=idle
    engine rm -f -v "$project-rehearsal" >/dev/null 2>&1 || true
}

# is_current CONTAINER: it has the wanted image, and compose would make it again with the same configuration.
is_current() {
    [[ $(image_of "$1") == "$new" ]] || return 1
    [[ -z $config_hash || $(label "$1" com.docker.compose.config-hash) == "$config_hash" ]]
}

read_config_hash() {
    config_hash=""
    if [[ $compose_kind != podman-compose ]]; then
        config_hash=$(compose config --hash "$service" 2>"$scratch/config" | awk '{print $2}') || {
            cat "$scratch/config" >&2
            explain "$scratch/config"
            fail "compose does not understand docker-compose.yml or .env; the lines above say where."
        }
    fi
}

is_deployed() {
    local container count=0
    for container in $(containers "$service"); do
        is_current "$container" || return 1
        count=$((count + 1))
    done
    ((count > 0))
}

# up [ARGS]: compose's own, with its output kept to explain a failure by.
up() {
    compose up -d --no-build "$@" 2>&1 | tee "$scratch/up" >&2 || {
        explain "$scratch/up"
        return 1
    }
}

# The replicas are healthy already. Compose would give up if the engine's own checks, on a busy machine, said otherwise once.
up_behind_proxy() {
    up --no-deps --scale "$service=$replicas" "$@" "$service" "$proxy" redis || return 1
    if [[ $profiles != ha ]]; then up --scale "$service=$replicas" "$@"; fi # what other profiles add
}

# Starts or replaces all at once. Without a proxy there is one port, so the old container must end first.
replace() {
    local force=() running
    # podman-compose sees no new image under an old name.
    if [[ $compose_kind == podman-compose ]] && ! is_deployed && [[ -n $(containers "" all) ]]; then force=(--force-recreate); fi
    if is_ha; then
        up --no-deps --scale "$service=$replicas" ${force[@]+"${force[@]}"} "$service" || return 1
        running=$(containers "$service")
        # shellcheck disable=SC2086 # ids, one a word
        wait_for_health $running || return 1
        up_behind_proxy || return 1
        # shellcheck disable=SC2046 # ids, one a word
        wait_for_health $(containers "$proxy" all)
        return
    fi
    # Of the profile ha, where that is left: nginx has the port.
    for running in $(containers "$proxy" all) $(containers redis all); do retire "$running"; done
    up --scale "$service=1" ${force[@]+"${force[@]}"} || return 1
    running=$(containers "$service" all)
    # shellcheck disable=SC2086 # ids, one a word
    wait_for_health $running
}

# Replaces one replica after the other: a new one is healthy and known to nginx before an old one drains.
roll() {
    local stale before fresh
    for stale in $(containers "$service"); do
        if is_current "$stale"; then continue; fi
        before=$(containers "$service" all)
        up --no-deps --no-recreate --scale "$service=$(($(wc -l <<<"$before") + 1))" "$service" || return 1
        fresh=$(containers "$service" all | grep -vxF -- "$before") || return 1
        # shellcheck disable=SC2086 # one id
        if ! wait_for_health $fresh; then
            engine rm -f $fresh >/dev/null
            return 1
        fi
        reload_proxy || return 1
        retire "$stale"
        reload_proxy || return 1
    done
    up_behind_proxy ${settle[@]+"${settle[@]}"} || return 1
    refresh_proxy
    # shellcheck disable=SC2046 # ids, one a word
    wait_for_health $(containers "$service") $(containers "$proxy" all)
}

retire() {
    say "Draining $(container_name "$1") ..."
    engine stop -t "$(stop_seconds)" "$1" >/dev/null
    engine rm "$1" >/dev/null
}

# nginx asks for the replicas' addresses when it reads its configuration.
reload_proxy() {
    local container
    for container in $(containers "$proxy"); do
        if ! engine exec "$container" nginx -e stderr -s reload >"$scratch/proxy" 2>&1; then
            cat "$scratch/proxy" >&2
            bad "nginx did not read its configuration again; it goes on with the addresses it knows."
            return 1
        fi
    done
}

# Asked before anything is replaced: an nginx that cannot reload would not learn where the new replicas are.
check_proxy() {
    [[ -n $(containers "$proxy") ]] && is_ha || return 0
    if ! try_out "$proxy" nginx -e stderr -t; then
        cat "$scratch/tried" >&2
        fail "nginx does not take nginx.conf. What runs was not touched." "The lines above say what is wrong in it."
    fi
}

# A container keeps the file that was there when it started; a checkout puts another one in its place.
refresh_proxy() {
    local container
    for container in $(containers "$proxy"); do
        if ! engine exec "$container" cat /etc/nginx/nginx.conf 2>/dev/null | cmp -s - nginx.conf; then
            say "nginx.conf has changed: restarting nginx, which costs a moment without an answer ..."
            engine restart -t "$(stop_seconds)" "$container" >/dev/null
        fi
    done
    reload_proxy
}

can_roll() { is_ha && [[ $compose_kind != podman-compose && -n $(containers "$proxy") && -n $(containers "$service") ]]; }

switch_to_new() {
    if can_roll; then roll; else replace; fi
}

# Called with $image as it should be, for what on_exit does if this fails.
switch() {
    image_before=$(image_id "$image") previous_before=$(image_id "$repository:previous")
    phase=switching
    retag "$image" "$new"
    if [[ -n $old && $old != "$new" ]]; then retag "$repository:previous" "$old"; fi
    switch_to_new || exit 1
    phase=idle
    forget_older_images
    good "Deployed $(named "$new") as $image."
    if [[ -n $old && $old != "$new" ]]; then say "The image before is kept as $repository:previous; ./deploy.sh rollback goes back to it."; fi
    url
}

# What ran is to run again; called by on_exit when a switch was cut short or its health never came.
roll_back() {
    phase=rolling-back
    if [[ -z $old ]]; then
        say "Nothing ran before, so what was started is removed again; volumes stay."
        compose down >/dev/null 2>&1 || true
        if [[ $new != "$image_before" ]]; then retag "$image" "$image_before"; fi
        return
    fi
    if [[ $old == "$new" ]]; then
        bad "There is no other image to go back to: this one ran before, with other settings or another docker-compose.yml."
        say "  -> Undo that change, then ./deploy.sh deploy."
        return 1
    fi
    say "Rolling back to $(named "$old") ..."
    retag "$image" "$old"
    retag "$repository:previous" "$previous_before"
    # Replicas that were not replaced yet stay as they are, with the settings they have.
    new=$old config_hash="" settle=(--no-recreate)
    if switch_to_new; then
        good "Rolled back: $(named "$old") runs and is healthy."
    else
        bad "THE ROLLBACK FAILED, TOO: the service does not run as it did before."
        say "  -> ./deploy.sh logs tells more. Settings in .env or docker-compose.yml that have changed are the likely reason: undo that, then ./deploy.sh deploy --no-build."
        return 1
    fi
}

# Of the tags that builds here have made, only the deployed image's and the one's before stay.
forget_older_images() {
    local tag id
    for tag in $(own_revision_tags); do
        id=$(image_id "$tag")
        if [[ $id != "$new" && $id != "$(image_id "$repository:previous")" ]]; then untag "$tag"; fi
    done
}

# Tags named like the revision of their image: nobody but build_image gives those.
own_revision_tags() {
    local tag
    engine images --format '{{.Repository}}:{{.Tag}}' | sort -u | while IFS= read -r tag; do
        if [[ ${tag%:*} == "$repository" || ${tag%:*} == "localhost/$repository" ]] &&
            [[ $(engine image inspect --format '{{index .Config.Labels "org.opencontainers.image.revision"}}' "$tag" 2>/dev/null) == "${tag##*:}" ]]; then
            printf '%s\n' "$tag"
        fi
    done
}

check_env_file() {
    if [[ ! -e .env ]]; then
        say "No .env here: the defaults hold. To change them: cp .env.example .env"
    elif [[ ! -r .env || -d .env ]]; then
        fail ".env cannot be read." "Make it a file that you can read: ls -l .env"
    fi
}

# Asked before anything is stopped: afterwards there would be no way back either. A remote engine's ports are not ours to see.
check_port() {
    local port container
    port=$(setting PORT 8000)
    [[ $port =~ ^[0-9]+$ ]] || return 0 # compose says what is wrong with it
    case ${DOCKER_HOST:-unix} in unix*) ;; *) return 0 ;; esac
    for container in $(containers); do
        if engine port "$container" 2>/dev/null | grep ":$port\$" >/dev/null; then return; fi
    done
    if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
        fail "Port $port is in use by another program. What runs was not touched." \
            "Stop that program, or set PORT in .env to a free one. Who has it: sudo ss -ltnp 'sport = :$port' (macOS: lsof -i :$port)."
    fi
}

deploy() {
    local name
    read_options "--profile --scale --image --no-build --wait" "$@"
    read_settings
    lock
    prepare
    check_env_file
    read_config_hash
    check_port
    check_proxy
    old=$(image_in_use)
    name=$(candidate)
    new=$(image_id "$name")
    if ! is_deployed; then rehearse "$name"; fi
    switch
}

rollback() {
    read_options "--wait" "$@"
    read_settings
    lock
    prepare
    old=$(image_in_use) new=$(image_id "$repository:previous")
    [[ -n $new ]] || fail "There is no image before: $repository:previous does not exist." "It is kept from the second deploy on."
    [[ $new != "$old" ]] || fail "$(named "$new") runs already." "$repository:previous is the same image."
    read_config_hash
    rehearse "$repository:previous"
    switch
}

# --- Looking after it ----------------------------------------------------------------------------------------------

# Prints where the service can be reached, or nothing.
url() {
    local container address
    container=$(containers "$proxy" | first)
    if [[ -z $container ]]; then container=$(containers "$service" | first); fi
    if [[ -z $container ]]; then return; fi
    address=$(engine port "$container" 2>/dev/null | sed -n 's/.* -> //p' | first)
    if [[ -z $address ]]; then return; fi
    case ${address%:*} in "" | 0.0.0.0 | "[::]") address=localhost:${address##*:} ;; esac
    printf 'http://%s\n' "$address"
}

# ask CONTAINER PATH: the answer of the service in it; asked from inside, where no key of a proxy's is needed.
ask() {
    within 10 "$engine" exec "$1" python -c '
import os, sys, urllib.request
host = os.environ.get("HOST") or "0.0.0.0"
host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)
url = "http://%s:%s%s" % (host, os.environ.get("PORT") or "8000", sys.argv[1])
print(urllib.request.urlopen(url, timeout=5).read().decode())' "$2" 2>/dev/null
}

status() {
    local container id all=0
    read_options "" "$@"
    read_settings
    prepare
    printf 'project   %s (%s, %s)\n' "$project" "$engine_version" "${compose_command[*]}"
    id=$(image_in_use)
    if [[ -z $id ]]; then
        printf 'deployed  nothing; ./deploy.sh deploy\n'
        return 1
    fi
    printf 'image     %s, %s\n' "$image" "$(named "$id")"
    if [[ $id != "$(image_id "$image")" ]]; then printf '          %s is another one now; ./deploy.sh deploy --no-build takes it\n' "$image"; fi
    id=$(image_id "$repository:previous")
    if [[ -n $id ]]; then printf 'before    %s\n' "$(named "$id")"; fi
    printf 'address   %s\n' "$(url)"
    for container in $(containers "" all); do
        show_container "$container" || all=1
    done
    container=$(containers "$service" | first)
    if [[ -n $container ]]; then show_models "$container"; else all=1; fi
    return "$all"
}

# show_container ID: one line; fails where a container of the service is not healthy.
show_container() {
    local state memory="" is_fine=0
    state=$(field "$1" '{{.State.Status}}')
    if [[ $state == running ]]; then
        memory=$(engine stats --no-stream --format '{{.MemUsage}}' "$1" 2>/dev/null) || memory=""
        if is_healthy "$1"; then state=healthy; else state=unhealthy is_fine=1; fi
    else
        is_fine=1
    fi
    printf '%-10s%-40s %s\n' "$state" "$(container_name "$1")" "${memory:+memory $memory}"
    [[ $(label "$1" com.docker.compose.service) != "$service" ]] || return "$is_fine"
}

show_models() {
    local answer
    answer=$(ask "$1" /health) || return 0
    printf 'models    %s\n' "$(sed -n 's/.*"cached_models":\[\([^]]*\)\].*/\1/p' <<<"$answer" | tr -d '"' | sed 's/,/, /g')"
    printf 'uptime    %s s\n' "$(sed -n 's/.*"uptime_seconds":\([0-9]*\).*/\1/p' <<<"$answer")"
}

logs() {
    read_settings
    prepare
    if (($#)); then compose logs "$@"; else compose logs --tail 100; fi
}

restart() {
    local container found=""
    read_options "--wait" "$@"
    read_settings
    lock
    prepare
    for container in $(containers "$service" all); do
        found=yes
        say "Restarting $(container_name "$container") ..."
        engine restart -t "$(stop_seconds)" "$container" >/dev/null
        wait_for_health "$container" || fail "It does not become healthy again." "The lines above say why. ./deploy.sh rollback goes back to the image before."
        reload_proxy || exit 1
    done
    [[ -n $found ]] || fail "There is nothing to restart." "./deploy.sh deploy starts it."
    for container in $(containers "" all); do
        if [[ $(field "$container" '{{.State.Status}}') != running ]]; then engine start "$container" >/dev/null; fi
    done
    good "Restarted. New settings and images are taken by ./deploy.sh deploy."
    url
}

stop() {
    local running
    read_options "" "$@"
    read_settings
    lock
    prepare
    # nginx last: it passes requests on to replicas that still answer, and Redis outlives those who ask it.
    for running in $(containers "$service") $(containers "$proxy") $(containers); do
        if [[ $(field "$running" '{{.State.Status}}') == running ]]; then
            say "Stopping $(container_name "$running") ..."
            engine stop -t "$(stop_seconds)" "$running" >/dev/null
        fi
    done
    good "Nothing of $project runs. ./deploy.sh deploy --no-build starts it again."
}

try_requests() {
    local base
    read_options "--url --full" "$@"
    read_settings
    base=$told_url
    if [[ -z $base ]]; then
        prepare
        base=$(url)
        [[ -n $base ]] || fail "Nothing of $project runs that can be reached." "./deploy.sh deploy starts it; --url names another address."
    fi
    if [[ $is_full == yes ]]; then exec ./run.sh test test_api.py --base-url="$base"; fi
    command -v curl >/dev/null || fail "curl is needed for that." "Install it (apt-get install curl), or use --full."
    request "$base" /health '"status":"healthy"'
    request "$base" /embed '"dimension":[1-9]' '{"text": "Does it work?"}'
    request "$base" /embed/batch '"count":2,' '{"texts": ["Does it work?", "It does."]}'
    good "$base works."
}

# request BASE PATH EXPECTED [BODY]: one line; ends the command where the answer is another one.
request() {
    local code="" words body=()
    if [[ -n ${4:-} ]]; then body=(-H 'Content-Type: application/json' -d "$4"); fi
    # By standard input: arguments can be seen by everyone on the machine.
    code=$(printf '%s' "${API_KEY:+header = \"Authorization: Bearer $API_KEY\"}" |
        curl -sS -m 60 -K - -o "$scratch/answer" -w '%{http_code}' ${body[@]+"${body[@]}"} "$1$2" 2>"$scratch/curl") || true
    words=$(sed 's/\("embeddings\{0,1\}":\)[^"]*/\1[...],/' "$scratch/answer" 2>/dev/null | cut -c 1-200) || words=""
    if [[ $code == 200 ]] && grep -Eq -- "$3" "$scratch/answer"; then
        printf 'ok    %-14s %s\n' "$2" "$words"
        return
    fi
    printf 'FAIL  %-14s %s %s\n' "$2" "$code" "$words"
    case $code in
        000 | "") fail "$1 does not answer: $(<"$scratch/curl")" "./deploy.sh status and ./deploy.sh logs tell more." ;;
        401 | 403) fail "It wants a key that may embed." "API_KEY=... ./deploy.sh test" ;;
        *) fail "$2 answered $code, and not as it should." "./deploy.sh logs tells more." ;;
    esac
}

# --- Cleaning ------------------------------------------------------------------------------------------------------

# own_images: the names that this script gives to images, as far as they exist.
own_images() {
    local name
    {
        own_revision_tags
        for name in "$image" "$repository:previous"; do
            if [[ -n $(image_id "$name") ]]; then printf '%s\n' "$name"; fi
        done
    } | sed 's|^localhost/||' | sort -u
}

clean() {
    local all networks volumes images kind answer=""
    read_options "--yes -y" "$@"
    read_settings
    lock
    prepare
    all=$(containers "" all)
    networks=$(engine network ls -q --filter "label=com.docker.compose.project=$project")
    volumes=$(engine volume ls -q --filter "label=com.docker.compose.project=$project")
    images=$(own_images)
    if [[ -z $all$networks$volumes$images ]]; then
        good "There is nothing of $project to remove."
        return
    fi
    say "This removes, and nothing else:"
    for kind in $all; do say "  container  $(container_name "$kind") ($(field "$kind" '{{.State.Status}}'))"; done
    for kind in $networks; do say "  network    $(engine network inspect --format '{{.Name}}' "$kind")"; done
    for kind in $volumes; do say "  volume     $kind, with the models and all else that was downloaded or put there"; done
    for kind in $images; do say "  image      $kind"; done
    if [[ $asks == yes ]]; then
        [[ -t 0 ]] || fail "clean asks before it removes, and there is no terminal to ask on." "In scripts: ./deploy.sh clean --yes"
        read -r -p "Remove all of this? [y/N] " answer
        [[ $answer == [yY] || $answer == [yY][eE][sS] ]] || fail "Nothing was removed."
    fi
    remove_all "$all" "$networks" "$volumes" "$images"
}

# remove_all CONTAINERS NETWORKS VOLUMES IMAGES; goes on after a failure, and tells of it at the end.
remove_all() {
    local thing failed=""
    for thing in $1; do engine rm -f "$thing" >/dev/null 2>>"$scratch/clean" || failed+=" container $thing"; done
    for thing in $2; do engine network rm "$thing" >/dev/null 2>>"$scratch/clean" || failed+=" network $thing"; done
    for thing in $3; do engine volume rm "$thing" >/dev/null 2>>"$scratch/clean" || failed+=" volume $thing"; done
    for thing in $4; do engine rmi "$thing" >/dev/null 2>>"$scratch/clean" || failed+=" image $thing"; done
    if [[ -n $failed ]]; then
        cat "$scratch/clean" >&2
        fail "Still there:$failed" "The lines above say why; a container of another project may use it."
    fi
    good "Removed."
}

# --- Beginning and end ---------------------------------------------------------------------------------------------

on_exit() {
    local status=$?
    trap - EXIT
    trap '' INT TERM HUP # a way back that is cut short would be worse than what it was to put right
    set +e
    case $phase in
        rehearsing) end_rehearsal ;;
        switching)
            ((status != 0)) || status=1
            roll_back
            bad "deploy.sh: The deployment failed."
            ;;
    esac
    if [[ -n $scratch ]]; then rm -rf -- "$scratch"; fi
    exit "$status"
}

begin() {
    trap on_exit EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    scratch=$(mktemp -d)
}

command=${1:-}
case $command in
    "")
        usage >&2
        exit 2
        ;;
    help | -h | --help) usage ;;
    deploy | build | rollback | status | logs | restart | stop | clean)
        begin
        "$command" "${@:2}"
        ;;
    test)
        begin
        try_requests "${@:2}"
        ;;
    *) wrong_use "unknown command: $command" ;;
esac
