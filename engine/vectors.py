"""What is done to vectors after the model. Pure numpy."""

import numpy as np

from engine.errors import InvalidVectorError
from engine.queue import Matrix


def check_honest(vectors: Matrix) -> None:
    """Let no vector pass that would spoil an index in silence.

    Args:
        vectors: float32, shape ``(texts, dim)``.

    Raises:
        InvalidVectorError: a vector with NaN or infinity, or with a norm of zero; it names the first such text.
    """
    peaks = np.abs(vectors).max(axis=1)  # NaN where a row holds one; squares would overflow long before
    bad = ~((peaks > 0.0) & (peaks < np.inf))
    if bad.any():
        index = int(bad.argmax())
        reason = "has a norm of zero" if peaks[index] == 0.0 else "holds NaN or infinity"
        raise InvalidVectorError(index, reason)
