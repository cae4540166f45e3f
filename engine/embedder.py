"""The one way from texts to vectors, whatever the wire format: every route calls `Embedder.embed`."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

from numpy.typing import NDArray

from engine.catalog import Catalog, Model
from engine.encoder import Encoder
from engine.errors import DeadlineError, ModelNotAllowedError
from engine.model_cards import InputType
from engine.options import DEFAULTS, EmbedOptions
from engine.pipeline import Chunk, postprocess, prepare_texts
from engine.scheduler import Estimate, Scheduler
from engine.tokenizer import Token

Tokenized = TypeVar("Tokenized")

INLINE_CHARACTERS = 1_000
"""Texts of up to this many characters in all are tokenised on the event loop, in 1 ms at most (CJK is slowest)."""


class Models(Protocol):
    """Who holds the models in memory."""

    def lease(self, model: Model) -> AbstractAsyncContextManager[Encoder]: ...


@dataclass(frozen=True, slots=True)
class EmbedResult:
    """The answer to one request.

    Attributes:
        vectors: shape ``(texts, dimension)`` in the order asked, or one row per chunk; of the dtype that was asked for
            (the two binary ones have ``ceil(dimension / 8)`` columns).
        dimension: numbers of a vector, before any are packed into bits.
        tokens: per text, of the whole text, prompt and special tokens included.
        truncated: per text, whether the model saw less than all of it.
        chunks: per row of *vectors*, what it is the vector of; None where each text has one.
        fingerprint: of the model, see `engine.fingerprint.ModelFingerprint`.
    """

    model: Model
    vectors: NDArray[Any]
    dimension: int
    tokens: list[int]
    truncated: list[bool]
    chunks: list[Chunk] | None = None
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class TokenCount:
    """What `Embedder.tokenize` tells.

    Attributes:
        max_tokens: the model's longest input; None: any length.
        tokens: per text, of the whole text, prompt and special tokens included.
        truncated: per text, whether the model would see less than all of it.
        pieces: per text, its tokens; None where they were not asked for.
        estimate: the work that embedding them would be.
    """

    model: Model
    max_tokens: int | None
    tokens: list[int]
    truncated: list[bool]
    pieces: list[list[Token]] | None
    estimate: Estimate


@dataclass(slots=True)
class Usage:
    """What one model has done since the start."""

    requests: int = 0
    texts: int = 0
    tokens: int = 0


class Embedder:
    """Owns the rules of who may use which model, and the count of what was done."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        allowed: frozenset[str],
        default_model: str,
        models: Models,
        scheduler: Scheduler,
        tokenizing: Executor,
        timeout_s: float,
    ) -> None:
        """Put the parts together.

        Args:
            catalog: every model that exists.
            allowed: names of those that may be used; empty: all.
            default_model: the model of requests that name none.
            models: leases models in memory.
            scheduler: runs them.
            tokenizing: where long texts are tokenised.
            timeout_s: seconds that a request may take at most.
        """
        self._catalog = catalog
        self._allowed = frozenset(catalog.get(name).name for name in allowed)
        self._default_model = default_model
        self._models = models
        self._scheduler = scheduler
        self._tokenizing = tokenizing
        self._timeout_s = timeout_s
        self._usage: dict[str, Usage] = {}

    def offered(self, name: str) -> Model:
        """The model of this name, if callers may use it.

        Raises:
            UnknownModelError: not in the catalogue.
            ModelNotAllowedError: in the catalogue, but not among the allowed ones.
        """
        model = self._catalog.get(name)
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

    async def embed(
        self,
        model_name: str | None,
        texts: Sequence[str],
        options: EmbedOptions = DEFAULTS,
        *,
        timeout_s: float | None = None,
        on_tokens: Callable[[int], None] | None = None,
    ) -> EmbedResult:
        """Embed *texts*.

        Args:
            model_name: a model of the catalogue; None: the default one.
            texts: at least one; their lengths and number were checked.
            options: how they are read, and what becomes of their vectors.
            timeout_s: seconds the caller wants to wait at most; the service's own bound holds all the same.
            on_tokens: told how many tokens *texts* have in all, as the answer counts them, before the model runs.

        Raises:
            ServiceError: any of this module's neighbours' failures; with `DeadlineError` waiting work was dropped.
        """
        model = self.offered(self._default_model if model_name is None else model_name)
        options.check(model)
        async with self._leased(model, timeout_s) as encoder:
            prompt, runnable = model.card.prompt_for(options.input_type), encoder.runnable(options.input_type)
            self._scheduler.check(runnable, len(texts))
            read = await self._tokenized(texts, partial(prepare_texts, encoder.tokenizer, texts, prompt, options))
            if on_tokens is not None:
                on_tokens(sum(read.tokens))
            vectors = await self._scheduler.submit(runnable, read.items)
        finished, dimension = postprocess(vectors, read, options, model)
        answer = EmbedResult(
            model,
            finished,
            dimension,
            read.tokens,
            read.truncated,
            chunks=read.chunks if options.long_text == "chunks" else None,
            fingerprint=encoder.fingerprint.digest if encoder.fingerprint else "",
        )
        self._count(answer)
        return answer

    async def tokenize(
        self,
        model_name: str | None,
        texts: Sequence[str],
        input_type: InputType | None = None,
        *,
        with_pieces: bool = False,
        timeout_s: float | None = None,
    ) -> TokenCount:
        """Count the tokens of *texts* and estimate their work. Loads the model if need be, but does not run it.

        Raises:
            ServiceError: as `embed`.
        """
        model = self.offered(self._default_model if model_name is None else model_name)
        async with self._leased(model, timeout_s) as encoder:
            prompt, tokenizer = model.card.prompt_for(input_type), encoder.tokenizer
            items = await self._tokenized(texts, partial(tokenizer.tokenize, texts, prompt=prompt))
            pieces = None
            if with_pieces:
                pieces = await self._tokenized(texts, partial(tokenizer.tokens_of, texts, prompt=prompt))
            estimate = self._scheduler.estimate(encoder.runnable(input_type), items)
        return TokenCount(
            model,
            tokenizer.max_tokens,
            [item.tokens for item in items],
            [item.is_truncated for item in items],
            pieces,
            estimate,
        )

    @asynccontextmanager
    async def _leased(self, model: Model, timeout_s: float | None) -> AsyncIterator[Encoder]:
        """The model, until the request's time is over."""
        try:
            async with asyncio.timeout(min(timeout_s or self._timeout_s, self._timeout_s)):
                async with self._models.lease(model) as encoder:
                    yield encoder
        except TimeoutError:
            raise DeadlineError from None

    async def _tokenized(self, texts: Sequence[str], work: Callable[[], Tokenized]) -> Tokenized:
        """What *work* makes of *texts*: at once where they are short, else off the event loop."""
        if sum(map(len, texts)) <= INLINE_CHARACTERS:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._tokenizing, work)

    def _count(self, answer: EmbedResult) -> None:
        usage = self._usage.setdefault(answer.model.name, Usage())
        usage.requests += 1
        usage.texts += len(answer.tokens)
        usage.tokens += sum(answer.tokens)
