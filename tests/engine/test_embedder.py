"""`Embedder`: allowed models, deadlines, usage counts, options, and vectors compared with FastEmbed and by hand."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from fastembed import TextEmbedding
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from structlog.testing import capture_logs

from config import BUNDLED_MODEL, BUNDLED_MODELS_DIR
from engine.catalog import Catalog, Model, read_catalog
from engine.embed_results import EmbedResult, TokenCount
from engine.embedder import Embedder
from engine.encoder import Encoder, load_encoder
from engine.errors import (
    DeadlineError,
    DrainingError,
    FingerprintMismatchError,
    InferenceError,
    InvalidInputError,
    InvalidVectorError,
    ModelNotAllowedError,
    OverloadedError,
    UnknownModelError,
)
from engine.fair_queue import ANYONE
from engine.model_cards import InputType
from engine.options import DEFAULTS, EmbedOptions, LongText
from engine.pipeline import Chunk
from engine.request_terms import RequestTerms
from engine.scheduler import Scheduler
from engine.text_admission import MAX_INLINE_CHARACTERS, MAX_INLINE_TEXTS, TextAdmission
from engine.tokenizer_queue import TokenizerQueue
from tests.support.clock import let_time_pass
from tests.support.gated import GatedModel, Text
from tests.support.odd_texts import WORDS, any_texts
from tests.support.one_model import OneModel, one_lane, run_texts
from tests.support.tiny import MAX_TOKENS, TinyModel, mean_of
from tests.support.tiny_models import (
    PROBE_WORDS,
    TASKED,
    TASKED_DIM,
    cache_tasked,
    task_shift,
    write_padding_sensitive,
    write_quantised,
)

PROMPTS = {"query": "five four ", "document": "zero "}
MAX_WORDS = MAX_TOKENS - 2


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    folder = tmp_path_factory.mktemp("models")
    TinyModel("acme/tiny").write(folder)
    TinyModel("acme/other").write(folder)
    return read_catalog([folder], bundled="")


@pytest.fixture
async def scheduler() -> AsyncIterator[Scheduler]:
    async with one_lane() as scheduler:
        yield scheduler


@pytest.fixture
def embedder(catalog: Catalog, models: OneModel, scheduler: Scheduler, tokenizing: TokenizerQueue) -> Embedder:
    return Embedder(
        catalog=catalog,
        allowed=frozenset({"ACME/tiny"}),
        default_model="acme/tiny",
        models=models,
        scheduler=scheduler,
        tokenizing=tokenizing,
        timeout_s=60,
    )


async def test_result_contains_vectors_tokens_and_truncation_in_the_order_of_the_texts(embedder: Embedder) -> None:
    result = await embedder.embed("acme/tiny", ["one", "two " * 20, "three four"])
    assert result.tokens == [3, 22, 4]
    assert result.truncated == [False, True, False]
    np.testing.assert_allclose(result.vectors[2], mean_of(["three", "four"]), rtol=1e-6)


async def test_long_texts_are_tokenised_in_another_thread_with_the_same_result(embedder: Embedder) -> None:
    text, tokens = "one " * MAX_INLINE_CHARACTERS, MAX_INLINE_CHARACTERS + 2
    assert (await embedder.embed("acme/tiny", [text])).tokens == [tokens]
    count = await embedder.tokenize("acme/tiny", [text], with_pieces=True)
    assert count.tokens == [tokens]
    assert count.pieces
    assert len(count.pieces[0]) == tokens


@pytest.mark.parametrize(("texts", "threads"), [(MAX_INLINE_TEXTS, 0), (MAX_INLINE_TEXTS + 1, 1)])
async def test_many_texts_are_tokenised_in_another_thread_even_if_all_are_empty(
    texts: int, threads: int, scheduler: Scheduler
) -> None:
    started: list[str] = []
    with ThreadPoolExecutor(1, initializer=started.append, initargs=("thread",)) as thread:
        admission = TextAdmission(scheduler, TokenizerQueue(thread, max_queue_s=1e9))
        counts = await admission.tokenize(lambda some, _: len(some), [""] * texts, ANYONE)
    assert (sum(counts), len(started)) == (texts, threads)


async def test_callback_gets_the_tokens_of_all_texts(embedder: Embedder) -> None:
    received: list[int] = []
    result = await embedder.embed(
        "acme/tiny", ["one two", "zero " * 100], terms=RequestTerms(on_tokens=received.append)
    )
    assert received == [sum(result.tokens)]


async def test_request_that_the_callback_rejects_does_not_run(embedder: Embedder, scheduler: Scheduler) -> None:
    def reject(tokens: int) -> None:
        raise OverloadedError(f"{tokens} are too many.")

    with pytest.raises(OverloadedError):
        await embedder.embed("acme/tiny", ["one two"], terms=RequestTerms(on_tokens=reject))
    assert embedder.usage_by_model == {}
    assert scheduler.state().micro_batches == 0
    assert not any(account.held for account in scheduler.accounts)


@pytest.mark.parametrize("text", ["one two", "one " * MAX_INLINE_CHARACTERS], ids=["short", "long"])
async def test_tokens_of_a_request_that_is_not_admitted_are_not_charged(
    text: str, embedder: Embedder, scheduler: Scheduler
) -> None:
    await scheduler.aclose()
    received: list[int] = []
    with pytest.raises(DrainingError):
        await embedder.embed("acme/tiny", [text], terms=RequestTerms(on_tokens=received.append))
    assert received == []


async def test_usage_counts_answered_requests_only(embedder: Embedder) -> None:
    await embedder.embed("acme/tiny", ["one", "two"])
    await embedder.embed("Acme/Tiny", ["three " * 30], EmbedOptions(long_text="chunks"))  # counts as one text
    with pytest.raises(InferenceError):
        await embedder.embed("acme/tiny", ["poison"])
    with pytest.raises(InvalidInputError, match="Text 1"):
        await embedder.embed("acme/tiny", ["one", "one " * 30], EmbedOptions(truncate="none"))
    usage = embedder.usage("acme/tiny")
    assert (usage.requests, usage.texts, usage.tokens) == (2, 3, 38)
    assert embedder.usage_by_model == {"acme/tiny": usage}


@pytest.mark.parametrize(
    ("text", "long_text", "reason"),
    [
        pytest.param("nan", "truncate", "NaN", id="nan"),
        pytest.param("null", "truncate", "zero", id="zero-norm"),
        pytest.param("three " * 30 + "nan", "mean", "NaN", id="nan-in-a-mean"),
        pytest.param("three " * 30 + "nan", "chunks", "NaN", id="nan-in-a-chunk"),
    ],
)
async def test_bad_vector_is_never_returned(embedder: Embedder, text: str, long_text: LongText, reason: str) -> None:
    with pytest.raises(InvalidVectorError, match=reason) as error:
        await embedder.embed("acme/tiny", ["one " * 30, text], EmbedOptions(long_text=long_text))
    assert error.value.index == 1


async def test_model_that_is_not_allowed_is_rejected(embedder: Embedder) -> None:
    with pytest.raises(ModelNotAllowedError):
        await embedder.embed("acme/other", ["one"])
    assert [model.name for model in embedder.models] == embedder.allowed_models == ["acme/tiny"]


def test_unknown_model_is_rejected_with_similar_names(embedder: Embedder) -> None:
    with pytest.raises(UnknownModelError, match="acme/tiny"):
        embedder.resolve_model("acme/tinny")


async def test_deadline_covers_the_time_to_load_the_model(embedder: Embedder, models: OneModel) -> None:
    models.gate.clear()
    with pytest.raises(DeadlineError):
        await embedder.embed("acme/tiny", ["one"], terms=RequestTerms(timeout_s=0.001))


async def test_waiting_work_is_dropped_when_its_deadline_passes(embedder: Embedder, scheduler: Scheduler) -> None:
    blocking = GatedModel()
    blocked = [asyncio.create_task(run_texts(scheduler, blocking, [Text(100, 0)]))]
    await blocking.started(1)
    blocked.append(asyncio.create_task(run_texts(scheduler, blocking, [Text(100, 1)])))
    texts = ["one two " * 200, "two one " * 200, "one", "two", "three"]
    terms = RequestTerms(timeout_s=30)
    request = asyncio.create_task(embedder.embed("acme/tiny", texts, terms=terms))
    while scheduler.state().waiting_texts < 1 + len(texts):  # noqa: ASYNC110 - the scheduler gives no other sign
        await asyncio.sleep(0)
    let_time_pass(30)
    with pytest.raises(DeadlineError):
        await request
    assert scheduler.state().dropped_texts == len(texts)
    assert terms.work.stages[-1].name == "queue"
    blocking.open()
    await asyncio.gather(*blocked)
    assert scheduler.state().texts == len(blocked)


async def test_options_are_checked_before_the_model_is_loaded(embedder: Embedder, models: OneModel) -> None:
    models.gate.clear()
    for options in (EmbedOptions(dimensions=3), EmbedOptions(truncate="end", long_text="mean")):
        with pytest.raises(InvalidInputError):
            await embedder.embed("acme/tiny", ["one"], options)


async def test_request_that_began_before_a_reload_is_checked_against_the_new_model(
    embedder: Embedder, models: OneModel, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    TinyModel("acme/tiny", dim=3).write(tmp_path)
    new = load_encoder(read_catalog([tmp_path], bundled="").get("acme/tiny"), hub_cache_dir=tmp_path)

    @asynccontextmanager
    async def lease(_: Model, *, caller: str = "") -> AsyncIterator[Encoder]:
        del caller
        yield new

    monkeypatch.setattr(models, "lease", lease)
    result = await embedder.embed("acme/tiny", ["one"])
    assert (result.model, result.dimension, encoder.dim) == (new.model, 3, 4)
    assert (await embedder.tokenize("acme/tiny", ["one"])).model is new.model
    with pytest.raises(InvalidInputError, match="not between 1 and 3"):
        await embedder.embed("acme/tiny", ["one"], EmbedOptions(dimensions=4))


async def test_result_contains_the_models_fingerprint(embedder: Embedder, encoder: Encoder) -> None:
    result = await embedder.embed("acme/tiny", ["one"])
    assert encoder.fingerprint
    assert result.fingerprint == encoder.fingerprint.digest != ""


async def test_model_with_another_fingerprint_does_no_work(
    embedder: Embedder, encoder: Encoder, scheduler: Scheduler
) -> None:
    assert encoder.fingerprint
    actual, expected = encoder.fingerprint.digest, "0123456789abcdef"
    charged: list[int] = []
    for request in (
        embedder.embed("acme/tiny", ["one"], terms=RequestTerms(on_tokens=charged.append, if_fingerprint=expected)),
        embedder.tokenize("acme/tiny", ["one"], terms=RequestTerms(if_fingerprint=expected)),
    ):
        with pytest.raises(FingerprintMismatchError) as mismatch:
            await request
        assert mismatch.value.extensions == {"expected": expected, "actual": actual}
    assert (charged, scheduler.state().micro_batches, embedder.usage_by_model) == ([], 0, {})
    assert (await embedder.embed("acme/tiny", ["one"], terms=RequestTerms(if_fingerprint=actual))).fingerprint == actual
    assert (await embedder.tokenize("acme/tiny", ["one"], terms=RequestTerms(if_fingerprint=actual))).tokens == [3]


async def test_tokens_are_counted_without_running_the_model(embedder: Embedder, scheduler: Scheduler) -> None:
    count = await embedder.tokenize("acme/tiny", ["one two", "poison " * 20], with_pieces=True)
    assert (count.tokens, count.truncated, count.max_tokens) == ([4, 22], [False, True], MAX_TOKENS)
    assert count.pieces
    assert [piece.token for piece in count.pieces[0]] == ["[CLS]", "one", "two", "[SEP]"]
    assert [(piece.start, piece.end) for piece in count.pieces[0]] == [(None, None), (0, 3), (4, 7), (None, None)]
    assert [len(pieces) for pieces in count.pieces] == count.tokens
    assert (await embedder.tokenize("acme/tiny", ["one"])).pieces is None
    assert scheduler.state().micro_batches == 0


async def test_estimate_equals_the_runs_of_the_request(embedder: Embedder, scheduler: Scheduler) -> None:
    texts = ["one " * count for count in (1, 1, 5, 14, 40, 2)]
    count = await embedder.tokenize("acme/tiny", texts)
    await embedder.embed("acme/tiny", texts)
    assert scheduler.state().micro_batches == count.estimate.micro_batches
    assert count.estimate.seconds > 0


class BlockingEmbedder:
    """An embedder for one model that is called without an event loop."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self._tokenizing = ThreadPoolExecutor(1)

    def embed(self, texts: Sequence[str], options: EmbedOptions = DEFAULTS) -> EmbedResult:
        async def embed() -> EmbedResult:
            async with self._embedder() as embedder:
                return await embedder.embed(self.encoder.name, texts, options)

        return asyncio.run(embed())

    def tokenize(self, texts: Sequence[str], input_type: InputType | None = None) -> TokenCount:
        async def tokenize() -> TokenCount:
            async with self._embedder() as embedder:
                return await embedder.tokenize(self.encoder.name, texts, input_type, with_pieces=True)

        return asyncio.run(tokenize())

    @asynccontextmanager
    async def _embedder(self) -> AsyncIterator[Embedder]:
        async with one_lane() as scheduler:
            yield Embedder(
                catalog=Catalog([self.encoder.model]),
                allowed=frozenset(),
                default_model=self.encoder.name,
                models=OneModel(self.encoder),
                scheduler=scheduler,
                tokenizing=TokenizerQueue(self._tokenizing, max_queue_s=1e9),
                timeout_s=60,
            )

    def close(self) -> None:
        self._tokenizing.shutdown()


