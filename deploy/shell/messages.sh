# shellcheck shell=bash
# Messages, error exits, and advice on known failures. All of it goes to standard error.

say() { printf '%s\n' "$*" >&2; }

# Uses colour only on a terminal, and not if NO_COLOR is set.
say_in_colour() {
    local colour=$1
    shift
    if [[ -t 2 && -z ${NO_COLOR:-} ]]; then printf '\033[%sm%s\033[0m\n' "$colour" "$*" >&2; else say "$*"; fi
}

success() { say_in_colour 32 "$*"; }
error() { say_in_colour 31 "$*"; }

# fail MESSAGE [ADVICE]
fail() {
    error "deploy.sh: $1"
    if (($# > 1)); then say "  $2"; fi
    exit 1
}

usage_error() {
    say "deploy.sh: $*"
    say "See ./deploy.sh help for commands and options."
    exit 2
}

# explain_failure FILE: print advice on the known errors in FILE, which the user has already seen.
explain_failure() {
    local settings
    settings=$(grep -o 'Bad settings: .*' "$1" | tail -n 1) || settings=""
    if [[ -n $settings ]]; then error "$settings"; fi
    advise "$1" 'Bad settings: |FAIL +values' "Correct it in .env (or in the environment), then run ./deploy.sh deploy."
    advise "$1" 'no space left on device' \
        "The disk is full. $engine system df shows what uses it; $engine image prune and $engine builder prune free space."
    advise "$1" 'range of CPUs is from' "The machine has fewer cores than CPUS (default 2). Set a lower CPUS in .env."
    advise "$1" 'port is already allocated|address already in use|failed to bind|ports are not available' \
        "Another program uses the port. Stop it, or set PORT in .env to a free port."
    advise "$1" 'FAIL +(memory|MODEL_MEMORY_BUDGET)|out of memory|oom-?killed|MemoryError|too little memory|std::bad_alloc' \
        "Not enough memory. Raise the limit in docker-compose.yml (and on the machine), or require fewer or smaller models (REQUIRED_MODELS)."
    advise "$1" 'FAIL +(HUB_CACHE_DIR|MODELS_DIR)|HUB_CACHE_DIR cannot be written|(permission denied|read-only file system).*/data|/data.*(permission denied|read-only|not writable|cannot be written)' \
        "User 10001 cannot write to a folder under /data. For a folder of this machine: sudo chown -R 10001:10001 FOLDER."
    advise "$1" 'buildkit is enabled but the buildx component is missing|buildx.*(missing|broken)|requires buildx' \
        "Docker's build plugin is missing. Install docker-buildx-plugin, or build with DOCKER_BUILDKIT=0."
    advise "$1" 'temporary failure in name resolution|could not resolve|no such host|network is unreachable|i/o timeout|tls handshake timeout|ProxyError' \
        "The network is unreachable. Provide images and packages locally, or set a proxy (HTTPS_PROXY)."
    advise "$1" 'toomanyrequests|pull access denied|manifest unknown|unauthorized:|repository does not exist' \
        "An image cannot be pulled. Check its name; for a private image, run '$engine login'."
    advise "$1" 'pool overlaps|address pools have been|could not find an available' \
        "No address range is free for another network. '$engine network prune' removes unused networks."
    advise "$1" 'env[_ ]file.*(not found|no such file)|\.env.*(not found|no such file)' \
        "There is no .env. Run cp .env.example .env (all its values are defaults)."
}

# advise FILE PATTERN ADVICE
advise() {
    if grep -Eiq -- "$2" "$1"; then say "  -> $3"; fi
}

# Unlike `head -n 1`, reads all its input: with pipefail, a writer killed by a closed pipe would be a failure.
first_line() { sed -n 1p; }
