#!/usr/bin/env bash
# The image steps that all pipelines share: build, smoke test, scan, push.
#   IMAGE=registry/fast-embedding:tag docs/ci/image.sh build|smoke|scan|push
# Needs docker, or the engine that CONTAINER_ENGINE names, for example podman.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."

readonly engine=${CONTAINER_ENGINE:-docker}
readonly image=${IMAGE:?set IMAGE to a name like registry.example/fast-embedding:2.0.0}
readonly scanner=${SCANNER:-anchore/grype:v0.92.0}
# Additional build options, for example --network host.
read -ra build_options <<<"${BUILD_OPTIONS:-}"

build_target() {
    "$engine" build --target "$1" --build-arg REVISION="$(git rev-parse HEAD)" \
        ${build_options[@]+"${build_options[@]}"} --tag "$2" .
}

build() { build_target production "$image"; }

# Runs the image as strictly as in production: read-only except for its volume, and without privileges. A second container in
# the same network tests the whole HTTP API, so no port is published and the machine needs no Python.
smoke() {
    build_target development "$image-tests"
    "$engine" run --rm --network none "$image" check
    container=$("$engine" run --detach --read-only --cap-drop ALL --security-opt no-new-privileges \
        --env LOG_FORMAT=json "$image")
    trap end_smoke EXIT
    for _ in {1..60}; do
        if "$engine" exec "$container" python -m cli.health; then break; fi
        sleep 1
    done
    git archive HEAD | "$engine" run --rm --interactive --network "container:$container" --entrypoint sh "$image-tests" -c \
        'mkdir /tmp/tests && tar -x -C /tmp/tests && cd /tmp/tests && python -m pytest -q -p no:cacheprovider test_api.py --base-url=http://localhost:8000'
    "$engine" stop --time 40 "$container" >/dev/null
    [[ $("$engine" inspect --format '{{.State.ExitCode}}' "$container") == 0 ]]
}

end_smoke() {
    "$engine" logs --tail 20 "$container" >&2
    "$engine" rm --force --volumes "$container" >/dev/null
}

# Fails on findings that a newer package fixes; only lists those without a fix. Copies the image into the scanner instead of
# mounting it: an engine in another container (GitLab's docker:dind) cannot see the folders of this one.
scan() {
    container="" scratch=$(mktemp -d)
    trap end_scan EXIT
    "$engine" save --output "$scratch/image.tar" "$image"
    chmod a+r "$scratch/image.tar"
    container=$("$engine" create "$scanner" /image.tar --fail-on high --only-fixed)
    "$engine" cp "$scratch/image.tar" "$container:/image.tar"
    "$engine" start --attach "$container"
}

end_scan() {
    rm -rf -- "$scratch"
    if [[ -n $container ]]; then "$engine" rm --force --volumes "$container" >/dev/null; fi
}

push() { "$engine" push "$image"; }

case ${1:-} in
    build | smoke | scan | push) "$1" ;;
    *)
        printf 'Usage: image.sh build|smoke|scan|push\n' >&2
        exit 2
        ;;
esac
