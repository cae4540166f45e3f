#!/bin/bash
# Stands in for docker, podman and compose in tests/deploy/test_deploy_script.py; the name it is called by selects which.
# Its state is files below $STUB, which the tests write and read. Each call adds a line to $STUB/calls.
set -uo pipefail
shopt -s nullglob
HERE=$PWD
me=${0##*/}
printf '%s %s\n' "$me" "$*" >>"$STUB/calls"

# fail_if NAME: fail with the text of $STUB/fail/NAME if that file exists.
fail_if() {
    if [[ -e $STUB/fail/$1 ]]; then
        cat "$STUB/fail/$1" >&2
        exit 1
    fi
}

unknown_call() {
    echo "stub: unknown call: $*" >&2
    exit 99
}

content() { if [[ -e $1 ]]; then printf '%s' "$(<"$1")"; fi; }
tag_file() { printf '%s/images/%s' "$STUB" "${1//\//%}"; }

# image_id NAME_OR_ID
image_id() {
    if [[ -e $(tag_file "$1") ]]; then content "$(tag_file "$1")"; elif [[ -e $STUB/revisions/$1 ]]; then printf '%s' "$1"; else return 1; fi
}

# start_container SERVICE
start_container() {
    local number
    number=$(($(content "$STUB/count") + 1))
    printf '%s' "$number" >"$STUB/count"
    mkdir "$STUB/containers/c$number"
    cd "$STUB/containers/c$number" || exit 1
    printf '%s' "$1" >service
    printf '%s' "$project" >project
    printf '%s-%s-%s' "$project" "$1" "$number" >name
    printf 0 >restarts
    content "$STUB/hash" >"hash"
    printf running >state
    if [[ $1 == fast-embedding ]]; then image_id "${IMAGE:?}" >image; else printf '%s' "$1" >image; fi
    if [[ $1 == nginx ]]; then cat "$HERE/nginx.conf" "$HERE/deploy/compose/start-nginx.sh" >"$STUB/nginx.conf"; fi
    if [[ $(content "$STUB/broken/$(<image)") == exits ]]; then
        printf restarting >state
        printf 3 >restarts
    fi
    cd - >/dev/null || exit 1
}

inspect() {
    local folder=$STUB/containers/$2
    [[ -d $folder ]] || exit 1
    case $1 in
        *Healthcheck*) if [[ $(<"$folder/service") == fast-embedding ]]; then printf 'CMD\npython\n-m\ncli.health\n'; fi ;;
        *config-hash*) content "$folder/hash" ;;
        *compose.service*) content "$folder/service" ;;
        '{{.Name}}') printf '/%s' "$(<"$folder/name")" ;;
        '{{.Image}}') printf 'sha256:%s' "$(<"$folder/image")" ;;
        '{{.State.Status}}') content "$folder/state" ;;
        '{{.RestartCount}}') content "$folder/restarts" ;;
        '{{.State.Status}} {{.RestartCount}}') printf '%s %s' "$(<"$folder/state")" "$(<"$folder/restarts")" ;;
        '{{.State.ExitCode}}') content "$folder/exit" ;;
        *OOMKilled*) ;;
        *) unknown_call "inspect $1" ;;
    esac
    echo
}

list_containers() {
    local all=no project="" service="" folder
    while (($#)); do
        case $1 in
            -a) all=yes ;;
            label=com.docker.compose.project=*) project=${1##*=} ;;
            label=com.docker.compose.service=*) service=${1##*=} ;;
        esac
        shift
    done
    for folder in "$STUB"/containers/*/; do
        folder=${folder%/}
        [[ -z $project || $(<"$folder/project") == "$project" ]] || continue
        [[ -z $service || $(<"$folder/service") == "$service" ]] || continue
        [[ $all == yes || $(<"$folder/state") == running ]] || continue
        echo "${folder##*/}"
    done
}

