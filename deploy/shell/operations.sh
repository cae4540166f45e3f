# shellcheck shell=bash
# The commands status, logs, restart, stop and test.

# Print the address of the service, or nothing.
service_url() {
    local container address
    container=$(containers "$proxy" | first_line)
    if [[ -z $container ]]; then container=$(containers "$service" | first_line); fi
    if [[ -z $container ]]; then return; fi
    address=$(engine port "$container" 2>/dev/null | sed -n 's/.* -> //p' | first_line)
    if [[ -z $address ]]; then return; fi
    case ${address%:*} in "" | 0.0.0.0 | "[::]") address=localhost:${address##*:} ;; esac
    printf 'http://%s\n' "$address"
}

status() {
    local container id result=0
    parse_options "" "$@"
    read_settings
    prepare
    printf 'project   %s (%s, %s)\n' "$project" "$engine_version" "${compose_command[*]}"
    id=$(image_in_use)
    if [[ -z $id ]]; then
        printf 'deployed  nothing; run ./deploy.sh deploy\n'
        return 1
    fi
    printf 'image     %s, %s\n' "$image" "$(describe_image "$id")"
    if [[ $id != "$(image_id "$image")" ]]; then printf '          %s is now another image; ./deploy.sh deploy --no-build deploys it\n' "$image"; fi
    id=$(image_id "$repository:previous")
    if [[ -n $id ]]; then printf 'previous  %s\n' "$(describe_image "$id")"; fi
    printf 'address   %s\n' "$(service_url)"
    for container in $(containers "" all); do
        show_container "$container" || result=1
    done
    container=$(containers "$service" | first_line)
    if [[ -n $container ]]; then show_models "$container"; else result=1; fi
    return "$result"
}

# show_container ID: print one line. Fails if it belongs to the service and is not healthy.
show_container() {
    local state memory="" is_fine=1
    state=$(field "$1" '{{.State.Status}}')
    if [[ $state == running ]]; then
        memory=$(engine stats --no-stream --format '{{.MemUsage}}' "$1" 2>/dev/null) || memory=""
        if is_healthy "$1"; then state=healthy is_fine=0; else state=unhealthy; fi
    fi
    printf '%-10s%-40s %s\n' "$state" "$(container_name "$1")" "${memory:+memory $memory}"
    [[ $(label "$1" com.docker.compose.service) != "$service" ]] || return "$is_fine"
}

# show_models ID: print the loaded models and the uptime, unless /health does not answer. Runs inside the container, so it
# needs no published port.
show_models() {
    within 10 "$engine" exec "$1" python -c '
import json, os, urllib.request
url = "http://127.0.0.1:%s/health" % os.environ.get("PORT", "8000")
health = json.load(urllib.request.urlopen(url, timeout=5))
print("models    " + ", ".join(health["cache_info"]["cached_models"]))
print("uptime    %d s" % health["uptime_seconds"])' 2>/dev/null || true
}

logs() {
    read_settings
    prepare
    if (($#)); then compose logs "$@"; else compose logs --tail 100; fi
}

restart() {
    local container found=no
    parse_options "--wait" "$@"
    read_settings
    lock
    prepare
    for container in $(containers "$service" all); do
        found=yes
        say "Restarting $(container_name "$container") ..."
        engine restart -t "$(stop_seconds)" "$container" >/dev/null
        wait_for_health "$container" || fail "It does not become healthy again; see the lines above." "./deploy.sh rollback restores the previous image."
        wait_for_lookup
    done
    [[ $found == yes ]] || fail "There is nothing to restart." "./deploy.sh deploy starts the service."
    for container in $(containers "" all); do
        if [[ $(field "$container" '{{.State.Status}}') != running ]]; then engine start "$container" >/dev/null; fi
    done
    success "Restarted with the same image and settings. ./deploy.sh deploy applies new ones."
    service_url
}

stop() {
    local container
    parse_options "" "$@"
    read_settings
    lock
    prepare
    # The replicas stop first: nginx passes requests to those that remain, and they use Redis until they end.
    for container in $(containers "$service") $(containers "$proxy") $(containers); do
        if [[ $(field "$container" '{{.State.Status}}') == running ]]; then
            say "Stopping $(container_name "$container") ..."
            engine stop -t "$(stop_seconds)" "$container" >/dev/null
        fi
    done
    success "All containers of $project are stopped. ./deploy.sh deploy --no-build starts them again."
}

test_service() {
    local base
    parse_options "--url --full" "$@"
    read_settings
    base=$url_option
    if [[ -z $base ]]; then
        prepare
        base=$(service_url)
        [[ -n $base ]] || fail "No running container of $project has a published port." "Start the service with ./deploy.sh deploy, or name an address with --url."
    fi
    if [[ $full_test == yes ]]; then exec ./run.sh test test_api.py --base-url="$base"; fi
    command -v curl >/dev/null || fail "curl is not installed." "Install it (apt-get install curl), or use --full."
    request "$base" /health '"status":"healthy"'
    request "$base" /embed '"dimension":[1-9]' '{"text": "Does it work?"}'
    request "$base" /embed/batch '"count":2,' '{"texts": ["Does it work?", "It does."]}'
    success "$base works."
}

# request BASE PATH EXPECTED [BODY]: print one line. Fails unless the answer is a 200 that matches EXPECTED.
request() {
    local code="" answer body=()
    if [[ -n ${4:-} ]]; then body=(-H 'Content-Type: application/json' -d "$4"); fi
    # The key goes through standard input: every user of the machine can read arguments.
    code=$(printf '%s' "${API_KEY:+header = \"Authorization: Bearer $API_KEY\"}" |
        curl -sS -m 60 -K - -o "$temp_dir/answer" -w '%{http_code}' ${body[@]+"${body[@]}"} "$1$2" 2>"$temp_dir/curl") || true
    answer=$(sed 's/\("embeddings\{0,1\}":\)[^"]*/\1[...],/' "$temp_dir/answer" 2>/dev/null | cut -c 1-200) || answer=""
    if [[ $code == 200 ]] && grep -Eq -- "$3" "$temp_dir/answer"; then
        printf 'ok    %-14s %s\n' "$2" "$answer"
        return
    fi
    printf 'FAIL  %-14s %s %s\n' "$2" "$code" "$answer"
    case $code in
        000 | "") fail "$1 does not answer: $(<"$temp_dir/curl")" "See ./deploy.sh status and ./deploy.sh logs." ;;
        401 | 403) fail "The service requires a key that may embed." "API_KEY=... ./deploy.sh test" ;;
        *) fail "$2 returned an unexpected answer with status $code." "See ./deploy.sh logs." ;;
    esac
}
