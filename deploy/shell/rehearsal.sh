# shellcheck shell=bash
# An image's trial start, before what runs is touched.

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
