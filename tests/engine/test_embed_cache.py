"""`Embedder` with a result cache: equal texts are computed once, and every answer is as if it had been computed."""

import asyncio
import gc
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from structlog.testing import capture_logs

from config import BUNDLED_MODEL, BUNDLED_MODELS_DIR
from engine.catalog import Catalog, Model, read_catalog
from engine.embed_results import EmbedResult
from engine.embed_run import SLICE_TEXTS
from engine.embedder import Embedder
from engine.encoder import Encoder, load_encoder
from engine.errors import (
    DeadlineError,
    DrainingError,
    FingerprintMismatchError,
    InferenceError,
    InvalidInputError,
    InvalidVectorError,
    OverloadedError,
    TextTooLongError,
)
from engine.fair_queue import ANYONE
from engine.options import DEFAULTS, EmbedOptions, LongText, Truncate
from engine.pipeline import CLIP_CHARACTERS_PER_TOKEN
from engine.request_terms import RequestTerms
from engine.result_keys import ResultKeys
from engine.result_store import CacheCounts, CacheUse, ResultStore
from engine.scheduler import Scheduler
from engine.text_results import TextResult
from engine.tokenizer_queue import TokenizerQueue
from engine.vectors import Dtype
from telemetry.request_work import RequestWork
from tests.support.clock import let_time_pass
from tests.support.dict_results import DictResults
from tests.support.gated import GatedModel, Text
from tests.support.odd_texts import any_texts
from tests.support.one_model import OneModel, one_lane, run_texts
from tests.support.tiny import MAX_TOKENS, WORDS, TinyModel

KEYS = ResultKeys(b"s" * 32, per_caller=False)
NO_CACHE, NO_STORE = CacheUse(may_read=False), CacheUse(may_keep=False)
LONG = "one two three " * MAX_TOKENS
GOOD = [word for word in WORDS if word not in {"poison", "nan", "null"}]
FOUR_SLICES = [" ".join(words) for words in itertools.islice(itertools.product(GOOD, repeat=4), 4 * SLICE_TEXTS)]
"""Distinct texts."""
MANY = FOUR_SLICES[: 2 * SLICE_TEXTS + 100]
OPTIONS = [
    EmbedOptions(dimensions=dimensions, normalize=normalize, dtype=dtype, long_text=long_text)
    for dimensions, normalize, dtype, long_text in itertools.product(
        (None, 2), (None, True, False), get_args(Dtype), get_args(LongText)
    )
    if normalize is not False or dtype not in {"int8", "uint8"}
]  # fmt: skip


@pytest.fixture(autouse=True)
async def nothing_is_left(scheduler: Scheduler) -> AsyncIterator[None]:
    """Check after each test that every reservation was given back, and that nothing waits."""
    yield
    assert [account.held for account in scheduler.accounts] == [0, 0]
    assert scheduler.state().waiting_texts == 0


Make = Callable[[ResultStore], Embedder]


@pytest.fixture
def make(make_embedder: Callable[..., Embedder]) -> Make:
    return lambda results: make_embedder(results=results, keys=KEYS)


@pytest.fixture
def embedder(make: Make, results: DictResults) -> Embedder:
    return make(results)


def facts(result: EmbedResult) -> tuple[object, ...]:
    return result.vectors.tobytes(), result.dimension, result.tokens, result.truncated, result.chunks


def key_of(encoder: Encoder, text: str, options: EmbedOptions) -> bytes:
    assert encoder.fingerprint
    [key] = KEYS.keys(encoder.fingerprint, encoder.model.card, [text], options, ANYONE)
    return key


async def read_all(
    embedder: Embedder,
    texts: Sequence[str],
    *,
    check_tokens: Callable[[Sequence[int]], None] | None = None,
    **terms: Any,
) -> tuple[NDArray[Any], CacheCounts]:
    async with embedder.open(None, texts, terms=RequestTerms(**terms), check_tokens=check_tokens) as run:
        slices = [vectors async for vectors in run.slices()]
    return np.concatenate(slices), run.cache


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - nothing of the scheduler's state has an event
        await asyncio.sleep(0)


async def test_work_of_a_request_is_noted_by_stage(embedder: Embedder) -> None:
    computed, kept = RequestWork(), RequestWork()
    await embedder.embed(None, ["one two", "three", "three"], terms=RequestTerms(work=computed))
    result = await embedder.embed(None, ["three"], terms=RequestTerms(work=kept))
    assert [stage.name for stage in computed.stages] == ["cache", "tokenize", "queue", "run"]
    assert [stage.name for stage in kept.stages] == ["cache"]
    for work in (computed, kept):
        times = [time for stage in work.stages for time in (stage.started_s, stage.ended_s)]
        assert times == sorted(times)
    assert (computed.model, computed.texts, computed.hits, computed.coalesced) == ("acme/tiny", 3, 0, 1)
    assert (kept.texts, kept.hits, kept.tokens, kept.dimension) == (1, 1, result.tokens[0], result.dimension)


