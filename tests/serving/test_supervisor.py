"""The supervisor with real processes: `tests.support.plain_worker`, which serves nothing."""

import asyncio
import errno
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

from serving.child_processes import end_of
from serving.rolling_replacement import PlanError, RollingReplacement
from serving.supervisor import Supervisor, WorkerPlan
from serving.worker_process import WorkerProcess
from tests.support.servers import ROOT
from tests.support.watched_log import WatchedLog, watched_log

pytestmark = [pytest.mark.timeout(90), pytest.mark.skipif(sys.platform == "win32", reason="one process on Windows")]

COMMAND = (sys.executable, "-m", "tests.support.plain_worker")
FDS = Path("/proc/self/fd")
SHORT_S = 0.3
"""Time until a worker counts as hung; the supervisor asks three times meanwhile."""


def plan(behaviour: str = "serve", *, drain_s: float = 30.0, stuck_s: float = 120.0) -> WorkerPlan:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PLAIN_WORKER": behaviour}
    return WorkerPlan(environment=environment, drain_s=drain_s, stuck_s=stuck_s)


@asynccontextmanager
async def supervising(workers: int, first: WorkerPlan) -> AsyncIterator[tuple[Supervisor, asyncio.Task[None]]]:
    """Run a supervisor, and check at the end that no process and no descriptor of it is left."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        supervisor = Supervisor(
            workers=workers, command=COMMAND, plan=first, listening=listening, handlers=lambda _: {}
        )
        running = asyncio.create_task(supervisor.run())
        try:
            yield supervisor, running
        finally:
            supervisor.stop()
            await running
        assert supervisor.workers == ()


@asynccontextmanager
async def ready(workers: int, first: WorkerPlan | None = None) -> AsyncIterator[Supervisor]:
    async with supervising(workers, first or plan()) as (supervisor, _):
        await supervisor.was_ready.wait()
        yield supervisor


def worker_of(supervisor: Supervisor, number: int) -> WorkerProcess:
    worker = supervisor.slots[number - 1].worker
    assert worker is not None
    return worker


def open_files() -> int:
    return len(list(FDS.iterdir()))


async def successor_of(log: WatchedLog, supervisor: Supervisor, old: WorkerProcess) -> WorkerProcess:
    """Return the ready worker that has taken the place of *old*, once there is one."""

    def found() -> list[WorkerProcess]:
        ready_pids = {entry["worker_pid"] for entry in log.of("worker_ready", worker=old.number)} - {old.pid}
        return [worker for worker in supervisor.workers if worker.pid in ready_pids]

    await log.wait_until(lambda: found() != [])
    return found()[0]


@pytest.fixture(autouse=True)
def log() -> Iterator[WatchedLog]:
    with watched_log() as log:
        yield log


# --- Start --------------------------------------------------------------------------------------------------------


async def test_all_workers_start_with_numbers_and_the_service_is_ready_when_all_are(log: WatchedLog) -> None:
    async with ready(3) as supervisor:
        assert sorted(worker.number for worker in supervisor.workers) == [1, 2, 3]
        assert all(worker.is_ready for worker in supervisor.workers)
        assert not supervisor.replaced
        assert len({worker.pid for worker in supervisor.workers}) == 3
    names = [entry["event"] for entry in log.entries if entry["event"] in ("worker_ready", "service_ready")]
    assert names == ["worker_ready"] * 3 + ["service_ready"]
    assert supervisor.failure is None


@pytest.mark.parametrize(
    ("behaviour", "failure"),
    [
        pytest.param("fail Cannot start: no such model.", "Cannot start: no such model.", id="reason"),
        pytest.param(
            "exit 3", "Cannot start: a worker has ended with exit code 3; the log contains the reason.", id="no-reason"
        ),
    ],
)
async def test_worker_that_cannot_start_ends_the_service_with_its_reason(behaviour: str, failure: str) -> None:
    async with supervising(2, plan(behaviour)) as (supervisor, running):
        await running
        assert supervisor.failure == failure


async def test_worker_that_crashes_several_times_before_it_is_ready_ends_the_service() -> None:
    async with supervising(1, plan("die")) as (supervisor, running):
        await running
        assert supervisor.failure == "Cannot start: worker 1 has ended with SIGKILL 3 times."


async def test_command_that_the_system_cannot_start_ends_the_service() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        supervisor = Supervisor(
            workers=2, command=("/nowhere",), plan=plan(), listening=listening, handlers=lambda _: {}
        )
        await supervisor.run()
    assert supervisor.failure == "Cannot start: the system cannot start worker 1 (No such file or directory)."


# --- Crashes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV"])
async def test_worker_that_crashes_is_replaced_and_the_others_stay(name: str, log: WatchedLog) -> None:
    async with ready(2) as supervisor:
        old, other = worker_of(supervisor, 1), worker_of(supervisor, 2)
        os.kill(old.pid, signal.Signals[name])
        new = await successor_of(log, supervisor, old)
        assert new.number == 1
        assert worker_of(supervisor, 2) is other
        assert supervisor.replaced == {(1, "signal"): 1}
    [ended] = log.of("worker_ended")
    assert (ended["worker"], ended["worker_pid"], ended["ended_with"]) == (1, old.pid, name)


async def test_after_the_first_start_a_worker_that_cannot_start_only_delays(log: WatchedLog) -> None:
    async with ready(2) as supervisor:
        supervisor.plan = plan("fail Cannot start: the model is gone.")
        old = worker_of(supervisor, 2)
        old.signal(signal.SIGKILL)
        await log.wait_for("worker_ended", times=3)  # SIGKILL, then two failures
        assert supervisor.failure is None
        supervisor.plan = plan()
        await successor_of(log, supervisor, old)
        assert supervisor.replaced[2, "exit"] >= 2
    assert log.of("worker_ended")[1]["reason"] == ("Cannot start: the model is gone.")


# --- Workers that do not work -------------------------------------------------------------------------------------


async def test_worker_that_hangs_is_killed_after_its_replacement_is_ready(log: WatchedLog) -> None:
    async with ready(2, plan(drain_s=600, stuck_s=SHORT_S)) as supervisor:  # it does not get the time to drain
        old = worker_of(supervisor, 1)
        os.kill(old.pid, signal.SIGSTOP)
        new = await successor_of(log, supervisor, old)
        assert not old.ended.done()
        assert not old.is_ready
        assert await old.ended == -signal.SIGKILL
        assert worker_of(supervisor, 1) is new
        assert supervisor.replaced == {(1, "hung"): 1}


async def test_worker_whose_model_run_does_not_end_is_replaced(log: WatchedLog) -> None:
    async with ready(1, plan("be stuck", stuck_s=SHORT_S)) as supervisor:
        old = worker_of(supervisor, 1)
        supervisor.plan = plan()
        await successor_of(log, supervisor, old)
        assert await old.ended == 0
        assert supervisor.replaced == {(1, "stuck"): 1}


async def test_worker_that_drains_by_itself_is_replaced_before_it_ends(log: WatchedLog) -> None:
    async with ready(1) as supervisor:
        old = worker_of(supervisor, 1)
        old.channel.notify("test.drain")
        await old.draining.wait()
        assert not old.is_ready
        await successor_of(log, supervisor, old)
        assert await old.ended == 0
        assert supervisor.replaced == {(1, "draining"): 1}


async def test_hung_worker_whose_replacement_fails_is_ended_and_started_again(log: WatchedLog) -> None:
    async with ready(1, plan(drain_s=600, stuck_s=SHORT_S)) as supervisor:
        old = worker_of(supervisor, 1)
        os.kill(old.pid, signal.SIGSTOP)
        supervisor.plan = plan("fail Cannot start: no memory.", drain_s=600)
        assert await old.ended == -signal.SIGKILL
        supervisor.plan = plan()
        await successor_of(log, supervisor, old)


async def test_worker_that_is_started_again_and_not_ready_in_time_is_ended_and_started_again(
    log: WatchedLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ready(1) as supervisor:
        monkeypatch.setattr("serving.supervisor.REPLACEMENT_S", SHORT_S)
        old = worker_of(supervisor, 1)
        supervisor.plan = plan("wait")
        old.signal(signal.SIGKILL)
        await log.wait_for("worker_unusable", trouble="not ready")
        supervisor.plan = plan()
        monkeypatch.setattr("serving.supervisor.REPLACEMENT_S", 60.0)
        await successor_of(log, supervisor, old)


# --- Rolling replacement ------------------------------------------------------------------------------------------


async def test_reload_replaces_workers_one_by_one_each_by_a_ready_one(log: WatchedLog) -> None:
    async with ready(2) as supervisor:
        old = [worker_of(supervisor, 1), worker_of(supervisor, 2)]
        new_plan = plan()
        reload = RollingReplacement(supervisor, read_plan=lambda: new_plan)
        reload.request()
        await log.wait_for("reload_ended")
        assert [await worker.ended for worker in old] == [0, 0]
        assert supervisor.plan is new_plan
        assert supervisor.replaced == {(1, "reload"): 1, (2, "reload"): 1}
    steps = [(entry["event"], entry["worker"]) for entry in log.entries if entry["event"].startswith("worker_")]
    assert steps[-4:] == [("worker_started", 1), ("worker_ready", 1), ("worker_started", 2), ("worker_ready", 2)]


async def test_reload_whose_replacement_is_not_ready_leaves_the_workers_and_their_settings(log: WatchedLog) -> None:
    async with ready(2) as supervisor:
        old, old_plan = supervisor.workers, supervisor.plan
        reload = RollingReplacement(supervisor, read_plan=lambda: plan("fail Bad settings: PORT is not allowed."))
        reload.request()
        await log.wait_for("reload_failed")
        assert set(supervisor.workers) == set(old)
        assert all(worker.is_ready for worker in old)
        assert supervisor.plan is old_plan
    [failed] = log.of("replacement_failed")
    assert failed["reason"] == "Bad settings: PORT is not allowed."


async def test_reload_with_settings_that_are_not_allowed_starts_nothing(log: WatchedLog) -> None:
    def read_plan() -> WorkerPlan:
        message = "PORT='x' is not allowed"
        raise PlanError(message)

    async with ready(1) as supervisor:
        RollingReplacement(supervisor, read_plan=read_plan).request()
        await log.wait_for("reload_failed")
    assert [entry["reason"] for entry in log.of("reload_failed")] == ["PORT='x' is not allowed"]
    assert len(log.of("worker_started")) == 1


async def test_requests_during_a_reload_cause_one_more(log: WatchedLog) -> None:
    async with ready(1) as supervisor:
        reload = RollingReplacement(supervisor, read_plan=plan)
        reload.request()
        await log.wait_for("reload_started")
        reload.request()
        reload.request()
        await log.wait_for("reload_ended", times=2)
        await asyncio.sleep(0)
    assert supervisor.replaced == {(1, "reload"): 2}


async def test_old_worker_that_crashes_while_its_replacement_starts_is_not_replaced_twice(log: WatchedLog) -> None:
    async with ready(1) as supervisor:
        old = worker_of(supervisor, 1)
        RollingReplacement(supervisor, read_plan=plan).request()
        await log.wait_for("worker_started", times=2)
        old.signal(signal.SIGKILL)
        await log.wait_for("reload_ended")
        assert supervisor.replaced == {(1, "reload"): 1}
        assert len(log.of("worker_started")) == 2


async def test_stop_during_a_reload_ends_the_replacement_too(log: WatchedLog) -> None:
    async with ready(1) as supervisor:
        pids = [worker_of(supervisor, 1).pid]
        RollingReplacement(supervisor, read_plan=lambda: plan("wait")).request()
        await log.wait_for("worker_started", times=2)
        pids = [worker.pid for worker in supervisor.workers]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_reload_that_is_asked_for_while_all_workers_drain_starts_nothing(log: WatchedLog) -> None:
    async with supervising(1, plan()) as (supervisor, running):
        await supervisor.was_ready.wait()
        supervisor.stop()
        await asyncio.sleep(0)  # the workers are being stopped now
        RollingReplacement(supervisor, read_plan=plan).request()
        await running
        assert log.of("reload_started") == []
        assert len(log.of("worker_started")) == 1


async def test_reload_of_a_slot_that_pauses_after_failures_starts_it_at_once(log: WatchedLog) -> None:
    async with ready(1) as supervisor:
        supervisor.plan = plan("exit 7")
        old = worker_of(supervisor, 1)
        old.signal(signal.SIGKILL)
        await log.wait_for("worker_ended", times=3)  # pauses now
        RollingReplacement(supervisor, read_plan=plan).request()
        await log.wait_for("reload_ended")
        assert worker_of(supervisor, 1).is_ready


# --- End ----------------------------------------------------------------------------------------------------------


async def test_worker_that_does_not_end_in_time_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.supervisor.KILL_MARGIN_S", 0.0)
    async with ready(1) as supervisor:
        worker = worker_of(supervisor, 1)
        supervisor.plan = replace(supervisor.plan, drain_s=0.1)
        os.kill(worker.pid, signal.SIGSTOP)
    assert worker.ended.result() == -signal.SIGKILL


@pytest.mark.skipif(not FDS.exists(), reason="only Linux lists the open files of a process")
async def test_workers_leave_no_descriptor_open_in_the_supervisor(log: WatchedLog) -> None:
    async with ready(1) as supervisor:
        before = open_files()
        RollingReplacement(supervisor, read_plan=plan).request()
        await log.wait_for("reload_ended")
        await asyncio.sleep(0)  # the channel's transport closes its socket in the next turn
        assert open_files() == before


@pytest.mark.skipif(not FDS.exists(), reason="only Linux lists the open files of a process")
async def test_start_without_a_free_descriptor_leaves_none_open(
    log: WatchedLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> NoReturn:
        raise OSError(errno.EMFILE, "Too many open files")

    async with ready(1) as supervisor:
        before = open_files()
        monkeypatch.setattr("serving.worker_process.os.pipe", fail)
        assert not await supervisor.replace(supervisor.slots[0], plan(), "reload")
        await asyncio.sleep(0)
        assert open_files() == before
        monkeypatch.undo()
    assert len(log.of("worker_not_started")) == 1


@pytest.mark.parametrize(("code", "name"), [(0, "exit code 0"), (-9, "SIGKILL"), (-123, "signal 123")])
def test_end_of_a_process_is_named_by_its_exit_code_or_signal(code: int, name: str) -> None:
    assert end_of(code) == name
