"""Preprocessing of texts and postprocessing of vectors, compared with plain computations."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine.catalog import Model
from engine.errors import InvalidInputError, InvalidVectorError
from engine.model_cards import Matryoshka, ModelCard
from engine.options import DEFAULTS, EmbedOptions, LongText
from engine.pipeline import ModelInputs, postprocess, preprocess
from engine.tokenizer import TextTokenizer, TokenizedText
from engine.vectors import Matrix
from tests.support.tiny import MAX_TOKENS, SPECIAL, tokenizer_of

MAX_WORDS = MAX_TOKENS - 2
"""Words that fit into the model's input beside the two special tokens."""
DIM = 6
MODEL = Model("acme/tiny", DIM, MAX_TOKENS, 1, 1, "", "", "local", ModelCard(matryoshka=Matryoshka((2, 3))))
WITH_LAYER_NORM = replace(MODEL, card=ModelCard(matryoshka=Matryoshka((2, 3), layer_norm=True)))
TOKENIZER = TextTokenizer(tokenizer_of(), adds_special_tokens=True, max_tokens=MAX_TOKENS)


def special_tokenizer() -> TextTokenizer:
    """Return the same tokenizer, with its special tokens registered, as in published models."""
    tokenizer = tokenizer_of()
    tokenizer.add_special_tokens(list(SPECIAL))
    return TextTokenizer(tokenizer, adds_special_tokens=True, max_tokens=MAX_TOKENS)


SPECIAL_TOKENIZER = special_tokenizer()

properties = settings(deadline=None, max_examples=60, derandomize=True)
word_counts = st.lists(st.integers(0, 60), min_size=1, max_size=5)


def texts_of(counts: list[int]) -> list[str]:
    return [" ".join(["one"] * count) for count in counts]


def inputs_of(counts: list[int], options: EmbedOptions = DEFAULTS) -> ModelInputs:
    return preprocess(TOKENIZER, texts_of(counts), "", replace(options, allow_blank=True))


def vectors_of(rows: int) -> Matrix:
    return np.random.default_rng(0).standard_normal((rows, DIM)).astype(np.float32)


def normalized(row: NDArray[Any]) -> NDArray[np.float64]:
    exact = row.astype(np.float64)
    return exact / np.float64(np.sqrt((exact**2).sum()))


@properties
@given(counts=word_counts)
def test_tokens_and_truncation_are_reported_per_text_for_every_long_text_option(counts: list[int]) -> None:
    for long_text in ("truncate", "mean", "chunks"):
        inputs = inputs_of(counts, EmbedOptions(long_text=long_text))
        assert inputs.tokens == [count + 2 for count in counts]
        assert inputs.truncated == [long_text == "truncate" and count > MAX_WORDS for count in counts]


