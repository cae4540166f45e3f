#!/usr/bin/env bash
# The image's way through a pipeline, the same in all of them: build, smoke test, scan, push.
#   IMAGE=registry/fast-embedding:tag docs/ci/image.sh build|smoke|scan|push
# docker, or what CONTAINER_ENGINE names, such as podman, has to be there.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."

readonly engine=${CONTAINER_ENGINE:-docker}
readonly image=${IMAGE:?IMAGE: name the image, such as registry.example/fast-embedding:2.0.0}
readonly scanner=${SCANNER:-anchore/grype:v0.92.0}
# Words of options that only some builds need, such as --network host.
read -ra build_options <<<"${BUILD_OPTIONS:-}"

build_target() {
    "$engine" build --target "$1" --build-arg REVISION="$(git rev-parse HEAD)" \
        ${build_options[@]+"${build_options[@]}"} --tag "$2" .
}

build() { build_target production "$image"; }

# As strictly as it runs in production: nothing to write to but its volume, and no rights. The whole HTTP contract is asked for
# from a second container in the same network, so that no port is published and the machine needs no Python.
smoke() {
    build_target development "$image-tests"
    "$engine" run --rm --network none "$image" check
    container=$("$engine" run --detach --read-only --cap-drop ALL --security-opt no-new-privileges \
        --env LOG_FORMAT=json "$image")
    trap smoke_ended EXIT
    for _ in {1..60}; do
        if "$engine" exec "$container" python -m cli.health; then break; fi
        sleep 1
    done
    git archive HEAD | "$engine" run --rm --interactive --network "container:$container" --entrypoint sh "$image-tests" -c \
        'mkdir /tmp/tests && tar -x -C /tmp/tests && cd /tmp/tests && python -m pytest -q -p no:cacheprovider test_api.py --base-url=http://localhost:8000'
    "$engine" stop --time 40 "$container" >/dev/null
    [[ $("$engine" inspect --format '{{.State.ExitCode}}' "$container") == 0 ]]
}

smoke_ended() {
    "$engine" logs --tail 20 "$container" >&2
    "$engine" rm --force --volumes "$container" >/dev/null
}

# Findings that a newer package would mend are failures. What nobody has mended yet is shown, and is none. The image is copied
# into the scanner, not mounted: where the engine is another container (GitLab's docker:dind), it has other folders than we.
scan() {
    container="" scratch=$(mktemp -d)
    trap scan_ended EXIT
    "$engine" save --output "$scratch/image.tar" "$image"
    chmod a+r "$scratch/image.tar"
    container=$("$engine" create "$scanner" /image.tar --fail-on high --only-fixed)
    "$engine" cp "$scratch/image.tar" "$container:/image.tar"
    "$engine" start --attach "$container"
}

scan_ended() {
    rm -rf -- "$scratch"
    if [[ -n $container ]]; then "$engine" rm --force --volumes "$container" >/dev/null; fi
}

push() { "$engine" push "$image"; }

case ${1:-} in
    build | smoke | scan | push) "$1" ;;
    *)
        printf 'image.sh: name one of build, smoke, scan, push\n' >&2
        exit 2
        ;;
esac