def blocking_embedder(folder: Path, name: str) -> Iterator[BlockingEmbedder]:
    with capture_logs():
        encoder = load_encoder(read_catalog([folder], bundled="").get(name), hub_cache_dir=folder)
    embedder = BlockingEmbedder(encoder)
    yield embedder
    embedder.close()


@pytest.fixture(scope="module")
def bundled() -> Iterator[BlockingEmbedder]:
    yield from blocking_embedder(BUNDLED_MODELS_DIR, BUNDLED_MODEL)


@pytest.fixture(scope="module")
def prompted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BlockingEmbedder]:
    folder = tmp_path_factory.mktemp("models")
    TinyModel("acme/prompted", prompts=PROMPTS, matryoshka=(2,)).write(folder)
    yield from blocking_embedder(folder, "acme/prompted")


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BlockingEmbedder]:
    folder = tmp_path_factory.mktemp("models")
    write_quantised(folder, "acme/quantised")
    yield from blocking_embedder(folder, "acme/quantised")


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BlockingEmbedder]:
    folder = tmp_path_factory.mktemp("models")
    write_padding_sensitive(folder, "acme/padded")
    yield from blocking_embedder(folder, "acme/padded")


@pytest.fixture(scope="module")
def tasked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BlockingEmbedder]:
    folder = tmp_path_factory.mktemp("hub")
    cache_tasked(folder)
    yield from blocking_embedder(folder, TASKED)