async def test_without_room_for_other_work_only_cached_results_are_returned(
    embedder: Embedder, results: DictResults, make: Make, models: OneModel, scheduler: Scheduler
) -> None:
    full = OverloadedError("The queue is full.", retry_after_s=1)
    charged = list[int]()
    await embedder.embed(None, ["one", "two"])
    kept = set(results.memory)
    assert (await embedder.embed(None, ["two", "one"], terms=RequestTerms(miss_error=full))).cache == CacheCounts(hit=2)
    for texts in (["three"], ["one", "three"]):
        with pytest.raises(OverloadedError) as refused:
            await embedder.embed(None, texts, terms=RequestTerms(miss_error=full, on_tokens=charged.append))
        assert refused.value is full
        with pytest.raises(OverloadedError):
            await read_all(embedder, texts, miss_error=full, on_tokens=charged.append)
    assert [key for key in results.memory if key not in kept] == []
    models.gate.clear()  # the model is not in memory, and waiting for it would not end
    with pytest.raises(OverloadedError):
        await embedder.embed(None, ["one"], terms=RequestTerms(miss_error=full, on_tokens=charged.append))
    models.gate.set()
    assert (charged, scheduler.state().texts, embedder.has_results) == ([], 2, True)
    slower = dict[tuple[str, bytes], bytes]()
    await make(DictResults(slower)).embed(None, ["one"])
    replica = make(DictResults(slower))
    assert replica.has_results
    assert (await replica.embed(None, ["one"], terms=RequestTerms(miss_error=full))).cache == CacheCounts(hit=1)
    with pytest.raises(OverloadedError):
        await replica.embed(None, ["one", "two"], terms=RequestTerms(miss_error=full))


async def test_text_is_run_once_for_all_its_repeats_and_for_later_requests(
    embedder: Embedder, scheduler: Scheduler
) -> None:
    first = await embedder.embed(None, ["one", "two", "one", "one"])
    assert (first.cache, scheduler.state().texts) == (CacheCounts(hit=0, miss=2, coalesced=2), 2)
    second = await embedder.embed(None, ["two", "three", "two", "one", "three"])
    assert (second.cache, scheduler.state().texts) == (CacheCounts(hit=3, miss=1, coalesced=1), 3)
    assert second.vectors[[0, 2, 3]].tobytes() == first.vectors[[1, 1, 0]].tobytes()
    third = await embedder.embed(None, ["one", "three"])
    assert (third.cache, scheduler.state().texts) == (CacheCounts(hit=2), 3)
    [usage] = embedder.usage_by_model.values()
    assert usage.cache == CacheCounts(hit=5, miss=3, coalesced=3)


@pytest.mark.parametrize("long_text", ["truncate", "mean", "chunks"])
async def test_every_option_is_applied_to_one_kept_result(
    make: Make, results: DictResults, scheduler: Scheduler, long_text: str
) -> None:
    texts = ["one two", LONG, "three", "one two"]
    embedder, fresh = make(results), make(DictResults())
    options = [option for option in OPTIONS if option.long_text == long_text]
    await embedder.embed(None, texts, options[0])
    texts_run = scheduler.state().texts
    hits = [await embedder.embed(None, texts[::-1], option) for option in options]
    assert scheduler.state().texts == texts_run
    assert [hit.cache for hit in hits] == [CacheCounts(hit=4)] * len(options)
    for option, hit in zip(options, hits, strict=True):
        assert facts(hit) == facts(await fresh.embed(None, texts[::-1], option, terms=RequestTerms(cache=NO_CACHE))), (
            option
        )


@pytest.mark.parametrize("first", [None, "end", "none"])
async def test_text_that_is_not_cut_is_found_however_requests_would_cut_it(
    embedder: Embedder, first: Truncate | None
) -> None:
    expected = await embedder.embed(None, ["one two"], EmbedOptions(truncate=first))
    for options in [EmbedOptions(), EmbedOptions(truncate="end", clip=True), EmbedOptions(truncate="none")]:
        result = await embedder.embed(None, ["one two"], options)
        assert result.cache == CacheCounts(hit=1)
        assert facts(result) == facts(expected)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("text", [LONG, LONG * CLIP_CHARACTERS_PER_TOKEN])
