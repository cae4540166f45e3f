"""Measures the memory that models take: how much the process's private memory grows while they are loaded.

Private memory belongs to this process alone. Weights that are mapped from a file count only if no other
process maps them, too.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from engine.catalog import Model
from engine.encoder import Encoder

Adopt = Callable[[dict[str, int]], object]
"""Gets what models take, in bytes, by their names. Called in the thread that has measured it."""


class MemoryMeter:
    """Knows what each model takes: an estimate before its first load, then what was measured.

    Loads that overlap are measured together, from the beginning of the first to the end of the last. The growth is
    divided in proportion to their estimates, so the sum is right. The next load of a model alone corrects its part.
    Nothing is measured while a model is freed or if a load fails: then what was known stays. What requests to other
    models allocate meanwhile is counted; after the first requests, that is little.
    """

    def __init__(self, estimate: Callable[[Model], int], *, read: Callable[[], int | None]) -> None:
        """Measure nothing yet.

        Args:
            estimate: what a model takes, judged by its files.
            read: returns the private memory of this process; None: unknown on this system.
        """
        self._estimate = estimate
        self._read = read
        self._measured: dict[str, int] = {}
        self._lock = threading.Lock()
        self._loading = 0
        self._freeing = 0  # changed by the event loop only, which must not wait for the lock
        self._freed = 0
        self._group: dict[str, int] = {}  # the estimates of the models whose loads overlap
        self._start_bytes: int | None = None  # None: this group is not measured
        self._freed_before = 0

    def memory_bytes(self, model: Model) -> int:
        """Return what *model* takes: as measured, or else as estimated."""
        return self._measured.get(model.name, self._estimate(model))

    def forget(self, name: str) -> None:
        """Forget what was measured: the files of the model have changed."""
        self._measured.pop(name, None)

    def load(self, load: Callable[[Model], Encoder], model: Model) -> Encoder:
        """Load *model*, and begin to measure; `finish` ends it. Blocks."""
        with self._lock:
            if not self._loading:
                self._group = {}
                self._freed_before = self._freed
                self._start_bytes = None if self._freeing else self._read()
            self._loading += 1
            self._group[model.name] = self._estimate(model)
        try:
            return load(model)
        except BaseException:
            with self._lock:
                self._loading -= 1
                self._start_bytes = None
            raise

    def finish(self, optimise: Callable[[Encoder], None], encoder: Encoder, adopt: Adopt) -> None:
        """Optimise a model that `load` has returned. Blocks.

        Args:
            optimise: makes the model faster, and may take memory.
            encoder: the model.
            adopt: gets what was measured, by model, if this is the end of a group.
        """
        try:
            optimise(encoder)
        finally:
            with self._lock:
                self._loading -= 1
                measured = {} if self._loading else self._divide()
                self._measured.update(measured)
            _report(measured, adopt)

    @contextmanager
    def changing(self, name: str, adopt: Adopt) -> Iterator[None]:
        """Measure what changes in a loaded model that exchanges its sessions in the block; see `finish`. Blocks."""
        with self._lock:
            before, is_alone, freed = self._read(), not self._loading and not self._freeing, self._freed
            self._start_bytes = None  # a load that overlaps is not measured
        measured: dict[str, int] = {}
        try:
            yield
        finally:
            with self._lock:
                now, known = self._read(), self._measured.get(name)
                is_alone = is_alone and not self._loading and self._freed == freed
                self._start_bytes = None
                if is_alone and before is not None and now is not None and known is not None:
                    measured[name] = self._measured[name] = max(1, known + now - before)
            _report(measured, adopt)

    @contextmanager
    def freeing(self) -> Iterator[None]:
        """Measure no load that overlaps with the block, in which models are freed. Called by the event loop only."""
        self._freeing += 1
        self._freed += 1
        try:
            yield
        finally:
            self._freeing -= 1

    def _divide(self) -> dict[str, int]:
        """Divide the growth among the models of the group."""
        now = self._read()
        if self._start_bytes is None or now is None or self._freed != self._freed_before:
            return {}
        growth = now - self._start_bytes
        if growth <= 0:
            return {}
        total = sum(self._group.values())
        return {name: growth * estimate // total for name, estimate in self._group.items()}


def _report(measured: dict[str, int], adopt: Adopt) -> None:
    if measured:
        with suppress(RuntimeError):  # the event loop has ended
            adopt(measured)
