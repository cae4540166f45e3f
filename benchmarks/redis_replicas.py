"""Two servers that share a Redis, for `result_cache.py`."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from benchmarks.processes import BenchError, Server, end_tree, free_port, healthy_server

SECRET = "of-this-benchmark-only-0123456789"  # noqa: S105 - for a Redis that runs as long as the benchmark
MAX_START_S = 10.0


def is_installed() -> bool:
    return shutil.which("redis-server") is not None


@dataclass(frozen=True, slots=True)
class Replicas:
    """Two servers that share a Redis."""

    redis_port: int
    first: Server
    second: Server


@contextmanager
def running_replicas(settings: Mapping[str, str], *, lanes: int) -> Iterator[Replicas]:
    """Start a Redis that keeps nothing on disk, and two servers that use it."""
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    shared = {"RESULT_CACHE_REDIS": "true", "REDIS_URL": f"redis://127.0.0.1:{port}/0", "CACHE_KEY_SECRET": SECRET}
    try:
        _wait_for_redis(port)
        with (
            healthy_server({**settings, **shared}, lanes=lanes) as first,
            healthy_server({**settings, **shared}, lanes=lanes) as second,
        ):
            yield Replicas(port, first, second)
    finally:
        end_tree(process, [])


def _wait_for_redis(port: int) -> None:
    deadline = time.monotonic() + MAX_START_S
    while time.monotonic() < deadline:
        with suppress(OSError):
            keys_in_redis(port)
            return
        time.sleep(0.05)
    raise BenchError("redis-server does not start.")


def keys_in_redis(port: int) -> int:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(b"DBSIZE\r\n")
        return int(connection.recv(64).strip().removeprefix(b":"))
