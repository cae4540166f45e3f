"""Reloads run one after the other, and several requests for one cause one."""

import asyncio

from structlog.testing import capture_logs

from assembly.reloading import Reloading
from tests.support.clock import ManualClock


class Files:
    """What is read; a reading of models waits for `gate`."""

    def __init__(self) -> None:
        self.reads: list[str] = []
        self.gate = asyncio.Event()
        self.error: Exception | None = None

    def read_keys(self) -> None:
        self.reads.append("keys")
        if self.error is not None:
            raise self.error

    async def read_models(self) -> None:
        self.reads.append("models")
        await self.gate.wait()


def reloading_of(files: Files) -> Reloading:
    return Reloading(read_keys=files.read_keys, read_models=files.read_models, clock=ManualClock())


async def test_requests_during_a_reload_cause_one_more_after_it() -> None:
    files = Files()
    reloading = reloading_of(files)
    for _ in range(3):
        reloading.request()
    await asyncio.sleep(0)
    assert files.reads == ["keys", "models"]
    for _ in range(3):
        reloading.request()
    await asyncio.sleep(0)
    assert files.reads == ["keys", "models"]
    files.gate.set()
    await reloading.finished()
    assert files.reads == ["keys", "models"] * 2
    reloading.request()
    await reloading.finished()
    await reloading.finished()  # nothing runs
    assert files.reads == ["keys", "models"] * 3


async def test_reload_that_fails_is_logged_and_the_next_one_runs() -> None:
    files = Files()
    files.gate.set()
    files.error = RuntimeError("a bug")
    reloading = reloading_of(files)
    with capture_logs() as events:
        reloading.request()
        await reloading.finished()
        files.error = None
        reloading.request()
        await reloading.finished()
    assert [event["event"] for event in events] == ["reload_started", "reload_failed", "reload_started", "reload_ended"]
    assert files.reads == ["keys", "keys", "models"]
