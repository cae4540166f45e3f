# shellcheck shell=bash
# What deploy.sh says: messages, failures, and what to do about those that are known by their words.

say() { printf '%s\n' "$*" >&2; }

# In colour on a terminal only, where nobody has asked for none.
tell() {
    local colour=$1
    shift
    if [[ -t 2 && -z ${NO_COLOR:-} ]]; then printf '\033[%sm%s\033[0m\n' "$colour" "$*" >&2; else say "$*"; fi
}

good() { tell 32 "$*"; }
bad() { tell 31 "$*"; }

fail() {
    bad "deploy.sh: $1"
    shift
    local line
    for line in "$@"; do say "  $line"; done
    exit 1
}

wrong_use() {
    say "deploy.sh: $*"
    say "./deploy.sh help tells all commands and options."
    exit 2
}

# explain FILE: what to do about failures that are known by their words. Silent about others: FILE was shown already.
explain() {
    local settings
    settings=$(grep -o 'Bad settings: .*' "$1" | tail -n 1) || settings=""
    if [[ -n $settings ]]; then
        bad "$settings"
        say "  -> Correct it in .env (or in the environment), then ./deploy.sh deploy."
    fi
    known "$1" 'FAIL +values' "Correct it in .env (or in the environment), then ./deploy.sh deploy."
    known "$1" 'no space left on device' \
        "The disk is full. $engine system df shows what takes it; $engine image prune and $engine builder prune free some."
    known "$1" 'range of CPUs is from' "The machine has fewer cores than CPUS (2 by default): set it lower in .env."
    known "$1" 'port is already allocated|address already in use|failed to bind|ports are not available' \
        "Another program has the port. Stop it, or set PORT in .env to a free one."
    known "$1" 'FAIL +(memory|MODEL_MEMORY_BUDGET)|out of memory|oom-?killed|MemoryError|too little memory|std::bad_alloc' \
        "Too little memory. Raise the limit in docker-compose.yml (and on the machine), or require fewer or smaller models (REQUIRED_MODELS)."
    known "$1" 'FAIL +(HUB_CACHE_DIR|MODELS_DIR)|HUB_CACHE_DIR cannot be written|(permission denied|read-only file system).*/data|/data.*(permission denied|read-only|not writable|cannot be written)' \
        "A folder under /data cannot be written by user 10001. For a folder of this machine: sudo chown -R 10001:10001 FOLDER."
    known "$1" 'buildkit is enabled but the buildx component is missing|buildx.*(missing|broken)|requires buildx' \
        "Docker's build plugin is missing: install docker-buildx-plugin, or build with DOCKER_BUILDKIT=0."
    known "$1" 'temporary failure in name resolution|could not resolve|no such host|network is unreachable|i/o timeout|tls handshake timeout|ProxyError' \
        "The network cannot be reached. Images and packages must be here already, or come through a proxy (HTTPS_PROXY)."
    known "$1" 'toomanyrequests|pull access denied|manifest unknown|unauthorized:|repository does not exist' \
        "An image cannot be fetched. Look at its name; '$engine login' if it is private."
    known "$1" 'pool overlaps|address pools have been|could not find an available' \
        "No address is free for another network. '$engine network prune' removes those that nobody uses."
    known "$1" 'env[_ ]file.*(not found|no such file)|\.env.*(not found|no such file)' \
        "There is no .env: cp .env.example .env (all values in it are defaults)."
}

known() {
    if grep -Eiq -- "$2" "$1"; then say "  -> $3"; fi
}

# Not `head -n 1`, which would end before its writer does: a failure, with pipefail.
first() { sed -n 1p; }
