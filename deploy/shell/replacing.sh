# shellcheck shell=bash
# One image in the place of another, and back where that fails.

# is_current CONTAINER: it has the wanted image, and compose would make it again with the same configuration.
is_current() {
    [[ $(image_of "$1") == "$new" ]] || return 1
    [[ -z $config_hash || $(label "$1" com.docker.compose.config-hash) == "$config_hash" ]]
}

read_config_hash() {
    config_hash=""
    if [[ $compose_kind != podman-compose ]]; then
        config_hash=$(compose config --hash "$service" 2>"$scratch/config" | awk '{print $2}') || {
            cat "$scratch/config" >&2
            explain "$scratch/config"
            fail "compose does not understand docker-compose.yml or .env; the lines above say where."
        }
    fi
}

is_deployed() {
    local container count=0
    for container in $(containers "$service"); do
        is_current "$container" || return 1
        count=$((count + 1))
    done
    ((count > 0))
}

# up [ARGS]: compose's own, with its output kept to explain a failure by.
up() {
    compose up -d --no-build "$@" 2>&1 | tee "$scratch/up" >&2 || {
        explain "$scratch/up"
        return 1
    }
}

# The replicas are healthy already. Compose would give up if the engine's own checks, on a busy machine, said otherwise once.
up_behind_proxy() {
    up --no-deps --scale "$service=$replicas" "$@" "$service" || return 1
    up --no-deps "$proxy" redis || return 1 # asked for together with the replicas, nginx would wait for them
    if [[ $profiles != ha ]]; then up --scale "$service=$replicas" "$@"; fi # what other profiles add
}

# Starts or replaces all at once. Without a proxy there is one port, so the old container must end first.
replace() {
    local force=() running
    # podman-compose sees no new image under an old name.
    if [[ $compose_kind == podman-compose ]] && ! is_deployed && [[ -n $(containers "" all) ]]; then force=(--force-recreate); fi
    if is_ha; then
        up --no-deps --scale "$service=$replicas" ${force[@]+"${force[@]}"} "$service" || return 1
        running=$(containers "$service" all)
        # shellcheck disable=SC2086 # ids, one a word
        wait_for_health $running || return 1
        up_behind_proxy || return 1
        # shellcheck disable=SC2046 # ids, one a word
        wait_for_health $(containers "$proxy" all)
        return
    fi
    # Of the profile ha, where that is left: nginx has the port.
    for running in $(containers "$proxy" all) $(containers redis all); do retire "$running"; done
    up --scale "$service=1" ${force[@]+"${force[@]}"} || return 1
    running=$(containers "$service" all)
    # shellcheck disable=SC2086 # ids, one a word
    wait_for_health $running
}

# Replaces one replica after the other: a new one is healthy and known to nginx before an old one drains.
roll() {
    local stale before fresh
    for stale in $(containers "$service"); do
        if is_current "$stale"; then continue; fi
        before=$(containers "$service" all)
        up --no-deps --no-recreate --scale "$service=$(($(wc -l <<<"$before") + 1))" "$service" || return 1
        fresh=$(containers "$service" all | grep -vxF -- "$before") || return 1
        # shellcheck disable=SC2086 # one id
        if ! wait_for_health $fresh; then
            engine rm -f $fresh >/dev/null
            return 1
        fi
        reload_proxy || return 1
        retire "$stale"
        reload_proxy || return 1
    done
    up_behind_proxy ${settle[@]+"${settle[@]}"} || return 1
    refresh_proxy || return 1
    # shellcheck disable=SC2046 # ids, one a word
    wait_for_health $(containers "$service") $(containers "$proxy" all)
}

retire() {
    say "Draining $(container_name "$1") ..."
    engine stop -t "$(stop_seconds)" "$1" >/dev/null
    engine rm "$1" >/dev/null
}

# nginx asks for the replicas' addresses when it reads its configuration.
reload_proxy() {
    local container
    for container in $(containers "$proxy"); do
        if ! engine exec "$container" nginx -e stderr -s reload >"$scratch/proxy" 2>&1; then
            cat "$scratch/proxy" >&2
            bad "nginx did not read its configuration again; it goes on with the addresses it knows."
            return 1
        fi
    done
}