build() {
    local revision=""
    fail_if build
    while (($#)); do
        case $1 in
            -t) content "$STUB/next-image" >"$(tag_file "$2")" ;;
            REVISION=*) revision=${1#*=} ;;
        esac
        shift
    done
    printf '%s' "$revision" >"$STUB/revisions/$(<"$STUB/next-image")"
}

# start_stopped SERVICE: start its stopped containers, as compose does. Fails if it has no containers.
start_stopped() {
    local folder result=1
    for folder in "$STUB"/containers/*/; do
        [[ $(<"$folder/project") == "$project" && $(<"$folder/service") == "$1" ]] || continue
        result=0
        if [[ $(<"$folder/state") == exited ]]; then printf running >"$folder/state"; fi
    done
    return "$result"
}

up() {
    local scale=1 recreate=auto services="" folder id wanted
    fail_if "up-$(image_id "$IMAGE")"
    printf '%s' "$STOP_GRACE_PERIOD" >"$STUB/grace"
    wanted="$(image_id "$IMAGE") $(content "$STUB/hash")"
    while (($#)); do
        case $1 in
            --scale) scale=${2#*=} && shift ;;
            --no-recreate) recreate=no ;;
            --force-recreate) recreate=yes ;;
            -*) ;;
            *) services+=" $1" ;;
        esac
        shift
    done
    if [[ -z $services ]]; then services=" fast-embedding$(if [[ $profiles == *ha* ]]; then echo ' nginx redis'; fi)"; fi
    for id in $services; do
        if [[ $id != fast-embedding ]]; then start_stopped "$id" || start_container "$id"; fi
    done
    [[ $services == *fast-embedding* ]] || return 0
    for folder in "$STUB"/containers/*/; do
        [[ $(<"$folder/project") == "$project" && $(<"$folder/service") == fast-embedding ]] || continue
        if ((scale == 0)) || [[ $recreate == yes ]] || { [[ $recreate == auto && "$(<"$folder/image") $(<"$folder/hash")" != "$wanted" ]]; }; then
            rm -r "$folder"
        else
            printf running >"$folder/state"
            scale=$((scale - 1))
        fi
    done
    while ((scale > 0)); do
        start_container fast-embedding
        scale=$((scale - 1))
    done
    : >"$STUB/networks/${project}_default"
    : >"$STUB/volumes/${project}_data"
}

# The container of `compose run -d --no-deps --name NAME --entrypoint PROGRAM SERVICE ...`
run_trial() {
    local folder=$STUB/containers/$5 program=check
    if [[ $8 == nginx ]]; then program=nginx; else printf '%s\n' "$IMAGE" >>"$STUB/trials"; fi
    mkdir "$folder"
    printf trial >"$folder/service"
    printf '%s' "$5" >"$folder/name"
    printf '%s' "$project" >"$folder/project"
    printf 0 >"$folder/restarts"
    if [[ -e $STUB/hang ]]; then printf running >"$folder/state"; else printf exited >"$folder/state"; fi
    if [[ -e $STUB/fail/$program ]]; then
        cp "$STUB/fail/$program" "$folder/logs"
        printf 1 >"$folder/exit"
    else
        content "$STUB/check" >"$folder/logs"
        printf 0 >"$folder/exit"
    fi
}

compose() {
    project="" profiles=""
    while (($#)); do
        case $1 in
            -p) project=$2 && shift ;;
            -f) shift ;;
            --profile) profiles+=" $2" && shift ;;
            *) break ;;
        esac
        shift
    done
    case $1 in
        version) content "$STUB/compose-version" ;;
        config) fail_if config; echo "fast-embedding $(content "$STUB/hash")" ;;
        run) run_trial "$@" ;;
        up) up "${@:2}" ;;
        down) for folder in "$STUB"/containers/*/; do rm -r "$folder"; done ;;
        logs) echo "log lines" ;;
        *) unknown_call "compose $*" ;;
    esac
}

run_in_container() {
    local folder=$STUB/containers/$1
    case "$2 $3" in
        "python -c") "${STUB_PYTHON:?}" -c "$4" ;;
        "python -m") [[ $(<"$folder/state") == running && ! -e $STUB/broken/$(<"$folder/image") ]] ;;
        cat*) content "$STUB/nginx.conf" ;;
    esac
}

# forget KIND NAME...: delete their files.
forget() {
    local name kind=$1
    shift
    for name in "$@"; do
        [[ $name != -* ]] || continue
        fail_if "rm-$name"
        rm -r "${STUB:?}/$kind/${name//\//%}" || exit 1
    done
}

case $me in docker-compose | podman-compose) compose "$@"; exit ;; esac
case $1 in
    --version) [[ $me == podman ]] && echo "podman version 5.4.0" || echo "Docker version 28.0.0" ;;
    compose) if [[ -e $STUB/no-plugin ]]; then exit 1; fi; compose "${@:2}" ;;
    ps) fail_if "$me"; list_containers "$@" ;;
    build) build "$@" ;;
    pull) fail_if pull; printf pulled >"$(tag_file "$2")"; printf '' >"$STUB/revisions/pulled" ;;
    image)
        id=$(image_id "$5") || exit 1
        case $4 in *revision*) content "$STUB/revisions/$id"; echo ;; *) echo "sha256:$id" ;; esac ;;
    images) for file in "$STUB"/images/*; do file=${file##*/}; echo "${file//%//}"; done ;;
    inspect) inspect "$3" "$4" ;;
    exec) run_in_container "${@:2}" ;;
    logs) if [[ -e $STUB/containers/$2/logs ]]; then content "$STUB/containers/$2/logs"; else content "$STUB/logs"; fi; echo ;;
    stop) printf exited >"$STUB/containers/$4/state" ;;
    start) printf running >"$STUB/containers/$2/state" ;;
    restart) printf running >"$STUB/containers/$4/state" ;;
    rm) forget containers "${@:2}" ;;
    rmi) forget images "$2" ;;
    tag) image_id "$2" >"$STUB/tag" && mv "$STUB/tag" "$(tag_file "$3")" ;;
    port) if [[ -e $STUB/port ]]; then echo "8000/tcp -> 0.0.0.0:$(<"$STUB/port")"; fi ;;
    stats) echo "250MiB / 2GiB" ;;
    network | volume)
        case $2 in
            ls) for file in "$STUB/$1s"/*; do [[ ${file##*/} != "${5##*=}"* ]] || echo "${file##*/}"; done ;;
            rm) forget "$1s" "$3" ;;
            inspect) echo "$5" ;;
        esac ;;
    *) unknown_call "$*" ;;
esac
