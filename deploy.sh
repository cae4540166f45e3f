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
phase=idle interrupted=""
# The images by their ids: the one that ran before, the one to run, and what the tags meant before.
old="" new="" image_before="" previous_before=""
config_hash="" scratch=""
told_profile="" told_scale="" told_wait="" told_image="" told_url="" builds=yes asks=yes is_full=no
# More for `compose up` when replicas have been replaced.
settle=()

# Each part does nothing by itself but define functions; all read the variables above.
source deploy/shell/telling.sh
source deploy/shell/asking.sh
source deploy/shell/engines.sh
source deploy/shell/images.sh
source deploy/shell/health.sh
source deploy/shell/rehearsal.sh
source deploy/shell/replacing.sh
source deploy/shell/care.sh
source deploy/shell/cleaning.sh

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

check_env_file() {
    if [[ ! -e .env ]]; then
        say "No .env here: the defaults hold. To change them: cp .env.example .env"
    elif [[ ! -r .env || -d .env ]]; then
        fail ".env cannot be read." "Make it a file that you can read: ls -l .env"
    else
        local name
        for name in $(names_without_effect); do
            say "warn  .env: $name has no effect here, as compose's files do not name it. Is it mistyped?"
        done
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

on_exit() {
    local status=${interrupted:-$?}
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
    # Kept, as on_exit once saw the status of the command that the signal came into, and not that of the signal.
    trap 'interrupted=130; exit 130' INT
    trap 'interrupted=143; exit 143' TERM HUP
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
