"""Which options agree with each other and with a model."""

from dataclasses import replace

import pytest

from engine.catalog import Model
from engine.errors import InvalidInputError
from engine.model_cards import Matryoshka, ModelCard
from engine.options import DEFAULTS, EmbedOptions

MODEL = Model("acme/tiny", 8, 16, 1, 1, "", "", "local")
TRAINED = replace(MODEL, card=ModelCard(matryoshka=Matryoshka((2, 4))))
FROM_THREE = replace(MODEL, card=ModelCard(matryoshka=Matryoshka((), any_from=3)))


def test_defaults_change_nothing() -> None:
    DEFAULTS.check(MODEL)
    assert not DEFAULTS.needs_unit_length
    assert (DEFAULTS.dtype, DEFAULTS.dimensions, DEFAULTS.long_text) == ("float32", None, "truncate")


@pytest.mark.parametrize(
    ("options", "is_needed"),
    [
        pytest.param(EmbedOptions(normalize=True), True, id="asked-for"),
        pytest.param(EmbedOptions(dimensions=4), True, id="after-a-cut"),
        pytest.param(EmbedOptions(long_text="mean"), True, id="after-a-mean"),
        pytest.param(EmbedOptions(dtype="int8"), True, id="for-int8"),
        pytest.param(EmbedOptions(dtype="uint8"), True, id="for-uint8"),
        pytest.param(EmbedOptions(long_text="chunks"), False, id="chunks"),
        pytest.param(EmbedOptions(dtype="float16"), False, id="float16"),
        pytest.param(EmbedOptions(dtype="binary"), False, id="binary"),
        pytest.param(EmbedOptions(dimensions=4, normalize=False), False, id="a-cut-but-refused"),
        pytest.param(EmbedOptions(long_text="mean", normalize=False), False, id="a-mean-but-refused"),
    ],
)
def test_vectors_are_brought_to_length_one_where_needed(options: EmbedOptions, *, is_needed: bool) -> None:
    assert options.needs_unit_length is is_needed


@pytest.mark.parametrize("long_text", ["mean", "chunks"])
@pytest.mark.parametrize("truncate", ["start", "end", "none"])
def test_windows_exclude_every_way_of_cutting(long_text: str, truncate: str) -> None:
    options = EmbedOptions(long_text=long_text, truncate=truncate)  # type: ignore[arg-type]  # plain strings
    with pytest.raises(InvalidInputError, match="exclude each other") as refused:
        options.check(MODEL)
    assert refused.value.extensions == {"field": "truncate"}
    replace(options, truncate=None).check(MODEL)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_numbers_of_eight_bits_exclude_vectors_of_any_length(dtype: str) -> None:
    options = EmbedOptions(dtype=dtype, normalize=False)  # type: ignore[arg-type]  # a plain string
    with pytest.raises(InvalidInputError, match=dtype) as refused:
        options.check(MODEL)
    assert refused.value.extensions == {"field": "normalize"}
    replace(options, normalize=None).check(MODEL)


@pytest.mark.parametrize("dtype", ["float32", "float16", "binary", "ubinary"])
def test_other_kinds_of_numbers_may_have_any_length(dtype: str) -> None:
    EmbedOptions(dtype=dtype, normalize=False).check(MODEL)  # type: ignore[arg-type]  # a plain string


@pytest.mark.parametrize("wanted", [0, -1, 9, 1_000_000])
def test_more_dimensions_than_there_are_or_less_than_one_are_refused(wanted: int) -> None:
    for options in (
        EmbedOptions(dimensions=wanted),
        EmbedOptions(dimensions=wanted, allow_untrained_dimensions=True),
    ):
        with pytest.raises(InvalidInputError, match="between 1 and the 8") as refused:
            options.check(TRAINED)
        assert refused.value.extensions == {"field": "dimensions", "limit": 8}


@pytest.mark.parametrize(
    ("model", "wanted", "told"),
    [
        pytest.param(MODEL, 4, "not trained to have its vectors cut", id="no-matryoshka-model"),
        pytest.param(TRAINED, 3, "trained for 2, 4", id="a-size-between"),
        pytest.param(FROM_THREE, 2, "trained for any size from 3", id="below-the-least-size"),
    ],
)
def test_sizes_that_a_model_was_not_trained_for_are_refused_unless_insisted_on(
    model: Model, wanted: int, told: str
) -> None:
    options = EmbedOptions(dimensions=wanted)
    with pytest.raises(InvalidInputError, match=told) as refused:
        options.check(model)
    assert refused.value.extensions == {"field": "dimensions", "limit": 8}
    assert "allow_untrained_dimensions" in str(refused.value)
    replace(options, allow_untrained_dimensions=True).check(model)


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        pytest.param(MODEL, 8, id="all-of-them"),
        pytest.param(TRAINED, 2, id="the-least-size"),
        pytest.param(TRAINED, 4, id="another-size"),
        pytest.param(FROM_THREE, 5, id="any-size"),
    ],
)
def test_sizes_that_a_model_was_trained_for_are_taken(model: Model, wanted: int) -> None:
    EmbedOptions(dimensions=wanted).check(model)
