"""`python -m cli.health`, as a container's HEALTHCHECK runs it: for a real service, and for servers that are none."""

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from cli import health
from config import ENV_FILE, load_settings
from host.listening_socket import without_brackets
from tests.support.ipv4_only import Ipv4Only
from tests.support.servers import ROOT, environment, free_port

pytestmark = pytest.mark.timeout(60)  # starts processes, on a machine that may be busy


def check(**variables: str) -> subprocess.CompletedProcess[str]:
    """Run it without site-packages, as it needs none of them."""
    return subprocess.run(
        [sys.executable, "-S", "-m", "cli.health"],
        cwd=ROOT,
        env=environment(variables),
        capture_output=True,
        text=True,
        check=False,
    )


@contextmanager
def answering(answer: Callable[[bytes], bytes]) -> Iterator[int]:
    """Yield the port of a server that sends what *answer* returns for the head of a request."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        done = threading.Event()

        def serve() -> None:
            while True:
                connection, _ = server.accept()
                with connection:
                    if done.is_set():
                        return
                    connection.sendall(answer(connection.recv(65536)))

        thread = threading.Thread(target=serve)
        thread.start()
        port = server.getsockname()[1]
        try:
            yield port
        finally:
            done.set()
            socket.create_connection(("127.0.0.1", port)).close()
            thread.join()


def http(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d Status\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (status, len(body), body)


def use_env_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read settings from *path*, and not from the environment of these tests."""
    monkeypatch.setattr(health, "ENV_FILE", path)
    monkeypatch.setattr("config.ENV_FILE", path)
    for name in ("HOST", "PORT"):
        monkeypatch.delenv(name, raising=False)


def test_healthy_service_is_reported_with_the_standard_library_alone(base_url: str) -> None:
    done = check(PORT=str(urlsplit(base_url).port))
    assert (done.returncode, done.stdout, done.stderr) == (0, "healthy\n", "")


def test_service_that_does_not_run_is_unhealthy_in_one_line() -> None:
    port = free_port()
    done = check(HOST="127.0.0.1", PORT=str(port))
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout == f"unhealthy: no answer from 127.0.0.1:{port} ([Errno 111] Connection refused)\n"


@pytest.mark.parametrize(
    ("path", "body", "problem"),
    [
        pytest.param(b"/health/live", b'{"status": "stuck"}', "/health/live answers 503 (stuck)", id="stuck"),
        pytest.param(b"/health/ready", b'{"status":"starting"}', "/health/ready answers 503 (starting)", id="starts"),
        pytest.param(b"/health/ready", b"<html>", "/health/ready answers 503 (not JSON)", id="another-server"),
    ],
)
def test_service_that_is_not_live_or_not_ready_is_unhealthy_with_its_status(
    path: bytes, body: bytes, problem: str
) -> None:
    with answering(lambda head: http(503, body) if path in head else http(200, b"{}")) as port:
        assert health.problem_at("127.0.0.1", port) == problem


def test_server_without_http_is_unhealthy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with answering(lambda _: b"SSH-2.0-Server\r\n") as port:
        monkeypatch.setenv("HOST", "127.0.0.1")
        monkeypatch.setenv("PORT", str(port))
        assert health.run() == 1
    assert capsys.readouterr().out == f"unhealthy: no answer from 127.0.0.1:{port} (SSH-2.0-Server)\n"


def test_server_that_does_not_answer_is_unhealthy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(health, "TIMEOUT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HOST", "127.0.0.1")
        monkeypatch.setenv("PORT", str(silent.getsockname()[1]))
        assert health.run() == 1
    assert capsys.readouterr().out.endswith("(timed out)\n")


def test_service_for_all_addresses_is_found_where_ipv6_is_off(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(health, "TIMEOUT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(socket, "socket", Ipv4Only)
        monkeypatch.setenv("HOST", "::")
        monkeypatch.setenv("PORT", str(silent.getsockname()[1]))
        assert health.run() == 1
    assert capsys.readouterr().out.endswith("(timed out)\n")


@pytest.mark.parametrize(
    ("variables", "address"),
    [
        pytest.param({}, ("127.0.0.1", 8000), id="defaults"),
        pytest.param({"PORT": "9000"}, ("127.0.0.1", 9000), id="port"),
        pytest.param({"HOST": "::"}, ("::1", 8000), id="all addresses, IPv6"),
        pytest.param({"HOST": "[::1]"}, ("::1", 8000), id="brackets"),
        pytest.param({"HOST": "10.0.0.5", "port": "9000"}, ("10.0.0.5", 9000), id="one address"),
        pytest.param({"HOST": "", "PORT": ""}, ("127.0.0.1", 8000), id="empty"),
    ],
)
def test_address_is_that_of_the_settings(
    variables: dict[str, str], address: tuple[str, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_env_file(tmp_path / ".env", monkeypatch)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert health.address(variables) == address
    host = without_brackets(settings.host)
    assert (health.LOOPBACK.get(host, host), settings.port) == address


def test_env_file_is_used_for_what_the_environment_does_not_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_env_file(tmp_path / ".env", monkeypatch)
    (tmp_path / ".env").write_text("PORT=9100\n")
    assert health.address({}) == ("127.0.0.1", 9100)
    monkeypatch.setenv("PORT", "9200")
    assert health.address({"PORT": "9200"}) == ("127.0.0.1", 9200)


def test_env_file_is_that_of_the_service() -> None:
    assert health.ENV_FILE == ENV_FILE
