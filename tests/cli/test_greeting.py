"""What `./run.sh` prints before the service starts."""

import contextlib
import os
import socket
import subprocess
import sys

import pytest

from cli.greeting import greeting, main
from tests.support.servers import ROOT, environment, free_port


@pytest.mark.parametrize(
    ("host", "url"),
    [
        pytest.param("0.0.0.0", "http://localhost:8000", id="all addresses"),  # noqa: S104 - the default
        pytest.param("::", "http://localhost:8000", id="all addresses of IPv6"),
        pytest.param("::1", "http://[::1]:8000", id="an address of IPv6"),
        pytest.param("[::1]", "http://[::1]:8000", id="an address in brackets"),
        pytest.param("fe80::1%eth0", "http://[fe80::1%25eth0]:8000", id="an address with a zone"),
        pytest.param("example", "http://example:8000", id="a name"),
    ],
)
def test_greeting_shows_an_address_that_this_machine_can_call(host: str, url: str) -> None:
    text = greeting(host, 8000, needs_key=False, has_docs=True)
    assert f"curl {url}/embed -H 'Content-Type: application/json' -d '{{\"text\": \"Hello, world!\"}}'" in text
    assert f"{url}/health\n  API       {url}/docs\n\n" in text


def test_greeting_shows_where_a_key_goes() -> None:
    assert "/embed -H 'X-API-Key: YOUR KEY' -H" in greeting("localhost", 8000, needs_key=True, has_docs=True)


def test_greeting_does_not_name_docs_that_are_off() -> None:
    assert greeting("localhost", 8000, needs_key=False, has_docs=False).endswith("/health\n\n")


def test_port_in_use_is_reported_instead_of_the_greeting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        monkeypatch.setenv("HOST", "127.0.0.1")
        monkeypatch.setenv("PORT", str(other.getsockname()[1]))
        assert main() == 1
    written = capsys.readouterr()
    assert written.out == ""
    assert "Address already in use. " in written.err
    assert main() == 0
    assert capsys.readouterr().out.startswith("Starting Fast Embedding API on http://127.0.0.1:")


def test_bad_settings_are_reported_instead_of_the_greeting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PORT", "none")
    assert main() == 1
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.startswith("Bad settings: PORT='none' is not allowed")


def test_unknown_model_is_reported_instead_of_the_greeting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REQUIRED_MODELS", "bge-small")
    assert main() == 1
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.startswith("Bad settings: REQUIRED_MODELS: No model named 'bge-small' is offered. Did you mean")


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full")
@pytest.mark.parametrize("output", ["/dev/full", "full pipe", "left reader"])
def test_output_that_cannot_be_written_does_not_stop_the_start(output: str) -> None:
    reading, writing = os.pipe()
    still_open = [reading, writing]
    if output == "/dev/full":
        full = os.open(output, os.O_WRONLY)
        os.dup2(full, writing)
        os.close(full)
    elif output == "left reader":
        os.close(reading)
        still_open.remove(reading)  # by now, another file may have its number
    else:
        os.set_blocking(writing, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writing, b"-" * 1000)
        os.set_blocking(writing, True)
    ended = subprocess.run(
        [sys.executable, "-m", "cli.greeting"],
        cwd=ROOT,
        env=environment({"HOST": "127.0.0.1", "PORT": str(free_port())}),
        stdout=writing,
        stderr=subprocess.PIPE,
        timeout=30,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, b"")
    for descriptor in still_open:
        os.close(descriptor)
