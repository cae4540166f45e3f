"""deploy.sh with a real engine and a real compose: `pytest -m container tests/deploy/test_deploy_for_real.py`.

Needs docker or podman with compose, and python:3.12-slim or access to it. Uses its own project, images and port.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.servers import ROOT, free_port

pytestmark = [pytest.mark.container, pytest.mark.timeout(1800)]

START = "def serve_forever() -> int:\n"


class Deployment:
    """A copy of the repository, to deploy and to change."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"http://localhost:{(port := free_port())}"
        self.variables = {
            "COMPOSE_PROJECT_NAME": "fast-embedding-test",
            "IMAGE": "fast-embedding-test:latest",
            "PORT": str(port),
            "CPUS": "1",
        }

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.folder / "deploy.sh", *arguments],
            env={**os.environ, **self.variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def change(self, body: str) -> None:
        """Insert a line at the start of the server, which `check` does not execute."""
        code = (ROOT / "main.py").read_text(encoding="utf-8")
        assert START in code
        (self.folder / "main.py").write_text(code.replace(START, f"{START}    {body}\n"), encoding="utf-8")

    @property
    def uptime(self) -> float:
        return float(httpx.get(f"{self.url}/health", timeout=60).json()["uptime_seconds"])


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A deployment of this checkout, including uncommitted files."""
    if not os.environ.get("CI") and not any(map(shutil.which, ("docker", "podman"))):
        pytest.skip("needs docker or podman")
    folder = tmp_path_factory.mktemp("checkout") / "fast-embedding"
    left_out = shutil.ignore_patterns(".venv", ".env", ".hub_cache", "__pycache__", ".*_cache", ".hypothesis")
    shutil.copytree(ROOT, folder, ignore=left_out)
    deployment = Deployment(folder)
    deployed = deployment.run("deploy")
    assert deployed.returncode == 0, deployed.stderr
    assert deployed.stdout == f"{deployment.url}\n"
    yield deployment
    assert deployment.run("clean", "--yes").returncode == 0
    assert "nothing" in deployment.run("clean", "--yes").stderr


def test_second_deployment_of_the_same_image_changes_nothing(deployment: Deployment) -> None:
    before = deployment.uptime
    again = deployment.run("deploy")
    assert again.returncode == 0, again.stderr
    assert deployment.uptime > before


@pytest.mark.parametrize("body", ["time.sleep(600)", 'sys.exit("broken")'], ids=["silent", "exits"])
def test_unhealthy_image_is_replaced_by_the_previous_one(deployment: Deployment, body: str) -> None:
    deployment.change(body)
    failed = deployment.run("deploy", "--wait", "60")
    assert failed.returncode == 1
    assert "Rolled back" in failed.stderr, failed.stderr
    assert httpx.get(f"{deployment.url}/health", timeout=60).json()["status"] == "healthy"


def test_bad_setting_changes_nothing(deployment: Deployment) -> None:
    before = deployment.uptime
    (deployment.folder / ".env").write_text("MAX_BATCH_SIZE=many\n")
    failed = deployment.run("deploy")
    (deployment.folder / ".env").unlink()
    assert failed.returncode == 1
    assert "MAX_BATCH_SIZE='many' is not allowed" in failed.stderr
    assert deployment.uptime > before


def test_deployed_service_answers_and_has_a_status(deployment: Deployment) -> None:
    tested = deployment.run("test")
    assert tested.returncode == 0, tested.stderr
    assert tested.stdout.count("ok ") == 3
    status = deployment.run("status")
    assert status.returncode == 0, status.stdout
    assert "sentence-transformers/all-MiniLM-L6-v2" in status.stdout


def test_stopped_service_starts_again(deployment: Deployment) -> None:
    for arguments in (["stop"], ["stop"], ["deploy", "--no-build"], ["restart"]):
        done = deployment.run(*arguments)
        assert done.returncode == 0, done.stderr
    assert deployment.uptime > 0
