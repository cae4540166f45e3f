"""The example client is documentation: it must run as it stands."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers import free_port

ROOT = Path(__file__).resolve().parents[1]


def run_client(base_url: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "example_client.py", "--base-url", base_url]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_client_tours_a_running_service(base_url: str) -> None:
    done = run_client(base_url)
    assert (done.returncode, done.stderr) == (0, "")
    for told in (
        "healthy",
        "384 numbers",
        "400 invalid-input (texts[1])",
        "400 unknown-model",
        "POST /embed/batch",
        "a vector of characters 0 to",
        "384 bytes instead of 1536",
    ):
        assert told in done.stdout
    best = done.stdout.partition("what is like")[2].splitlines()[1]
    assert "password" in best


@pytest.mark.parametrize(
    "base_url",
    [pytest.param(f"http://127.0.0.1:{free_port()}", id="nobody"), pytest.param("nonsense", id="no-address")],
)
def test_client_says_in_one_line_that_no_service_answers(base_url: str) -> None:
    done = run_client(base_url)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert base_url in line
    assert "./run.sh" in line
