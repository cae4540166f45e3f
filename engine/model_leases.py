"""Leases of models: which callers hold them, and leases as context managers."""

from contextlib import AbstractAsyncContextManager, AbstractContextManager
from types import TracebackType
from typing import Generic, Protocol, TypeVar

from engine.catalog import Model
from engine.encoder import Encoder

T = TypeVar("T")


class LeasedModels(Protocol):
    """Begins and ends leases."""

    async def acquire(self, model: Model, caller: str) -> Encoder:
        """Load *model* if necessary, and keep it in memory until `release`."""

    def release(self, model: Model, caller: str) -> None:
        """End a lease that `acquire` has begun."""


class LeaseCounts:
    """How many leases of each model each caller holds, or waits for."""

    def __init__(self) -> None:
        self._counts: dict[str, dict[str, int]] = {}

    def __contains__(self, name: str) -> bool:
        """Return whether there is a lease of the model *name*."""
        return name in self._counts

    def callers(self, name: str) -> tuple[str, ...]:
        """Return the callers with leases of the model *name*."""
        return tuple(self._counts.get(name, ()))

    def add(self, name: str, caller: str) -> None:
        """Count a lease of *caller*."""
        of_model = self._counts.setdefault(name, {})
        of_model[caller] = of_model.get(caller, 0) + 1

    def remove(self, name: str, caller: str) -> bool:
        """Count a lease less; return whether it was the last one of this model."""
        of_model = self._counts[name]
        of_model[caller] -= 1
        if not of_model[caller]:
            del of_model[caller]
        if of_model:
            return False
        del self._counts[name]
        return True


class Lease(AbstractAsyncContextManager[Encoder]):
    """Keeps a model in memory for the length of the block.

    A class, like `TimedEntry`: each request enters one, and `asynccontextmanager` takes several times as long.
    """

    def __init__(self, models: LeasedModels, model: Model, caller: str) -> None:
        self._models, self._model, self._caller = models, model, caller

    async def __aenter__(self) -> Encoder:
        return await self._models.acquire(self._model, self._caller)

    async def __aexit__(self, *_: object) -> None:
        self._models.release(self._model, self._caller)


class TimedEntry(AbstractAsyncContextManager[T], Generic[T]):
    """Enters a context manager while a timer runs, which stops before the block begins."""

    def __init__(self, inner: AbstractAsyncContextManager[T], timer: AbstractContextManager[None]) -> None:
        self._inner, self._timer = inner, timer

    async def __aenter__(self) -> T:
        with self._timer:
            return await self._inner.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self._inner.__aexit__(kind, error, traceback)
