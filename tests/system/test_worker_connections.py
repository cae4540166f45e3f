"""Connections of a service with two worker processes: spread, crash, hang, replacement, limits. Real processes."""

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx
import pytest

from host.cores import usable_cores
from tests.support.raw_http import (
    PROBE,
    WHOLE,
    connected,
    many_connected,
    receive_all,
    receive_answer,
    rejected,
    send,
    statuses_of,
)
from tests.support.servers import ROOT, ServerProcess, environment, running_server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.processes,
    pytest.mark.timeout(180),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.skipif(usable_cores() < 2, reason="needs two cores"),
]

END_S = 60.0
HELD_CONNECTIONS = 20


@pytest.fixture(scope="module")
def two_workers(tiny_models: Path) -> dict[str, str]:
    return {"MODELS_DIR": str(tiny_models), "REQUIRED_MODELS": "tiny/one", "WORKERS": "2"}


@pytest.fixture(scope="module")
def shared(two_workers: dict[str, str]) -> Iterator[ServerProcess]:
    with running_server(**two_workers) as server:
        yield server


def own(server: ServerProcess, event: str) -> list[dict[str, Any]]:
    """Return the events of this name that the supervisor itself has logged."""
    return [line for line in server.events if line["event"] == event and line.get("process") == "supervisor"]


def pid_of_worker(server: ServerProcess, number: int) -> int:
    pids = [line["worker_pid"] for line in own(server, "worker_ready") if line["worker"] == number]
    return int(pids[-1])


def named(request_id: str) -> bytes:
    return WHOLE.replace(b"\r\n", b"\r\nX-Request-ID: %s\r\n" % request_id.encode(), 1)


def workers_of(server: ServerProcess, connections: list[socket.socket], prefix: str) -> list[int]:
    """Send a request on each connection, and return the numbers of the workers that answered."""
    names = [f"{prefix}-{place}" for place in range(len(connections))]
    for connection, name in zip(connections, names, strict=True):
        send(connection, named(name))
    assert [receive_answer(connection)[0] for connection in connections] == [200] * len(connections)
    return [int(server.wait_for_request(name)["worker"]) for name in names]


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


