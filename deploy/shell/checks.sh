# shellcheck shell=bash
# Checks that run before anything is built or changed.

check_env_file() {
    local name
    if [[ ! -e .env ]]; then
        say "No .env found; using the defaults. To change them: cp .env.example .env"
    elif [[ ! -r .env || -d .env ]]; then
        fail "Cannot read .env." "Make it a file that you can read: ls -l .env"
    else
        for name in $(unused_names); do
            say "warn  .env: $name has no effect, because the compose files do not use it. Check the spelling."
        done
    fi
}

# Print the names in .env that neither the compose files nor this script read: misspelled names, and names that have no
# meaning in a container, like HOST.
unused_names() {
    local files name
    IFS=: read -r -a files <<<"$(setting COMPOSE_FILE docker-compose.yml:docker-compose.override.yml)"
    sed -n 's/^[[:space:]]*\(export[[:space:]][[:space:]]*\)\{0,1\}\([A-Za-z_][A-Za-z0-9_]*\)[[:space:]]*=.*/\2/p' .env |
        while read -r name; do
            case $name in COMPOSE_* | DOCKER_* | BUILDKIT_* | BUILDX_* | REPLICAS | WAIT_SECONDS) continue ;; esac
            grep -Eqs -- "^ +$name:[[:space:]]*\$|\\$\{?$name([^A-Za-z0-9_]|\$)" "${files[@]}" || printf '%s\n' "$name"
        done
}

# Fail if another program uses the port: after the old container has stopped, even a rollback would fail. The ports of a
# remote engine are not visible from here.
check_port() {
    local port container
    port=$(setting PORT 8000)
    [[ $port =~ ^[0-9]+$ ]] || return 0 # compose reports the bad value
    case ${DOCKER_HOST:-unix} in unix*) ;; *) return 0 ;; esac
    for container in $(containers); do
        if engine port "$container" 2>/dev/null | grep ":$port\$" >/dev/null; then return; fi
    done
    if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
        fail "Another program uses port $port. The running service was not changed." \
            "Stop that program, or set PORT in .env to a free port. To find it: sudo ss -ltnp 'sport = :$port' (macOS: lsof -i :$port)."
    fi
}

# Fail if nginx rejects nginx.conf: nginx could then not start again.
check_proxy() {
    [[ -n $(containers "$proxy") ]] && is_ha || return 0
    if ! run_trial "$proxy" sh /start-nginx.sh -t; then
        cat "$temp_dir/trial" >&2
        fail "nginx rejects nginx.conf; see the lines above. The running service was not changed."
    fi
}