async def test_kept_result_of_a_text_that_was_cut_is_not_used_where_that_is_forbidden(
    embedder: Embedder, text: str, *, clip: bool
) -> None:
    assert (await embedder.embed(None, [text], EmbedOptions(clip=clip))).truncated == [True]
    with pytest.raises(TextTooLongError) as caught:
        await embedder.embed(None, ["one", text], EmbedOptions(truncate="none", clip=clip))
    assert caught.value.extensions["index"] == 1


async def test_text_that_is_clipped_is_counted_as_such_beside_its_whole_result(embedder: Embedder) -> None:
    text = LONG * CLIP_CHARACTERS_PER_TOKEN
    whole = await embedder.embed(None, [text])
    clipped = await embedder.embed(None, [text], EmbedOptions(clip=True))
    assert clipped.cache == CacheCounts(miss=1)
    assert clipped.tokens < whole.tokens


async def test_kept_result_is_not_changed_by_the_options_of_later_requests(
    embedder: Embedder, results: DictResults
) -> None:
    first = await embedder.embed(None, ["one two"])
    kept = dict(results.memory)
    for option in OPTIONS:
        if option.long_text == "truncate":
            await embedder.embed(None, ["one two"], option)
    first.vectors[:] = 0.0
    assert results.memory == kept
    assert (await embedder.embed(None, ["one two"])).vectors.any()


async def test_tokens_of_all_texts_are_charged_and_counted_whatever_was_kept(embedder: Embedder) -> None:
    texts, charged = ["one two", LONG, "one two", "three"], list[int]()
    for kept in ([], ["one two"], texts):
        embedder_usage = embedder.usage("acme/tiny").tokens
        if kept:
            await embedder.embed(None, kept)
            embedder_usage = embedder.usage("acme/tiny").tokens
        result = await embedder.embed(None, texts, terms=RequestTerms(on_tokens=charged.append))
        assert result.tokens == [4, 3 * MAX_TOKENS + 2, 4, 3]
        assert result.truncated == [False, True, False, False]
        assert embedder.usage("acme/tiny").tokens - embedder_usage == sum(result.tokens)
    assert charged == [sum(result.tokens)] * 3


async def test_hooks_of_an_opened_request_get_the_tokens_of_all_texts_in_order(embedder: Embedder) -> None:
    await embedder.embed(None, ["two three", LONG])
    checked, charged = list[Sequence[int]](), list[int]()
    texts = ["one", LONG, "two three", "one"]
    for _ in range(2):
        await read_all(embedder, texts, check_tokens=checked.append, on_tokens=charged.append)
    assert checked == [[3, 3 * MAX_TOKENS + 2, 4, 3]] * 2
    assert charged == [3 + MAX_TOKENS + 4 + 3] * 2
    assert embedder.usage("acme/tiny").requests == 3


@pytest.mark.parametrize(
    ("bad", "options", "error"),
    [
        pytest.param(" \t", DEFAULTS, InvalidInputError, id="blank"),
        pytest.param(LONG, EmbedOptions(truncate="none"), TextTooLongError, id="too-long"),
        pytest.param("one " * 10_000, EmbedOptions(truncate="none", clip=True), TextTooLongError, id="clipped"),
        pytest.param("nan", DEFAULTS, InvalidVectorError, id="not-finite"),
        pytest.param("null", EmbedOptions(long_text="mean"), InvalidVectorError, id="zero"),
        pytest.param("three " * 30 + "nan", EmbedOptions(long_text="chunks"), InvalidVectorError, id="chunk"),
    ],
)
async def test_error_names_the_place_of_the_text_in_the_request_each_time(
    *,
    embedder: Embedder,
    encoder: Encoder,
    results: DictResults,
    bad: str,
    options: EmbedOptions,
    error: type[InvalidInputError],
) -> None:
    await embedder.embed(None, ["one", "two"], options)
    key = key_of(encoder, bad, options)
    for texts in (["one", "two", "one", "three", bad, bad], ["two", bad, "one"], ["one"] * 70 + [bad]):
        with pytest.raises(error) as raised:
            await embedder.embed(None, texts, options)
        assert raised.value.extensions["index"] == texts.index(bad)
        assert key not in results.memory


async def test_number_that_is_too_large_for_the_type_is_an_error_for_kept_vectors_as_well(
    embedder: Embedder, encoder: Encoder, results: DictResults
) -> None:
    await embedder.embed(None, ["one", "two"])
    key = key_of(encoder, "two", DEFAULTS)
    results.memory[key] = results.memory[key][:-4] + np.float32(1e6).tobytes()
    with pytest.raises(InvalidInputError, match="1e\\+06"):
        await embedder.embed(None, ["one", "two"], EmbedOptions(dtype="float16"))


