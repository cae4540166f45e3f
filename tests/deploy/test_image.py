"""The image, built and run for real: `pytest -m container tests/deploy/test_image.py`.

It needs docker or podman, python:3.12-slim or a way to it, and a package index. docs/DOCKER_SETUP.md tells what holds.
"""

import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from config import BUNDLED_MODEL
from tests.support.commands import HUB_MODEL, NO_HUB, repository_files, repository_of
from tests.support.containers import LOCKED_DOWN, START_S, Container, build, call, running, succeed
from tests.support.hubs import Hub, serving
from tests.support.servers import ROOT

pytestmark = [pytest.mark.container, pytest.mark.timeout(1800)]

RUN = uuid4().hex[:8]
"""So that two runs on one machine do not take each other's images away."""
IMAGE, PRELOADED, DEVELOPMENT, WRONG = (
    f"fast-embedding-test-{RUN}:{name}" for name in ("image", "preloaded", "development", "wrong")
)

EMBED = """
import json, urllib.request
request = urllib.request.Request(
    "http://127.0.0.1:8000/embed", b'{"text": "one"}', {"Content-Type": "application/json"}
)
print(json.load(urllib.request.urlopen(request))["dimension"])
"""

STOP_IN_THE_MIDDLE = """
import json, os, signal, threading, urllib.request
body = json.dumps({"texts": ["one two three " * 400] * 32}).encode()
request = urllib.request.Request("http://127.0.0.1:8000/embed/batch", body, {"Content-Type": "application/json"})
answers = []
asking = threading.Thread(target=lambda: answers.append(urllib.request.urlopen(request).status))
asking.start()
while not json.load(urllib.request.urlopen("http://127.0.0.1:8000/metrics"))["queue"]["running"]:
    pass
os.kill(1, signal.SIGTERM)
asking.join()
print(answers, flush=True)
"""


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    built = build(IMAGE, arguments={"VERSION": "9.8.7", "REVISION": "abc", "CREATED": "2026-01-02T03:04:05Z"})
    assert built.returncode == 0, built.stderr
    yield IMAGE
    call("rmi", "--force", IMAGE)


@pytest.fixture(scope="module")
def service(image: str) -> Iterator[Container]:
    with running(image, *LOCKED_DOWN) as container:
        yield container


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with serving(repository_of(HUB_MODEL), repository_files(tmp_path_factory.mktemp("repository"))) as hub:
        yield hub


@pytest.fixture(scope="module")
def preloaded(hub: Hub) -> Iterator[str]:
    """Built on the host's network, where this machine's hub is."""
    built = build(PRELOADED, arguments={"HF_ENDPOINT": hub.url, "PRELOAD_MODELS": f"{BUNDLED_MODEL}, {HUB_MODEL}"})
    assert built.returncode == 0, built.stderr
    yield PRELOADED
    call("rmi", "--force", PRELOADED)


def test_service_embeds_without_rights_network_or_a_place_to_write(service: Container) -> None:
    assert service.python(EMBED) == "384"
    assert service.execute("touch", "/app/x").returncode != 0


def test_health_check_of_the_image_passes_and_is_run_by_its_user(service: Container) -> None:
    told = json.loads(succeed("inspect", service.name))[0]["Config"]["Healthcheck"]["Test"]
    assert told == ["CMD", "python", "-m", "cli.health"]
    done = service.execute(*told[1:])
    assert (done.returncode, done.stdout) == (0, "healthy\n")
    assert service.execute("id", "-u").stdout.strip() == "10001"
    assert service.execute("id", "-g").stdout.strip() == "10001"


def test_process_has_no_capabilities(service: Container) -> None:
    assert re.search(r"CapEff:\s+0+\n", service.execute("cat", "/proc/1/status").stdout)


def test_health_check_says_what_is_wrong(service: Container) -> None:
    done = service.execute("env", "PORT=8001", "python", "-m", "cli.health")
    assert (done.returncode, done.stdout[:43]) == (1, "unhealthy: no answer from 127.0.0.1:8001 ([")


@pytest.mark.parametrize("module", ["pip", "pytest", "ruff", "mypy", "hypothesis", "onnx", "pyarrow"])
def test_service_has_no_tools(module: str, service: Container) -> None:
    """Python's own pip is the base image's, and not one of the service's packages."""
    assert service.execute("python", "-c", f"import {module}").returncode == 1


@pytest.mark.parametrize("command", ["gcc", "cc", "make", "curl"])
def test_image_has_no_compiler_and_no_curl(command: str, service: Container) -> None:
    assert service.execute("sh", "-c", f"command -v {command}").returncode != 0


def test_nothing_secret_or_needless_is_in_the_image(service: Container) -> None:
    listed = service.execute("find", "/app", "-maxdepth", "1", "-printf", "%f\n").stdout.split()
    assert not {".env", ".git", "tests", "docs", "benchmarks", "requirements", "deploy", "test_api.py"} & set(listed)
    leftovers = ["find", "/root/.cache", "/tmp", "/opt/venv", "-name", "tests", "-o", "-name", "*.whl"]  # noqa: S108
    assert service.execute(*leftovers).stdout == ""


def test_labels_say_what_was_built(image: str) -> None:
    labels = json.loads(succeed("inspect", image))[0]["Config"]["Labels"]
    told = {name: labels[f"org.opencontainers.image.{name}"] for name in ("version", "revision", "created")}
    assert told == {"version": "9.8.7", "revision": "abc", "created": "2026-01-02T03:04:05Z"}


def test_what_is_added_to_the_base_image_has_a_bound(image: str) -> None:
    """With a base image of 130 MB this is less than 500 MB."""
    sizes = [json.loads(succeed("inspect", name))[0]["Size"] for name in (image, "python:3.12-slim")]
    assert sizes[0] - sizes[1] < 350_000_000


