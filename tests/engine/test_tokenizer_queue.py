"""The queue of long texts: slices, their order between callers, and rejections before any of the work."""

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Semaphore

import pytest

from engine.errors import OverloadedError
from engine.fair_queue import Caller
from engine.tokenizer_queue import FIRST_SECONDS_PER_BYTE, MIN_TEXT_BYTES, SLICE_BYTES, TokenizerQueue, size_of

FULL_SLICE = "x" * SLICE_BYTES


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as thread:
        yield thread


class Work:
    """Records the slices that start; each waits until the gate is open."""

    def __init__(self) -> None:
        self.started: list[tuple[str, int]] = []
        self.gate = Semaphore(0)

    async def tokenize(self, queue: TokenizerQueue, name: str, texts: Sequence[str]) -> list[list[int]]:
        def slice_of(some: Sequence[str], first: int) -> list[int]:
            self.started.append((name, first))
            assert self.gate.acquire(timeout=10)
            return [len(text) for text in some]

        with queue.reserve(texts, (name,)) as reservation:
            return await queue.run(slice_of, texts, reservation)

    def ask(self, queue: TokenizerQueue, name: str, texts: Sequence[str]) -> asyncio.Task[list[list[int]]]:
        return asyncio.create_task(self.tokenize(queue, name, texts))


async def submitted() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("text", "size"), [("", 0), ("abc", 3), ("\u6f22" * 5, 15), ("\u00e9", 2), ("\ud800", 3)], ids=repr
)
def test_size_is_that_of_utf8(text: str, size: int) -> None:
    assert size_of(text) == size


async def test_texts_are_cut_into_slices_between_texts(thread: ThreadPoolExecutor) -> None:
    queue, work = TokenizerQueue(thread, max_queue_s=1e9), Work()
    work.gate.release(10)
    texts = ["a" * 10, "b" * 20, FULL_SLICE + "more", "c", FULL_SLICE, "d"]
    results = await work.tokenize(queue, "caller", texts)
    assert [length for some in results for length in some] == [len(text) for text in texts]
    assert work.started == [("caller", 0), ("caller", 3), ("caller", 5)]
    assert queue.account.held == 0.0


async def test_many_empty_texts_are_work_and_several_slices(thread: ThreadPoolExecutor) -> None:
    queue, work = TokenizerQueue(thread, max_queue_s=1e9), Work()
    texts = [""] * 2048
    with queue.reserve(texts, ("caller",)):
        assert queue.account.held > 2048 * FIRST_SECONDS_PER_BYTE
    work.gate.release(10)
    assert sum(map(len, await work.tokenize(queue, "caller", texts))) == len(texts)
    assert len(work.started) == 2048 * MIN_TEXT_BYTES // SLICE_BYTES


async def test_newcomer_waits_for_a_slice_and_not_for_requests(thread: ThreadPoolExecutor) -> None:
    queue, work = TokenizerQueue(thread, max_queue_s=1e9), Work()
    floods = [work.ask(queue, "flood", [FULL_SLICE] * 10) for _ in range(5)]
    await submitted()
    newcomer = work.ask(queue, "newcomer", ["short " * 300])
    await submitted()
    work.gate.release(2)
    await newcomer
    assert len(work.started) <= 3
    work.gate.release(100)
    await asyncio.gather(*floods)
    assert len(work.started) == 51


async def test_short_text_goes_before_the_callers_own_long_requests(thread: ThreadPoolExecutor) -> None:
    queue, work = TokenizerQueue(thread, max_queue_s=1e9, clock=lambda: 0.0), Work()
    long = work.ask(queue, "one", [FULL_SLICE] * 10)
    await submitted()
    short = work.ask(queue, "one", ["short"])
    await submitted()
    work.gate.release(100)
    await asyncio.gather(long, short)
    assert [first for _, first in work.started][:2] == [0, 0]


