"""From texts to vectors: who may use what, deadlines, counts, honesty."""

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
from engine.embedder import INLINE_CHARACTERS, Embedder, EmbedResult, TokenCount
from engine.encoder import Encoder, load_encoder
from engine.errors import (
    DeadlineError,
    InferenceError,
    InvalidInputError,
    InvalidVectorError,
    ModelNotAllowedError,
    OverloadedError,
    UnknownModelError,
)
from engine.lane import Lane
from engine.model_cards import InputType
from engine.options import DEFAULTS, EmbedOptions
from engine.pipeline import Chunk
from engine.scheduler import Scheduler
from tests.support.gated import GatedModel, Text
from tests.support.odd_texts import WORDS, any_texts
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
ROOM = MAX_TOKENS - 2


class OneModel:
    """Leases the same encoder whatever the name, once the gate is open."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.gate = asyncio.Event()
        self.gate.set()

    @asynccontextmanager
    async def lease(self, model: Model) -> AsyncIterator[Encoder]:
        assert model is self.encoder.model
        await self.gate.wait()
        yield self.encoder


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    folder = tmp_path_factory.mktemp("models")
    TinyModel("acme/tiny").write(folder)
    TinyModel("acme/other").write(folder)
    return read_catalog([folder], bundled="")


@pytest.fixture(scope="module")
def encoder(catalog: Catalog) -> Encoder:
    return load_encoder(catalog.get("acme/tiny"), hub_cache_dir=Path("unused"))


@pytest.fixture
def tokenizing() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as tokenizing:
        yield tokenizing


@pytest.fixture
async def scheduler() -> AsyncIterator[Scheduler]:
    async with one_lane() as scheduler:
        yield scheduler


@asynccontextmanager
async def one_lane() -> AsyncIterator[Scheduler]:
    lane, express = Lane("lane"), Lane("express")
    scheduler = Scheduler(lanes=[lane], express=express, micro_batch_tokens=512, max_queue_s=1e9, stuck_s=1e9)
    yield scheduler
    await scheduler.aclose()
    lane.close()
    express.close()


@pytest.fixture
async def models(encoder: Encoder) -> OneModel:
    return OneModel(encoder)


@pytest.fixture
def service(catalog: Catalog, models: OneModel, scheduler: Scheduler, tokenizing: ThreadPoolExecutor) -> Embedder:
    return Embedder(
        catalog=catalog,
        allowed=frozenset({"ACME/tiny"}),
        default_model="acme/tiny",
        models=models,
        scheduler=scheduler,
        tokenizing=tokenizing,
        timeout_s=60,
    )


async def test_an_answer_holds_vectors_tokens_and_cuts_in_the_order_asked(service: Embedder) -> None:
    answer = await service.embed("acme/tiny", ["one", "two " * 20, "three four"])
    assert answer.tokens == [3, 22, 4]
    assert answer.truncated == [False, True, False]
    np.testing.assert_allclose(answer.vectors[2], mean_of(["three", "four"]), rtol=1e-6)


async def test_long_texts_are_tokenised_off_the_loop_with_the_same_result(service: Embedder) -> None:
    long = "one " * INLINE_CHARACTERS
    answer = await service.embed("acme/tiny", [long])
    assert answer.tokens == [INLINE_CHARACTERS + 2]


async def test_tokens_are_told_before_the_model_runs(service: Embedder) -> None:
    told: list[int] = []
    answer = await service.embed("acme/tiny", ["one two", "zero " * 100], on_tokens=told.append)
    assert told == [sum(answer.tokens)]


async def test_request_that_is_stopped_by_its_tokens_is_not_run(service: Embedder) -> None:
    def stop(tokens: int) -> None:
        raise OverloadedError(f"{tokens} are too many.")

    with pytest.raises(OverloadedError):
        await service.embed("acme/tiny", ["one two"], on_tokens=stop)
    assert service.used == {}


async def test_usage_counts_what_was_answered(service: Embedder) -> None:
    await service.embed("acme/tiny", ["one", "two"])
    await service.embed("Acme/Tiny", ["three"])
    with pytest.raises(InferenceError):
        await service.embed("acme/tiny", ["poison"])
    usage = service.usage("acme/tiny")
    assert (usage.requests, usage.texts, usage.tokens) == (2, 3, 9)
    assert list(service.used) == ["acme/tiny"]


@pytest.mark.parametrize(
    ("text", "reason"), [pytest.param("nan", "NaN", id="nan"), pytest.param("null", "zero", id="zero-norm")]
)
async def test_a_dishonest_vector_is_never_passed_on(service: Embedder, text: str, reason: str) -> None:
    with pytest.raises(InvalidVectorError, match=reason) as caught:
        await service.embed("acme/tiny", ["one", text])
    assert caught.value.index == 1


async def test_a_model_outside_the_allowed_ones_is_refused(service: Embedder) -> None:
    with pytest.raises(ModelNotAllowedError):
        await service.embed("acme/other", ["one"])
    assert [model.name for model in service.models] == service.allowed == ["acme/tiny"]


def test_an_unknown_model_is_told_with_the_closest_names(service: Embedder) -> None:
    with pytest.raises(UnknownModelError, match="acme/tiny") as caught:
        service.offered("acme/tinny")
    assert caught.value.status == 400


async def test_a_deadline_that_passes_while_a_model_is_loaded_is_told(service: Embedder, models: OneModel) -> None:
    models.gate.clear()
    with pytest.raises(DeadlineError):
        await service.embed("acme/tiny", ["one"], timeout_s=0.001)


async def test_work_whose_deadline_has_passed_is_dropped_and_never_computed(
    service: Embedder, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocking = GatedModel()
    blocked = [asyncio.create_task(scheduler.submit(blocking, [item])) for item in (Text(100, 0), Text(100, 1))]
    await asyncio.to_thread(blocking.wait_for_runs, 1)
    done_before = scheduler.state().texts
    texts = ["one two " * 200, "two one " * 200, "one", "two", "one"]
    asked = asyncio.create_task(service.embed("acme/tiny", texts, timeout_s=30))
    while scheduler.state().waiting_texts < 1 + len(texts):  # noqa: ASYNC110 - it gives no sign
        await asyncio.sleep(0.001)
    loop = asyncio.get_running_loop()
    real_time = loop.time
    monkeypatch.setattr(loop, "time", lambda: real_time() + 30)
    with pytest.raises(DeadlineError):
        await asked
    assert scheduler.state().dropped_texts == len(texts)
    blocking.open()
    await asyncio.gather(*blocked)
    assert scheduler.state().texts == done_before + 2


class Asking:
    """A service of one model for each question; it may be asked outside of a loop."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self._tokenizing = ThreadPoolExecutor(1)

    def embed(self, texts: Sequence[str], options: EmbedOptions = DEFAULTS) -> EmbedResult:
        async def ask() -> EmbedResult:
            async with self._service() as service:
                return await service.embed(self.encoder.name, texts, options)

        return asyncio.run(ask())

    def tokenize(self, texts: Sequence[str], input_type: InputType | None = None) -> TokenCount:
        async def ask() -> TokenCount:
            async with self._service() as service:
                return await service.tokenize(self.encoder.name, texts, input_type, with_pieces=True)

        return asyncio.run(ask())

    @asynccontextmanager
    async def _service(self) -> AsyncIterator[Embedder]:
        async with one_lane() as scheduler:
            yield Embedder(
                catalog=Catalog([self.encoder.model]),
                allowed=frozenset(),
                default_model=self.encoder.name,
                models=OneModel(self.encoder),
                scheduler=scheduler,
                tokenizing=self._tokenizing,
                timeout_s=60,
            )

    def close(self) -> None:
        self._tokenizing.shutdown()


