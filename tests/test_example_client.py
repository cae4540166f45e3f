"""The example client is documentation: it must run as it stands."""

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from example_client import MAX_TRIES, ProblemError, ask
from tests.support.servers import free_port

pytestmark = pytest.mark.timeout(60)  # it starts processes, on a machine that may be busy

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


@pytest.mark.parametrize("status", [429, 503])
def test_client_comes_again_when_it_is_told_to(status: int) -> None:
    refusal = httpx.Response(status, headers={"Retry-After": "0"})
    answers = iter([refusal, refusal, httpx.Response(200, json={"count": 1})])
    with httpx.Client(transport=httpx.MockTransport(lambda _: next(answers)), base_url="http://service") as client:
        assert ask(client, "POST", "/embed", {"text": "one"}) == {"count": 1}


def test_client_gives_up_at_last() -> None:
    tries = []

    def refuse(request: httpx.Request) -> httpx.Response:
        tries.append(request)
        told = {"Retry-After": "0", "Content-Type": "application/problem+json"}
        return httpx.Response(429, headers=told, content=b'{"detail": "No more than 1."}')

    with (
        httpx.Client(transport=httpx.MockTransport(refuse), base_url="http://service") as client,
        pytest.raises(ProblemError, match="No more than 1"),
    ):
        ask(client, "GET", "/models")
    assert len(tries) == MAX_TRIES
