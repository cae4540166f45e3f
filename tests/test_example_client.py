"""The example client is documentation: it must run as it is."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest

from example_client import MAX_TRIES, ProblemError, ask, is_local
from tests.support.servers import free_port

pytestmark = pytest.mark.timeout(60)  # it starts processes, on a machine that may be busy

ROOT = Path(__file__).resolve().parents[1]


def run_client(base_url: str, variables: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "example_client.py", "--base-url", base_url]
    environment = {**os.environ, **(variables or {})}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_client_tours_a_running_service_given_as_host_and_port_and_past_a_proxy(base_url: str) -> None:
    """Nothing listens at the proxy; an address of this machine is reached without it."""
    proxy = f"http://127.0.0.1:{free_port()}"
    done = run_client(base_url.removeprefix("http://"), {"HTTP_PROXY": proxy, "ALL_PROXY": proxy, "NO_PROXY": ""})
    assert (done.returncode, done.stderr) == (0, "")
    for part in (
        "healthy",
        "384 numbers",
        "400 invalid-input (texts[1])",
        "400 unknown-model",
        "0123456789abcdef: 412 fingerprint-mismatch",
        "POST /embed/batch",
        "one vector for characters 0 to",
        "384 bytes instead of 1536",
    ):
        assert part in done.stdout
    best = done.stdout.partition("most similar to")[2].splitlines()[1]
    assert "password" in best


@pytest.mark.parametrize(
    "base_url",
    [pytest.param(f"http://127.0.0.1:{free_port()}", id="closed port"), pytest.param("no such host", id="no address")],
)
def test_client_reports_in_one_line_that_no_service_answers(base_url: str) -> None:
    done = run_client(base_url)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert base_url in line
    assert "./run.sh" in line


def test_only_addresses_of_this_machine_bypass_proxies() -> None:
    urls = [
        "http://localhost:8000",
        "http://127.0.0.1",
        "http://[::1]:80",
        "http://10.0.0.1",
        "https://localhost.example",
    ]
    assert [is_local(url) for url in urls] == [True, True, True, False, False]


@pytest.mark.parametrize("status", [429, 503])
def test_client_retries_when_retry_after_says_so(status: int) -> None:
    rejection = httpx.Response(status, headers={"Retry-After": "0"})
    answers = iter([rejection, rejection, httpx.Response(200, json={"count": 1})])
    with httpx.Client(transport=httpx.MockTransport(lambda _: next(answers)), base_url="http://service") as client:
        assert ask(client, "POST", "/embed", {"text": "one"}) == {"count": 1}


def test_client_gives_up_after_some_tries() -> None:
    tries = []

    def reject(request: httpx.Request) -> httpx.Response:
        tries.append(request)
        headers = {"Retry-After": "0", "Content-Type": "application/problem+json"}
        return httpx.Response(429, headers=headers, content=b'{"detail": "No more than 1."}')

    with (
        httpx.Client(transport=httpx.MockTransport(reject), base_url="http://service") as client,
        pytest.raises(ProblemError, match="No more than 1"),
    ):
        ask(client, "GET", "/models")
    assert len(tries) == MAX_TRIES