def asking(folder: Path, name: str) -> Iterator[Asking]:
    with capture_logs():
        encoder = load_encoder(read_catalog([folder], bundled="").get(name), hub_cache_dir=folder)
    asking = Asking(encoder)
    yield asking
    asking.close()


@pytest.fixture(scope="module")
def bundled() -> Iterator[Asking]:
    yield from asking(BUNDLED_MODELS_DIR, BUNDLED_MODEL)


@pytest.fixture(scope="module")
def prompted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asking]:
    folder = tmp_path_factory.mktemp("models")
    TinyModel("acme/prompted", prompts=PROMPTS, matryoshka=(2,)).write(folder)
    yield from asking(folder, "acme/prompted")


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asking]:
    folder = tmp_path_factory.mktemp("models")
    write_quantised(folder, "acme/quantised")
    yield from asking(folder, "acme/quantised")


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asking]:
    folder = tmp_path_factory.mktemp("models")
    write_padding_sensitive(folder, "acme/padded")
    yield from asking(folder, "acme/padded")


@pytest.fixture(scope="module")
def tasked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asking]:
    folder = tmp_path_factory.mktemp("hub")
    cache_tasked(folder)
    yield from asking(folder, TASKED)


def length_one(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    unit: NDArray[np.float64] = vector / np.sqrt((vector**2).sum())
    return unit


@settings(deadline=None, max_examples=25, derandomize=True)
@given(texts=st.lists(any_texts, min_size=1, max_size=6))
def test_order_counts_and_tokens_hold_for_any_text(bundled: Asking, texts: list[str]) -> None:
    answer = bundled.embed(texts)
    alone = [bundled.embed([text]) for text in texts]
    assert answer.vectors.shape == (len(texts), answer.dimension) == (len(texts), 384)
    assert answer.tokens == [one.tokens[0] for one in alone] == bundled.tokenize(texts).tokens
    assert answer.truncated == [tokens > 256 for tokens in answer.tokens]
    assert np.abs(answer.vectors - np.concatenate([one.vectors for one in alone])).max() <= 1e-5


@settings(deadline=None, max_examples=25, derandomize=True)
@given(texts=st.lists(st.lists(st.sampled_from(PROBE_WORDS[:6]), min_size=1, max_size=70).map(" ".join), min_size=1))
@pytest.mark.parametrize("model", ["quantised", "padded"])
def test_text_has_one_vector_whatever_its_neighbours(
    model: str, texts: list[str], quantised: Asking, padded: Asking
) -> None:
    """Of models that would give it another one in any run, or in any run with longer texts."""
    ask = {"quantised": quantised, "padded": padded}[model]
    answer = ask.embed(texts)
    alone = np.concatenate([ask.embed([text]).vectors for text in texts])
    np.testing.assert_allclose(answer.vectors, alone, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def fastembed() -> TextEmbedding:
    return TextEmbedding(BUNDLED_MODEL, specific_model_path=str(BUNDLED_MODELS_DIR / "all-MiniLM-L6-v2"), threads=1)


@pytest.fixture(scope="module")
def long_words() -> list[str]:
    """Words of one token each: two full windows of the bundled model and one of 92 words."""
    return [WORDS[number * number % 7 + number % 3] for number in range(600)]


def test_mean_of_a_long_text_is_numpys_weighted_average_of_its_parts_embedded_by_fastembed(
    bundled: Asking, fastembed: TextEmbedding, long_words: list[str]
) -> None:
    parts = [long_words[:254], long_words[254:508], long_words[508:]]
    rows = np.stack(list(fastembed.embed([" ".join(part) for part in parts]))).astype(np.float64)
    expected = length_one(np.average(rows, axis=0, weights=[254, 254, 92]))
    answer = bundled.embed(["apple", " ".join(long_words)], EmbedOptions(long_text="mean"))
    np.testing.assert_allclose(answer.vectors[1], expected, atol=1e-6)
    assert np.linalg.norm(answer.vectors[1]) == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_allclose(answer.vectors[0], bundled.embed(["apple"]).vectors[0], atol=1e-6)
    assert (answer.tokens, answer.truncated, answer.chunks) == ([3, 602], [False, False], None)


def test_chunks_of_a_long_text_are_its_parts_embedded_by_fastembed(
    bundled: Asking, fastembed: TextEmbedding, long_words: list[str]
) -> None:
    text = " ".join(long_words)
    answer = bundled.embed([text, "apple"], EmbedOptions(long_text="chunks"))
    parts = [" ".join(part) for part in (long_words[:254], long_words[254:508], long_words[508:])]
    np.testing.assert_allclose(answer.vectors, np.stack(list(fastembed.embed([*parts, "apple"]))), atol=1e-5)
    assert answer.chunks
    assert [text[chunk.start : chunk.end] for chunk in answer.chunks[:3]] == parts
    assert [(chunk.index, chunk.tokens) for chunk in answer.chunks] == [(0, 256), (0, 256), (0, 94), (1, 3)]
    assert (answer.tokens, answer.truncated) == ([602, 3], [False, False])


@pytest.mark.parametrize("truncate", ["start", "end"])
def test_truncated_text_has_the_vector_of_the_text_cut_by_hand(
    bundled: Asking, fastembed: TextEmbedding, long_words: list[str], truncate: str
) -> None:
    options = EmbedOptions(truncate=truncate)  # type: ignore[arg-type]  # pytest's parameters are plain strings
    answer = bundled.embed([" ".join(long_words)], options)
    by_hand = long_words[-254:] if truncate == "start" else long_words[:254]
    np.testing.assert_allclose(answer.vectors, list(fastembed.embed([" ".join(by_hand)])), atol=1e-6)
    assert (answer.tokens, answer.truncated) == ([602], [True])


@pytest.mark.parametrize("input_type", ["query", "document", None])
def test_prompt_of_the_input_type_stands_before_each_text(prompted: Asking, input_type: InputType | None) -> None:
    prompt = PROMPTS[input_type].split() if input_type else []
    answer = prompted.embed(["one", "two three"], EmbedOptions(input_type=input_type))
    np.testing.assert_allclose(
        answer.vectors, [mean_of([*prompt, "one"]), mean_of([*prompt, "two", "three"])], rtol=1e-5
    )
    assert answer.tokens == [len(prompt) + 3, len(prompt) + 4]
    assert prompted.tokenize(["one", "two three"], input_type).tokens == answer.tokens


def test_long_text_keeps_its_prompt_whichever_end_is_cut_off(prompted: Asking) -> None:
    words = ["one"] * 20 + ["two"] * 20
    prompt = PROMPTS["query"].split()
    for truncate, kept in (("start", words[-(ROOM - 2) :]), ("end", words[: ROOM - 2])):
        options = EmbedOptions(input_type="query", truncate=truncate)  # type: ignore[arg-type]  # a plain string
        answer = prompted.embed([" ".join(words)], options)
        np.testing.assert_allclose(answer.vectors, [mean_of([*prompt, *kept])], rtol=1e-5)
        assert (answer.tokens, answer.truncated) == ([44], [True])


def test_each_window_has_the_prompt_and_only_the_texts_own_tokens_weigh(prompted: Asking) -> None:
    words = ["one"] * 12 + ["three"] * 12 + ["five"] * 3
    prompt = PROMPTS["query"].split()
    rows = np.stack([mean_of([*prompt, *words[start : start + 12]]) for start in (0, 12, 24)]).astype(np.float64)
    options = EmbedOptions(input_type="query", long_text="mean", normalize=False)
    [vector] = prompted.embed([" ".join(words)], options).vectors
    np.testing.assert_allclose(vector, np.average(rows, axis=0, weights=[12, 12, 3]), rtol=1e-5)
    chunks = prompted.embed([" ".join(words)], EmbedOptions(input_type="query", long_text="chunks")).chunks
    assert chunks == [Chunk(0, 0, 47, 16), Chunk(0, 48, 119, 16), Chunk(0, 120, 134, 7)]


def test_model_that_is_not_normalised_stays_so_until_it_is_asked_for(prompted: Asking) -> None:
    plain = prompted.embed(["one two"]).vectors
    np.testing.assert_allclose(plain, [mean_of(["one", "two"])], rtol=1e-5)
    [unit] = prompted.embed(["one two"], EmbedOptions(normalize=True)).vectors
    np.testing.assert_allclose(unit, length_one(plain[0].astype(np.float64)), rtol=1e-5)
    assert np.linalg.norm(plain) != pytest.approx(1.0, abs=0.01)


def test_fewer_dimensions_are_the_first_ones_at_length_one(prompted: Asking) -> None:
    answer = prompted.embed(["one two"], EmbedOptions(dimensions=2))
    expected = length_one(mean_of(["one", "two"])[:2].astype(np.float64))
    np.testing.assert_allclose(answer.vectors, [expected], rtol=1e-5)
    assert answer.dimension == 2


@pytest.mark.parametrize("dtype", ["float16", "int8", "uint8", "binary", "ubinary"])
def test_numbers_of_every_kind_are_made_of_the_vector(bundled: Asking, dtype: str) -> None:
    texts = ["apple", "river stone"]
    exact = bundled.embed(texts).vectors
    answer = bundled.embed(texts, EmbedOptions(dtype=dtype))  # type: ignore[arg-type]  # a plain string
    assert answer.dimension == 384
    match dtype:
        case "float16":
            assert np.abs(answer.vectors - exact).max() <= 2.0**-12
        case "int8":
            assert np.abs(answer.vectors / 127 - exact).max() <= 1 / 254 + 1e-6
        case "uint8":
            assert np.abs((answer.vectors - 128.0) / 127 - exact).max() <= 1 / 254 + 1e-6
        case "binary":
            np.testing.assert_array_equal(answer.vectors.astype(int) + 128, np.packbits(exact > 0, axis=1))
        case "ubinary":
            np.testing.assert_array_equal(np.unpackbits(answer.vectors, axis=1), exact > 0)


@pytest.mark.parametrize(("input_type", "task"), [("query", 0), ("document", 1), (None, 1)])
def test_model_that_knows_tasks_gets_the_one_of_the_input_type(
    tasked: Asking, input_type: InputType | None, task: int
) -> None:
    answer = tasked.embed(["one", "two"], EmbedOptions(input_type=input_type))
    rows = np.stack([mean_of([word], TASKED_DIM) + task * task_shift() for word in ("one", "two")]).astype(np.float64)
    np.testing.assert_allclose(answer.vectors, [length_one(vector) for vector in rows], atol=1e-6)
    assert answer.tokens == [3, 3]


async def test_options_that_exclude_each_other_are_refused_before_the_model_is_loaded(
    service: Embedder, models: OneModel
) -> None:
    models.gate.clear()
    for options in (EmbedOptions(dimensions=3), EmbedOptions(truncate="end", long_text="mean")):
        with pytest.raises(InvalidInputError):
            await service.embed("acme/tiny", ["one"], options)


async def test_dishonest_window_is_told_by_its_text(service: Embedder) -> None:
    texts = ["one " * 30, "two", "three " * 30 + "nan"]
    for long_text in ("chunks", "mean"):
        with pytest.raises(InvalidVectorError, match="NaN") as caught:
            await service.embed("acme/tiny", texts, EmbedOptions(long_text=long_text))
        assert caught.value.index == 2


async def test_text_that_is_too_long_is_refused_and_nothing_is_counted(service: Embedder) -> None:
    with pytest.raises(InvalidInputError, match="Text 1"):
        await service.embed("acme/tiny", ["one", "one " * 30], EmbedOptions(truncate="none"))
    assert service.used == {}


async def test_windows_count_as_one_text(service: Embedder) -> None:
    await service.embed("acme/tiny", ["one " * 30], EmbedOptions(long_text="chunks"))
    usage = service.usage("acme/tiny")
    assert (usage.requests, usage.texts, usage.tokens) == (1, 1, 32)


async def test_answer_tells_the_models_fingerprint(service: Embedder, encoder: Encoder) -> None:
    answer = await service.embed("acme/tiny", ["one"])
    assert encoder.fingerprint
    assert answer.fingerprint == encoder.fingerprint.digest != ""


async def test_tokens_are_told_without_running_the_model(service: Embedder, scheduler: Scheduler) -> None:
    counted = await service.tokenize("acme/tiny", ["one two", "poison " * 20], with_pieces=True)
    assert (counted.tokens, counted.truncated, counted.max_tokens) == ([4, 22], [False, True], MAX_TOKENS)
    assert counted.pieces
    assert [piece.token for piece in counted.pieces[0]] == ["[CLS]", "one", "two", "[SEP]"]
    assert [(piece.start, piece.end) for piece in counted.pieces[0]] == [(None, None), (0, 3), (4, 7), (None, None)]
    assert [len(pieces) for pieces in counted.pieces] == counted.tokens
    assert (await service.tokenize("acme/tiny", ["one"])).pieces is None
    assert scheduler.state().micro_batches == 0


async def test_estimate_is_of_the_runs_that_embedding_makes(service: Embedder, scheduler: Scheduler) -> None:
    texts = ["one " * count for count in (1, 1, 5, 14, 40, 2)]
    counted = await service.tokenize("acme/tiny", texts)
    await service.embed("acme/tiny", texts)
    assert scheduler.state().micro_batches == counted.estimate.micro_batches
    assert counted.estimate.seconds > 0


async def test_many_characters_are_tokenised_off_the_loop_with_the_same_pieces(service: Embedder) -> None:
    long = "one " * INLINE_CHARACTERS
    counted = await service.tokenize("acme/tiny", [long], with_pieces=True)
    assert counted.tokens == [INLINE_CHARACTERS + 2]
    assert counted.pieces
    assert len(counted.pieces[0]) == INLINE_CHARACTERS + 2


def test_pieces_of_a_prompt_have_no_characters_of_the_callers_text(prompted: Asking) -> None:
    counted = prompted.tokenize(["one two"], "query")
    assert counted.pieces
    assert [(piece.token, piece.start, piece.end) for piece in counted.pieces[0]] == [
        ("[CLS]", None, None),
        ("five", None, None),
        ("four", None, None),
        ("one", 0, 3),
        ("two", 4, 7),
        ("[SEP]", None, None),
    ]
