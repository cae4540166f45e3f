"""`Embedder.open`: one request of many texts, whose vectors come slice by slice while its answer is written."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.embed_run import MAX_STARTED, SLICE_TEXTS, EmbedRun
from engine.embedder import Embedder
from engine.errors import (
    CutOffError,
    DeadlineError,
    DrainingError,
    FingerprintMismatchError,
    InferenceError,
    InvalidInputError,
    InvalidVectorError,
    OverloadedError,
    ServiceError,
    TextTooLongError,
)
from engine.options import DEFAULTS, EmbedOptions
from engine.request_terms import RequestTerms
from engine.result_store import CacheCounts
from engine.scheduler import Scheduler
from engine.tokenizer_queue import TokenizerQueue
from engine.usage import Usage
from tests.support.clock import let_time_pass
from tests.support.garbage import collect_garbage
from tests.support.gated import GatedModel, Text
from tests.support.one_model import OneModel, one_lane, run_texts
from tests.support.tiny import MAX_TOKENS, WORDS

GOOD = [word for word in WORDS if word not in {"poison", "nan", "null"}]


def distinct_texts(count: int) -> list[str]:
    """Return texts of 7 to 13 tokens, no two of them equal: the first five words are the digits of a number."""
    digits = [[number // len(GOOD) ** place % len(GOOD) for place in range(5)] for number in range(count)]
    return [" ".join(GOOD[digit] for digit in [*digits[number], *[0] * (number % 7)]) for number in range(count)]


MORE = distinct_texts(2_800)
MANY = MORE[:700]
"""Two whole slices and a part of a third."""


@pytest.fixture
def embedder(make_embedder: Callable[..., Embedder]) -> Embedder:
    return make_embedder()


@pytest.fixture(autouse=True)
async def nothing_is_left(scheduler: Scheduler, models: OneModel, tokenizing: TokenizerQueue) -> AsyncIterator[None]:
    """Check after each test that every reservation was given back, that nothing waits, and that no lease is held."""
    yield
    assert_nothing_is_left(scheduler, tokenizing)
    assert models.leases == 0


def assert_nothing_is_left(scheduler: Scheduler, tokenizing: TokenizerQueue) -> None:
    assert [account.held for account in (*scheduler.accounts, tokenizing.account)] == [0, 0, 0]
    assert (scheduler.state().waiting_requests, scheduler.state().waiting_texts) == (0, 0)


async def all_slices(run: EmbedRun) -> list[NDArray[Any]]:
    return [vectors async for vectors in run.slices()]


async def read(embedder: Embedder, texts: Sequence[str], **arguments: Any) -> AsyncIterator[NDArray[Any]]:
    """Yield the slices of a request, as a handler that writes an answer gets them."""
    async with embedder.open("acme/tiny", texts, **arguments) as run, aclosing(run.slices()) as slices:
        async for vectors in slices:
            yield vectors


async def read_all(
    embedder: Embedder,
    texts: Sequence[str],
    *,
    write: Callable[[], Awaitable[object]] | None = None,
    check_tokens: Callable[[Sequence[int]], None] | None = None,
    options: EmbedOptions = DEFAULTS,
    **terms: Any,
) -> None:
    """Read a request to its end, and call *write* after each slice."""
    async with embedder.open("acme/tiny", texts, options, RequestTerms(**terms), check_tokens=check_tokens) as run:
        async for _ in run.slices():
            if write is not None:
                await write()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - nothing of the scheduler's state has an event
        await asyncio.sleep(0)


async def until_idle(scheduler: Scheduler) -> None:
    """Wait until no lane works and nothing waits for one."""
    await until(lambda: not scheduler.state().running and not scheduler.state().waiting_texts)


def bulk_s(scheduler: Scheduler) -> float:
    """Return the work in the account of bulk requests."""
    return scheduler.accounts[1].held


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(EmbedOptions(), id="defaults"),
        pytest.param(EmbedOptions(dimensions=2, dtype="int8"), id="shortened"),
        pytest.param(EmbedOptions(long_text="mean"), id="mean"),
    ],
)
async def test_slices_are_in_the_order_of_the_texts_and_equal_the_vectors_of_embed(
    embedder: Embedder, options: EmbedOptions
) -> None:
    texts = [*MANY, "one " * 3 * MAX_TOKENS]
    whole = await embedder.embed("acme/tiny", texts, options)
    async with embedder.open("acme/tiny", texts, options) as run:
        slices = await all_slices(run)
    assert [len(vectors) for vectors in slices] == [SLICE_TEXTS, SLICE_TEXTS, len(texts) - 2 * SLICE_TEXTS]
    np.testing.assert_allclose(np.concatenate(slices), whole.vectors, rtol=1e-5)
    assert (run.model, run.fingerprint) == (whole.model, whole.fingerprint)
    assert (run.tokens, run.truncated) == (whole.tokens, whole.truncated)


async def test_few_texts_are_one_slice(embedder: Embedder) -> None:
    async with embedder.open(None, ["one", "two three"]) as run:
        [vectors] = await all_slices(run)
    np.testing.assert_array_equal(vectors, (await embedder.embed(None, ["one", "two three"])).vectors)


async def test_tokens_that_the_model_runs_are_charged_and_counted_once(embedder: Embedder) -> None:
    texts, checked, charged = [*MANY, "one " * 100], list[Sequence[int]](), list[int]()
    async with embedder.open(
        "acme/tiny", texts, check_tokens=checked.append, terms=RequestTerms(on_tokens=charged.append)
    ) as run:
        assert embedder.usage("acme/tiny") == Usage()
        await all_slices(run)
    assert [tokens[-1] for tokens in checked] == [102]
    assert checked == [run.tokens]
    assert charged == [run.used_tokens] == [sum(run.tokens) - 102 + MAX_TOKENS]
    counts = CacheCounts(miss=len(texts))
    assert embedder.usage("acme/tiny") == Usage(
        requests=1, texts=len(texts), tokens=run.used_tokens, truncated=1, cache=counts
    )


@pytest.mark.parametrize("name", ["check_tokens", "on_tokens"])
async def test_request_fails_before_any_run_if_its_tokens_are_refused(
    embedder: Embedder, scheduler: Scheduler, name: str
) -> None:
    def refuse(_: object) -> None:
        raise InvalidInputError("too many tokens")

    hooks: dict[str, Any] = {name: refuse}
    with pytest.raises(InvalidInputError, match="too many tokens"):
        await read_all(embedder, MANY, **hooks)
    assert scheduler.state().micro_batches == 0


async def test_request_that_cannot_end_in_time_is_rejected_whole(embedder: Embedder, scheduler: Scheduler) -> None:
    with pytest.raises(DeadlineError):
        await read_all(embedder, MANY, timeout_s=1e-6)
    assert scheduler.state().micro_batches == 0


async def test_second_request_of_a_caller_is_rejected_whole_while_the_first_holds_their_share(
    make_embedder: Callable[..., Embedder], tokenizing: TokenizerQueue
) -> None:
    async with one_lane(max_bulk_queue_s=1e-6) as scheduler:
        embedder = make_embedder(scheduler=scheduler)
        async with embedder.open("acme/tiny", MANY) as run:
            with pytest.raises(OverloadedError):
                await read_all(embedder, MANY)
            assert scheduler.state().micro_batches == 0
            await all_slices(run)
        assert_nothing_is_left(scheduler, tokenizing)


async def test_reservation_shrinks_as_slices_run(embedder: Embedder, scheduler: Scheduler) -> None:
    async with embedder.open("acme/tiny", MANY) as run:
        held = [bulk_s(scheduler)]
        async for _ in run.slices():
            await until_idle(scheduler)
            held.append(bulk_s(scheduler))
    assert held == sorted(held, reverse=True)
    assert held[0] > held[-1] == 0


async def test_reader_who_stops_keeps_few_slices_in_memory_and_no_lane(
    embedder: Embedder, scheduler: Scheduler
) -> None:
    texts = MORE
    async with embedder.open("acme/tiny", texts) as run, aclosing(run.slices()) as slices:
        held_s = bulk_s(scheduler)
        await anext(slices)
        await until_idle(scheduler)
        assert scheduler.state().texts == (1 + MAX_STARTED) * SLICE_TEXTS
        assert 0 < bulk_s(scheduler) < held_s
        await embedder.embed("acme/tiny", ["one"])


async def test_runs_that_have_ended_do_not_last_until_a_slow_reader_leaves(
    embedder: Embedder, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    late_s, terms = 0.0, RequestTerms()
    monkeypatch.setattr(embedder, "_clock", lambda: time.monotonic() + late_s)
    async with embedder.open("acme/tiny", MORE, terms=terms) as run, aclosing(run.slices()) as slices:
        await anext(slices)
        await until_idle(scheduler)
        late_s = 60
    assert 0 < (terms.work.seconds("run") or 0) < late_s


@pytest.mark.parametrize("caller", ["other", "bulk"])
async def test_short_requests_of_other_callers_and_of_the_same_run_between(
    embedder: Embedder, scheduler: Scheduler, caller: str
) -> None:
    async with embedder.open("acme/tiny", MANY, terms=RequestTerms(caller=("bulk",))) as run:
        reading = asyncio.create_task(all_slices(run))
        await until(lambda: scheduler.state().running > 0)
        await embedder.embed("acme/tiny", ["one"], terms=RequestTerms(caller=(caller,)))
        assert not reading.done()
        assert scheduler.state().texts < len(MANY)
        await reading


async def test_model_failure_ends_the_slices_after_the_right_ones(embedder: Embedder) -> None:
    slices = read(embedder, [*MANY, "poison"])
    assert [len(await anext(slices)), len(await anext(slices))] == [SLICE_TEXTS, SLICE_TEXTS]
    with pytest.raises(InferenceError):
        await anext(slices)
    assert embedder.usage("acme/tiny") == Usage()


async def test_unusable_vector_is_named_by_its_place_in_the_request(embedder: Embedder) -> None:
    with pytest.raises(InvalidVectorError) as error:
        await read_all(embedder, [*MANY[:300], "nan", *MANY[300:]])
    assert error.value.index == 300


async def test_block_that_is_left_early_drops_what_waits(embedder: Embedder, scheduler: Scheduler) -> None:
    async with embedder.open("acme/tiny", MORE) as run:
        async for _ in run.slices():
            break
    assert scheduler.state().texts <= (1 + MAX_STARTED) * SLICE_TEXTS


async def test_failure_of_a_slice_that_nobody_reads_is_not_reported_as_forgotten(
    embedder: Embedder, scheduler: Scheduler
) -> None:
    reported = list[dict[str, Any]]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    async with embedder.open("acme/tiny", [*MANY[:300], "poison", *MANY[300:]]) as run:
        async for _ in run.slices():
            await until_idle(scheduler)
            break
    collect_garbage()
    assert reported == []


async def test_cancelled_request_drops_what_waits(embedder: Embedder, scheduler: Scheduler) -> None:
    blocking = GatedModel()
    blocked = asyncio.create_task(run_texts(scheduler, blocking, [Text(100)]))
    await blocking.started(runs=1)
    reading = asyncio.create_task(read_all(embedder, MANY))
    await until(lambda: scheduler.state().waiting_texts > 0)
    reading.cancel()
    await asyncio.wait([reading])
    assert reading.cancelled()
    assert_nothing_waits(scheduler)
    blocking.open()
    await blocked


def assert_nothing_waits(scheduler: Scheduler) -> None:
    assert scheduler.state().waiting_texts == 0
    assert bulk_s(scheduler) == 0


@pytest.mark.parametrize("place", ["model", "writer"])
async def test_deadline_ends_a_request_that_waits_for_the_model_or_for_its_writer(
    embedder: Embedder, scheduler: Scheduler, place: str
) -> None:
    blocking, is_writing = GatedModel(is_open=place == "writer"), asyncio.Event()
    blocked = asyncio.create_task(run_texts(scheduler, blocking, [Text(100)]))
    await blocking.started(runs=1)

    async def write() -> None:
        is_writing.set()
        await asyncio.Event().wait()

    reading = asyncio.create_task(read_all(embedder, MANY, timeout_s=30, write=write))
    await until(lambda: is_writing.is_set() if place == "writer" else scheduler.state().waiting_texts > 0)
    let_time_pass(30)
    with pytest.raises(DeadlineError):
        await reading
    assert_nothing_waits(scheduler)
    blocking.open()
    await blocked


async def test_lease_is_held_until_the_block_ends(embedder: Embedder, models: OneModel) -> None:
    async with embedder.open("acme/tiny", MANY) as run:
        async for _ in run.slices():
            assert models.leases == 1
        assert models.leases == 1


async def test_shutdown_ends_a_request_between_its_slices(embedder: Embedder, scheduler: Scheduler) -> None:
    errors = list[ServiceError]()
    async with embedder.open("acme/tiny", MORE) as run, aclosing(run.slices()) as slices:
        await anext(slices)
        await scheduler.aclose()
        while not errors:
            try:
                await anext(slices)
            except (CutOffError, DrainingError) as error:
                errors.append(error)


async def test_fingerprint_is_checked_before_anything_is_computed(embedder: Embedder, scheduler: Scheduler) -> None:
    with pytest.raises(FingerprintMismatchError):
        await read_all(embedder, MANY, if_fingerprint="0" * 16)
    assert scheduler.state().micro_batches == 0


async def test_chunks_are_refused(embedder: Embedder) -> None:
    with pytest.raises(ValueError, match="more than one vector per text"):
        await read_all(embedder, MANY, options=EmbedOptions(long_text="chunks"))


@pytest.mark.parametrize("side", ["end", "start"])
async def test_clipped_text_has_the_vector_of_the_whole_text_and_counts_as_truncated(
    embedder: Embedder, side: Any
) -> None:
    long = "one two three " * 1000 + "four five " * 1000
    whole = await embedder.embed("acme/tiny", [long], EmbedOptions(truncate=side))
    async with embedder.open("acme/tiny", ["one", long], EmbedOptions(truncate=side, clip=True)) as run:
        [vectors] = await all_slices(run)
    np.testing.assert_allclose(vectors[1], whole.vectors[0], rtol=1e-5)
    assert run.truncated == [False, True]
    assert run.tokens[1] < whole.tokens[0] / 10
    assert run.used_tokens == 3 + MAX_TOKENS


async def test_clipped_text_counts_as_truncated_even_if_what_is_left_fits(embedder: Embedder) -> None:
    async with embedder.open("acme/tiny", ["one" + " " * 10_000 + "two"], EmbedOptions(clip=True)) as run:
        await all_slices(run)
    assert (run.truncated, run.tokens) == ([True], [3])


async def test_text_that_would_be_clipped_is_rejected_if_it_may_not_be_truncated(embedder: Embedder) -> None:
    with pytest.raises(TextTooLongError) as error:
        await read_all(embedder, ["one", "one " * 10_000], options=EmbedOptions(clip=True, truncate="none"))
    assert error.value.extensions == {"index": 1, "limit": MAX_TOKENS}
