"""The listening socket, and why it cannot be opened."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from host.listening_socket import ListenError, open_listening_socket
from tests.support.servers import ROOT

UNPRIVILEGED_PORT_START = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")


def test_port_in_use_is_reported_with_a_fix() -> None:
    with open_listening_socket("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(ListenError) as failure:
            open_listening_socket("127.0.0.1", port)
    assert failure.value.is_in_use
    cause = f"Cannot listen on HOST=127.0.0.1 PORT={port}: Address already in use."
    assert str(failure.value) == f"{cause} Another process uses the port: stop it, or set another PORT."


def test_address_of_another_machine_is_reported_with_a_fix() -> None:
    with pytest.raises(ListenError, match=r"HOST=192\.0\.2\.1 PORT=8000: .* set HOST=0\.0\.0\.0"):
        open_listening_socket("192.0.2.1", 8000)


@pytest.mark.parametrize("host", ["\0", "x" * 300, "1.2.3.4.5", "::zz"])
def test_invalid_address_is_reported(host: str) -> None:
    with pytest.raises(ListenError, match="Cannot listen on HOST=") as failure:
        open_listening_socket(host, 8000)
    assert not failure.value.is_in_use


def test_address_of_ipv6_is_listened_on() -> None:
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    with open_listening_socket("::1", 0) as listening:
        assert listening.family == socket.AF_INET6


def test_privileged_port_is_reported_with_another_one() -> None:
    if not UNPRIVILEGED_PORT_START.exists() or int(UNPRIVILEGED_PORT_START.read_text()) <= 1:
        pytest.skip("on this machine, ports below 1024 are not privileged")
    command = [sys.executable, "-c", "from host.listening_socket import *; open_listening_socket('127.0.0.1', 1)"]
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("needs setpriv (Debian: util-linux) to give up the right of root")
        command = ["setpriv", "--bounding-set=-net_bind_service", *command]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "PORT=1: Permission denied." in done.stderr
    assert "set PORT=8000" in done.stderr
