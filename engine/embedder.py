"""The only path from texts to vectors: every route calls `Embedder.embed`, `Embedder.open` or `Embedder.tokenize`."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from engine.catalog import Catalog, Model
from engine.embed_results import EmbedResult, TokenCount
from engine.embed_run import SLICE_TEXTS, EmbedRun
from engine.encoder import Encoder
from engine.errors import DeadlineError, FingerprintMismatchError, ModelNotAllowedError
from engine.fair_queue import ANYONE, Caller
from engine.model_cards import InputType
from engine.options import DEFAULTS, EmbedOptions
from engine.pipeline import ModelInputs, postprocess
from engine.result_keys import KEY_BYTES, ResultKeys
from engine.result_store import CACHE_USE, CacheCounts, CacheUse, NoResults, ResultStore
from engine.scheduler import Scheduler
from engine.text_admission import TextAdmission
from engine.tokenizer import Token, TokenizedText
from engine.tokenizer_queue import TokenizerQueue


class ModelLeases(Protocol):
    """The model manager, as far as this module uses it."""

    def lease(self, model: Model, *, caller: str = "") -> AbstractAsyncContextManager[Encoder]:
        """Load *model* if necessary, and keep it in memory until the block ends."""

    def peek(self, model: Model, *, caller: str = "") -> Encoder | None:
        """Return *model* if it is in memory and may be leased. This counts as use."""


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
        results: ResultStore | None = None,
        keys: ResultKeys | None = None,
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
            results: keeps the results of texts; None: nothing is kept.
            keys: makes the keys of results; None: with a random secret, shared by all callers.
        """
        self._catalog = catalog
        self._allowed = frozenset(catalog.get(name).name for name in allowed)
        self._default_model = default_model
        self._models = models
        self._scheduler = scheduler
        self._texts = TextAdmission(scheduler, tokenizing)
        self._timeout_s = timeout_s
        self._results: ResultStore = results or NoResults()
        self._keys = keys or ResultKeys(secrets.token_bytes(KEY_BYTES), per_caller=False)
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
    def timeout_s(self) -> float:
        """Maximum seconds of a request."""
        return self._timeout_s

    @property
    def has_results(self) -> bool:
        """Whether results are kept in memory, so that some requests need no lane."""
        return not self._results.is_empty

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
        cache: CacheUse = CACHE_USE,
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
            cache: what the request allows of the result cache.

        Raises:
            ServiceError: any of `engine.errors`. After a `DeadlineError`, waiting work was dropped.
        """
        del cache

        def check(inputs: ModelInputs) -> None:
            if on_tokens is not None:
                on_tokens(sum(inputs.tokens))

        async with self._lease(model_name, caller, timeout_s, if_fingerprint, options) as (encoder, deadline_s):
            inputs, admitted = await self._texts.admit(
                encoder, texts, options, caller=caller, deadline_s=deadline_s, check=check
            )
            with admitted.reservation:
                raw = await self._scheduler.run(admitted, inputs.items)
        model = encoder.model
        vectors, dimension = postprocess(raw, inputs, options, model)
        result = EmbedResult(
            model,
            vectors,
            dimension,
            inputs.tokens,
            inputs.truncated,
            chunks=inputs.chunks if options.long_text == "chunks" else None,
            fingerprint=encoder.fingerprint.digest if encoder.fingerprint else "",
            cache=CacheCounts(miss=len(texts)),
        )
        self._count(model, len(result.tokens), sum(result.tokens))
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
        cache: CacheUse = CACHE_USE,
    ) -> AsyncIterator[EmbedRun]:
        """Embed any number of *texts* in slices, for an answer that is written while it is computed.

        The request is tokenised, checked and admitted before the block begins, all of it or nothing. The model is
        leased, and the deadline counts, until the block ends. Leaving the block drops what has not run. `long_text` may
        not be ``chunks``.

        Args:
            model_name: as `embed`.
            texts: as `embed`.
            options: as `embed`.
            caller: as `embed`.
            timeout_s: as `embed`.
            on_tokens: as `embed`, but with the number of tokens that the model runs, after truncation.
            if_fingerprint: as `embed`.
            check_tokens: called before `on_tokens` with the tokens per text before truncation. If it raises, the
                request fails with that error.
            cache: as `embed`.

        Raises:
            ServiceError: as `embed`, at the start of the block, from `EmbedRun.slices`, or at the deadline, from any
                place in the block.
        """
        del cache

        def check(inputs: ModelInputs) -> None:
            if check_tokens is not None:
                check_tokens(inputs.tokens)
            if on_tokens is not None:
                on_tokens(inputs.used_tokens)

        async with self._lease(model_name, caller, timeout_s, if_fingerprint, options) as (encoder, deadline_s):
            inputs, admitted = await self._texts.admit(
                encoder,
                texts,
                options,
                caller=caller,
                deadline_s=deadline_s,
                check=check,
                is_compact=len(texts) > SLICE_TEXTS,
            )
            with (
                admitted.reservation,
                EmbedRun(encoder, inputs, options, self._scheduler, admitted, count=self._count) as run,
            ):
                yield run

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
        async with self._lease(model_name, caller, timeout_s, if_fingerprint) as (encoder, _):
            model = encoder.model
            tokenizer, prompt = encoder.tokenizer, model.card.prompt_for(input_type)

            def count(some: Sequence[str], _: int) -> tuple[list[TokenizedText], list[list[Token]]]:
                pieces = tokenizer.tokens_of(some, prompt=prompt) if with_pieces else []
                return tokenizer.tokenize(some, prompt=prompt), pieces

            counted = await self._texts.tokenize(count, texts, caller, passes=2 if with_pieces else 1)
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
            fingerprint=encoder.fingerprint.digest if encoder.fingerprint else "",
        )

    @asynccontextmanager
    async def _lease(
        self,
        model_name: str | None,
        caller: Caller,
        timeout_s: float | None,
        if_fingerprint: str | None,
        options: EmbedOptions = DEFAULTS,
    ) -> AsyncIterator[tuple[Encoder, float]]:
        """Lease a model that fits *options*, and cancel the block when the request's time is over.

        Yields:
            The model, and the time on the event loop's clock when the request's time is over.

        Raises:
            DeadlineError: it was over.
        """
        model = self.resolve_model(self._default_model if model_name is None else model_name)
        options.check(model)
        deadline_s = asyncio.get_running_loop().time() + min(timeout_s or self._timeout_s, self._timeout_s)
        try:
            async with asyncio.timeout_at(deadline_s):
                async with self._models.lease(model, caller=caller[0]) as encoder:
                    _check_fingerprint(encoder, if_fingerprint)
                    if encoder.model is not model:  # a reload has replaced it meanwhile
                        options.check(encoder.model)
                    yield encoder, deadline_s
        except TimeoutError:
            raise DeadlineError from None

    def _count(self, model: Model, texts: int, tokens: int) -> None:
        usage = self._usage.setdefault(model.name, Usage())
        usage.requests += 1
        usage.texts += texts
        usage.tokens += tokens


def _check_fingerprint(encoder: Encoder, expected: str | None) -> None:
    actual = encoder.fingerprint.digest if encoder.fingerprint else ""
    if expected is not None and expected != actual:
        raise FingerprintMismatchError(encoder.name, expected=expected, actual=actual)
