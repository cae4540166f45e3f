"""The only path from texts to vectors: every route calls `Embedder.embed` or `Embedder.tokenize`."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from engine.catalog import Catalog, Model
from engine.embed_results import EmbedResult, EmbedRun, TokenCount
from engine.encoder import Encoder
from engine.errors import DeadlineError, FingerprintMismatchError, ModelNotAllowedError
from engine.fair_queue import ANYONE, Caller
from engine.model_cards import InputType
from engine.options import DEFAULTS, EmbedOptions
from engine.pipeline import ModelInputs, postprocess, preprocess
from engine.scheduler import Scheduler
from engine.tokenizer import TextTokenizer, Token, TokenizedText
from engine.tokenizer_queue import TokenizerQueue, size_of
from engine.vectors import Matrix

MAX_INLINE_CHARACTERS = 1_000
"""Texts with up to this many characters in total are tokenised on the event loop, in at most 1 ms (CJK is slowest).
Longer ones would delay other requests; for shorter ones a switch to a thread and back is not worth its time."""
BYTES_PER_TOKEN = 3
"""Estimates the tokens of a long text before it is tokenised. English has 4 to 5 bytes of UTF-8 per token, Chinese 3:
the estimate is rather too high, and corrected before the text waits for a lane."""


class ModelLeases(Protocol):
    """The model manager, as far as this module uses it."""

    def lease(self, model: Model, *, caller: str = "") -> AbstractAsyncContextManager[Encoder]:
        """Load *model* if necessary, and keep it in memory until the block ends."""


@dataclass(slots=True)
class Usage:
    """What one model has done since the start: answered requests, and their texts and tokens."""

    requests: int = 0
    texts: int = 0
    tokens: int = 0


class Embedder:
    """Runs requests: resolves the model, leases it, tokenises, schedules, postprocesses, and counts what was done."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        allowed: frozenset[str],
        default_model: str,
        models: ModelLeases,
        scheduler: Scheduler,
        tokenizing: TokenizerQueue,
        timeout_s: float,
    ) -> None:
        """Connect the parts.

        Args:
            catalog: all known models.
            allowed: names of the models that callers may use; empty: all.
            default_model: the model of requests that name none.
            models: leases models.
            scheduler: runs models.
            tokenizing: tokenises long texts.
            timeout_s: maximum seconds of a request.
        """
        self._catalog = catalog
        self._allowed = frozenset(catalog.get(name).name for name in allowed)
        self._default_model = default_model
        self._models = models
        self._scheduler = scheduler
        self._tokenizing = tokenizing
        self._timeout_s = timeout_s
        self._usage: dict[str, Usage] = {}

    def resolve_model(self, name: str) -> Model:
        """Return the model with this name, if callers may use it.

        Raises:
            UnknownModelError: it is not in the catalogue.
            ModelNotAllowedError: it is in the catalogue, but not allowed.
        """
        model = self._catalog.get(name)
        if self._allowed and model.name not in self._allowed:
            raise ModelNotAllowedError(model.name)
        return model

    @property
    def models(self) -> list[Model]:
        """The models that callers may use; those that need no download come first."""
        return [model for model in self._catalog.models if not self._allowed or model.name in self._allowed]

    @property
    def allowed_models(self) -> list[str] | None:
        """Names of the allowed models; None: all of the catalogue."""
        return sorted(self._allowed) or None

    @property
    def usage_by_model(self) -> dict[str, Usage]:
        """What each model has done since the start, by name; unused models are absent."""
        return dict(self._usage)

    def usage(self, name: str) -> Usage:
        """Return what the model *name* has done since the start."""
        return self._usage.get(name, Usage())

    async def embed(
        self,
        model_name: str | None,
        texts: Sequence[str],
        options: EmbedOptions = DEFAULTS,
        *,
        caller: Caller = ANYONE,
        timeout_s: float | None = None,
        on_tokens: Callable[[int], None] | None = None,
        if_fingerprint: str | None = None,
    ) -> EmbedResult:
        """Embed *texts*. Their number and lengths must have been checked.

        Args:
            model_name: a model of the catalogue; None: the default model.
            texts: at least one.
            options: how texts are preprocessed and vectors postprocessed.
            caller: who sent them; the service is fair between callers.
            timeout_s: maximum seconds to wait; the service's own limit applies as well.
            on_tokens: called before the model runs, with the number of tokens of all texts. If it raises, the request
                fails with that error.
            if_fingerprint: the fingerprint that the model must have; None: any.

        Raises:
            ServiceError: any of `engine.errors`. After a `DeadlineError`, waiting work was dropped.
        """
        model = self.resolve_model(self._default_model if model_name is None else model_name)
        options.check(model)
        async with self._lease(model, caller, timeout_s) as (encoder, deadline_s):
            _check_fingerprint(encoder, if_fingerprint)
            if encoder.model is not model:  # a reload has replaced it meanwhile
                model = encoder.model
                options.check(model)
            inputs, raw = await self._run(
                encoder, texts, options, caller=caller, deadline_s=deadline_s, on_tokens=on_tokens
            )
        vectors, dimension = postprocess(raw, inputs, options, model)
        result = EmbedResult(
            model,
            vectors,
            dimension,
            inputs.tokens,
            inputs.truncated,
            chunks=inputs.chunks if options.long_text == "chunks" else None,
            fingerprint=encoder.fingerprint.digest if encoder.fingerprint else "",
        )
        self._count(result)
        return result

    @asynccontextmanager
    async def open(
        self,
        model_name: str | None,
        texts: Sequence[str],
        options: EmbedOptions = DEFAULTS,
        *,
        caller: Caller = ANYONE,
        timeout_s: float | None = None,
        on_tokens: Callable[[int], None] | None = None,
        if_fingerprint: str | None = None,
        check_tokens: Callable[[Sequence[int]], None] | None = None,
    ) -> AsyncIterator[EmbedRun]:
        """Admit a request of any number of texts, and compute its vectors slice by slice.

        Args:
            model_name: as `embed`.
            texts: at least one.
            options: as `embed`; `long_text` must be ``truncate``.
            caller: as `embed`.
            timeout_s: as `embed`.
            on_tokens: called before the model runs, with the number of tokens that it will run.
            if_fingerprint: as `embed`.
            check_tokens: called before that, with the tokens per text before truncation. If it raises, the request
                fails with that error.

        Raises:
            ServiceError: as `embed`.
        """
        model = self.resolve_model(self._default_model if model_name is None else model_name)
        options.check(model)
        async with self._lease(model, caller, timeout_s) as (encoder, deadline_s):
            _check_fingerprint(encoder, if_fingerprint)
            inputs, raw = await self._run(
                encoder, texts, options, caller=caller, deadline_s=deadline_s, on_tokens=on_tokens
            )
            if check_tokens is not None:
                check_tokens(inputs.tokens)
            vectors, dimension = postprocess(raw, inputs, options, encoder.model)
            digest = encoder.fingerprint.digest if encoder.fingerprint else ""
            used = sum(item.length for item in inputs.items)
            yield EmbedRun(encoder.model, dimension, inputs.tokens, used, inputs.truncated, digest, [vectors])

    async def tokenize(
        self,
        model_name: str | None,
        texts: Sequence[str],
        input_type: InputType | None = None,
        *,
        caller: Caller = ANYONE,
        with_pieces: bool = False,
        timeout_s: float | None = None,
        on_tokens: Callable[[int], None] | None = None,
        if_fingerprint: str | None = None,
    ) -> TokenCount:
        """Count the tokens of *texts* and estimate their work. Loads the model if necessary, but does not run it.

        Args:
            model_name: a model of the catalogue; None: the default model.
            texts: at least one.
            input_type: selects the prompt, which counts as well; None: no prompt.
            caller: who sent them.
            with_pieces: return the tokens themselves, too.
            timeout_s: maximum seconds to wait; the service's own limit applies as well.
            on_tokens: called with the number of tokens of all texts. If it raises, the request fails with that error.
            if_fingerprint: as `embed`.

        Raises:
            ServiceError: as `embed`.
        """
        model = self.resolve_model(self._default_model if model_name is None else model_name)
        async with self._lease(model, caller, timeout_s) as (encoder, _):
            _check_fingerprint(encoder, if_fingerprint)
            model = encoder.model  # a reload may have replaced it meanwhile
            tokenizer, prompt = encoder.tokenizer, model.card.prompt_for(input_type)

            def count(some: Sequence[str], _: int) -> tuple[list[TokenizedText], list[list[Token]]]:
                pieces = tokenizer.tokens_of(some, prompt=prompt) if with_pieces else []
                return tokenizer.tokenize(some, prompt=prompt), pieces

            if _is_short(texts):
                counted = [count(texts, 0)]
            else:
                passes = 2 if with_pieces else 1
                with self._tokenizing.reserve(texts, caller, passes=passes) as reservation:
                    counted = await self._tokenizing.run(count, texts, reservation, passes=passes)
            items = [item for some, _ in counted for item in some]
            if on_tokens is not None:
                on_tokens(sum(item.tokens for item in items))
            estimate = self._scheduler.estimate(encoder.runnable(input_type), items)
        return TokenCount(
            model,
            tokenizer.max_tokens,
            [item.tokens for item in items],
            [item.is_truncated for item in items],
            [pieces for _, some in counted for pieces in some] if with_pieces else None,
            estimate,
        )

    @asynccontextmanager
    async def _lease(
        self, model: Model, caller: Caller, timeout_s: float | None
    ) -> AsyncIterator[tuple[Encoder, float]]:
        """Lease *model*, and cancel the block when the request's time is over.

        Yields:
            The model, and the time on the event loop's clock when the request's time is over.

        Raises:
            DeadlineError: it was over.
        """
        deadline_s = asyncio.get_running_loop().time() + min(timeout_s or self._timeout_s, self._timeout_s)
        try:
            async with asyncio.timeout_at(deadline_s):
                async with self._models.lease(model, caller=caller[0]) as encoder:
                    yield encoder, deadline_s
        except TimeoutError:
            raise DeadlineError from None

    async def _run(
        self,
        encoder: Encoder,
        texts: Sequence[str],
        options: EmbedOptions,
        *,
        caller: Caller,
        deadline_s: float,
        on_tokens: Callable[[int], None] | None,
    ) -> tuple[ModelInputs, Matrix]:
        """Tokenise *texts* and run the model. For long texts, reserve both before any of it begins."""
        prompt, runnable = encoder.model.card.prompt_for(options.input_type), encoder.runnable(options.input_type)
        left_s = deadline_s - asyncio.get_running_loop().time()

        def work(some: Sequence[str], first_index: int) -> ModelInputs:
            return preprocess(encoder.tokenizer, some, prompt, options, first_index=first_index)

        if _is_short(texts):
            inputs = work(texts, 0)
            if on_tokens is not None:
                on_tokens(sum(inputs.tokens))
            return inputs, await self._scheduler.submit(runnable, inputs.items, caller=caller, deadline_s=left_s)
        lengths = _estimated_tokens(texts, encoder.tokenizer, options)
        with (
            self._scheduler.reserve(runnable, lengths, caller, left_s) as lanes,
            self._tokenizing.reserve(texts, caller) as thread,
        ):
            inputs = ModelInputs.join(await self._tokenizing.run(work, texts, thread))
            if on_tokens is not None:
                on_tokens(sum(inputs.tokens))
            return inputs, await self._scheduler.submit(runnable, inputs.items, caller=caller, reservation=lanes)

    def _count(self, result: EmbedResult) -> None:
        usage = self._usage.setdefault(result.model.name, Usage())
        usage.requests += 1
        usage.texts += len(result.tokens)
        usage.tokens += sum(result.tokens)


def _is_short(texts: Sequence[str]) -> bool:
    """Return whether *texts* may be tokenised on the event loop."""
    return sum(map(len, texts)) <= MAX_INLINE_CHARACTERS


def _estimated_tokens(texts: Sequence[str], tokenizer: TextTokenizer, options: EmbedOptions) -> list[int]:
    """Return about how many tokens the model will see of each text."""
    tokens = [size_of(text) // BYTES_PER_TOKEN + 2 for text in texts]
    if options.long_text == "truncate" and tokenizer.max_tokens is not None:
        return [min(number, tokenizer.max_tokens) for number in tokens]
    return tokens


def _check_fingerprint(encoder: Encoder, expected: str | None) -> None:
    actual = encoder.fingerprint.digest if encoder.fingerprint else ""
    if expected is not None and expected != actual:
        raise FingerprintMismatchError(encoder.name, expected=expected, actual=actual)
