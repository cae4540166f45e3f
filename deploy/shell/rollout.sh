# shellcheck shell=bash
# Replaces the running containers, and undoes that if it fails.

# Whether a container has the new image, and compose would create it again with the same configuration.
is_current() {
    [[ $(image_of "$1") == "$new_image" ]] || return 1
    [[ -z $config_hash || $(label "$1" com.docker.compose.config-hash) == "$config_hash" ]]
}

read_config_hash() {
    config_hash=""
    if [[ $compose_kind != podman-compose ]]; then
        config_hash=$(compose config --hash "$service" 2>"$temp_dir/config" | awk '{print $2}') || {
            cat "$temp_dir/config" >&2
            explain_failure "$temp_dir/config"
            fail "compose cannot read docker-compose.yml or .env; see the lines above."
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

up() {
    compose up -d --no-build "$@" 2>&1 | tee "$temp_dir/up" >&2 || {
        explain_failure "$temp_dir/up"
        return 1
    }
}

# Start nginx, Redis and the services of other profiles beside healthy replicas. nginx is started separately: together
# with the replicas, compose would wait for the engine's own health checks, and one that fails on a busy machine would end
# the rollout.
up_behind_proxy() {
    up --no-deps --scale "$service=$replicas" "$@" "$service" || return 1
    up --no-deps "$proxy" redis || return 1
    if [[ $profiles != ha ]]; then up --scale "$service=$replicas" "$@"; fi
}

# Start or replace all containers at once. Without a proxy the old container must end first, because both need the port.
replace_all() {
    local force=() container
    # podman-compose does not notice a new image under an old name.
    if [[ $compose_kind == podman-compose ]] && ! is_deployed && [[ -n $(containers "" all) ]]; then force=(--force-recreate); fi
    if is_ha; then
        up --no-deps --scale "$service=$replicas" ${force[@]+"${force[@]}"} "$service" || return 1
    else
        # After a change from the profile ha, nginx still has the port.
        for container in $(containers "$proxy" all) $(containers redis all); do drain_and_remove "$container"; done
        up --scale "$service=1" ${force[@]+"${force[@]}"} || return 1
    fi
    # shellcheck disable=SC2046 # one id per word
    wait_for_health $(containers "$service" all) || return 1
    # shellcheck disable=SC2046 # one id per word
    if is_ha; then up_behind_proxy && wait_for_health $(containers "$proxy" all); fi
}

# Replace the replicas one at a time: a new one is healthy and known to nginx before an old one drains.
rolling_update() {
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
        wait_for_lookup
        drain_and_remove "$stale"
        wait_for_lookup
    done
    up_behind_proxy ${final_up_options[@]+"${final_up_options[@]}"} || return 1
    refresh_proxy
    # shellcheck disable=SC2046 # one id per word
    wait_for_health $(containers "$service") $(containers "$proxy" all)
}

drain_and_remove() {
    say "Draining $(container_name "$1") ..."
    engine stop -t "$(stop_seconds)" "$1" >/dev/null
    engine rm "$1" >/dev/null
}

# nginx looks up the replicas' addresses regularly (`resolver` in nginx.conf); wait until it knows those of now.
wait_for_lookup() {
    if [[ -n $(containers "$proxy") ]]; then sleep "$lookup_seconds"; fi
}

# A container keeps the files that were mounted at its start; a git checkout replaces them.
refresh_proxy() {
    local container
    for container in $(containers "$proxy"); do
        if ! engine exec "$container" cat /etc/nginx/nginx.conf /start-nginx.sh 2>/dev/null |
            cmp -s - <(cat nginx.conf deploy/compose/start-nginx.sh); then
            say "nginx.conf has changed. Restarting nginx; requests fail for a moment ..."
            engine restart -t "$(stop_seconds)" "$container" >/dev/null
        fi
    done
}

switch_to_new_image() {
    if is_ha && [[ $compose_kind != podman-compose && -n $(containers "$proxy") && -n $(containers "$service") ]]; then
        rolling_update
    else
        replace_all
    fi
}

# Tag and start new_image. On a failure, on_exit calls undo_rollout.
roll_out() {
    latest_before=$(image_id "$image") previous_before=$(image_id "$repository:previous")
    phase=rollout
    retag "$image" "$new_image"
    if [[ -n $old_image && $old_image != "$new_image" ]]; then retag "$repository:previous" "$old_image"; fi
    switch_to_new_image || exit 1
    phase=idle
    remove_old_tags
    success "Deployed $(describe_image "$new_image") as $image."
    if [[ -n $old_image && $old_image != "$new_image" ]]; then
        say "The previous image is kept as $repository:previous; ./deploy.sh rollback restores it."
    fi
    service_url
}

undo_rollout() {
    phase=undo
    if [[ -z $old_image ]]; then
        say "Nothing ran before. Removing the new containers; volumes are kept."
        compose down >/dev/null 2>&1 || true
        if [[ $new_image != "$latest_before" ]]; then retag "$image" "$latest_before"; fi
        return
    fi
    if [[ $old_image == "$new_image" ]]; then
        error "Cannot roll back: the image is the same as before. The settings or docker-compose.yml have changed."
        say "  -> Undo that change, then run ./deploy.sh deploy."
        return 1
    fi
    say "Rolling back to $(describe_image "$old_image") ..."
    retag "$image" "$old_image"
    retag "$repository:previous" "$previous_before"
    # Replicas that were not replaced keep running with their settings.
    new_image=$old_image config_hash="" final_up_options=(--no-recreate)
    if switch_to_new_image && [[ $(image_in_use) == "$old_image" ]]; then
        success "Rolled back: $(describe_image "$old_image") is running and healthy."
    else
        error "THE ROLLBACK ALSO FAILED: the service does not run as before."
        say "  -> See ./deploy.sh logs. A changed setting in .env or docker-compose.yml is the likely cause: undo it, then run ./deploy.sh deploy --no-build."
        return 1
    fi
}

# Keep the revision tags of the deployed and the previous image only.
remove_old_tags() {
    local tag id
    for tag in $(revision_tags); do
        id=$(image_id "$tag")
        if [[ $id != "$new_image" && $id != "$(image_id "$repository:previous")" ]]; then untag "$tag"; fi
    done
}

# Print the tags that equal the revision of their image. Only build_image creates such tags.
revision_tags() {
    local tag
    engine images --format '{{.Repository}}:{{.Tag}}' | sort -u | while IFS= read -r tag; do
        if [[ ${tag%:*} == "$repository" || ${tag%:*} == "localhost/$repository" ]] && [[ $(revision_of "$tag") == "${tag##*:}" ]]; then
            printf '%s\n' "$tag"
        fi
    done
}
