# shellcheck shell=bash
# Tests that an image starts, while the running service stays as it is.

# run_trial SERVICE PROGRAM [ARGS]: run PROGRAM in a new container with the settings of SERVICE; its output goes to
# $temp_dir/trial. Returns the exit code, or 124 after wait_seconds. Detached, because not every engine passes on the exit
# code of a container in the foreground.
run_trial() {
    local name=$project-trial end=$((SECONDS + wait_seconds)) status=0
    remove_trial_container # left by a killed run
    phase=trial
    compose run -d --no-deps --name "$name" --entrypoint "$2" "$1" "${@:3}" >"$temp_dir/trial" 2>&1 || return 1
    while [[ $(field "$name" '{{.State.Status}} {{.RestartCount}}') =~ ^(running|created|initialized|configured)\ 0$ ]]; do
        if ((SECONDS >= end)); then
            status=124
            break
        fi
        sleep 0.2
    done
    if ((status == 0)); then status=$(field "$name" '{{.State.ExitCode}}') || status=1; fi
    engine logs "$name" >"$temp_dir/trial" 2>&1 || true
    remove_trial_container
    return "$status"
}

# trial_start IMAGE: fail unless `python main.py check` succeeds in IMAGE with the service's settings and volumes.
trial_start() {
    local status=0
    say "Testing the start: settings, folders, memory, models (up to $wait_seconds s) ..."
    IMAGE=$1 run_trial "$service" python main.py check || status=$?
    if ((status == 0)); then
        grep '^warn ' "$temp_dir/trial" >&2 || true
        return
    fi
    cat "$temp_dir/trial" >&2
    explain_failure "$temp_dir/trial"
    # The first deployment leaves no network behind.
    if [[ -z $(containers "" all) ]]; then compose down >/dev/null 2>&1 || true; fi
    if ((status == 124)); then
        fail "The trial start did not end within $wait_seconds s. The running service was not changed." \
            "If models are being downloaded, allow more time: --wait 600."
    fi
    fail "This image does not start with these settings; see the lines above (FAIL marks the setting). The running service was not changed."
}

remove_trial_container() {
    phase=idle
    engine rm -f -v "$project-trial" >/dev/null 2>&1 || true
}
