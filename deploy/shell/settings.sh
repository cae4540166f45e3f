# shellcheck shell=bash
# Settings from the options, the environment, .env, and the containers that already exist.

# setting NAME DEFAULT: print a value with compose's precedence: environment, then .env, then DEFAULT.
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

# parse_options ALLOWED [ARGS]: ALLOWED lists the options of this command.
parse_options() {
    local allowed=" $1 " option value
    shift
    while (($#)); do
        option=${1%%=*} value=""
        [[ $option == -* ]] || usage_error "$command takes no argument '$1'."
        [[ $allowed == *" $option "* ]] || usage_error "$command has no option $option."
        case $1 in
            --no-build | --full | --yes | -y) ;;
            --*=?*) value=${1#*=} ;;
            *)
                value=${2:-}
                [[ -n $value ]] || usage_error "$option needs a value."
                shift
                ;;
        esac
        shift
        case $option${value:+ VALUE} in
            --no-build) build_first=no ;;
            --full) full_test=yes ;;
            --yes | -y) confirm=no ;;
            "--profile VALUE") profile_option=${profile_option:+$profile_option,}$value ;;
            "--scale VALUE") scale_option=$value ;;
            "--wait VALUE") wait_option=$value ;;
            "--image VALUE") image_option=$value ;;
            "--url VALUE") url_option=${value%/} ;;
            *) usage_error "$option takes no value." ;;
        esac
    done
}

read_settings() {
    image=${image_option:-$(setting IMAGE fast-embedding:latest)}
    [[ $image =~ ^[A-Za-z0-9][A-Za-z0-9._:/@-]*$ ]] || usage_error "IMAGE=$image is not an image name. Use a form like fast-embedding:latest."
    [[ $image != *@* ]] || usage_error "IMAGE=$image has a digest. Name a tag instead: a rollback works by tags."
    if [[ ${image##*/} != *:* ]]; then image=$image:latest; fi # a colon before the last slash belongs to a registry's port
    repository=${image%:*}
    export IMAGE=$image
    wait_seconds=${wait_option:-$(setting WAIT_SECONDS 180)}
    [[ $wait_seconds =~ ^[1-9][0-9]{0,4}$ ]] || usage_error "--wait $wait_seconds: use whole seconds from 1 to 99999."
    project=$(project_name)
    STOP_GRACE_PERIOD=$(setting STOP_GRACE_PERIOD "$(stop_seconds)s") # applies to containers that compose itself stops
    export STOP_GRACE_PERIOD
}

# Print the seconds from SIGTERM to the kill of a container.
stop_seconds() {
    local drain
    drain=$(setting SHUTDOWN_TIMEOUT 30)
    if [[ ! $drain =~ ^[1-9][0-9]{0,8}$ ]]; then drain=30; fi # the trial start reports the bad value
    printf '%s\n' "$((drain + grace_seconds))"
}

# Print the project name by compose's rules, so that both select the same containers.
project_name() {
    local name
    name=$(setting COMPOSE_PROJECT_NAME "$(sed -n 's/^name:[[:space:]]*\([^[:space:]]*\).*/\1/p' docker-compose.yml 2>/dev/null)")
    if [[ -z $name ]]; then
        name=$(basename -- "$PWD" | tr '[:upper:]' '[:lower:]' | tr -cd '[:alnum:]_-')
        while [[ $name == [_-]* ]]; do name=${name#?}; done
    fi
    [[ $name =~ ^[a-z0-9][a-z0-9_-]*$ ]] ||
        fail "'$name' is not a usable project name." "Set COMPOSE_PROJECT_NAME to lowercase letters, digits, - and _."
    printf '%s\n' "$name"
}

# Set profiles and replicas. Without options, keep the current shape: a plain `deploy` must not replace three replicas
# behind nginx with one container.
read_shape() {
    local current=0
    profiles=${profile_option:-$(setting COMPOSE_PROFILES "")}
    if [[ -n $(containers "$proxy" all) ]]; then # stopped containers count, so that a deploy after a stop keeps the shape
        current=$(containers "$service" | wc -l | tr -d ' ')
        if ((current == 0)); then current=$(containers "$service" all | wc -l | tr -d ' '); fi
        if [[ -z $profiles ]]; then profiles=ha; fi
    fi
    if [[ $profiles == none ]]; then profiles=""; fi
    replicas=1
    if is_ha; then
        replicas=${scale_option:-$(setting REPLICAS "$((current > 0 ? current : 3))")}
    elif [[ -n $scale_option ]]; then
        usage_error "--scale needs --profile ha: without nginx, one port leads to one container."
    fi
    [[ $replicas =~ ^[1-9][0-9]?$ ]] || usage_error "--scale $replicas: use 1 to 99 replicas."
}

is_ha() { [[ ,$profiles, == *,ha,* ]]; }
