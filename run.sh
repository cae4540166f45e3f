#!/usr/bin/env bash
# Sets up .venv if needed, then starts the service or runs the tests; see `./run.sh help`.
set -euo pipefail

# A relative PYTHON is relative to the caller's folder, but from here on this script works in its own.
if [[ ${PYTHON:-} == */* && $PYTHON != /* ]]; then PYTHON=$PWD/$PYTHON; fi
self=$(readlink -f -- "${BASH_SOURCE[0]}" 2>/dev/null) || self=${BASH_SOURCE[0]}
readonly caller=$PWD
CDPATH='' cd -- "$(dirname -- "$self")"

readonly venv_python=.venv/bin/python
# Exists while packages are being installed. If it is left over, the last install was interrupted.
readonly unfinished=.venv/.unfinished
readonly runtime=requirements/lock-runtime.txt
readonly tests=requirements/lock-test.txt
readonly everything=requirements/lock.txt

usage() {
    cat <<'USAGE'
Usage: ./run.sh [COMMAND]

  (none)          start the service
  test [ARGS]     run the tests; ARGS go to pytest
  check           check whether the service would start here, and if not, why
  compare A B --texts FILE    compare two models on your texts
  download MODEL...           download models into the cache
  optimise MODEL...           write optimised copies of models
  top                         show what a running service does
  install         set up .venv with everything: service, tests, lint tools
  help            show this

The first run makes .venv and installs what the command needs: 350 MB for the service, 900 MB with the tests.
PYTHON=/path/to/python ./run.sh   use this Python (3.11, 3.12 or 3.13)
HOST, PORT and the other settings come from the environment or from .env; see .env.example.
USAGE
}

say() { printf '%s\n' "$*" >&2; }

fail() {
    say "run.sh: $*"
    exit 1
}

# Print the version of this Python, such as 3.11. Fail if it does not run (a pyenv shim may not) or is not supported.
supported_version() {
    "$1" -c '
import sys
if not (3, 11) <= sys.version_info < (3, 14):
    sys.exit(1)
print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

can_make_venv() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }

# Print the Python to make .venv with.
find_python() {
    local candidate version without_venv=""
    if [[ -n ${PYTHON:-} ]]; then
        version=$(supported_version "$PYTHON") || fail "PYTHON=$PYTHON is not a working Python 3.11, 3.12 or 3.13."
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
    fail "No Python 3.11, 3.12 or 3.13 found. Install one, or set its path: PYTHON=/path/to/python ./run.sh"
}

fail_without_venv() {
    fail "$1 has no venv module. On Debian and Ubuntu: apt-get install python$2-venv"
}

# Print one line that changes with anything an install depends on. Fail if .venv has no working, supported Python.
fingerprint() {
    "$venv_python" -ISc '
import hashlib, sys
if not (3, 11) <= sys.version_info < (3, 14):
    sys.exit(1)
requirements = b"".join(open(name, "rb").read() for name in sys.argv[1:])
print("%d.%d" % sys.version_info[:2], hashlib.sha256(requirements).hexdigest())' \
        requirements.txt requirements/*.txt 2>/dev/null
}

# is_installed FILE: .venv has everything in the current version of this requirements file, for the wanted Python.
is_installed() {
    local now wanted
    [[ ! -e $unfinished && -f $(marker_of "$1") ]] || return 1
    now=$(fingerprint) && [[ $now == "$(<"$(marker_of "$1")")" ]] || return 1
    [[ -z ${PYTHON:-} ]] || { wanted=$(supported_version "$PYTHON") && [[ ${now% *} == "$wanted" ]]; }
}

# The file in which .venv records what was installed from this requirements file.
marker_of() { printf '.venv/.installed-%s' "${1##*/}"; }

# is_usable: pip in .venv works, its last install was not interrupted, and it belongs to the wanted Python.
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
    # If .venv is activated, this is its own Python, which is deleted below; use the one that it was made with.
    python=$("$python" -c 'import sys; print(sys._base_executable)')
    say "Making .venv with Python $(supported_version "$python") ..."
    rm -rf .venv
    mkdir .venv
    touch "$unfinished"
    "$python" -m venv .venv || fail "$python could not make .venv; the lines above say why."
}

# Print what installing this requirements file costs, measured on 2 cores with a fast network and an empty .venv.
cost_of() {
    case $1 in
        *-runtime.txt) echo "83 MB to download, 350 MB on disk, 30 s or more" ;;
        *-test.txt) echo "with the test tools 230 MB to download, 900 MB on disk, 1 minute or more" ;;
        *) echo "with the test and lint tools 300 MB to download, 1.1 GB on disk, 1 minute or more" ;;
    esac
}

# Print the lock files that are parts of this one.
included_in() {
    case $1 in
        "$everything") echo "$tests $runtime" ;;
        "$tests") echo "$runtime" ;;
    esac
}

# install FILE: bring .venv in step with this lock file. If it is already, do nothing, and need no network.
# pip rejects a package whose hash is not in the file.
install() {
    local progress=--quiet part
    if is_installed "$1"; then return; fi
    # Only one run.sh installs at a time. A second one waits here, then finds everything installed.
    exec 9<requirements.txt
    if command -v flock >/dev/null; then flock 9; fi
    if ! is_installed "$1"; then
        is_usable || make_venv
        say "Installing $1 into .venv: $(cost_of "$1"). Only once, and again when it changes ..."
        [[ ! -t 2 ]] || progress=--progress-bar=on # pip's own progress, on a terminal
        touch "$unfinished"
        SECONDS=0
        "$venv_python" -m pip install "$progress" --disable-pip-version-check --no-input \
            --require-hashes -r "$1" >&2 ||
            fail "Installing $1 failed (no network?); the lines above say why. Run it again to retry."
        fingerprint >"$(marker_of "$1")"
        for part in $(included_in "$1"); do fingerprint >"$(marker_of "$part")"; done
        rm "$unfinished"
        say "Installed in $SECONDS s."
    fi
    exec 9<&-
}

serve() {
    install "$runtime"
    "$venv_python" -m cli.greeting || exit
    exec "$venv_python" main.py
}

run_command() {
    local home=$PWD
    install "$runtime"
    CDPATH='' cd -- "$caller" # a relative --texts is relative to the caller's folder
    exec "$home/$venv_python" "$home/main.py" "$@"
}

run_tests() {
    install "$tests"
    # Tests of one file share servers, so a file stays on one worker (loadfile). `-n 0` among ARGS: no workers.
    exec "$venv_python" -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder "$@"
}

case ${1:-} in
    "" | serve) serve ;;
    test) run_tests "${@:2}" ;;
    check | compare | download | optimise | top) run_command "$@" ;;
    install) install "$everything" ;;
    help | -h | --help) usage ;;
    *)
        say "run.sh: unknown command: $1"
        usage >&2
        exit 2
        ;;
esac