@properties
@given(counts=word_counts)
def test_windows_of_all_texts_become_items_in_order(counts: list[int]) -> None:
    inputs = inputs_of(counts, EmbedOptions(long_text="chunks"))
    expected = [max(1, -(-count // MAX_WORDS)) for count in counts]
    assert inputs.window_counts == expected
    assert inputs.text_indexes == [index for index, windows in enumerate(expected) for _ in range(windows)]
    assert len(inputs.items) == sum(expected)
    assert sum(item.weight for item in inputs.items) == sum(counts)
    assert [len(items) for items in inputs.by_text] == expected
    assert [item.length for item in inputs.items] == [item.weight + 2 for item in inputs.items]


def test_windows_contain_their_place_in_the_callers_text() -> None:
    text = " ".join(["three"] * (MAX_WORDS + 1))
    inputs = preprocess(TOKENIZER, ["one", text], "two ", EmbedOptions(long_text="chunks"))
    border = len("three ") * (MAX_WORDS - 1)
    assert [(item.span, item.length) for item in inputs.items] == [
        ((0, 3), 4),
        ((0, border - 1), MAX_TOKENS),
        ((border, len(text)), 5),
    ]


def test_text_that_is_not_split_is_one_item() -> None:
    inputs = ModelInputs([TokenizedText(3, [2, 4, 3])])
    assert inputs.text_indexes is None
    assert inputs.by_text == [inputs.items]


@pytest.mark.parametrize("side", ["start", "end"])
def test_text_is_truncated_at_the_requested_end(side: str) -> None:
    text = " ".join([*["one"] * MAX_WORDS, *["two"] * 3])
    options = EmbedOptions(truncate=side)  # type: ignore[arg-type]  # pytest's parameters are plain strings
    [item] = preprocess(TOKENIZER, [text], "", options).items
    kept = [*["one"] * (MAX_WORDS - 3), *["two"] * 3] if side == "start" else ["one"] * MAX_WORDS
    assert list(item.ids) == list(TOKENIZER.tokenize([" ".join(kept)])[0].ids)


def test_without_truncation_a_text_that_is_too_long_is_rejected() -> None:
    options = EmbedOptions(truncate="none")
    with pytest.raises(InvalidInputError, match="Text 2 has 17 tokens; the model accepts at most 16") as error:
        inputs_of([1, MAX_WORDS, MAX_WORDS + 1, MAX_WORDS + 2], options)
    assert error.value.extensions == {"index": 2, "tokens": MAX_WORDS + 3, "limit": MAX_TOKENS}
    assert inputs_of([1, MAX_WORDS], options).truncated == [False, False]
    with pytest.raises(InvalidInputError, match="17 tokens"):  # the prompt counts
        preprocess(TOKENIZER, texts_of([MAX_WORDS]), "two ", options)


ANY_LENGTH: list[EmbedOptions] = [
    *(EmbedOptions(truncate=side) for side in (None, "start", "end", "none")),
    EmbedOptions(long_text="mean"),
    EmbedOptions(long_text="chunks"),
]


@pytest.mark.parametrize("options", ANY_LENGTH)
@pytest.mark.parametrize("prompt", ["", "two "])
def test_text_of_special_tokens_only_is_rejected_however_long_texts_are_treated(
    options: EmbedOptions, prompt: str
) -> None:
    """An unknown word is input. The words around a blank text, and the prompt, do not hide it."""
    for blank in ("", "[CLS]", "[SEP] [PAD] [CLS]"):
        with pytest.raises(InvalidInputError, match="Text 2 is blank for this model") as error:
            preprocess(SPECIAL_TOKENIZER, ["one", "[UNK]", blank, "unknown", blank], prompt, options)
        assert error.value.extensions == {"index": 2}
        preprocess(SPECIAL_TOKENIZER, ["one", blank], prompt, replace(options, allow_blank=True))
    preprocess(SPECIAL_TOKENIZER, ["[UNK]", "unknown", "[SEP] one"], prompt, options)


def test_long_text_of_special_tokens_is_rejected_in_windows_unless_one_of_them_has_a_word() -> None:
    special = "[PAD] " * 40
    options = EmbedOptions(long_text="mean")
    with pytest.raises(InvalidInputError, match="Text 0 is blank"):
        preprocess(SPECIAL_TOKENIZER, [special], "", options)
    preprocess(SPECIAL_TOKENIZER, [f"{special} one"], "", options)


def test_model_without_special_tokens_rejects_texts_without_any_known_token() -> None:
    """Static models skip unknown tokens, so that an emoji is nothing to them."""
    static = TextTokenizer(tokenizer_of(), adds_special_tokens=False, max_tokens=MAX_TOKENS)
    for blank in ("", "unknown", "unknown \u200b"):
        with pytest.raises(InvalidInputError, match="Text 1 is blank"):
            preprocess(static, ["one", blank], "", DEFAULTS)


def test_vectors_are_unchanged_by_default() -> None:
    vectors = vectors_of(3)
    result, dimension = postprocess(vectors, inputs_of([1, 1, 1]), DEFAULTS, MODEL)
    np.testing.assert_array_equal(result, vectors)
    assert dimension == DIM


@properties
@given(counts=word_counts)
@pytest.mark.parametrize("normalize", [None, True, False])
def test_mean_of_windows_is_numpys_average_weighted_by_their_tokens(counts: list[int], normalize: bool | None) -> None:  # noqa: FBT001 - a parameter of pytest
    options = EmbedOptions(long_text="mean", normalize=normalize)
    inputs = inputs_of(counts, options)
    vectors = vectors_of(len(inputs.items))
    result, _ = postprocess(vectors, inputs, options, MODEL)
    assert result.shape == (len(counts), DIM)
    start = 0
    for count, row in zip(counts, result, strict=True):
        windows = max(1, -(-count // MAX_WORDS))
        weights = [min(MAX_WORDS, count - MAX_WORDS * number) or 1 for number in range(windows)]
        mean = np.average(vectors[start : start + windows].astype(np.float64), axis=0, weights=weights)
        np.testing.assert_allclose(row, mean if normalize is False else normalized(mean), rtol=1e-5, atol=1e-6)
        start += windows


@pytest.mark.parametrize("normalize", [None, True, False])
@pytest.mark.parametrize("size", [2, 3, DIM])
def test_fewer_dimensions_are_the_first_numbers_normalized_by_default(size: int, normalize: bool | None) -> None:  # noqa: FBT001 - a parameter of pytest
    options, vectors = EmbedOptions(dimensions=size, normalize=normalize), vectors_of(4)
    result, dimension = postprocess(vectors, inputs_of([1] * 4), options, MODEL)
    first = vectors[:, :size]
    expected: NDArray[Any] = first if normalize is False else np.stack([normalized(row) for row in first])
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-7)
    assert dimension == size


def test_layer_norm_is_applied_if_the_models_card_requires_it() -> None:
    vectors = vectors_of(4)
    result, _ = postprocess(vectors, inputs_of([1] * 4), EmbedOptions(dimensions=3), WITH_LAYER_NORM)
    for before, after in zip(vectors.astype(np.float64), result, strict=True):
        scaled = (before - before.mean()) / np.sqrt(before.var() + 1e-5)
        np.testing.assert_allclose(after, normalized(scaled[:3]), rtol=1e-5, atol=1e-6)


def test_mean_is_computed_before_its_dimensions_are_reduced() -> None:
    options, vectors = EmbedOptions(long_text="mean", dimensions=2), vectors_of(2)
    [row] = postprocess(vectors, inputs_of([MAX_WORDS + 5], options), options, MODEL)[0]
    mean = np.average(vectors.astype(np.float64), axis=0, weights=[MAX_WORDS, 5])
    np.testing.assert_allclose(row, normalized(mean[:2]), rtol=1e-5)


@pytest.mark.parametrize(("dtype", "columns"), [("int8", DIM), ("uint8", DIM), ("binary", 1), ("ubinary", 1)])
def test_dimension_counts_numbers_and_not_bytes(dtype: str, columns: int) -> None:
    options = EmbedOptions(dtype=dtype)  # type: ignore[arg-type]  # pytest's parameters are plain strings
    result, dimension = postprocess(vectors_of(2), inputs_of([1, 1]), options, MODEL)
    assert (result.shape, dimension) == ((2, columns), DIM)


def test_int8_is_computed_from_normalized_vectors() -> None:
    vectors = vectors_of(3) * np.float32(1000)
    result, _ = postprocess(vectors, inputs_of([1] * 3), EmbedOptions(dtype="int8"), MODEL)
    expected = np.stack([normalized(row) for row in vectors])
    assert np.abs(result / 127 - expected).max() <= 1 / 254 + 1e-7


def rejected(vectors: Matrix, inputs: ModelInputs, options: EmbedOptions) -> InvalidVectorError:
    with pytest.raises(InvalidVectorError) as error:
        postprocess(vectors, inputs, options, MODEL)
    assert error.value.extensions == {"index": error.value.index}
    return error.value


@pytest.mark.parametrize("long_text", ["mean", "chunks"])
def test_window_with_nan_is_rejected_under_its_texts_index(long_text: LongText) -> None:
    options, vectors = EmbedOptions(long_text=long_text), vectors_of(6)
    vectors[4] = np.nan  # the second window of the third text
    error = rejected(vectors, inputs_of([MAX_WORDS + 1, 1, MAX_WORDS + 1, 1], options), options)
    assert error.index == 2
    assert "NaN" in error.detail


def test_mean_of_windows_that_cancel_each_other_is_rejected_under_its_texts_index() -> None:
    options, vectors = EmbedOptions(long_text="mean"), vectors_of(4)
    vectors[3] = -vectors[2]
    error = rejected(vectors, inputs_of([MAX_WORDS + 1, 2 * MAX_WORDS], options), options)
    assert error.index == 1
    assert "norm of zero" in error.detail


@pytest.mark.parametrize("normalize", [None, False])
@pytest.mark.parametrize(("long_text", "counts"), [("truncate", [1] * 4), ("chunks", [2 * MAX_WORDS] * 2)])
def test_vector_whose_kept_dimensions_are_zero_is_rejected_under_its_texts_index(
    long_text: LongText,
    counts: list[int],
    normalize: bool | None,  # noqa: FBT001 - a parameter of pytest
) -> None:
    options, vectors = EmbedOptions(long_text=long_text, dimensions=2, normalize=normalize), vectors_of(4)
    vectors[3, :2] = 0.0
    error = rejected(vectors, inputs_of(counts, options), options)
    assert error.index == len(counts) - 1
    assert "norm of zero" in error.detail
