#!/usr/bin/env bash
# Builds, deploys and operates the service with Docker or podman. See `./deploy.sh help`.
set -euo pipefail

self=$(readlink -f -- "${BASH_SOURCE[0]}" 2>/dev/null) || self=${BASH_SOURCE[0]}
CDPATH='' cd -- "$(dirname -- "$self")"

readonly service=fast-embedding proxy=nginx
# Seconds between SHUTDOWN_TIMEOUT and the kill of a container that has not stopped.
readonly grace_seconds=10
# Twice the time between two lookups of the replicas' addresses by nginx: `valid` of the resolver in nginx.conf.
readonly lookup_seconds=4

# Command-line options; empty means not given.
profile_option="" scale_option="" wait_option="" image_option="" url_option="" build_first=yes confirm=yes full_test=no
# Found by prepare and read_settings.
engine="" engine_version="" engine_error="" compose_kind="" compose_command=()
project="" image="" repository="" profiles="" replicas="" wait_seconds=""
# What on_exit has to undo: nothing (idle), a trial container (trial), or a half-finished rollout (rollout).
phase=idle signal_status=""
# Image ids: the one that runs, the one to run, and what the two tags pointed to before the rollout.
old_image="" new_image="" latest_before="" previous_before=""
# Compose's hash of the service's configuration; empty means unknown.
config_hash="" temp_dir=""
# Extra arguments of the `compose up` that ends a rolling update.
final_up_options=()

# Each file only defines functions, which share the variables above.
source deploy/shell/messages.sh
source deploy/shell/settings.sh
source deploy/shell/engine.sh
source deploy/shell/images.sh
source deploy/shell/checks.sh
source deploy/shell/health.sh
source deploy/shell/trial_start.sh
source deploy/shell/rollout.sh
source deploy/shell/operations.sh
source deploy/shell/clean.sh

usage() {
    cat <<'USAGE'
Usage: ./deploy.sh COMMAND [OPTIONS]

  deploy      build the image, test that it starts, replace the running containers and wait until they
              are healthy; if they do not become healthy, show their logs and restore the previous image
  build       build the image only
  rollback    go back to the previously deployed image
  status      show containers, image revision, health, loaded models and memory
  logs [ARGS] show the last 100 lines; ARGS go to compose, for example -f or --since 10m
  restart     restart the containers one at a time, with their current image and settings
  stop        answer accepted requests, then stop the containers
  test        send requests to the deployed service (API_KEY=... if it requires a key)
  clean       remove this project's containers, networks, volumes and images, after confirmation
  help        show this help

Options (in brackets: the variable, read from the environment or .env):
  --profile ha      [COMPOSE_PROFILES] run replicas behind nginx, with Redis; none: a single container
  --scale N         [REPLICAS] replicas with --profile ha; default: the current number, or 3
  --image NAME      [IMAGE] image name; default: fast-embedding:latest
  --no-build        deploy: use the local image, or pull it
  --wait SECONDS    [WAIT_SECONDS] limit of the trial start and of the wait for health; default: 180
  --url URL         test: use this address instead of the published port
  --full            test: run test_api.py against a service with default settings
  --yes             clean: do not ask for confirmation

PRELOAD_MODELS="NAME NAME" adds models to the image. CONTAINER_ENGINE=podman prefers podman to docker.
Exit codes: 0 success; 1 failure (status and test: not healthy); 2 usage error.
USAGE
}

deploy() {
    local name
    parse_options "--profile --scale --image --no-build --wait" "$@"
    read_settings
    lock
    prepare
    check_env_file
    read_config_hash
    check_port
    check_proxy
    old_image=$(image_in_use)
    name=$(build_or_pull)
    new_image=$(image_id "$name")
    if ! is_deployed; then trial_start "$name"; fi
    roll_out
}

rollback() {
    parse_options "--wait" "$@"
    read_settings
    lock
    prepare
    old_image=$(image_in_use) new_image=$(image_id "$repository:previous")
    [[ -n $new_image ]] || fail "There is no previous image: $repository:previous does not exist." "The second deployment creates it."
    [[ $new_image != "$old_image" ]] || fail "$(describe_image "$new_image") already runs." "$repository:previous is the same image."
    read_config_hash
    trial_start "$repository:previous"
    roll_out
}

on_exit() {
    local status=${signal_status:-$?}
    trap - EXIT
    trap '' INT TERM HUP # an interrupted rollback would leave a worse state than the failed rollout
    set +e
    case $phase in
        trial) remove_trial_container ;;
        rollout)
            ((status != 0)) || status=1
            undo_rollout
            error "deploy.sh: The deployment failed."
            ;;
    esac
    if [[ -n $temp_dir ]]; then rm -rf -- "$temp_dir"; fi
    exit "$status"
}

begin() {
    trap on_exit EXIT
    # Stores the signal's status: in on_exit, $? can be the status of the command that the signal interrupted.
    trap 'signal_status=130; exit 130' INT
    trap 'signal_status=143; exit 143' TERM HUP
    temp_dir=$(mktemp -d)
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
        test_service "${@:2}"
        ;;
    *) usage_error "unknown command: $command" ;;
esac
