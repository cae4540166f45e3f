# shellcheck shell=bash
# Waits until containers are healthy.

# within SECONDS PROGRAM...: like timeout(1), which macOS lacks. Returns 124 on a timeout.
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

# Run the container's own health check now. The engine's next check can be half a minute away, and podman without
# systemd never runs one.
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

# wait_for_health CONTAINER...: wait up to wait_seconds for all of them. Fails at once if a container has exited.
wait_for_health() {
    local end=$((SECONDS + wait_seconds)) begin=$SECONDS container restarts=""
    if (($# == 0)); then
        error "No container was started."
        return 1
    fi
    for container in "$@"; do restarts+=" $container=$(field "$container" '{{.RestartCount}}')"; done
    say "Waiting until healthy (up to $wait_seconds s) ..."
    for container in "$@"; do
        until is_healthy "$container"; do
            case $(field "$container" '{{.State.Status}}') in
                running | created | initialized) ;;
                *) report_unhealthy "$container" "has exited"; return 1 ;;
            esac
            if [[ $restarts != *" $container=$(field "$container" '{{.RestartCount}}')"* ]]; then
                report_unhealthy "$container" "exited and was restarted"
                return 1
            fi
            if ((SECONDS >= end)); then report_unhealthy "$container" "is not healthy after $wait_seconds s"; return 1; fi
            sleep 1
        done
    done
    success "Healthy after $((SECONDS - begin)) s."
}

# report_unhealthy CONTAINER REASON: show its last log lines, and advice.
report_unhealthy() {
    local state
    error "$(container_name "$1") $2. Its last log lines:"
    engine logs "$1" 2>&1 | tail -n 50 >"$temp_dir/logs" || true
    sed 's/^/  | /' "$temp_dir/logs" >&2
    state=$(field "$1" '{{.State.OOMKilled}} {{.State.ExitCode}}')
    if [[ $state == "true "* || $state == *" 137" ]]; then printf 'oom-killed (exit code %s)\n' "${state##* }" >>"$temp_dir/logs"; fi
    explain_failure "$temp_dir/logs"
}
