#!/usr/bin/env bash
# Sets up .venv where needed, then starts the service or runs the tests. `./run.sh help` tells the rest.
set -euo pipefail

# A relative PYTHON is meant from where the caller stands, and below we stand beside this script.
if [[ ${PYTHON:-} == */* && $PYTHON != /* ]]; then PYTHON=$PWD/$PYTHON; fi
self=$(readlink -f -- "${BASH_SOURCE[0]}" 2>/dev/null) || self=${BASH_SOURCE[0]}
readonly caller=$PWD
CDPATH='' cd -- "$(dirname -- "$self")"

readonly venv_python=.venv/bin/python
# Stands there while packages are being installed; one that is left over tells of an install that was cut short.
readonly unfinished=.venv/.unfinished

usage() {
    cat <<'USAGE'
Usage: ./run.sh [COMMAND]

  (none)          set up .venv where needed, then start the service
  test [ARGS]     set up .venv where needed, then run every test, on all cores; ARGS go to pytest
  check           would the service start here, and if not, why
  compare A B --texts FILE    how far two models agree on your texts, and what each costs
  download MODEL...           fill the cache of models
  install         set up .venv only, with the lint tools too
  help            show this

PYTHON=/path/to/python ./run.sh   use this Python (3.11, 3.12 or 3.13)
HOST, PORT and the other settings come from the environment or from .env; see .env.example.
USAGE
}

say() { printf '%s\n' "$*" >&2; }

fail() {
    say "run.sh: $*"
    exit 1
}

# Prints this Python's version, such as 3.11; fails where it does not run (a pyenv shim may not) or is not supported.
supported_version() {
    "$1" -c '
import sys
if not (3, 11) <= sys.version_info < (3, 14):
    sys.exit(1)
print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

can_make_venv() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }

# Prints the Python to make .venv with.
find_python() {
    local candidate version without_venv=""
    if [[ -n ${PYTHON:-} ]]; then
        version=$(supported_version "$PYTHON") || fail "PYTHON=$PYTHON is no working Python 3.11, 3.12 or 3.13."
        can_make_venv "$PYTHON" || fail_without_venv "$PYTHON" "$version"
        printf '%s\n' "$PYTHON"
        return
    fi
    while IFS= read -r candidate; do
        version=$(supported_version "$candidate") || continue
        if can_make_venv "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
        : "${without_venv:="$candidate $version"}"
    done < <(type -aP python3.13 python3.12 python3.11 python3 python)
    [[ -z $without_venv ]] || fail_without_venv "${without_venv% *}" "${without_venv##* }"
    fail "No Python 3.11, 3.12 or 3.13 found. Install one, or name it: PYTHON=/path/to/python ./run.sh"
}

fail_without_venv() {
    fail "$1 lacks the venv module. On Debian and Ubuntu: apt-get install python$2-venv"
}

# Prints what an install depends on, shortened to one line; fails where .venv has no working, supported Python.
fingerprint() {
    "$venv_python" -ISc '
import hashlib, sys
if not (3, 11) <= sys.version_info < (3, 14):
    sys.exit(1)
requirements = b"".join(open(name, "rb").read() for name in sys.argv[1:])
print("%d.%d" % sys.version_info[:2], hashlib.sha256(requirements).hexdigest())' \
        requirements.txt requirements/*.txt 2>/dev/null
}

# is_installed FILE: .venv holds all of this requirement file, as it reads now, for the Python asked for.
is_installed() {
    local now wanted
    [[ ! -e $unfinished && -f $(stamp_of "$1") ]] || return 1
    now=$(fingerprint) && [[ $now == "$(<"$(stamp_of "$1")")" ]] || return 1
    [[ -z ${PYTHON:-} ]] || { wanted=$(supported_version "$PYTHON") && [[ ${now% *} == "$wanted" ]]; }
}

stamp_of() { printf '.venv/.installed-%s' "${1##*/}"; }

# is_usable: pip in .venv works, was not cut short, and belongs to the Python asked for.
is_usable() {
    local now
    [[ ! -e $unfinished ]] || return 1
    "$venv_python" -m pip --version >/dev/null 2>&1 || return 1
    now=$(supported_version "$venv_python") || return 1
    [[ -z ${PYTHON:-} || $now == "$(supported_version "$PYTHON")" ]]
}

make_venv() {
    local python
    python=$(find_python) || exit
    # Where .venv is activated, that is .venv's own, which goes now; the Python it was made with stays.
    python=$("$python" -c 'import sys; print(sys._base_executable)')
    say "Making .venv with Python $(supported_version "$python") ..."
    rm -rf .venv
    mkdir .venv
    touch "$unfinished"
    "$python" -m venv .venv || fail "$python could not make .venv; the lines above say why."
}

# install FILE: bring .venv in step with this requirement file. Does nothing, and needs no network, where it is already.
install() {
    if is_installed "$1"; then return; fi
    # Only one run.sh at a time may install: a second one waits here, then finds all done.
    exec 9<requirements.txt
    if command -v flock >/dev/null; then flock 9; fi
    if ! is_installed "$1"; then
        is_usable || make_venv
        say "Installing $1 (this once, and again when it changes; it may take a minute) ..."
        touch "$unfinished"
        "$venv_python" -m pip install --quiet --disable-pip-version-check --no-input \
            -c requirements/lock.txt -r "$1" ||
            fail "Installing $1 failed (no network?); the lines above say why. Run it again to retry."
        fingerprint >"$(stamp_of "$1")"
        rm "$unfinished"
    fi
    exec 9<&-
}

# Prints the address to use from this machine, and "key" where callers need one. Asks Settings, so that environment, .env and defaults count as they do in
# the service; fails on a bad setting, which the service itself then names.
address() {
    "$venv_python" -c '
from config import Settings
settings = Settings()
host = "localhost" if settings.host in ("0.0.0.0", "::", "") else settings.host
print("http://%s:%d" % ("[%s]" % host if ":" in host else host, settings.port), "key" if settings.key_sources else "")' 2>/dev/null
}

# greet URL [key]
greet() {
    local key=""
    [[ -z ${2:-} ]] || key=" -H 'X-API-Key: YOUR KEY'"
    cat <<GREETING
Fast Embedding API starts on $1 (Ctrl-C stops it).

  try it    curl $1/embed$key -H 'Content-Type: application/json' -d '{"text": "Hello, world!"}'
  state     $1/health
  API       $1/schema

GREETING
}

serve() {
    local url
    install requirements.txt
    # shellcheck disable=SC2086 # two words: the address, and perhaps "key"
    if url=$(address); then greet $url; fi
    exec "$venv_python" main.py
}

run_command() {
    local home=$PWD
    install requirements.txt
    CDPATH='' cd -- "$caller" # where a relative --texts is meant from
    exec "$home/$venv_python" "$home/main.py" "$@"
}

run_tests() {
    install requirements.txt
    # Tests of one file share servers, so a file stays on one worker (loadfile). `-n 0` among ARGS: no workers.
    exec "$venv_python" -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder "$@"
}

case ${1:-} in
    "") serve ;;
    test) run_tests "${@:2}" ;;
    check | compare | download) run_command "$@" ;;
    install)
        install requirements.txt
        install requirements/lint.txt
        ;;
    help | -h | --help) usage ;;
    *)
        say "run.sh: unknown command: $1"
        usage >&2
        exit 2
        ;;
esac
