"""Which downloads run and which wait: slots, bounds, and a fair order between callers."""

import asyncio
from collections.abc import AsyncIterator, Iterable

import pytest

from engine.download_queue import DownloadQueue, DownloadRefusedError, LoadAbandonedError


class Downloading:
    """Downloads under test: each runs until `finish`."""

    def __init__(self, queue: DownloadQueue) -> None:
        self.queue = queue
        self.running: list[str] = []
        self.callers: dict[str, set[str]] = {}
        self._ends: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def start(self, caller: str, *models: str, is_required: bool = False) -> None:
        """Let *caller* start the downloads of *models*, one after the other."""
        for model in models:
            self.callers[model] = {caller}
            self._ends[model] = asyncio.Event()
            self.tasks[model] = asyncio.create_task(self._download(model, caller, is_required=is_required))
            await asyncio.sleep(0)

    async def finish(self, model: str) -> None:
        self._ends[model].set()
        await self.tasks[model]
        await asyncio.sleep(0)

    async def _download(self, model: str, caller: str, *, is_required: bool) -> None:
        def callers() -> Iterable[str]:
            return self.callers[model]

        async with self.queue.slot(model, caller, callers, is_required=is_required):
            self.running.append(model)
            await self._ends[model].wait()
        self.running.remove(model)


@pytest.fixture
async def downloading() -> AsyncIterator[Downloading]:
    downloading = Downloading(DownloadQueue(slots=2, max_waiting=4, max_waiting_per_caller=3))
    yield downloading
    for task in downloading.tasks.values():
        task.cancel()
    await asyncio.gather(*downloading.tasks.values(), return_exceptions=True)
    assert (downloading.queue.running, downloading.queue.waiting) == (0, 0)


async def test_two_callers_download_at_the_same_time_and_a_third_waits(downloading: Downloading) -> None:
    await downloading.start("a", "a1")
    await downloading.start("b", "b1")
    await downloading.start("c", "c1")
    assert downloading.running == ["a1", "b1"]
    assert (downloading.queue.running, downloading.queue.waiting) == (2, 1)
    await downloading.finish("a1")
    assert downloading.running == ["b1", "c1"]


async def test_caller_with_many_downloads_leaves_a_slot_for_others(downloading: Downloading) -> None:
    await downloading.start("flood", "f1", "f2", "f3")
    assert downloading.running == ["f1"]
    await downloading.start("a", "a1")
    assert downloading.running == ["f1", "a1"]


async def test_callers_take_turns_however_many_downloads_one_has(downloading: Downloading) -> None:
    await downloading.start("flood", "f1", "f2", "f3")
    await downloading.start("a", "a1")
    await downloading.start("b", "b1")
    await downloading.finish("f1")
    assert downloading.running == ["a1", "b1"]
    await downloading.finish("a1")
    assert downloading.running == ["b1", "f2"]
    await downloading.start("c", "c1")
    await downloading.finish("f2")
    assert downloading.running == ["b1", "c1"]


@pytest.mark.parametrize(
    ("callers", "refused"),
    [
        pytest.param(["a"] * 4, 0, id="one caller, three waiting"),
        pytest.param(["a"] * 6, 2, id="one caller, more"),
        pytest.param(["a", "a", "b", "b", "c", "d"], 0, id="four waiting in all"),
        pytest.param(["a", "a", "b", "b", "c", "d", "e"], 1, id="more in all"),
    ],
)
async def test_number_of_waiting_downloads_is_bounded(
    callers: list[str], refused: int, downloading: Downloading
) -> None:
    for number, caller in enumerate(callers):
        await downloading.start(caller, f"{caller}{number}")
    outcomes = [task.exception() for task in downloading.tasks.values() if task.done()]
    assert [type(outcome) for outcome in outcomes] == [DownloadRefusedError] * refused
    assert downloading.queue.refused == refused


async def test_required_models_come_first_and_are_never_refused(downloading: Downloading) -> None:
    await downloading.start("a", "a1", "a2", "a3")
    await downloading.start("b", "b1", "b2")
    await downloading.start("", *(f"r{number}" for number in range(10)), is_required=True)
    assert downloading.queue.refused == 0
    await downloading.finish("a1")
    await downloading.finish("b1")
    assert downloading.running == ["r0", "r1"]


async def test_download_that_another_caller_joins_is_due_with_that_callers_first(downloading: Downloading) -> None:
    await downloading.start("flood", "f1", "f2", "f3", "f4")
    await downloading.start("a", "a1")
    downloading.callers["f4"].add("b")
    downloading.queue.join("f4", "b")
    await downloading.finish("a1")
    assert downloading.running == ["f1", "f4"]


async def test_download_that_all_callers_have_left_is_dropped_if_it_waits(downloading: Downloading) -> None:
    await downloading.start("a", "a1", "a2")
    downloading.queue.abandon("a1")
    downloading.queue.abandon("a2")
    await asyncio.sleep(0)
    assert downloading.running == ["a1"]
    with pytest.raises(LoadAbandonedError):
        await downloading.tasks["a2"]


async def test_waiting_download_that_is_cancelled_leaves_its_place(downloading: Downloading) -> None:
    await downloading.start("a", "a1", "a2")
    downloading.tasks["a2"].cancel()
    await asyncio.gather(downloading.tasks["a2"], return_exceptions=True)
    assert downloading.queue.waiting == 0
