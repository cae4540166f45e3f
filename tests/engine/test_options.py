"""Which options contradict each other, and which a model does not support."""

from dataclasses import replace

import pytest

from engine.catalog import Model
from engine.errors import InvalidInputError
from engine.model_cards import Matryoshka, ModelCard
from engine.options import DEFAULTS, EmbedOptions

MODEL = Model("acme/tiny", 8, 16, 1, 1, "", "", "local")
TRAINED = replace(MODEL, card=ModelCard(matryoshka=Matryoshka((2, 4))))
FROM_THREE = replace(MODEL, card=ModelCard(matryoshka=Matryoshka((), any_from=3)))


@pytest.mark.parametrize(
    ("options", "is_needed"),
    [
        pytest.param(DEFAULTS, False, id="defaults"),
        pytest.param(EmbedOptions(normalize=True), True, id="requested"),
        pytest.param(EmbedOptions(dimensions=4), True, id="fewer-dimensions"),
        pytest.param(EmbedOptions(long_text="mean"), True, id="mean"),
        pytest.param(EmbedOptions(dtype="int8"), True, id="int8"),
        pytest.param(EmbedOptions(dtype="uint8"), True, id="uint8"),
        pytest.param(EmbedOptions(long_text="chunks"), False, id="chunks"),
        pytest.param(EmbedOptions(dtype="float16"), False, id="float16"),
        pytest.param(EmbedOptions(dtype="binary"), False, id="binary"),
        pytest.param(EmbedOptions(dimensions=4, normalize=False), False, id="fewer-dimensions-not-normalized"),
        pytest.param(EmbedOptions(long_text="mean", normalize=False), False, id="mean-not-normalized"),
    ],
)
def test_vectors_are_normalized_only_if_requested_or_changed(options: EmbedOptions, *, is_needed: bool) -> None:
    assert options.needs_unit_length is is_needed


def rejected(options: EmbedOptions, model: Model) -> InvalidInputError:
    with pytest.raises(InvalidInputError) as error:
        options.check(model)
    return error.value


@pytest.mark.parametrize("long_text", ["mean", "chunks"])
@pytest.mark.parametrize("truncate", ["start", "end", "none"])
def test_windows_exclude_every_kind_of_truncation(long_text: str, truncate: str) -> None:
    options = EmbedOptions(long_text=long_text, truncate=truncate)  # type: ignore[arg-type]  # plain strings
    error = rejected(options, MODEL)
    assert error.extensions == {"field": "truncate"}
    assert "exclude each other" in error.detail
    replace(options, truncate=None).check(MODEL)


@pytest.mark.parametrize(
    ("dtype", "is_allowed"),
    [("float32", True), ("float16", True), ("binary", True), ("ubinary", True), ("int8", False), ("uint8", False)],
)
def test_only_numbers_of_8_bits_exclude_vectors_that_are_not_normalized(dtype: str, *, is_allowed: bool) -> None:
    options = EmbedOptions(dtype=dtype, normalize=False)  # type: ignore[arg-type]  # a plain string
    if is_allowed:
        options.check(MODEL)
        return
    error = rejected(options, MODEL)
    assert error.extensions == {"field": "normalize"}
    assert dtype in error.detail
    replace(options, normalize=None).check(MODEL)


@pytest.mark.parametrize("wanted", [0, -1, 9, 1_000_000])
@pytest.mark.parametrize("allow_untrained", [False, True])
def test_dimensions_must_be_between_1_and_those_of_the_model(wanted: int, *, allow_untrained: bool) -> None:
    error = rejected(EmbedOptions(dimensions=wanted, allow_untrained_dimensions=allow_untrained), TRAINED)
    assert error.extensions == {"field": "dimensions", "limit": 8}
    assert "between 1 and 8" in error.detail


@pytest.mark.parametrize(
    ("model", "wanted", "reason"),
    [
        pytest.param(MODEL, 4, "not trained for shorter vectors", id="no-matryoshka-model"),
        pytest.param(TRAINED, 3, "trained for 2, 4", id="between-two-sizes"),
        pytest.param(FROM_THREE, 2, "trained for any size from 3", id="below-the-smallest-size"),
    ],
)
def test_untrained_dimensions_are_rejected_unless_explicitly_allowed(model: Model, wanted: int, reason: str) -> None:
    options = EmbedOptions(dimensions=wanted)
    error = rejected(options, model)
    assert error.extensions == {"field": "dimensions", "limit": 8}
    assert reason in error.detail
    assert "allow_untrained_dimensions" in error.detail
    replace(options, allow_untrained_dimensions=True).check(model)


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        pytest.param(MODEL, 8, id="all"),
        pytest.param(TRAINED, 4, id="listed-size"),
        pytest.param(FROM_THREE, 3, id="smallest-of-any-size"),
    ],
)
def test_trained_dimensions_are_accepted(model: Model, wanted: int) -> None:
    EmbedOptions(dimensions=wanted).check(model)
