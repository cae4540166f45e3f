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
    # Squares overflow float32 long before float64: a large but finite vector is honest.
    norms = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    bad = ~np.isfinite(norms) | (norms == 0.0)
    if bad.any():
        index = int(bad.argmax())
        reason = "has a norm of zero" if norms[index] == 0.0 else "holds NaN or infinity"
        raise InvalidVectorError(index, reason)