async def test_request_above_the_callers_share_is_rejected_before_it_begins(thread: ThreadPoolExecutor) -> None:
    request_s = 10 * SLICE_BYTES * FIRST_SECONDS_PER_BYTE
    queue, work = TokenizerQueue(thread, max_queue_s=10 * request_s), Work()
    waiting = [work.ask(queue, "flood", [FULL_SLICE] * 10) for _ in range(8)]
    await submitted()
    with pytest.raises(OverloadedError) as error:
        queue.reserve([FULL_SLICE] * 10, ("flood",))
    assert error.value.retry_after_s is not None
    with queue.reserve([FULL_SLICE], ("newcomer",)):
        pass
    work.gate.release(100)
    await asyncio.gather(*waiting)
    assert queue.account.held == 0.0


async def test_request_above_the_limit_is_accepted_while_nothing_waits(thread: ThreadPoolExecutor) -> None:
    queue = TokenizerQueue(thread, max_queue_s=1e-6)
    with queue.reserve([FULL_SLICE] * 100, ("caller",)):
        pass


@pytest.mark.parametrize("steps", range(4))
async def test_cancelled_request_leaves_the_queue_at_any_moment(steps: int, thread: ThreadPoolExecutor) -> None:
    queue, work = TokenizerQueue(thread, max_queue_s=1e9), Work()
    callers: list[Caller] = [("a",), ("b",)]
    leaving, staying = (work.ask(queue, name, [FULL_SLICE] * 3) for (name,) in callers)
    for _ in range(steps):
        await asyncio.sleep(0)
    leaving.cancel()
    work.gate.release(100)
    assert len(await staying) == 3
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert queue.account.held == 0.0
    assert len(await work.tokenize(queue, "later", ["x"])) == 1


async def test_caller_who_left_pays_nothing_for_what_was_not_done(thread: ThreadPoolExecutor) -> None:
    queue, work = TokenizerQueue(thread, max_queue_s=1e9), Work()
    flood = [work.ask(queue, "flood", [FULL_SLICE]) for _ in range(10)]
    await submitted()
    left = [work.ask(queue, "impatient", [FULL_SLICE]) for _ in range(20)]
    await submitted()
    for request in left:
        request.cancel()
    again = work.ask(queue, "impatient", [FULL_SLICE])
    await submitted()
    work.gate.release(2)
    await again
    assert len(work.started) <= 3
    work.gate.release(100)
    await asyncio.gather(*flood)


async def test_cancelled_slice_is_not_taken_for_a_fast_one(thread: ThreadPoolExecutor) -> None:
    queue, work = TokenizerQueue(thread, max_queue_s=1e9), Work()
    with queue.reserve([FULL_SLICE], ("caller",)) as reservation:
        expected_s = reservation.amount
    for number in range(1, 20):
        leaving = work.ask(queue, "caller", [FULL_SLICE])
        while len(work.started) < number:  # noqa: ASYNC110 - the thread cannot set an event of the loop
            await asyncio.sleep(0)
        leaving.cancel()
        work.gate.release()
        with pytest.raises(asyncio.CancelledError):
            await leaving
    with queue.reserve([FULL_SLICE], ("caller",)) as reservation:
        assert reservation.amount == expected_s


async def test_estimate_is_per_pass(thread: ThreadPoolExecutor) -> None:
    ticks = iter(number * 2 * FIRST_SECONDS_PER_BYTE * SLICE_BYTES for number in range(100))
    queue = TokenizerQueue(thread, max_queue_s=1e9, clock=lambda: next(ticks))
    with queue.reserve([FULL_SLICE], ("caller",), passes=2) as reservation:
        expected_s = reservation.amount
        await queue.run(lambda *_: None, [FULL_SLICE], reservation, passes=2)
    with queue.reserve([FULL_SLICE], ("caller",), passes=2) as reservation:
        assert reservation.amount == pytest.approx(expected_s)