@pytest.mark.parametrize("damage", [b"", b"garbage" * 100, None], ids=["empty", "garbage", "zeros"])
async def test_damaged_result_is_computed_anew_and_replaced(
    embedder: Embedder, results: DictResults, damage: bytes | None
) -> None:
    first = await embedder.embed(None, ["one"])
    [(key, kept)] = results.memory.items()
    results.memory[key] = kept[:-16] + bytes(16) if damage is None else damage
    again = await embedder.embed(None, ["one"])
    assert again.cache == CacheCounts(miss=1)
    assert facts(again) == facts(first)
    assert results.memory == {key: kept}


async def test_request_that_may_not_read_is_computed_and_kept(embedder: Embedder, scheduler: Scheduler) -> None:
    await embedder.embed(None, ["one"])
    result = await embedder.embed(None, ["one", "two", "two"], terms=RequestTerms(cache=NO_CACHE))
    assert (result.cache, scheduler.state().texts) == (CacheCounts(miss=2, coalesced=1), 3)
    assert (await embedder.embed(None, ["two"])).cache == CacheCounts(hit=1)


async def test_request_that_may_not_keep_leaves_nothing_but_uses_what_is_kept(
    embedder: Embedder, results: DictResults
) -> None:
    await embedder.embed(None, ["one"], terms=RequestTerms(cache=NO_STORE))
    assert results.memory == {}
    await embedder.embed(None, ["one"])
    assert (await embedder.embed(None, ["one"], terms=RequestTerms(cache=NO_STORE))).cache == CacheCounts(hit=1)


