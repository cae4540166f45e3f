"""The models that callers may use: found by name, and leased until a request ends or its time is over."""

import asyncio
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Protocol

from engine.catalog import Catalog, Model
from engine.encoder import Encoder
from engine.errors import DeadlineError, FingerprintMismatchError, ModelNotAllowedError
from engine.fair_queue import Caller
from engine.options import EmbedOptions


class ModelLeases(Protocol):
    """What the engine uses of the model manager."""

    def lease(self, model: Model, *, caller: str = "") -> AbstractAsyncContextManager[Encoder]:
        """Load *model* if necessary, and keep it in memory until the block ends."""

    def peek(self, model: Model, *, caller: str = "") -> Encoder | None:
        """Return *model* if it is in memory and may be leased. This counts as use."""


class OfferedModels:
    """The models of a catalogue that callers may use."""

    def __init__(self, catalog: Catalog, models: ModelLeases, *, allowed: frozenset[str], default_model: str) -> None:
        """Offer *allowed* models of *catalog*, which *models* leases; none allowed: all of them.

        Requests that name no model get the *default_model*.
        """
        self._catalog = catalog
        self._models = models
        self._allowed = frozenset(catalog.get(name).name for name in allowed)
        self._default_model = default_model

    @property
    def all(self) -> list[Model]:
        """These models; those that need no download come first."""
        return [model for model in self._catalog.models if not self._allowed or model.name in self._allowed]

    @property
    def allowed(self) -> list[str] | None:
        """Names of the allowed models; None: all of the catalogue."""
        return sorted(self._allowed) or None

    def resolve(self, name: str | None) -> Model:
        """Return the model with this name, if callers may use it.

        Raises:
            UnknownModelError: it is not in the catalogue.
            ModelNotAllowedError: it is in the catalogue, but not allowed.
        """
        model = self._catalog.get(self._default_model if name is None else name)
        if self._allowed and model.name not in self._allowed:
            raise ModelNotAllowedError(model.name)
        return model

    def peek(
        self, model: Model, options: EmbedOptions, *, caller: Caller, if_fingerprint: str | None
    ) -> Encoder | None:
        """Return *model* if it is in memory, without a lease: it may be evicted at the next `await`.

        Raises:
            ServiceError: as `check`.
        """
        if (encoder := self._models.peek(model, caller=caller[0])) is not None:
            self.check(encoder, model, options, if_fingerprint)
        return encoder

    def is_in_memory(self, model: Model, fingerprint: str, *, caller: Caller) -> bool:
        """Return whether callers still get this *model*, with this *fingerprint*, from memory.

        *model* is that of the encoder, which may be a copy of the catalogue's, as that of a hub model is.
        """
        if self._catalog.find(model.name) != model:  # a reload has replaced it
            return False
        encoder = self._models.peek(model, caller=caller[0])
        return encoder is not None and encoder.model is model and _fingerprint_of(encoder) == fingerprint

    def lease(self, model: Model, *, caller: Caller) -> AbstractAsyncContextManager[Encoder]:
        """Load *model*, which `resolve` has returned, and keep it in memory until the block ends."""
        return self._models.lease(model, caller=caller[0])

    @staticmethod
    def check(encoder: Encoder, model: Model, options: EmbedOptions, if_fingerprint: str | None) -> None:
        """Check whether a model that was leased is what the request needs.

        Args:
            encoder: the model.
            model: what `resolve` returned, and *options* fit; a reload may have replaced it meanwhile.
            options: of the request.
            if_fingerprint: the fingerprint that the model must have; None: any.

        Raises:
            FingerprintMismatchError: the model has another fingerprint.
            InvalidInputError: the model was replaced, and *options* do not fit the new one.
        """
        actual = _fingerprint_of(encoder)
        if if_fingerprint is not None and if_fingerprint != actual:
            raise FingerprintMismatchError(encoder.name, expected=if_fingerprint, actual=actual)
        if encoder.model is not model:  # a reload has replaced it
            options.check(encoder.model)


def _fingerprint_of(encoder: Encoder) -> str:
    return encoder.fingerprint.digest if encoder.fingerprint else ""


class Deadline:
    """As a context manager, cancels the block at a time of the event loop's clock.

    Raises:
        DeadlineError: it was cancelled.
    """

    def __init__(self, at_s: float) -> None:
        self._timeout = asyncio.timeout_at(at_s)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self._timeout.__aexit__(kind, error, traceback)
        except TimeoutError:
            raise DeadlineError from None
