# shellcheck shell=bash
# The command clean: removes everything that belongs to this project, and nothing else.

# Print the image names that this script has created.
own_images() {
    local name
    {
        revision_tags
        for name in "$image" "$repository:previous"; do
            if [[ -n $(image_id "$name") ]]; then printf '%s\n' "$name"; fi
        done
    } | sed 's|^localhost/||' | sort -u
}

clean() {
    local all networks volumes images item answer="" failed=""
    parse_options "--yes -y" "$@"
    read_settings
    lock
    prepare
    all=$(containers "" all)
    networks=$(engine network ls -q --filter "label=com.docker.compose.project=$project")
    volumes=$(engine volume ls -q --filter "label=com.docker.compose.project=$project")
    images=$(own_images)
    if [[ -z $all$networks$volumes$images ]]; then
        success "There is nothing of $project to remove."
        return
    fi
    say "This removes only:"
    for item in $all; do say "  container  $(container_name "$item") ($(field "$item" '{{.State.Status}}'))"; done
    for item in $networks; do say "  network    $(engine network inspect --format '{{.Name}}' "$item")"; done
    for item in $volumes; do say "  volume     $item, with all downloaded models and your own files in it"; done
    for item in $images; do say "  image      $item"; done
    if [[ $confirm == yes ]]; then
        [[ -t 0 ]] || fail "clean needs a terminal to ask for confirmation." "In scripts: ./deploy.sh clean --yes"
        read -r -p "Remove all of this? [y/N] " answer
        [[ $answer == [yY] || $answer == [yY][eE][sS] ]] || fail "Nothing was removed."
    fi
    for item in $all; do engine rm -f "$item" >/dev/null 2>>"$temp_dir/clean" || failed+=" container $item"; done
    for item in $networks; do engine network rm "$item" >/dev/null 2>>"$temp_dir/clean" || failed+=" network $item"; done
    for item in $volumes; do engine volume rm "$item" >/dev/null 2>>"$temp_dir/clean" || failed+=" volume $item"; done
    for item in $images; do engine rmi "$item" >/dev/null 2>>"$temp_dir/clean" || failed+=" image $item"; done
    if [[ -n $failed ]]; then
        cat "$temp_dir/clean" >&2
        fail "Not removed:$failed" "The lines above give the reason; a container of another project may use it."
    fi
    success "Removed."
}
