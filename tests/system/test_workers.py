"""Several workers of the real service: their start, signals, and the end of the supervisor."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from host.cores import usable_cores
from serving.process_signals import REPEATED_S
from tests.support.servers import ServerProcess, running_server, started_server, started_uvicorn, stopped_at_the_end
from tests.support.tiny import WORDS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.processes,
    pytest.mark.timeout(180),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.skipif(usable_cores() < 2, reason="needs two cores"),
]

END_S = 60.0


@pytest.fixture
def tiny(tiny_models: Path) -> dict[str, str]:
    return {"MODELS_DIR": str(tiny_models), "REQUIRED_MODELS": "tiny/one", "WORKERS": "2", "SHUTDOWN_TIMEOUT": "20"}


def own(server: ServerProcess, event: str) -> list[dict[str, Any]]:
    """Return the events of this name that the supervisor itself has logged."""
    return [line for line in server.events if line["event"] == event and line.get("process") == "supervisor"]


def pids_of(server: ServerProcess) -> dict[int, int]:
    """Return the process numbers of the workers that were ready last, by worker."""
    return {line["worker"]: line["worker_pid"] for line in own(server, "worker_ready")}


def status_of(server: ServerProcess) -> int:
    return httpx.post(f"{server.url}/embed", json={"text": WORDS[1]}, timeout=END_S).status_code


def state_of(pid: int) -> str:
    """Return the state of a process as `ps` shows it, such as S or Z; empty: there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def runs(pid: int) -> bool:
    return state_of(pid) not in {"", "Z"}


def test_workers_serve_on_one_port_and_end_together(tiny: dict[str, str]) -> None:
    with running_server(**tiny) as server:
        pids = pids_of(server)
        assert sorted(pids) == [1, 2]
        assert status_of(server) == 200
        groups = {os.getpgid(pid) for pid in pids.values()}
        assert os.getpgid(server.process.pid) not in groups  # so Ctrl-C in a terminal reaches the supervisor only
        [ready] = own(server, "service_ready")
        assert ready["address"] == server.url
        assert [line for line in server.events if "address" in line] == [ready]
        planned = [line for line in server.events if line["event"] == "threads_planned"]
        assert sorted((line["worker"], line["pid"], line["lanes"]) for line in planned) == [
            (number, pid, line["lanes"]) for (number, pid), line in zip(sorted(pids.items()), planned, strict=True)
        ]
        server.process.terminate()
        assert server.wait_for_end(timeout_s=END_S) == 0
    assert not any(map(runs, pids.values()))
    assert "Traceback" not in server.log


def test_model_that_cannot_be_loaded_ends_the_service_with_one_line(tiny: dict[str, str], tmp_path: Path) -> None:
    models = shutil.copytree(tiny["MODELS_DIR"], tmp_path / "models")
    for file in models.rglob("*.onnx"):
        file.write_bytes(b"broken")
    with started_server(**{**tiny, "MODELS_DIR": str(models)}) as server:
        assert server.wait_for_end(timeout_s=END_S) == 1
    lines = [line for line in server.lines if not line.startswith("{")]
    assert len(lines) == 1
    assert lines[0].startswith("Cannot start: ")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        pytest.param({"WORKERS": "64"}, "Bad settings: WORKERS=64 is not allowed: ", id="more-than-cores"),
        pytest.param({"WORKERS": "0"}, "Bad settings: WORKERS='0' is not allowed: use a whole number from", id="zero"),
        pytest.param({"REQUIRED_MODELS": "no/such"}, "Bad settings: REQUIRED_MODELS: ", id="unknown-model"),
        pytest.param({"HOST": "203.0.113.7"}, "Cannot listen on HOST=203.0.113.7 ", id="address"),
    ],
)
def test_bad_settings_end_the_service_with_one_line(
    tiny: dict[str, str], settings: dict[str, str], reason: str
) -> None:
    if usable_cores() >= 64:
        pytest.skip("64 workers are allowed here")
    with started_server(**{**tiny, **settings}) as server:
        assert server.wait_for_end(timeout_s=END_S) == 1
    [line] = [line for line in server.lines if not line.startswith("{")]
    assert line.startswith(reason)


def test_worker_that_is_killed_is_replaced_while_the_service_answers(tiny: dict[str, str]) -> None:
    with running_server(**tiny) as server:
        killed = pids_of(server)[1]
        os.kill(killed, signal.SIGKILL)
        ended = server.wait_for("worker_ended")
        assert (ended["worker"], ended["worker_pid"], ended["ended_with"]) == (1, killed, "SIGKILL")
        assert status_of(server) == 200
        server.wait_for("worker_ready", times=3)
        assert pids_of(server)[1] != killed
        assert len(own(server, "service_ready")) == 1


