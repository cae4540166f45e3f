# shellcheck shell=bash
# Removing all that is this project's, and nothing else.

# own_images: the names that this script gives to images, as far as they exist.
own_images() {
    local name
    {
        own_revision_tags
        for name in "$image" "$repository:previous"; do
            if [[ -n $(image_id "$name") ]]; then printf '%s\n' "$name"; fi
        done
    } | sed 's|^localhost/||' | sort -u
}

clean() {
    local all networks volumes images kind answer=""
    read_options "--yes -y" "$@"
    read_settings
    lock
    prepare
    all=$(containers "" all)
    networks=$(engine network ls -q --filter "label=com.docker.compose.project=$project")
    volumes=$(engine volume ls -q --filter "label=com.docker.compose.project=$project")
    images=$(own_images)
    if [[ -z $all$networks$volumes$images ]]; then
        good "There is nothing of $project to remove."
        return
    fi
    say "This removes, and nothing else:"
    for kind in $all; do say "  container  $(container_name "$kind") ($(field "$kind" '{{.State.Status}}'))"; done
    for kind in $networks; do say "  network    $(engine network inspect --format '{{.Name}}' "$kind")"; done
    for kind in $volumes; do say "  volume     $kind, with the models and all else that was downloaded or put there"; done
    for kind in $images; do say "  image      $kind"; done
    if [[ $asks == yes ]]; then
        [[ -t 0 ]] || fail "clean asks before it removes, and there is no terminal to ask on." "In scripts: ./deploy.sh clean --yes"
        read -r -p "Remove all of this? [y/N] " answer
        [[ $answer == [yY] || $answer == [yY][eE][sS] ]] || fail "Nothing was removed."
    fi
    remove_all "$all" "$networks" "$volumes" "$images"
}

# remove_all CONTAINERS NETWORKS VOLUMES IMAGES; goes on after a failure, and tells of it at the end.
remove_all() {
    local thing failed=""
    for thing in $1; do engine rm -f "$thing" >/dev/null 2>>"$scratch/clean" || failed+=" container $thing"; done
    for thing in $2; do engine network rm "$thing" >/dev/null 2>>"$scratch/clean" || failed+=" network $thing"; done
    for thing in $3; do engine volume rm "$thing" >/dev/null 2>>"$scratch/clean" || failed+=" volume $thing"; done
    for thing in $4; do engine rmi "$thing" >/dev/null 2>>"$scratch/clean" || failed+=" image $thing"; done
    if [[ -n $failed ]]; then
        cat "$scratch/clean" >&2
        fail "Still there:$failed" "The lines above say why; a container of another project may use it."
    fi
    good "Removed."
}
