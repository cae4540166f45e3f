# shellcheck shell=bash
# Looking after what runs: where it is, how it is, its logs; restart, stop and a try of its answers.

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