# Asked before anything is replaced: an nginx that cannot reload would not learn where the new replicas are. Where none of
# those that run has an address, as when all of them crash, there is nothing to learn yet.
check_proxy() {
    [[ -n $(containers "$proxy") ]] && is_ha || return 0
    if ! try_out "$proxy" nginx -e stderr -t; then
        if grep -Fq 'host not found in upstream' "$scratch/tried"; then return; fi
        cat "$scratch/tried" >&2
        fail "nginx does not take nginx.conf. What runs was not touched." "The lines above say what is wrong in it."
    fi
}

# A container keeps the file that was there when it started; a checkout puts another one in its place.
refresh_proxy() {
    local container
    for container in $(containers "$proxy"); do
        if ! engine exec "$container" cat /etc/nginx/nginx.conf 2>/dev/null | cmp -s - nginx.conf; then
            say "nginx.conf has changed: restarting nginx, which costs a moment without an answer ..."
            engine restart -t "$(stop_seconds)" "$container" >/dev/null
        fi
    done
    reload_proxy
}

can_roll() { is_ha && [[ $compose_kind != podman-compose && -n $(containers "$proxy") && -n $(containers "$service") ]]; }

switch_to_new() {
    if can_roll; then roll; else replace; fi
}

# Called with $image as it should be, for what on_exit does if this fails.
switch() {
    image_before=$(image_id "$image") previous_before=$(image_id "$repository:previous")
    phase=switching
    retag "$image" "$new"
    if [[ -n $old && $old != "$new" ]]; then retag "$repository:previous" "$old"; fi
    switch_to_new || exit 1
    phase=idle
    forget_older_images
    good "Deployed $(named "$new") as $image."
    if [[ -n $old && $old != "$new" ]]; then say "The image before is kept as $repository:previous; ./deploy.sh rollback goes back to it."; fi
    url
}

# What ran is to run again; called by on_exit when a switch was cut short or its health never came.
roll_back() {
    phase=rolling-back
    if [[ -z $old ]]; then
        say "Nothing ran before, so what was started is removed again; volumes stay."
        compose down >/dev/null 2>&1 || true
        if [[ $new != "$image_before" ]]; then retag "$image" "$image_before"; fi
        return
    fi
    if [[ $old == "$new" ]]; then
        bad "There is no other image to go back to: this one ran before, with other settings or another docker-compose.yml."
        say "  -> Undo that change, then ./deploy.sh deploy."
        return 1
    fi
    say "Rolling back to $(named "$old") ..."
    retag "$image" "$old"
    retag "$repository:previous" "$previous_before"
    # Replicas that were not replaced yet stay as they are, with the settings they have.
    new=$old config_hash="" settle=(--no-recreate)
    if switch_to_new && [[ $(image_in_use) == "$old" ]]; then
        good "Rolled back: $(named "$old") runs and is healthy."
    else
        bad "THE ROLLBACK FAILED, TOO: the service does not run as it did before."
        say "  -> ./deploy.sh logs tells more. Settings in .env or docker-compose.yml that have changed are the likely reason: undo that, then ./deploy.sh deploy --no-build."
        return 1
    fi
}

# Of the tags that builds here have made, only the deployed image's and the one's before stay.
forget_older_images() {
    local tag id
    for tag in $(own_revision_tags); do
        id=$(image_id "$tag")
        if [[ $id != "$new" && $id != "$(image_id "$repository:previous")" ]]; then untag "$tag"; fi
    done
}

# Tags named like the revision of their image: nobody but build_image gives those.
own_revision_tags() {
    local tag
    engine images --format '{{.Repository}}:{{.Tag}}' | sort -u | while IFS= read -r tag; do
        if [[ ${tag%:*} == "$repository" || ${tag%:*} == "localhost/$repository" ]] &&
            [[ $(engine image inspect --format '{{index .Config.Labels "org.opencontainers.image.revision"}}' "$tag" 2>/dev/null) == "${tag##*:}" ]]; then
            printf '%s\n' "$tag"
        fi
    done
}
