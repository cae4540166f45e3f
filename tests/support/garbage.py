"""Garbage collection in tests."""

import gc
import warnings


def collect_garbage() -> None:
    """Collect all garbage. What other tests have left open is no failure of the test that collects it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
