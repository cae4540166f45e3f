"""Ports and processes of servers that tests start, also when several workers run tests at the same time."""

import socket
import sys
from pathlib import Path

import httpx
import pytest

from tests.support.servers import MAX_PORTS_HELD, ServerPool, free_port

MANY = 30_000
"""More than Linux has ephemeral ports, so that the system would assign each of them at least once."""


@pytest.mark.skipif(sys.platform != "linux", reason="on other systems, a port is not reserved")
def test_free_port_is_reserved_and_a_server_can_listen_on_it() -> None:
    port = free_port()
    for _ in range(MANY):
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            assert other.getsockname()[1] != port
    for address in ("127.0.0.1", "127.0.0.2"):
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind((address, port))
    for address in ("127.0.0.1", "127.0.0.1", ""):  # twice, as for a server that is restarted
        with socket.create_server((address, port)), socket.create_connection(("127.0.0.1", port)):
            pass
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_reserved_ports_do_not_use_up_the_open_files_of_a_long_run() -> None:
    ports = [free_port() for _ in range(2 * MAX_PORTS_HELD)]
    assert len(set(ports[-MAX_PORTS_HELD:])) == MAX_PORTS_HELD


def test_pool_returns_one_process_per_set_of_settings_and_stops_the_least_recently_used(tiny_models: Path) -> None:
    pool = ServerPool(max_servers=1, MODELS_DIR=str(tiny_models), REQUIRED_MODELS="tiny/one")
    try:
        first = pool.get()
        assert pool.get() is first
        assert httpx.get(f"{first.url}/health/ready").status_code == 200
        second = pool.get(MAX_BATCH_SIZE="4")
        assert first.process.poll() is not None
        second.stop()
        assert pool.get(MAX_BATCH_SIZE="4").process.poll() is None
    finally:
        pool.close()
