#!/usr/bin/env bash
# Install the client libraries that tests/clients/ runs, below .cache/clients: `make clients`.
# Each requirements/lock-clients-NAME.txt becomes the environment NAME; node/, go/ and java/ become three more. What has not changed since is left as it is.
# UV=/path/to/uv and PYTHON=/path/to/python replace the ones of .venv.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."

readonly target=.cache/clients
read -ra uv <<<"${UV:-.venv/bin/python -m uv}"
mkdir -p "$target"

# is_fresh FOLDER FILE...: whether FOLDER was made from these very FILEs.
is_fresh() {
    local folder=$1
    shift
    cat "$@" | cmp -s - "$folder/.made-from"
}

# made FOLDER FILE...: note from what FOLDER was made.
made() {
    local folder=$1
    shift
    cat "$@" >"$folder/.made-from"
}

# has COMMAND: whether COMMAND is installed; if not, say what is skipped.
has() {
    command -v "$1" >/dev/null && return
    echo "WARNING: $1 is not installed. The tests of the clients that need it are skipped."
    return 1
}

python_environment() {
    local lock=$1 name folder
    name=$(basename "$lock" .txt)
    folder=$target/${name#lock-clients-}
    is_fresh "$folder" "$lock" && return
    "${uv[@]}" venv --quiet --clear --python "${PYTHON:-.venv/bin/python}" "$folder"
    "${uv[@]}" pip install --quiet --compile-bytecode --python "$folder" --require-hashes --only-binary :all: -r "$lock"
    made "$folder" "$lock"
    echo "Made $folder."
}

# npm ci in a copy, because Node looks for modules beside the program; the tests copy their programs there.
node_environment() {
    local source=tests/clients/node folder=$target/node
    is_fresh "$folder" "$source"/package*.json && return
    has npm || return 0
    mkdir -p "$folder"
    cp "$source"/package*.json "$folder"
    (cd "$folder" && npm ci --silent --no-audit --no-fund --ignore-scripts)
    made "$folder" "$source"/package*.json
    echo "Made $folder."
}

# go_environment and java_environment build in a copy, too, so that nothing is left beside the sources.
go_environment() {
    local folder=$target/go
    local sources=(tests/clients/go/go.{mod,sum} tests/clients/programs/openai.go)
    is_fresh "$folder" "${sources[@]}" && return
    has go || return 0
    mkdir -p "$folder"
    cp "${sources[@]}" "$folder"
    (cd "$folder" && go build -o openai openai.go)
    made "$folder" "${sources[@]}"
    echo "Made $folder."
}

java_environment() {
    local folder=$target/java
    local sources=(tests/clients/java/pom.xml tests/clients/programs/*.java)
    is_fresh "$folder" "${sources[@]}" && return
    has mvn || return 0
    rm -rf "$folder"
    mkdir -p "$folder/src/main/java"
    cp "${sources[0]}" "$folder"
    cp "${sources[@]:1}" "$folder/src/main/java"
    (cd "$folder" && mvn --quiet --batch-mode -Dstyle.color=never compile dependency:copy-dependencies -DoutputDirectory=target/lib)
    made "$folder" "${sources[@]}"
    echo "Made $folder."
}

# All at once: they wait for downloads.
jobs=()
for lock in requirements/lock-clients-*.txt; do
    python_environment "$lock" &
    jobs+=($!)
done
node_environment &
jobs+=($!)
go_environment &
jobs+=($!)
java_environment &
jobs+=($!)
status=0
for job in "${jobs[@]}"; do
    wait "$job" || status=1
done
exit "$status"
