# shellcheck shell=bash
# Which engine and which compose deploy.sh works with, and that no other deploy.sh does at the same time.

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
