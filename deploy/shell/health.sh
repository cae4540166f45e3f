# shellcheck shell=bash
# How deploy.sh waits for a container's health.

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
    if (($# == 0)); then
        bad "No container was started."
        return 1
    fi
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