# --- One service that stays as it is ------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [4, 16])
def test_kept_connections_are_spread_evenly(shared: ServerProcess, count: int) -> None:
    with many_connected(shared, count) as connections:
        found = Counter(workers_of(shared, connections, f"even-{count}"))
        assert found == {1: count // 2, 2: count // 2}


async def test_four_hundred_connections_at_once_are_spread_evenly(shared: ServerProcess) -> None:
    url = httpx.URL(shared.url)

    async def ask(name: str) -> asyncio.StreamWriter:
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(named(name))
        assert (await reader.readline()).split()[1] == b"200"
        return writer

    writers = await asyncio.gather(*(ask(f"many-{number}") for number in range(400)))
    for writer in writers:
        writer.transport.abort()
    shared.wait_until(
        lambda: sum(str(line.get("request_id")).startswith("many-") for line in shared.events) == 400, "400 lines"
    )
    lines = [line for line in shared.events if str(line.get("request_id")).startswith("many-")]
    assert Counter(line["worker"] for line in lines) == {1: 200, 2: 200}


@pytest.mark.skipif(os.getuid() != 0, reason="only root may count the open files of the service")
def test_thousands_of_connections_leave_no_file_open(shared: ServerProcess) -> None:
    pids = [shared.process.pid, pid_of_worker(shared, 1), pid_of_worker(shared, 2)]
    with many_connected(shared, 10) as connections:
        statuses_of(connections)
    before = sum(map(open_files, pids))
    for _ in range(20):
        with many_connected(shared, 100) as connections:
            statuses_of(connections)
    with connected(shared) as last:
        statuses_of([last])
        shared.wait_until(lambda: sum(map(open_files, pids)) <= before + 1, "closed files")


def test_second_service_on_the_port_ends_with_one_line(shared: ServerProcess, two_workers: dict[str, str]) -> None:
    port = httpx.URL(shared.url).port
    ended = subprocess.run(
        [sys.executable, "main.py"],
        cwd=ROOT,
        env=environment({**two_workers, "HOST": "127.0.0.1", "PORT": str(port)}),
        capture_output=True,
        text=True,
        check=False,
        timeout=END_S,
    )
    assert ended.returncode == 1
    [line] = ended.stderr.splitlines()
    assert "Another process uses the port" in line


# --- Faults -------------------------------------------------------------------------------------------------------


def test_new_connections_are_answered_while_a_worker_hangs(two_workers: dict[str, str]) -> None:
    """What the hung worker has not taken goes to the other one after a second; it does not wait for the end."""
    with running_server(**two_workers) as server:
        hung = pid_of_worker(server, 1)
        os.kill(hung, signal.SIGSTOP)
        try:
            with many_connected(server, HELD_CONNECTIONS) as connections:
                assert workers_of(server, connections, "hung") == [2] * HELD_CONNECTIONS
            assert not own(server, "worker_unusable")
        finally:
            os.kill(hung, signal.SIGCONT)


def test_crash_of_a_worker_breaks_its_own_connections_only(two_workers: dict[str, str]) -> None:
    """Afterwards, the connections that have stayed are shared with the replacement."""
    with running_server(**two_workers) as server, ExitStack() as stack:
        connections = [stack.enter_context(connected(server)) for _ in range(HELD_CONNECTIONS)]
        places = workers_of(server, connections, "before")
        ready = len(own(server, "worker_ready"))
        killed = pid_of_worker(server, 1)
        os.kill(killed, signal.SIGSTOP)  # so that there are connections that it has not taken
        waiting = [stack.enter_context(connected(server)) for _ in range(HELD_CONNECTIONS)]
        for connection in waiting:
            send(connection, PROBE)
        os.kill(killed, signal.SIGKILL)
        assert [receive_answer(connection)[0] for connection in waiting] == [200] * HELD_CONNECTIONS
        kept = [connection for connection, place in zip(connections, places, strict=True) if place == 2]
        lost = [connection for connection, place in zip(connections, places, strict=True) if place == 1]
        assert [receive_all(connection) for connection in lost] == [b""] * len(lost)
        assert statuses_of(kept) == [200] * len(kept)
        server.wait_until(lambda: len(own(server, "worker_ready")) > ready, "the replacement")
        all_kept = kept + waiting
        rounds = 0
        while min(Counter(workers_of(server, all_kept, f"after-{rounds}")).values()) < len(all_kept) // 3:
            rounds += 1


def test_reloads_under_load_lose_no_request(two_workers: dict[str, str]) -> None:
    """Clients with kept connections that do not retry; three replacements of all workers meanwhile."""
    with running_server(**two_workers) as server:
        is_over = Event()
        answers: list[Counter[int]] = []

        def keep_asking() -> None:
            counts: Counter[int] = Counter()
            answers.append(counts)
            with connected(server) as connection:
                while not is_over.is_set():
                    connection.sendall(WHOLE)
                    status, headers, _ = receive_answer(connection)
                    counts[status if headers.get("connection") != "close" else -status] += 1

        threads = [Thread(target=keep_asking) for _ in range(8)]
        with connected(server) as idle:
            assert statuses_of([idle]) == [200]
            for thread in threads:
                thread.start()
            try:
                for number in range(3):
                    server.process.send_signal(signal.SIGHUP)
                    server.wait_for("reload_ended", times=number + 1, timeout_s=END_S)
            finally:
                is_over.set()
                for thread in threads:
                    thread.join(END_S)
            assert statuses_of([idle]) == [200]  # it was kept open through six replacements
        assert len(answers) == 8
        assert all(set(counts) == {200} for counts in answers), answers


def test_signal_to_one_worker_alone_loses_no_idle_connection(two_workers: dict[str, str]) -> None:
    with running_server(**two_workers) as server, many_connected(server, 8) as connections:
        statuses_of(connections)
        os.kill(pid_of_worker(server, 1), signal.SIGTERM)
        server.wait_until(lambda: len(own(server, "worker_ready")) == 3, "the replacement", timeout_s=END_S)
        assert statuses_of(connections, WHOLE) == [200] * 8


# --- Limits -------------------------------------------------------------------------------------------------------


def wait_until_open(connections: list[socket.socket], count: int) -> None:
    """Wait until the server has closed all but *count* of the connections, and check that those are served."""
    left = connections
    while len(left) > count:
        closed, _, _ = select.select(left, [], [], END_S)
        assert closed
        assert {receive_all(connection) for connection in closed} == {b""}
        left = [connection for connection in left if connection not in closed]
    assert statuses_of(left) == [200] * count


@pytest.mark.parametrize("name", ["MAX_CONNECTIONS", "MAX_CONNECTIONS_PER_ADDRESS"])
def test_limits_hold_for_all_workers_together(two_workers: dict[str, str], name: str) -> None:
    with (
        running_server(**two_workers, **{name: "8"}) as server,
        many_connected(server, 14) as connections,
        connected(server) as last,
    ):
        assert statuses_of([last]) == [200]
        wait_until_open(connections, 8 - 1)


def test_slow_clients_are_rejected_in_time_and_others_served(two_workers: dict[str, str]) -> None:
    with (
        running_server(**two_workers, HEADER_TIMEOUT="0.6") as server,
        many_connected(server, 50) as slow,
        connected(server) as polite,
    ):
        for connection in slow:
            send(connection, WHOLE[:20])
        assert statuses_of([polite]) == [200]
        for connection in slow:
            rejected(receive_answer(connection), 408, "request-too-slow")
