"""The one way from texts to vectors, whatever the wire format: every route calls `EmbeddingService.embed`."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from engine.catalog import Catalog, Model
from engine.encoder import Encoder, TokenizedText
from engine.errors import DeadlineError, ModelNotAllowedError, UnknownModelError
from engine.queue import Matrix
from engine.scheduler import Scheduler
from engine.vectors import check_honest

INLINE_CHARACTERS = 1_000
"""Texts of up to this many characters in all are tokenised on the event loop, in 1 ms at most (CJK is slowest)."""


class Models(Protocol):
    """Who holds the models in memory."""

    def lease(self, name: str) -> AbstractAsyncContextManager[Encoder]: ...


@dataclass(frozen=True, slots=True)
class Embedded:
    """The answer to one request.

    Attributes:
        vectors: float32, shape ``(texts, dim)``, in the order asked.
        tokens: per text, of the whole text, special tokens included.
        truncated: per text, whether the model saw less than all of it.
    """

    model: Model
    vectors: Matrix
    tokens: list[int]
    truncated: list[bool]


@dataclass(slots=True)
class Usage:
    """What one model has done since the start."""

    requests: int = 0
    texts: int = 0
    tokens: int = 0


class EmbeddingService:
    """Owns the rules of who may use which model, and the count of what was done."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        allowed: frozenset[str],
        models: Models,
        scheduler: Scheduler,
        tokenizing: Executor,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Put the parts together.

        Args:
            catalog: every model that exists.
            allowed: names of those that may be used; empty: all.
            models: leases models in memory.
            scheduler: runs them.
            tokenizing: where long texts are tokenised.
            timeout_s: seconds that a request may take at most.
            clock: seconds, monotonic.
        """
        self._catalog = catalog
        self._allowed = frozenset(catalog.get(name).name for name in allowed)
        self._models = models
        self._scheduler = scheduler
        self._tokenizing = tokenizing
        self._timeout_s = timeout_s
        self._clock = clock
        self._usage: dict[str, Usage] = {}

    def offered(self, name: str, *, error: type[UnknownModelError] = UnknownModelError) -> Model:
        """The model of this name, if callers may use it.

        Raises:
            UnknownModelError: not in the catalogue (or the subclass given as *error*).
            ModelNotAllowedError: in the catalogue, but not among the allowed ones.
        """
        model = self._catalog.get(name, error=error)
        if self._allowed and model.name not in self._allowed:
            raise ModelNotAllowedError(model.name)
        return model

    @property
    def models(self) -> list[Model]:
        """What callers may use, models that need no download first."""
        return [model for model in self._catalog.models if not self._allowed or model.name in self._allowed]

    @property
    def allowed(self) -> list[str] | None:
        """Names of the allowed models; None: every one of the catalogue."""
        return sorted(self._allowed) or None

    @property
    def used(self) -> dict[str, Usage]:
        """What each model has done since the start, by name; those that were never asked are absent."""
        return dict(self._usage)

    def usage(self, name: str) -> Usage:
        """What the model of this name has done since the start."""
        return self._usage.get(name, Usage())

    async def embed(self, model_name: str, texts: Sequence[str], *, timeout_s: float | None = None) -> Embedded:
        """Embed *texts*.

        Args:
            model_name: a model of the catalogue.
            texts: at least one; their lengths and number were checked.
            timeout_s: seconds the caller wants to wait at most; the service's own bound holds all the same.

        Raises:
            ServiceError: any of this module's neighbours' failures; with `DeadlineError` waiting work was dropped.
        """
        model = self.offered(model_name)
        try:
            async with asyncio.timeout(min(timeout_s or self._timeout_s, self._timeout_s)):
                async with self._models.lease(model.name) as encoder:
                    items = await self._tokenize(encoder, texts)
                    vectors = await self._scheduler.submit(encoder, items)
        except TimeoutError:
            raise DeadlineError from None
        check_honest(vectors)
        answer = Embedded(model, vectors, [item.tokens for item in items], [item.is_truncated for item in items])
        self._count(answer)
        return answer

    async def _tokenize(self, encoder: Encoder, texts: Sequence[str]) -> list[TokenizedText]:
        if sum(map(len, texts)) <= INLINE_CHARACTERS:
            return encoder.tokenize(texts)
        return await asyncio.get_running_loop().run_in_executor(self._tokenizing, encoder.tokenize, texts)

    def _count(self, answer: Embedded) -> None:
        usage = self._usage.setdefault(answer.model.name, Usage())
        usage.requests += 1
        usage.texts += len(answer.tokens)
        usage.tokens += sum(answer.tokens)