async def test_hits_need_neither_a_lease_nor_the_lanes(
    embedder: Embedder, models: OneModel, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    await embedder.embed(None, ["one", "two"])
    await scheduler.aclose()
    with pytest.raises(DrainingError):
        await embedder.embed(None, ["one", "three"])
    monkeypatch.delattr(type(models), "lease")
    assert (await embedder.embed(None, ["two", "one"], terms=RequestTerms(timeout_s=1e-9))).cache == CacheCounts(hit=2)
    assert (await read_all(embedder, ["two", "one"], timeout_s=1e-9))[1] == CacheCounts(hit=2)


async def test_hits_of_a_shared_store_need_no_lease(
    make: Make, models: OneModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    slower: dict[tuple[str, bytes], bytes] = {}
    await make(DictResults(slower)).embed(None, ["one", "two"])
    monkeypatch.delattr(type(models), "lease")
    replica = make(DictResults(slower))
    assert (await replica.embed(None, ["two", "one"])).cache == CacheCounts(hit=2)
    assert (await read_all(make(DictResults(slower)), ["one", "two"]))[1] == CacheCounts(hit=2)


async def test_hits_of_a_model_that_is_not_in_memory_wait_for_it(embedder: Embedder, models: OneModel) -> None:
    await embedder.embed(None, ["one"])
    models.gate.clear()
    request = asyncio.create_task(embedder.embed(None, ["one"]))
    await asyncio.sleep(0)
    assert not request.done()
    models.gate.set()
    assert (await request).cache == CacheCounts(hit=1)


async def test_hit_of_a_model_with_another_fingerprint_is_refused(embedder: Embedder) -> None:
    await embedder.embed(None, ["one"])
    charged = list[int]()
    with pytest.raises(FingerprintMismatchError):
        await embedder.embed(None, ["one"], terms=RequestTerms(if_fingerprint="0" * 16, on_tokens=charged.append))
    assert charged == []


@pytest.mark.parametrize("kept", [["one"], ["one", "two"]], ids=["partly", "all"])
async def test_request_that_is_over_its_quota_leaves_no_trace(
    embedder: Embedder, results: DictResults, scheduler: Scheduler, kept: list[str]
) -> None:
    await embedder.embed(None, kept)
    usage, memory = str(embedder.usage_by_model), dict(results.memory)
    texts_run = scheduler.state().texts

    def refuse(_: int) -> None:
        raise OverloadedError("Too many tokens.")

    with pytest.raises(OverloadedError):
        await embedder.embed(None, ["one", "two"], terms=RequestTerms(on_tokens=refuse))
    assert (str(embedder.usage_by_model), results.memory) == (usage, memory)
    assert scheduler.state().texts == texts_run


async def test_request_whose_texts_fail_keeps_nothing(embedder: Embedder, results: DictResults) -> None:
    for _ in range(2):
        with pytest.raises(InferenceError):
            await embedder.embed(None, ["one", "poison"])
    assert results.memory == {}


async def test_reload_between_the_lookup_and_the_lease_computes_all_texts_with_the_new_model(
    embedder: Embedder, models: OneModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await embedder.embed(None, ["one"])
    TinyModel("acme/tiny", dim=3).write(tmp_path)
    new = load_encoder(read_catalog([tmp_path], bundled="").get("acme/tiny"), hub_cache_dir=tmp_path)

    @asynccontextmanager
    async def lease(_: Model, *, caller: str = "") -> AsyncIterator[Encoder]:
        del caller
        yield new

    monkeypatch.setattr(models, "lease", lease)
    result = await embedder.embed(None, ["one", "two"])
    assert (result.vectors.shape, result.cache) == ((2, 3), CacheCounts(miss=2))
    assert result.fingerprint == new.fingerprint.digest  # type: ignore[union-attr]
    models.encoder = new
    assert (await embedder.embed(None, ["one"])).dimension == 3


async def test_result_of_a_text_that_came_before_all_were_deleted_is_not_kept(
    embedder: Embedder, results: DictResults, scheduler: Scheduler
) -> None:
    blocking = GatedModel()
    blocked = asyncio.create_task(run_texts(scheduler, blocking, [Text(100)]))
    await blocking.started(runs=1)
    request = asyncio.create_task(embedder.embed(None, ["one"]))
    await until(lambda: scheduler.state().waiting_texts > 0)
    results.clear()
    blocking.open()
    await asyncio.gather(blocked, request)
    assert results.memory == {}


async def test_cancelled_request_leaves_the_next_one_untouched(
    embedder: Embedder, results: DictResults, scheduler: Scheduler
) -> None:
    blocking = GatedModel()
    blocked = asyncio.create_task(run_texts(scheduler, blocking, [Text(100)]))
    await blocking.started(runs=1)
    leaving, staying = (asyncio.create_task(embedder.embed(None, ["one", "two"])) for _ in range(2))
    await until(lambda: scheduler.state().waiting_requests == 2)
    leaving.cancel()
    await asyncio.wait([leaving])
    blocking.open()
    await blocked
    assert (await staying).cache.hit == 0
    assert len(results.memory) == 2


async def test_equal_requests_at_once_are_computed_once_and_count_what_they_share(
    embedder: Embedder, results: DictResults, scheduler: Scheduler
) -> None:
    texts = ["one", "two", "one"]
    answers = await asyncio.gather(*(embedder.embed(None, texts, terms=RequestTerms(cache=NO_STORE)) for _ in range(3)))
    assert (scheduler.state().texts, results.memory) == (2, {})
    assert len({answer.vectors.tobytes() for answer in answers}) == 1
    for answer in answers:
        assert (answer.cache.hit, answer.cache.miss + answer.cache.coalesced) == (0, 3)
    assert sum(answer.cache.miss for answer in answers) == 2
    answers[0].vectors[:] = 0.0
    assert answers[1].vectors.all(axis=1).all()


async def test_windows_are_shared_as_whole_texts_are(embedder: Embedder, scheduler: Scheduler) -> None:
    options = EmbedOptions(long_text="chunks")
    answers = await asyncio.gather(*(embedder.embed(None, [LONG, "one"], options) for _ in range(2)))
    assert facts(answers[0]) == facts(answers[1])
    assert scheduler.state().texts == len(answers[0].vectors)
    assert [sum((counts.hit, counts.miss, counts.coalesced)) for counts in (answer.cache for answer in answers)] == [
        2,
        2,
    ]


async def test_request_that_may_not_read_shares_no_run(embedder: Embedder, scheduler: Scheduler) -> None:
    answers = await asyncio.gather(
        *(embedder.embed(None, ["one"], terms=RequestTerms(cache=NO_CACHE)) for _ in range(2))
    )
    assert scheduler.state().texts == 2
    assert [answer.cache for answer in answers] == [CacheCounts(miss=1)] * 2


async def test_callers_whose_keys_differ_share_nothing(
    make_embedder: Callable[..., Embedder], scheduler: Scheduler
) -> None:
    embedder = make_embedder(results=DictResults(), keys=ResultKeys(b"s" * 32, per_caller=True))
    await asyncio.gather(
        *(embedder.embed(None, ["one"], terms=RequestTerms(caller=(caller,))) for caller in ("a", "b"))
    )
    assert scheduler.state().texts == 2
    assert (await embedder.embed(None, ["one"], terms=RequestTerms(caller=("c",)))).cache == CacheCounts(miss=1)
    assert (await embedder.embed(None, ["one"], terms=RequestTerms(caller=("a", "site")))).cache == CacheCounts(hit=1)


async def test_shared_store_is_asked_for_what_is_not_in_memory_and_nothing_runs_if_it_has_all(
    make: Make, scheduler: Scheduler
) -> None:
    slower: dict[tuple[str, bytes], bytes] = {}
    first = await make(DictResults(slower)).embed(None, ["one", "two", "one"])
    results = DictResults(slower)
    embedder, texts_run = make(results), scheduler.state().texts
    charged = list[int]()
    again = await embedder.embed(None, ["one", "two", "one"], terms=RequestTerms(on_tokens=charged.append))
    assert (again.cache, results.fetched_keys, charged) == (CacheCounts(hit=3), 2, [9])
    assert facts(again) == facts(first)
    assert scheduler.state().texts == texts_run
    assert (await read_all(embedder, ["two", "three", "one"]))[1] == CacheCounts(hit=2, miss=1)
    assert results.fetched_keys == 3
    assert (await embedder.embed(None, ["three", "two"])).cache == CacheCounts(hit=2)
    assert results.fetched_keys == 3


async def test_slices_are_as_those_of_a_service_without_a_cache(
    make: Make, embedder: Embedder, scheduler: Scheduler
) -> None:
    texts = [*MANY[:300], *MANY[:200], *MANY[300:], MANY[0], MANY[-1]]
    await embedder.embed(None, MANY[100:200])
    texts_run = scheduler.state().texts
    vectors, counts = await read_all(embedder, texts)
    assert scheduler.state().texts - texts_run == len(MANY) - 100
    assert counts == CacheCounts(hit=200, miss=len(MANY) - 100, coalesced=102)
    expected = np.concatenate(
        [
            (await make(DictResults()).embed(None, texts[start : start + 50])).vectors
            for start in range(0, len(texts), 50)
        ]
    )
    np.testing.assert_allclose(vectors, expected, rtol=1e-5)
    again, counts = await read_all(embedder, texts)
    assert (again.tobytes(), counts) == (vectors.tobytes(), CacheCounts(hit=len(texts)))


@pytest.mark.parametrize("first_kept", [0, 100, SLICE_TEXTS])
@pytest.mark.parametrize("later_kept", [0, 100, SLICE_TEXTS])
async def test_vectors_of_each_slice_are_its_own_whatever_was_kept_of_others(
    embedder: Embedder, make: Make, first_kept: int, later_kept: int
) -> None:
    texts = FOUR_SLICES[: 2 * SLICE_TEXTS]
    expected, _ = await read_all(make(DictResults()), texts)
    kept = [*texts[:first_kept], *texts[SLICE_TEXTS : SLICE_TEXTS + later_kept]]
    await embedder.embed(None, [*kept, "zero"])
    vectors, counts = await read_all(embedder, texts)
    assert np.allclose(vectors, expected, atol=1e-6)
    assert counts == CacheCounts(hit=len(kept), miss=len(texts) - len(kept))


async def test_slice_without_missing_texts_needs_no_job(embedder: Embedder, scheduler: Scheduler) -> None:
    await read_all(embedder, MANY[: 2 * SLICE_TEXTS])
    batches, texts_run = scheduler.state().micro_batches, scheduler.state().texts
    async with embedder.open(None, MANY) as run:
        slices = run.slices()
        assert [len(await anext(slices)), len(await anext(slices))] == [SLICE_TEXTS, SLICE_TEXTS]
        assert not run.is_computed
        assert [len(vectors) async for vectors in slices] == [100]
    assert scheduler.state().texts - texts_run == 100
    assert scheduler.state().micro_batches > batches


async def test_kept_results_of_long_answers_are_limited_until_the_client_has_received_them(
    make: Make, results: DictResults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.result_lookup.MAX_HELD_TEXTS", 2000)
    embedder, charged = make(results), list[int]()
    slow, other = ("slow",), ("other",)
    with_hits, with_repeats = [f"one {number}" for number in range(600)], ["two"] * 601
    await read_all(embedder, with_hits)
    async with (
        embedder.open(None, with_hits, terms=RequestTerms(caller=slow)),
        embedder.open(None, with_repeats, terms=RequestTerms(caller=slow)),
    ):
        with pytest.raises(OverloadedError, match=r"contain 1200 texts .* 1200 of them are") as error:
            await read_all(embedder, with_hits, caller=slow, on_tokens=charged.append)
        assert error.value.retry_after_s == 1
        assert charged == []
        assert embedder.held_results.held == 1200
        assert (
            await embedder.embed(None, with_hits, terms=RequestTerms(caller=slow))
        ).cache.hit == 600  # not a long answer
        await read_all(embedder, with_hits[:300], caller=other)
    await read_all(embedder, with_hits, caller=slow)
    assert embedder.held_results.held == 0


@pytest.mark.parametrize("kept", [100, SLICE_TEXTS], ids=["part-of-a-slice", "whole-slice"])
async def test_slice_uses_what_another_request_has_kept_since_the_start(
    embedder: Embedder, scheduler: Scheduler, kept: int
) -> None:
    texts = FOUR_SLICES
    async with embedder.open(None, texts) as run:
        slices = run.slices()
        await anext(slices)  # two more have started
        assert (await embedder.embed(None, texts[-kept:])).cache == CacheCounts(miss=kept)
        assert sum([len(vectors) async for vectors in slices]) == len(texts) - SLICE_TEXTS
        assert scheduler.accounts[1].held == pytest.approx(0.0, abs=1e-9)
    assert scheduler.state().texts == len(texts)
    assert run.cache == CacheCounts(hit=kept, miss=len(texts) - kept)


async def test_results_of_slices_that_were_read_are_dropped(embedder: Embedder) -> None:
    async with embedder.open(None, [*FOUR_SLICES, FOUR_SLICES[0]]) as run:
        slices = run.slices()
        for _ in range(4):
            await anext(slices)
        kept = [thing for thing in gc.get_objects() if isinstance(thing, TextResult)]
        assert [len(await anext(slices))] == [1]
    assert [result.vectors.base for result in kept] == [None]  # the one that is needed again, without its slice


async def test_deadline_ends_a_request_whose_kept_results_are_read_slowly(embedder: Embedder) -> None:
    async def read_slowly() -> None:
        async with embedder.open(None, MANY, terms=RequestTerms(timeout_s=30)) as run:
            await anext(run.slices())
            let_time_pass(30)
            await asyncio.Event().wait()

    await read_all(embedder, MANY)
    with pytest.raises(DeadlineError):
        await read_slowly()


@pytest.mark.parametrize("count", [100, len(FOUR_SLICES)], ids=["interactive", "bulk"])
async def test_text_of_a_long_request_is_found_as_soon_as_it_was_computed(
    embedder: Embedder, encoder: Encoder, results: DictResults, scheduler: Scheduler, count: int
) -> None:
    texts = FOUR_SLICES[:count]
    long = asyncio.create_task(embedder.embed(None, texts))
    await until(lambda: len(results.memory) > 0)
    assert not long.done()
    found = [text for text in texts if key_of(encoder, text, DEFAULTS) in results.memory]
    assert len(found) < count
    assert (await embedder.embed(None, found)).cache == CacheCounts(hit=len(found))
    assert (await long).cache == CacheCounts(miss=count)
    assert scheduler.state().texts == count == len(results.memory)


@pytest.mark.parametrize("long_text", ["chunks", "mean"])
async def test_text_of_several_windows_is_kept_with_its_last_one(
    embedder: Embedder, encoder: Encoder, results: DictResults, long_text: LongText
) -> None:
    options = EmbedOptions(long_text=long_text)
    texts = [
        f"{text} {LONG} {'one ' * number}" for number, text in enumerate(FOUR_SLICES[:40])
    ]  # longer ones run first
    request = asyncio.create_task(embedder.embed(None, texts, options))
    await until(lambda: len(results.memory) > 0)
    assert not request.done()
    found = [text for text in texts if key_of(encoder, text, options) in results.memory]
    assert 0 < len(found) < len(texts)
    again = [await embedder.embed(None, [text], options) for text in found]
    assert [answer.cache for answer in again] == [CacheCounts(hit=1)] * len(found)
    whole = await request
    indexes = range(len(texts)) if whole.chunks is None else [chunk.index for chunk in whole.chunks]
    for text, answer in zip(found, again, strict=True):
        rows = [row for row, index in enumerate(indexes) if texts[index] == text]
        assert answer.vectors.tobytes() == whole.vectors[rows].tobytes()
    assert len(results.memory) == len(texts)


@pytest.mark.parametrize("long_text", ["chunks", "mean"])
async def test_text_with_an_unusable_window_is_not_kept_and_the_others_are(
    embedder: Embedder, encoder: Encoder, results: DictResults, long_text: LongText
) -> None:
    options = EmbedOptions(long_text=long_text)
    with pytest.raises(InvalidVectorError):
        await embedder.embed(None, [LONG, f"{LONG} nan", "one"], options)
    assert set(results.memory) == {key_of(encoder, text, options) for text in (LONG, "one")}


async def test_text_that_was_computed_is_found_before_its_request_ends(
    embedder: Embedder, results: DictResults, scheduler: Scheduler
) -> None:
    request = asyncio.create_task(embedder.embed(None, ["one"]))
    await until(lambda: scheduler.state().texts > 0)
    assert not request.done()
    assert len(results.memory) == 1
    await request


async def test_repeats_in_later_slices_are_run_once(embedder: Embedder, scheduler: Scheduler) -> None:
    texts = [MANY[index % SLICE_TEXTS] for index in range(3 * SLICE_TEXTS)]
    vectors, counts = await read_all(embedder, texts)
    assert scheduler.state().texts == SLICE_TEXTS
    assert counts == CacheCounts(miss=SLICE_TEXTS, coalesced=2 * SLICE_TEXTS)
    parts = np.split(vectors, 3)
    assert parts[0].tobytes() == parts[1].tobytes() == parts[2].tobytes()


class BundledModel:
    """The bundled model, in an event loop of its own per call."""

    def __init__(self) -> None:
        with capture_logs():
            catalog = read_catalog([BUNDLED_MODELS_DIR], bundled="")
            self.encoder = load_encoder(catalog.get(BUNDLED_MODEL), hub_cache_dir=BUNDLED_MODELS_DIR)

    def embed(
        self,
        requests: Sequence[tuple[Sequence[str], EmbedOptions]],
        results: ResultStore,
        use: CacheUse,
        *,
        at_once: bool,
    ) -> list[EmbedResult]:
        """Embed the requests one after another, or at once."""

        async def embed() -> list[EmbedResult]:
            with ThreadPoolExecutor(1) as thread:
                async with one_lane() as scheduler:
                    embedder = Embedder(
                        catalog=Catalog([self.encoder.model]),
                        allowed=frozenset(),
                        default_model=self.encoder.name,
                        models=OneModel(self.encoder),
                        scheduler=scheduler,
                        tokenizing=TokenizerQueue(thread, max_queue_s=1e9),
                        timeout_s=60,
                        results=results,
                        keys=KEYS,
                    )
                    if at_once:
                        return await asyncio.gather(
                            *(
                                embedder.embed(None, texts, options, terms=RequestTerms(cache=use))
                                for texts, options in requests
                            )
                        )
                    return [
                        await embedder.embed(None, texts, options, terms=RequestTerms(cache=use))
                        for texts, options in requests
                    ]

        return asyncio.run(embed())


@pytest.fixture(scope="module")
def bundled() -> BundledModel:
    return BundledModel()


@pytest.mark.parametrize("long_text", get_args(LongText))
def test_kept_result_of_a_blank_text_is_not_used_where_blank_texts_are_rejected(
    bundled: BundledModel, long_text: LongText
) -> None:
    allowed, rejected = EmbedOptions(allow_blank=True, long_text=long_text), EmbedOptions(long_text=long_text)
    texts, results = ["one", "\u200b"], DictResults()
    requests = [(texts, allowed), (["one"], rejected), (texts, allowed)]
    answers = bundled.embed(requests, results, CacheUse(), at_once=False)
    assert [answer.cache for answer in answers] == [CacheCounts(miss=2), CacheCounts(hit=1), CacheCounts(hit=2)]
    with pytest.raises(InvalidInputError) as caught:
        bundled.embed([(texts, rejected)], results, CacheUse(), at_once=False)
    assert caught.value.extensions["index"] == 1


@settings(deadline=None, max_examples=10, derandomize=True)
@given(data=st.data(), at_once=st.booleans())
def test_answers_with_a_cache_equal_those_without(bundled: BundledModel, data: st.DataObject, *, at_once: bool) -> None:
    pool = data.draw(st.lists(any_texts | st.just("river " * 260), min_size=1, max_size=4))
    options = [
        EmbedOptions(allow_blank=True, long_text=long_text, normalize=normalize)
        for long_text in get_args(LongText)
        for normalize in (None, True)
    ]
    request = st.tuples(st.lists(st.sampled_from(pool), min_size=1, max_size=4), st.sampled_from(options))
    requests = data.draw(st.lists(request, min_size=1, max_size=3))
    results = DictResults()
    answers = bundled.embed(requests, results, CacheUse(), at_once=at_once)
    expected = bundled.embed(requests, DictResults(), CacheUse(may_read=False, may_keep=False), at_once=False)
    for answer, fresh in zip(answers, expected, strict=True):
        assert facts(answer)[1:] == facts(fresh)[1:]
        assert np.abs(answer.vectors - fresh.vectors).max() <= 1e-5
        counts = answer.cache
        assert counts.hit + counts.miss + counts.coalesced == len(answer.tokens)
        assert min(counts.hit, counts.miss, counts.coalesced) >= 0
    again = bundled.embed(requests, results, CacheUse(), at_once=at_once)
    assert [answer.cache for answer in again] == [CacheCounts(hit=len(texts)) for texts, _ in requests]
    if not at_once:
        assert [facts(answer) for answer in again] == [facts(answer) for answer in answers]
