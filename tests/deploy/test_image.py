"""The image, built and run for real: `pytest -m container tests/deploy/test_image.py`.

Needs docker or podman, python:3.12-slim or access to it, and a package index.
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
"""Keeps two runs on one machine from removing each other's images."""
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
body = json.dumps({"texts": [f"{number} " + "one two three " * 400 for number in range(32)]}).encode()
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
    """Built on the host's network, which the test's hub uses."""
    built = build(PRELOADED, arguments={"HF_ENDPOINT": hub.url, "PRELOAD_MODELS": f"{BUNDLED_MODEL}, {HUB_MODEL}"})
    assert built.returncode == 0, built.stderr
    yield PRELOADED
    call("rmi", "--force", PRELOADED)


def test_service_runs_without_privileges_network_or_writable_files(service: Container) -> None:
    assert service.python(EMBED) == "384"
    assert service.execute("touch", "/app/x").returncode != 0


def test_health_check_of_the_image_passes_and_the_user_is_fixed(service: Container) -> None:
    command = json.loads(succeed("inspect", service.name))[0]["Config"]["Healthcheck"]["Test"]
    assert command == ["CMD", "python", "-m", "cli.health"]
    done = service.execute(*command[1:])
    assert (done.returncode, done.stdout) == (0, "healthy\n")
    assert service.execute("id", "-u").stdout.strip() == "10001"
    assert service.execute("id", "-g").stdout.strip() == "10001"
    assert re.search(r"CapEff:\s+0+\n", service.execute("cat", "/proc/1/status").stdout)


def test_failed_health_check_gives_the_reason(service: Container) -> None:
    done = service.execute("env", "PORT=8001", "python", "-m", "cli.health")
    assert (done.returncode, done.stdout[:43]) == (1, "unhealthy: no answer from 127.0.0.1:8001 ([")


def test_image_has_no_test_or_build_tools(service: Container) -> None:
    """The base image has its own pip, which is not visible to the service."""
    for module in ("pip", "pytest", "ruff", "mypy", "hypothesis", "onnx", "pyarrow"):
        assert service.execute("python", "-c", f"import {module}").returncode == 1, module
    for command in ("gcc", "cc", "make", "curl"):
        assert service.execute("sh", "-c", f"command -v {command}").returncode != 0, command


def test_image_contains_no_secrets_tests_or_caches(service: Container) -> None:
    listed = service.execute("find", "/app", "-maxdepth", "1", "-printf", "%f\n").stdout.split()
    assert not {".env", ".git", "tests", "docs", "benchmarks", "requirements", "deploy", "test_api.py"} & set(listed)
    leftovers = ["find", "/root/.cache", "/tmp", "/opt/venv", "-name", "tests", "-o", "-name", "*.whl"]  # noqa: S108
    assert service.execute(*leftovers).stdout == ""


def test_labels_contain_version_revision_and_date(image: str) -> None:
    labels = json.loads(succeed("inspect", image))[0]["Config"]["Labels"]
    values = {name: labels[f"org.opencontainers.image.{name}"] for name in ("version", "revision", "created")}
    assert values == {"version": "9.8.7", "revision": "abc", "created": "2026-01-02T03:04:05Z"}


def test_image_adds_less_than_350_mb_to_the_base_image(image: str) -> None:
    """The base image has 130 MB, so the image has less than 500 MB."""
    sizes = [json.loads(succeed("inspect", name))[0]["Size"] for name in (image, "python:3.12-slim")]
    assert sizes[0] - sizes[1] < 350_000_000


def test_sigterm_answers_accepted_requests_and_exits_with_0(image: str) -> None:
    with running(image, *LOCKED_DOWN) as container:
        assert container.python(STOP_IN_THE_MIDDLE) == "[200]"
        succeed("wait", container.name)
        assert container.exit_code == 0
        assert '"drain_ended"' in container.log


def test_stop_by_the_engine_exits_with_0(image: str) -> None:
    with running(image, *LOCKED_DOWN) as container:
        succeed("stop", "-t", "40", container.name)
        assert container.exit_code == 0


def test_image_accepts_commands_as_arguments(image: str) -> None:
    done = call("run", "--rm", *LOCKED_DOWN, "--env", "HF_HUB_OFFLINE=1", image, "check")
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith("The service would start.\n")


def test_preloaded_model_works_with_an_empty_volume_and_no_network(preloaded: str) -> None:
    options = (*LOCKED_DOWN, "--env", f"REQUIRED_MODELS={HUB_MODEL}")
    with running(preloaded, *options) as container:
        assert container.python(EMBED) == "384"
        assert container.execute("find", "/data", "-type", "f").stdout == ""
    done = call("run", "--rm", *options, "--tmpfs", "/data", preloaded, "check")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("names", "message"),
    [
        pytest.param(
            "BAAI/bge-smal-en-v1.5",
            "No model named 'BAAI/bge-smal-en-v1.5' is offered. Did you mean",
            id="no-such-model",
        ),
        pytest.param(
            HUB_MODEL, f"{HUB_MODEL}: failed: it is not in the cache, and the hub cannot be reached", id="no-hub"
        ),
    ],
)
@pytest.mark.usefixtures("image")
def test_model_that_cannot_be_preloaded_fails_the_build(names: str, message: str) -> None:
    built = build(WRONG, arguments={"PRELOAD_MODELS": names, "HF_ENDPOINT": NO_HUB})
    assert built.returncode != 0
    assert message in built.stdout + built.stderr
    assert call("image", "inspect", WRONG).returncode != 0


def test_read_only_volume_is_reported_and_the_bundled_model_works(image: str, tmp_path: Path) -> None:
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


def test_archive_of_an_image_works_without_network(preloaded: str, tmp_path: Path) -> None:
    """The method that docs/DOCKER_SETUP.md describes for machines without network."""
    archive = tmp_path / "fast-embedding.tar"
    succeed("save", "--output", str(archive), preloaded)
    succeed("rmi", "--force", preloaded)
    succeed("load", "--input", str(archive))
    done = call("run", "--rm", *LOCKED_DOWN, "--env", f"REQUIRED_MODELS={HUB_MODEL}", preloaded, "check")
    assert done.returncode == 0, done.stdout
    assert f"{HUB_MODEL} (hub, in the cache)" in done.stdout


def test_volume_with_downloaded_models_works_without_network(image: str, hub: Hub) -> None:
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


def test_development_image_reloads_changed_code(tmp_path: Path) -> None:
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
