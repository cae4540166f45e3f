# shellcheck shell=bash
# What deploy.sh is asked for: its options, the environment and .env, and what runs already.

# setting NAME DEFAULT: as compose finds it: in the environment, in .env, else the default.
setting() {
    local value=${!1:-}
    if [[ -z $value && -r .env ]]; then
        value=$(sed -n "s/^[[:space:]]*\(export[[:space:]][[:space:]]*\)\{0,1\}$1[[:space:]]*=[[:space:]]*//p" .env | tail -n 1)
        value=${value%$'\r'}
        case $value in
            \"*) value=${value#\"} value=${value%%\"*} ;;
            \'*) value=${value#\'} value=${value%%\'*} ;;
            *)
                value=${value%%[[:space:]]#*}
                value=${value%"${value##*[![:space:]]}"}
                ;;
        esac
    fi
    printf '%s\n' "${value:-$2}"
}

# Prints the names in .env that neither compose's files nor this script read: mistyped ones, and those that mean nothing in
# a container, as HOST does.
names_without_effect() {
    local files name
    IFS=: read -r -a files <<<"$(setting COMPOSE_FILE docker-compose.yml:docker-compose.override.yml)"
    sed -n 's/^[[:space:]]*\(export[[:space:]][[:space:]]*\)\{0,1\}\([A-Za-z_][A-Za-z0-9_]*\)[[:space:]]*=.*/\2/p' .env |
        while read -r name; do
            case $name in COMPOSE_* | DOCKER_* | BUILDKIT_* | BUILDX_* | REPLICAS | WAIT_SECONDS) continue ;; esac
            grep -Eqs -- "^ +$name:[[:space:]]*\$|\\$\{?$name([^A-Za-z0-9_]|\$)" "${files[@]}" || printf '%s\n' "$name"
        done
}

# read_options ALLOWED [ARGS]: ALLOWED are the options that this command takes.
read_options() {
    local allowed=" $1 " option
    shift
    while (($#)); do
        option=${1%%=*}
        [[ $option == -* ]] || wrong_use "$command takes no '$1'."
        [[ $allowed == *" $option "* ]] || wrong_use "$command has no option $option."
        case $1 in
            --no-build) builds=no ;;
            --full) is_full=yes ;;
            --yes | -y) asks=no ;;
            --*=?*) take "$option" "${1#*=}" ;;
            *)
                [[ -n ${2:-} ]] || wrong_use "$option needs a value."
                take "$option" "$2"
                shift
                ;;
        esac
        shift
    done
}

take() {
    case $1 in
        --profile) told_profile=${told_profile:+$told_profile,}$2 ;;
        --scale) told_scale=$2 ;;
        --wait) told_wait=$2 ;;
        --image) told_image=$2 ;;
        --url) told_url=${2%/} ;;
        *) wrong_use "$1 takes no value." ;;
    esac
}

read_settings() {
    image=${told_image:-$(setting IMAGE fast-embedding:latest)}
    [[ $image =~ ^[A-Za-z0-9][A-Za-z0-9._:/@-]*$ ]] || wrong_use "IMAGE=$image is no name of an image, such as fast-embedding:latest."
    [[ $image != *@* ]] || wrong_use "IMAGE=$image has a digest: name a tag of that image, as deploy.sh goes back by its tags."
    # A colon before the last slash belongs to a registry's port, not to a tag.
    if [[ ${image##*/} != *:* ]]; then image=$image:latest; fi
    repository=${image%:*}
    export IMAGE=$image
    wait_seconds=${told_wait:-$(setting WAIT_SECONDS 180)}
    [[ $wait_seconds =~ ^[1-9][0-9]{0,4}$ ]] || wrong_use "--wait $wait_seconds: give whole seconds, 1 to 99999."
    project=$(project_name)
    # What compose itself stops must have the time to drain, too.
    STOP_GRACE_PERIOD=$(setting STOP_GRACE_PERIOD "$(stop_seconds)s")
    export STOP_GRACE_PERIOD
}

# Seconds that a container gets from the signal to its end.
stop_seconds() {
    local drain
    drain=$(setting SHUTDOWN_TIMEOUT 30)
    if [[ ! $drain =~ ^[1-9][0-9]{0,8}$ ]]; then drain=30; fi # its trial start says what is wrong
    printf '%s\n' "$((drain + grace_seconds))"
}

# As compose finds it, so that both always mean the same containers.
project_name() {
    local name
    name=$(setting COMPOSE_PROJECT_NAME "$(sed -n 's/^name:[[:space:]]*\([^[:space:]]*\).*/\1/p' docker-compose.yml 2>/dev/null)")
    if [[ -z $name ]]; then
        name=$(basename -- "$PWD" | tr '[:upper:]' '[:lower:]' | tr -cd '[:alnum:]_-')
        while [[ $name == [_-]* ]]; do name=${name#?}; done
    fi
    [[ $name =~ ^[a-z0-9][a-z0-9_-]*$ ]] ||
        fail "The project has no usable name ('$name')." "Set COMPOSE_PROJECT_NAME to small letters, digits, - and _."
    printf '%s\n' "$name"
}

# What is not told stays as it runs: a plain `deploy` must not take three replicas behind nginx down to one.
read_shape() {
    local running=0
    profiles=${told_profile:-$(setting COMPOSE_PROFILES "")}
    if [[ -n $(containers "$proxy" all) ]]; then # stopped ones, too, or a deploy after a stop would forget the shape
        running=$(containers "$service" | wc -l | tr -d ' ')
        if ((running == 0)); then running=$(containers "$service" all | wc -l | tr -d ' '); fi
        if [[ -z $profiles ]]; then profiles=ha; fi
    fi
    if [[ $profiles == none ]]; then profiles=""; fi
    replicas=1
    if is_ha; then
        replicas=${told_scale:-$(setting REPLICAS "$((running > 0 ? running : 3))")}
    elif [[ -n $told_scale ]]; then
        wrong_use "--scale needs --profile ha: without nginx one port leads to one container."
    fi
    [[ $replicas =~ ^[1-9][0-9]?$ ]] || wrong_use "--scale $replicas: give 1 to 99 replicas."
}

is_ha() { [[ ,$profiles, == *,ha,* ]]; }
