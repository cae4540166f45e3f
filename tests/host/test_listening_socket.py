"""The listening socket, and why it cannot be opened."""

import errno
import os
import platform
import shutil
import socket
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from host.listening_socket import ListenError, has_fallen_back, listening_address, open_listening_socket
from tests.support.ipv4_only import Ipv4Only
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


@pytest.mark.parametrize(
    ("host", "form"),
    [pytest.param("127.0.0.1", "http://127.0.0.1:%d", id="IPv4"), pytest.param("::1", "http://[::1]:%d", id="IPv6")],
)
def test_address_in_the_log_is_that_of_a_url(host: str, form: str) -> None:
    try:
        listening = open_listening_socket(host, 0)
    except ListenError:
        pytest.skip("this machine has no IPv6")
    with listening:
        assert listening_address(listening) == form % listening.getsockname()[1]


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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc knows this name; others report it")
def test_star_is_all_addresses_not_this_machine_only() -> None:
    with open_listening_socket("*", 0) as listening:
        assert listening.getsockname()[0] == "0.0.0.0"  # noqa: S104 - what is expected


@pytest.fixture
def needs_ipv6() -> None:
    try:
        with socket.socket(socket.AF_INET6) as tried:
            tried.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")


@pytest.mark.usefixtures("needs_ipv6")
@pytest.mark.parametrize("host", ["::1", "[::1]", "0:0:0:0:0:0:0:1"])
def test_address_of_ipv6_may_be_in_brackets(host: str) -> None:
    with open_listening_socket(host, 0) as listening:
        assert listening.getsockname()[0] == "::1"


@pytest.mark.usefixtures("needs_ipv6")
@pytest.mark.parametrize("host", ["::", "[::]", "0::0"])
def test_all_addresses_of_ipv6_are_those_of_ipv4_too(host: str) -> None:
    with open_listening_socket(host, 0) as listening:
        assert not has_fallen_back(host, listening)
        for address in ("::1", "127.0.0.1"):
            socket.create_connection((address, listening.getsockname()[1])).close()


@pytest.mark.usefixtures("needs_ipv6")
def test_address_with_a_zone_is_listened_on() -> None:
    """Link-local addresses exist on each interface, so they need one."""
    lines = [line.split() for line in Path("/proc/net/if_inet6").read_text().splitlines()]
    zoned = [f"{ip_address(int(line[0], 16))}%{line[5]}" for line in lines if line[0].startswith("fe80")]
    if not zoned:
        pytest.skip("this machine has no link-local address")
    with open_listening_socket(zoned[0], 0) as listening:
        assert listening.getsockname()[3] > 0
    with pytest.raises(ListenError, match="Cannot listen on HOST="):
        open_listening_socket(f"{zoned[0].partition('%')[0]}%none", 0)


class NoIpv6Address(socket.socket):
    """A socket of a machine whose interfaces have no address of IPv6."""

    def bind(self, address: Any) -> None:
        if self.family == socket.AF_INET6:
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
        super().bind(address)


@pytest.mark.parametrize("kind", [Ipv4Only, NoIpv6Address])
@pytest.mark.parametrize("host", ["::", "[::]", "0:0::0"])
def test_without_ipv6_all_addresses_are_those_of_ipv4(
    host: str, kind: type[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "socket", kind)
    with open_listening_socket(host, 0) as listening:
        assert has_fallen_back(host, listening)
        assert listening.getsockname()[0] == "0.0.0.0"  # noqa: S104 - compared


def test_without_ipv6_an_address_of_it_is_reported_with_a_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", Ipv4Only)
    with pytest.raises(ListenError, match=r"HOST=::1 PORT=8000: .* This machine has no IPv6: set HOST=0\.0\.0\.0"):
        open_listening_socket("::1", 8000)


def test_without_ipv6_a_port_in_use_is_still_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_listening_socket("0.0.0.0", 0) as listening:  # noqa: S104 - this is about all addresses
        monkeypatch.setattr(socket, "socket", Ipv4Only)
        with pytest.raises(ListenError, match="Another process uses the port"):
            open_listening_socket("::", listening.getsockname()[1])


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
