"""What options make of texts and of vectors, against computations written out by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine.catalog import Model
from engine.errors import InvalidInputError, InvalidVectorError
from engine.jobs import Matrix
from engine.model_cards import Matryoshka, ModelCard
from engine.options import DEFAULTS, EmbedOptions, LongText
from engine.pipeline import Chunk, PreparedTexts, postprocess, prepare_texts
from engine.tokenizer import TextTokenizer, TokenizedText
from tests.support.tiny import MAX_TOKENS, tokenizer_of

ROOM = MAX_TOKENS - 2
DIM = 6
MODEL = Model("acme/tiny", DIM, MAX_TOKENS, 1, 1, "", "", "local", ModelCard(matryoshka=Matryoshka((2, 3))))
NORMED = replace(MODEL, card=ModelCard(matryoshka=Matryoshka((2, 3), layer_norm=True)))
OURS = TextTokenizer(tokenizer_of(), adds_special_tokens=True, max_tokens=MAX_TOKENS)

properties = settings(deadline=None, max_examples=60, derandomize=True)
counts_of_words = st.lists(st.integers(0, 60), min_size=1, max_size=5)


def texts_of(counts: list[int]) -> list[str]:
    return [" ".join(["one"] * count) for count in counts]


def vectors_of(rows: int, seed: int = 0) -> Matrix:
    return np.random.default_rng(seed).standard_normal((rows, DIM)).astype(np.float32)


def length_one(row: NDArray[Any]) -> NDArray[np.float64]:
    exact = row.astype(np.float64)
    return exact / np.float64(np.sqrt((exact**2).sum()))


@properties
@given(counts=counts_of_words)
def test_tokens_and_cuts_are_told_per_text_whatever_becomes_of_long_ones(counts: list[int]) -> None:
    for long_text in ("truncate", "mean", "chunks"):
        read = prepare_texts(OURS, texts_of(counts), "", EmbedOptions(long_text=long_text))
        assert read.tokens == [count + 2 for count in counts]
        assert read.truncated == [long_text == "truncate" and count > ROOM for count in counts]


@properties
@given(counts=counts_of_words)
def test_windows_of_all_texts_are_items_in_their_order(counts: list[int]) -> None:
    read = prepare_texts(OURS, texts_of(counts), "", EmbedOptions(long_text="chunks"))
    wanted = [max(1, -(-count // ROOM)) for count in counts]
    assert read.counts == wanted
    assert read.owners == [index for index, windows in enumerate(wanted) for _ in range(windows)]
    assert len(read.items) == sum(wanted)
    assert sum(item.weight for item in read.items) == sum(counts)
    assert [chunk.index for chunk in read.chunks] == read.owners
    assert [chunk.tokens for chunk in read.chunks] == [item.weight + 2 for item in read.items]


def test_chunks_tell_the_characters_of_the_callers_text() -> None:
    text = " ".join(["three"] * (ROOM + 1))
    read = prepare_texts(OURS, ["one", text], "two ", EmbedOptions(long_text="chunks"))
    border = len("three ") * (ROOM - 1)
    assert read.chunks == [
        Chunk(0, 0, 3, 4),
        Chunk(1, 0, border - 1, MAX_TOKENS),
        Chunk(1, border, len(text), 5),
    ]


@pytest.mark.parametrize("side", ["start", "end"])
def test_text_is_cut_on_the_side_asked_for(side: str) -> None:
    text = " ".join([*["one"] * ROOM, *["two"] * 3])
    options = EmbedOptions(truncate=side)  # type: ignore[arg-type]  # pytest's parameters are plain strings
    [item] = prepare_texts(OURS, [text], "", options).items
    by_hand = [*["one"] * (ROOM - 3), *["two"] * 3] if side == "start" else ["one"] * ROOM
    assert list(item.ids) == list(OURS.tokenize([" ".join(by_hand)])[0].ids)


def test_text_that_is_too_long_is_refused_where_nothing_may_be_cut() -> None:
    texts = texts_of([1, ROOM, ROOM + 1, ROOM + 2])
    with pytest.raises(InvalidInputError, match="Text 2: 17 tokens are more than the 16") as refused:
        prepare_texts(OURS, texts, "", EmbedOptions(truncate="none"))
    assert refused.value.extensions == {"index": 2, "tokens": ROOM + 3, "limit": MAX_TOKENS}
    read = prepare_texts(OURS, texts[:2], "", EmbedOptions(truncate="none"))
    assert read.truncated == [False, False]


def test_prompt_counts_where_nothing_may_be_cut() -> None:
    with pytest.raises(InvalidInputError, match="17 tokens"):
        prepare_texts(OURS, texts_of([ROOM]), "two ", EmbedOptions(truncate="none"))


def test_vectors_are_handed_on_unchanged_by_default() -> None:
    vectors = vectors_of(3)
    finished, dimension = postprocess(vectors, prepare_texts(OURS, ["one"] * 3, "", DEFAULTS), DEFAULTS, MODEL)
    np.testing.assert_array_equal(finished, vectors)
    assert dimension == DIM


@properties
@given(counts=counts_of_words)
@pytest.mark.parametrize("normalize", [None, True, False])
def test_mean_of_windows_is_numpys_average_weighted_by_their_tokens(counts: list[int], normalize: bool | None) -> None:  # noqa: FBT001 - pytest hands it over
    options = EmbedOptions(long_text="mean", normalize=normalize)
    read = prepare_texts(OURS, texts_of(counts), "", options)
    vectors = vectors_of(len(read.items))
    finished, _ = postprocess(vectors, read, options, MODEL)
    assert finished.shape == (len(counts), DIM)
    start = 0
    for count, row in zip(counts, finished, strict=True):
        windows = max(1, -(-count // ROOM))
        weights = [min(ROOM, count - ROOM * number) or 1 for number in range(windows)]
        wanted = np.average(vectors[start : start + windows].astype(np.float64), axis=0, weights=weights)
        np.testing.assert_allclose(row, wanted if normalize is False else length_one(wanted), rtol=1e-5, atol=1e-6)
        start += windows


@pytest.mark.parametrize("normalize", [None, True, False])
@pytest.mark.parametrize("size", [2, 3, DIM])
def test_cut_vectors_are_the_first_numbers_at_length_one_unless_that_is_refused(
    size: int,
    normalize: bool | None,  # noqa: FBT001 - pytest hands it over
) -> None:
    options = EmbedOptions(dimensions=size, normalize=normalize)
    vectors = vectors_of(4)
    finished, dimension = postprocess(vectors, PreparedTexts(OURS.tokenize(["one"] * 4)), options, MODEL)
    first = vectors[:, :size]
    wanted: NDArray[Any] = first if normalize is False else np.stack([length_one(row) for row in first])
    np.testing.assert_allclose(finished, wanted, rtol=1e-6, atol=1e-7)
    assert dimension == size


def test_cut_follows_the_layer_norm_of_the_models_card() -> None:
    vectors = vectors_of(4)
    options = EmbedOptions(dimensions=3)
    finished, _ = postprocess(vectors, PreparedTexts(OURS.tokenize(["one"] * 4)), options, NORMED)
    for was, now in zip(vectors.astype(np.float64), finished, strict=True):
        normed = (was - was.mean()) / np.sqrt(was.var() + 1e-5)
        np.testing.assert_allclose(now, length_one(normed[:3]), rtol=1e-5, atol=1e-6)


def test_mean_is_cut_after_it_was_taken() -> None:
    options = EmbedOptions(long_text="mean", dimensions=2)
    read = prepare_texts(OURS, texts_of([ROOM + 5]), "", options)
    vectors = vectors_of(2)
    [row] = postprocess(vectors, read, options, MODEL)[0]
    wanted = np.average(vectors.astype(np.float64), axis=0, weights=[ROOM, 5])
    np.testing.assert_allclose(row, length_one(wanted[:2]), rtol=1e-5)


@pytest.mark.parametrize(("dtype", "columns"), [("int8", DIM), ("uint8", DIM), ("binary", 1), ("ubinary", 1)])
def test_dimension_counts_numbers_and_not_their_bytes(dtype: str, columns: int) -> None:
    options = EmbedOptions(dtype=dtype)  # type: ignore[arg-type]  # pytest's parameters are plain strings
    finished, dimension = postprocess(vectors_of(2), PreparedTexts(OURS.tokenize(["one"] * 2)), options, MODEL)
    assert (finished.shape, dimension) == ((2, columns), DIM)


def test_numbers_of_eight_bits_are_made_of_vectors_at_length_one() -> None:
    vectors = vectors_of(3) * np.float32(1000)
    options = EmbedOptions(dtype="int8")
    finished, _ = postprocess(vectors, PreparedTexts(OURS.tokenize(["one"] * 3)), options, MODEL)
    wanted = np.stack([length_one(row) for row in vectors])
    assert np.abs(finished / 127 - wanted).max() <= 1 / 254 + 1e-7


@pytest.mark.parametrize("long_text", ["mean", "chunks"])
def test_dishonest_window_is_told_by_its_text(long_text: LongText) -> None:
    options = EmbedOptions(long_text=long_text)
    read = prepare_texts(OURS, texts_of([ROOM + 1, 1, ROOM + 1, 1]), "", options)
    vectors = vectors_of(6)
    vectors[4] = np.nan  # the second window of the third text
    with pytest.raises(InvalidVectorError, match="text 2 holds NaN") as told:
        postprocess(vectors, read, options, MODEL)
    assert told.value.index == 2


def test_mean_of_windows_that_cancel_each_other_is_told_by_its_text() -> None:
    options = EmbedOptions(long_text="mean")
    read = prepare_texts(OURS, texts_of([ROOM + 1, 2 * ROOM]), "", options)
    vectors = vectors_of(4)
    vectors[3] = -vectors[2]
    with pytest.raises(InvalidVectorError, match="text 1 has a norm of zero") as told:
        postprocess(vectors, read, options, MODEL)
    assert told.value.index == 1


@pytest.mark.parametrize("normalize", [None, False])
def test_vector_of_which_a_cut_leaves_nothing_is_told(normalize: bool | None) -> None:  # noqa: FBT001 - pytest hands it over
    vectors = vectors_of(2)
    vectors[1, :2] = 0.0
    options = EmbedOptions(dimensions=2, normalize=normalize)
    with pytest.raises(InvalidVectorError, match="text 1 has a norm of zero"):
        postprocess(vectors, PreparedTexts(OURS.tokenize(["one"] * 2)), options, MODEL)


def test_cut_chunk_of_which_nothing_is_left_is_told_by_its_text() -> None:
    options = EmbedOptions(long_text="chunks", dimensions=2)
    read = prepare_texts(OURS, texts_of([2 * ROOM, 2 * ROOM]), "", options)
    vectors = vectors_of(4)
    vectors[3, :2] = 0.0
    with pytest.raises(InvalidVectorError, match="text 1") as told:
        postprocess(vectors, read, options, MODEL)
    assert told.value.index == 1


def test_text_that_is_not_cut_into_windows_is_its_own_owner() -> None:
    read = PreparedTexts([TokenizedText(3, [2, 4, 3])])
    assert read.owners is None
    assert read.chunks == [Chunk(0, 0, 0, 3)]