def normalized(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    unit: NDArray[np.float64] = vector / np.sqrt((vector**2).sum())
    return unit


@settings(deadline=None, max_examples=25, derandomize=True)
@given(texts=st.lists(any_texts, min_size=1, max_size=6))
def test_vectors_and_tokens_of_any_texts_equal_those_of_each_text_alone(
    bundled: BlockingEmbedder, texts: list[str]
) -> None:
    options = EmbedOptions(allow_blank=True)
    result = bundled.embed(texts, options)
    alone = [bundled.embed([text], options) for text in texts]
    assert result.vectors.shape == (len(texts), result.dimension) == (len(texts), 384)
    assert result.tokens == [single.tokens[0] for single in alone] == bundled.tokenize(texts).tokens
    assert result.truncated == [tokens > 256 for tokens in result.tokens]
    assert np.abs(result.vectors - np.concatenate([single.vectors for single in alone])).max() <= 1e-5


@settings(deadline=None, max_examples=25, derandomize=True)
@given(texts=st.lists(st.lists(st.sampled_from(PROBE_WORDS[:6]), min_size=1, max_size=70).map(" ".join), min_size=1))
@pytest.mark.parametrize("model", ["quantised", "padded"])
def test_vector_does_not_depend_on_the_other_texts_of_a_request(
    model: str, texts: list[str], quantised: BlockingEmbedder, padded: BlockingEmbedder
) -> None:
    """With models for which it would if texts shared any run, or a run with longer texts."""
    embedder = {"quantised": quantised, "padded": padded}[model]
    result = embedder.embed(texts)
    alone = np.concatenate([embedder.embed([text]).vectors for text in texts])
    np.testing.assert_allclose(result.vectors, alone, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def fastembed() -> TextEmbedding:
    return TextEmbedding(BUNDLED_MODEL, specific_model_path=str(BUNDLED_MODELS_DIR / "all-MiniLM-L6-v2"), threads=1)


@pytest.fixture(scope="module")
def long_words() -> list[str]:
    """Words of one token each that fill two windows of the bundled model and 92 tokens of a third."""
    return [WORDS[number * number % 7 + number % 3] for number in range(600)]


def test_mean_of_a_long_text_is_numpys_weighted_average_of_fastembeds_vectors(
    bundled: BlockingEmbedder, fastembed: TextEmbedding, long_words: list[str]
) -> None:
    parts = [long_words[:254], long_words[254:508], long_words[508:]]
    rows = np.stack(list(fastembed.embed([" ".join(part) for part in parts]))).astype(np.float64)
    expected = normalized(np.average(rows, axis=0, weights=[254, 254, 92]))
    result = bundled.embed(["apple", " ".join(long_words)], EmbedOptions(long_text="mean"))
    np.testing.assert_allclose(result.vectors[1], expected, atol=1e-6)
    assert np.linalg.norm(result.vectors[1]) == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_allclose(result.vectors[0], bundled.embed(["apple"]).vectors[0], atol=1e-6)
    assert (result.tokens, result.truncated, result.chunks) == ([3, 602], [False, False], None)


def test_chunks_of_a_long_text_have_fastembeds_vectors(
    bundled: BlockingEmbedder, fastembed: TextEmbedding, long_words: list[str]
) -> None:
    text = " ".join(long_words)
    result = bundled.embed([text, "apple"], EmbedOptions(long_text="chunks"))
    parts = [" ".join(part) for part in (long_words[:254], long_words[254:508], long_words[508:])]
    np.testing.assert_allclose(result.vectors, np.stack(list(fastembed.embed([*parts, "apple"]))), atol=1e-5)
    assert result.chunks
    assert [text[chunk.start : chunk.end] for chunk in result.chunks[:3]] == parts
    assert [(chunk.index, chunk.tokens) for chunk in result.chunks] == [(0, 256), (0, 256), (0, 94), (1, 3)]
    assert (result.tokens, result.truncated) == ([602, 3], [False, False])


@pytest.mark.parametrize("truncate", ["start", "end"])
def test_truncated_text_has_the_vector_of_its_kept_words(
    bundled: BlockingEmbedder, fastembed: TextEmbedding, long_words: list[str], truncate: str
) -> None:
    options = EmbedOptions(truncate=truncate)  # type: ignore[arg-type]  # pytest's parameters are plain strings
    result = bundled.embed([" ".join(long_words)], options)
    kept = long_words[-254:] if truncate == "start" else long_words[:254]
    np.testing.assert_allclose(result.vectors, list(fastembed.embed([" ".join(kept)])), atol=1e-6)
    assert (result.tokens, result.truncated) == ([602], [True])


@pytest.mark.parametrize("input_type", ["query", "document", None])
def test_prompt_of_the_input_type_is_put_before_each_text(
    prompted: BlockingEmbedder, input_type: InputType | None
) -> None:
    prompt = PROMPTS[input_type].split() if input_type else []
    result = prompted.embed(["one", "two three"], EmbedOptions(input_type=input_type))
    np.testing.assert_allclose(
        result.vectors, [mean_of([*prompt, "one"]), mean_of([*prompt, "two", "three"])], rtol=1e-5
    )
    assert result.tokens == [len(prompt) + 3, len(prompt) + 4]
    assert prompted.tokenize(["one", "two three"], input_type).tokens == result.tokens


def test_truncation_at_either_end_keeps_the_prompt(prompted: BlockingEmbedder) -> None:
    words = ["one"] * 20 + ["two"] * 20
    prompt = PROMPTS["query"].split()
    for truncate, kept in (("start", words[-(MAX_WORDS - 2) :]), ("end", words[: MAX_WORDS - 2])):
        options = EmbedOptions(input_type="query", truncate=truncate)  # type: ignore[arg-type]  # a plain string
        result = prompted.embed([" ".join(words)], options)
        np.testing.assert_allclose(result.vectors, [mean_of([*prompt, *kept])], rtol=1e-5)
        assert (result.tokens, result.truncated) == ([44], [True])


def test_each_window_has_the_prompt_and_only_tokens_of_the_text_count_as_weight(prompted: BlockingEmbedder) -> None:
    words = ["one"] * 12 + ["three"] * 12 + ["five"] * 3
    prompt = PROMPTS["query"].split()
    rows = np.stack([mean_of([*prompt, *words[start : start + 12]]) for start in (0, 12, 24)]).astype(np.float64)
    options = EmbedOptions(input_type="query", long_text="mean", normalize=False)
    [vector] = prompted.embed([" ".join(words)], options).vectors
    np.testing.assert_allclose(vector, np.average(rows, axis=0, weights=[12, 12, 3]), rtol=1e-5)
    chunks = prompted.embed([" ".join(words)], EmbedOptions(input_type="query", long_text="chunks")).chunks
    assert chunks == [Chunk(0, 0, 47, 16), Chunk(0, 48, 119, 16), Chunk(0, 120, 134, 7)]


def test_vectors_of_a_model_that_does_not_normalize_are_normalized_on_request(prompted: BlockingEmbedder) -> None:
    plain = prompted.embed(["one two"]).vectors
    np.testing.assert_allclose(plain, [mean_of(["one", "two"])], rtol=1e-5)
    [unit] = prompted.embed(["one two"], EmbedOptions(normalize=True)).vectors
    np.testing.assert_allclose(unit, normalized(plain[0].astype(np.float64)), rtol=1e-5)
    assert np.linalg.norm(plain) != pytest.approx(1.0, abs=0.01)


def test_fewer_dimensions_are_the_first_numbers_normalized(prompted: BlockingEmbedder) -> None:
    result = prompted.embed(["one two"], EmbedOptions(dimensions=2))
    expected = normalized(mean_of(["one", "two"])[:2].astype(np.float64))
    np.testing.assert_allclose(result.vectors, [expected], rtol=1e-5)
    assert result.dimension == 2


@pytest.mark.parametrize("dtype", ["float16", "int8", "uint8", "binary", "ubinary"])
def test_every_dtype_stays_within_its_stated_error(bundled: BlockingEmbedder, dtype: str) -> None:
    texts = ["apple", "river stone"]
    exact = bundled.embed(texts).vectors
    result = bundled.embed(texts, EmbedOptions(dtype=dtype))  # type: ignore[arg-type]  # a plain string
    assert result.dimension == 384
    match dtype:
        case "float16":
            assert np.abs(result.vectors - exact).max() <= 2.0**-12
        case "int8":
            assert np.abs(result.vectors / 127 - exact).max() <= 1 / 254 + 1e-6
        case "uint8":
            assert np.abs((result.vectors - 128.0) / 127 - exact).max() <= 1 / 254 + 1e-6
        case "binary":
            np.testing.assert_array_equal(result.vectors.astype(int) + 128, np.packbits(exact > 0, axis=1))
        case "ubinary":
            np.testing.assert_array_equal(np.unpackbits(result.vectors, axis=1), exact > 0)


@pytest.mark.parametrize(("input_type", "task"), [("query", 0), ("document", 1), (None, 1)])
def test_input_type_selects_the_models_task(tasked: BlockingEmbedder, input_type: InputType | None, task: int) -> None:
    result = tasked.embed(["one", "two"], EmbedOptions(input_type=input_type))
    rows = np.stack([mean_of([word], TASKED_DIM) + task * task_shift() for word in ("one", "two")]).astype(np.float64)
    np.testing.assert_allclose(result.vectors, [normalized(vector) for vector in rows], atol=1e-6)
    assert result.tokens == [3, 3]


def test_tokens_of_a_prompt_have_no_place_in_the_callers_text(prompted: BlockingEmbedder) -> None:
    count = prompted.tokenize(["one two"], "query")
    assert count.pieces
    assert [(piece.token, piece.start, piece.end) for piece in count.pieces[0]] == [
        ("[CLS]", None, None),
        ("five", None, None),
        ("four", None, None),
        ("one", 0, 3),
        ("two", 4, 7),
        ("[SEP]", None, None),
    ]