def test_sigterm_lets_accepted_requests_be_answered_and_ends_with_0(image: str) -> None:
    with running(image, *LOCKED_DOWN) as container:
        assert container.python(STOP_IN_THE_MIDDLE) == "[200]"
        succeed("wait", container.name)
        assert container.exit_code == 0
        assert '"drain_ended"' in container.log


def test_stop_of_the_engine_ends_with_0(image: str) -> None:
    with running(image, *LOCKED_DOWN) as container:
        succeed("stop", "-t", "40", container.name)
        assert container.exit_code == 0


def test_commands_can_follow_the_image(image: str) -> None:
    done = call("run", "--rm", *LOCKED_DOWN, "--env", "HF_HUB_OFFLINE=1", image, "check")
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith("The service would start.\n")


def test_preloaded_model_serves_with_an_empty_volume_and_no_network(preloaded: str) -> None:
    options = (*LOCKED_DOWN, "--env", f"REQUIRED_MODELS={HUB_MODEL}")
    with running(preloaded, *options) as container:
        assert container.python(EMBED) == "384"
        assert container.execute("find", "/data", "-type", "f").stdout == ""
    done = call("run", "--rm", *options, "--tmpfs", "/data", preloaded, "check")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("names", "told"),
    [
        pytest.param(
            "BAAI/bge-smal-en-v1.5", "No model is named 'BAAI/bge-smal-en-v1.5'. Did you mean", id="no-such-model"
        ),
        pytest.param(
            HUB_MODEL, f"{HUB_MODEL}: failed: it is not in the cache, and the hub cannot be reached", id="no-hub"
        ),
    ],
)
@pytest.mark.usefixtures("image")
def test_model_that_cannot_be_preloaded_fails_the_build(names: str, told: str) -> None:
    built = build(WRONG, arguments={"PRELOAD_MODELS": names, "HF_ENDPOINT": NO_HUB})
    assert built.returncode != 0
    assert told in built.stdout + built.stderr
    assert call("image", "inspect", WRONG).returncode != 0


def test_volume_that_cannot_be_written_is_told_and_the_bundled_model_serves(image: str, tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    tmp_path.chmod(0o755)
    mounted = (*LOCKED_DOWN, "--volume", f"{tmp_path}/hub:/data")
    with running(image, *mounted) as container:
        assert '"hub_cache_not_writable"' in container.log
        assert container.python(EMBED) == "384"
    done = call("run", "--rm", *mounted, "--env", f"REQUIRED_MODELS={HUB_MODEL}", image)
    assert done.returncode != 0
    assert "HUB_CACHE_DIR cannot be written: /data belongs to user 0" in done.stdout + done.stderr
    assert "run `chown -R 10001 /data`" in done.stdout + done.stderr


def test_archive_of_an_image_serves_where_there_is_no_network(preloaded: str, tmp_path: Path) -> None:
    """The way of docs/DOCKER_SETUP.md to a machine without network."""
    archive = tmp_path / "fast-embedding.tar"
    succeed("save", "--output", str(archive), preloaded)
    succeed("rmi", "--force", preloaded)
    succeed("load", "--input", str(archive))
    done = call("run", "--rm", *LOCKED_DOWN, "--env", f"REQUIRED_MODELS={HUB_MODEL}", preloaded, "check")
    assert done.returncode == 0, done.stdout
    assert f"{HUB_MODEL} (hub, in the cache)" in done.stdout


def test_volume_filled_beforehand_serves_where_there_is_no_network(image: str, hub: Hub) -> None:
    volume = f"fast-embedding-test-{RUN}"
    mounted = ("--read-only", "--cap-drop", "ALL", "--volume", f"{volume}:/data")
    try:
        asked = ("--network", "host", "--env", f"HF_ENDPOINT={hub.url}")
        assert succeed("run", "--rm", *mounted, *asked, image, "download", HUB_MODEL).startswith(
            f"{HUB_MODEL}: downloaded"
        )
        required = ("--network", "none", "--env", f"REQUIRED_MODELS={HUB_MODEL}")
        with running(image, *mounted, *required) as container:
            assert container.python(EMBED) == "384"
    finally:
        call("volume", "rm", "--force", volume)


def test_development_serves_a_change_of_the_mounted_code_without_a_restart(tmp_path: Path) -> None:
    built = build(DEVELOPMENT, target="development")
    assert built.returncode == 0, built.stderr
    code = tmp_path / "code"
    left_out = shutil.ignore_patterns(".venv", ".env", ".git", ".hub_cache", "__pycache__", ".*_cache", ".hypothesis")
    shutil.copytree(ROOT, code, ignore=left_out)
    tmp_path.chmod(0o755)
    asked = """
import json, urllib.request
print(json.load(urllib.request.urlopen("http://127.0.0.1:8000/schema/openapi.json"))["info"]["version"])
"""
    with running(DEVELOPMENT, "--read-only", "--network", "none", "--volume", f"{code}:/app:ro") as container:
        before = container.python(asked)
        main = code / "main.py"
        main.write_text(re.sub(r'^VERSION = ".*"$', 'VERSION = "99.0.0"', main.read_text(), flags=re.MULTILINE))
        end = time.monotonic() + START_S
        while "StatReload detected changes" not in container.log and "WatchFiles detected changes" not in container.log:
            assert time.monotonic() < end, container.log
        container.wait_until_healthy()
        assert before != container.python(asked) == "99.0.0"
        tested = container.execute("python", "-m", "pytest", "-p", "no:cacheprovider", "tests/engine/test_options.py")
        assert tested.returncode == 0, tested.stdout
    call("rmi", "--force", DEVELOPMENT)
