# shellcheck shell=bash
# Finds the container engine and compose, and locks out other runs of deploy.sh.

# Descriptor 9 is the lock. Closing it keeps podman's monitor processes from holding the lock.
engine() { "$engine" "$@" 9<&-; }
compose() { "${compose_command[@]}" "$@" 9<&-; }

find_engine() {
    local candidate found=""
    for candidate in ${CONTAINER_ENGINE:-docker podman}; do
        command -v "$candidate" >/dev/null || continue
        if "$candidate" ps -q >/dev/null 2>"$temp_dir/engine"; then
            engine=$candidate engine_version=$("$candidate" --version | first_line)
            return
        fi
        if [[ -z $found ]]; then found=$candidate engine_error=$(<"$temp_dir/engine"); fi
    done
    if [[ -z $found && -n ${CONTAINER_ENGINE:-} ]]; then
        fail "CONTAINER_ENGINE=$CONTAINER_ENGINE is not installed." "Use docker or podman, or leave it unset."
    fi
    [[ -n $found ]] || fail "Neither docker nor podman is installed." \
        "Install Docker (https://docs.docker.com/engine/install/), or podman and podman-compose."
    say "$engine_error"
    case $engine_error in
        *[Pp]"ermission denied"*)
            fail "You do not have permission to use $found." \
                "Join its group (sudo usermod -aG docker \"\$USER\", then log in again), or use sudo, or use a rootless engine." ;;
        *"podman machine"*) fail "podman's virtual machine is not running." "podman machine init (once), then podman machine start." ;;
        *)
            fail "$found is installed, but its engine does not respond." \
                "Start it: sudo systemctl start docker, or Docker Desktop. Its address comes from DOCKER_HOST=${DOCKER_HOST:-} and '$found context ls'." ;;
    esac
}

find_compose() {
    local candidate version
    # shellcheck disable=SC2086 # words of a command
    for candidate in "$engine compose" docker-compose podman-compose; do
        if ! is_podman && [[ $candidate == podman-compose ]]; then continue; fi
        # docker-compose reaches podman only if DOCKER_HOST names its socket.
        if is_podman && [[ $candidate == docker-compose && -z ${DOCKER_HOST:-} ]]; then continue; fi
        version=$($candidate version 2>/dev/null) || continue
        case $version in
            *podman-compose*) compose_kind=podman-compose ;;
            *[Vv]"ersion 1."*) compose_kind=v1 ;;
            *) compose_kind=v2 ;;
        esac
        if [[ $compose_kind == v1 && $version =~ version\ 1\.([0-9]+) ]] && ((BASH_REMATCH[1] < 28)); then
            fail "$(first_line <<<"$version") is too old: profiles need 1.28." "Install the compose plugin: https://docs.docker.com/compose/install/"
        fi
        IFS=' ' read -r -a compose_command <<<"$candidate -p $project"
        return
    done
    if [[ -n $engine_error ]]; then say "$engine_error"; fi # of docker, tried before podman
    fail "$engine is installed, but compose is not." \
        "Install docker-compose-plugin (https://docs.docker.com/compose/install/), or podman-compose for podman."
}

is_podman() { [[ $engine_version == podman* ]]; } # it can also be installed as `docker`

# Add the compose files and profiles to compose_command.
use_profiles() {
    local profile
    # docker-compose.override.yml publishes the service's port, which only one replica could have.
    if is_ha && [[ -z $(setting COMPOSE_FILE "") ]]; then compose_command+=(-f docker-compose.yml); fi
    for profile in ${profiles//,/ }; do compose_command+=(--profile "$profile"); done
}

prepare() {
    [[ -f docker-compose.yml ]] || fail "docker-compose.yml is missing." "deploy.sh needs the whole repository."
    find_engine
    find_compose
    read_shape
    use_profiles
}

# Lock the folder until this process ends. The lock is on the folder itself, so no file remains.
lock() {
    exec 9<.
    if command -v flock >/dev/null; then
        flock -n 9 && return
    elif command -v perl >/dev/null; then # macOS
        perl -MFcntl=:flock -e 'open my $folder, "<&=9" or exit 1; flock($folder, LOCK_EX | LOCK_NB) or exit 1' && return
    else
        return 0
    fi
    fail "Another deploy.sh is running in this folder." "Wait until it ends, then try again."
}
