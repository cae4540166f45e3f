"""Only honest vectors pass."""

import numpy as np
import pytest

from engine.errors import InvalidVectorError
from engine.vectors import check_honest


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        pytest.param([1.0, np.nan], "NaN", id="nan"),
        pytest.param([np.inf, 1.0], "infinity", id="infinity"),
        pytest.param([-np.inf, np.inf], "infinity", id="both-infinities"),
        pytest.param([0.0, -0.0], "zero", id="zero-norm"),
    ],
)
def test_a_bad_vector_is_named_by_its_index(bad: list[float], reason: str) -> None:
    vectors = np.array([[1.0, 2.0], [3.0, 4.0], bad, bad], dtype=np.float32)
    with pytest.raises(InvalidVectorError, match=reason) as caught:
        check_honest(vectors)
    assert caught.value.index == caught.value.facts["index"] == 2


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([3e38, -3e38], id="near-the-largest-float32"),
        pytest.param([1e-30, 0.0], id="tiny"),
        pytest.param([0.6, 0.8], id="unit"),
    ],
)
def test_a_finite_vector_of_any_length_passes(values: list[float]) -> None:
    check_honest(np.array([values], dtype=np.float32))