def test_sighup_replaces_all_workers_by_ready_ones(tiny: dict[str, str]) -> None:
    with running_server(**tiny) as server:
        before = pids_of(server)
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("reload_ended", timeout_s=END_S)
        after = pids_of(server)
        assert set(before.values()).isdisjoint(after.values())
        assert not any(map(runs, before.values()))
        assert status_of(server) == 200


def test_sighup_with_a_model_that_has_become_unusable_leaves_the_workers(tiny: dict[str, str], tmp_path: Path) -> None:
    models = shutil.copytree(tiny["MODELS_DIR"], tmp_path / "models")
    with running_server(**{**tiny, "MODELS_DIR": str(models)}) as server:
        before = pids_of(server)
        for file in models.rglob("*.onnx"):
            new = file.with_suffix(".new")
            new.write_bytes(b"broken")
            new.replace(file)
        server.process.send_signal(signal.SIGHUP)
        assert server.wait_for("replacement_failed")["reason"].startswith("Cannot start: ")
        assert server.wait_for("reload_failed")["replaced"] == 0
        assert pids_of(server) == before
        assert status_of(server) == 200


def test_signal_that_arrives_twice_at_once_counts_once(tiny: dict[str, str]) -> None:
    with running_server(**tiny) as server:
        server.process.send_signal(signal.SIGTERM)
        server.process.send_signal(signal.SIGINT)
        assert server.wait_for_end(timeout_s=END_S) == 0
    assert "signal_repeated" in server.log
    assert "stopped_at_once" not in server.log


def test_signal_during_the_first_start_ends_all_with_code_0(tiny: dict[str, str]) -> None:
    with started_server(**tiny) as server:
        server.wait_for("worker_started", times=2)
        server.process.terminate()
        assert server.wait_for_end(timeout_s=END_S) == 0
    assert "service_ready" not in server.log
    assert [line for line in server.lines if not line.startswith("{")] == []


def test_second_signal_ends_all_processes_at_once(tiny: dict[str, str]) -> None:
    with running_server(**tiny) as server:
        pids = pids_of(server)
        for pid in pids.values():
            os.kill(pid, signal.SIGSTOP)  # so they cannot end by themselves
        server.process.send_signal(signal.SIGINT)
        server.wait_for("workers_stopping")
        with pytest.raises(subprocess.TimeoutExpired):  # it does not end by itself; earlier signals count as the same
            server.process.wait(2 * REPEATED_S)
        server.process.send_signal(signal.SIGTERM)
        assert server.wait_for_end(timeout_s=END_S) == 128 + signal.SIGTERM
    assert not any(map(runs, pids.values()))


def test_workers_end_when_the_supervisor_is_killed(tiny: dict[str, str]) -> None:
    with running_server(**tiny) as server:
        server.process.kill()
        server.wait_for_end(timeout_s=END_S)  # the log ends with the last process that writes to it
    lost = [line["worker"] for line in server.events if line["event"] == "supervisor_lost"]
    assert sorted(lost) == [1, 2]
    drained = [line["worker"] for line in server.events if line["event"] == "drain_ended"]
    assert sorted(drained) == [1, 2]


def test_other_servers_report_that_they_start_no_workers(tiny: dict[str, str]) -> None:
    with started_uvicorn(**tiny) as server:
        assert server.wait_for("workers_ignored")["workers"] == 2
        server.wait_for("service_ready")


AS_PROCESS_1 = """
import os, sys
arguments = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "main.py"]
os.execvp(arguments[0], arguments)
"""


def can_unshare() -> bool:
    command = ["unshare", "--pid", "--fork", "--mount-proc", "true"]
    return bool(shutil.which("unshare")) and subprocess.run(command, check=False, capture_output=True).returncode == 0


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not can_unshare(), reason="needs the right to make a PID namespace")
def test_supervisor_that_is_process_1_leaves_no_zombies(tiny: dict[str, str]) -> None:
    with stopped_at_the_end(ServerProcess(tiny, command=("-c", AS_PROCESS_1))) as server:
        server.wait_for("service_ready")
        [supervisor] = children_of(server.process.pid)
        workers = children_of(supervisor)
        [orphan] = set(with_an_orphan(supervisor)) - set(workers)
        for pid in (orphan, workers[0]):
            os.kill(pid, signal.SIGKILL)
        server.wait_for("worker_ready", times=3)
        states = [state_of(pid) for pid in children_of(supervisor)]
        assert (len(states), "Z" in states) == (2, False), states
        os.kill(supervisor, signal.SIGTERM)
        assert server.wait_for_end(timeout_s=END_S) == 0


def with_an_orphan(supervisor: int) -> list[int]:
    """Let the process 1 of a namespace inherit a child, and return all of its children."""
    enter = ["nsenter", "--target", str(supervisor), "--pid", "sh", "-c", "sleep 1000 >/dev/null &"]
    subprocess.run(enter, check=True)
    return children_of(supervisor)
