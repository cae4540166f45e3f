"""The only path from texts to vectors: every route calls `Embedder.embed`, `Embedder.open` or `Embedder.tokenize`."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial

from engine.catalog import Catalog, Model
from engine.embed_results import EmbedResult, TokenCount
from engine.embed_run import SLICE_TEXTS, EmbedRun
from engine.encoder import Encoder
from engine.fair_queue import ANYONE, Caller
from engine.model_cards import InputType
from engine.offered_models import Deadline, ModelLeases, OfferedModels
from engine.options import DEFAULTS, EmbedOptions
from engine.request_results import RequestResults
from engine.result_keys import KEY_BYTES, ResultKeys
from engine.result_lookup import ResultLookup
from engine.result_store import CACHE_USE, CacheCounts, CacheUse, NoResults, ResultStore
from engine.scheduler import Scheduler
from engine.text_admission import TextAdmission
from engine.tokenizer import Token, TokenizedText
from engine.tokenizer_queue import TokenizerQueue
from telemetry.request_work import RequestWork, Stage

LOAD_S = 0.001
"""Leasing a model that is in memory takes less; then it is no part of a request's time worth a line."""


@dataclass(slots=True)
class Usage:
    """What one model has done since the start, and where the results came from; *truncated*: texts that were cut."""

    requests: int = 0
    texts: int = 0
    tokens: int = 0
    truncated: int = 0
    cache: CacheCounts = field(default_factory=CacheCounts)


class Embedder:
    """Runs requests: finds results that are kept, has the others computed, and counts what was done."""

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
        clock: Callable[[], float] = time.monotonic,
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
            clock: seconds, monotonic; the same as the scheduler's.
        """
        self._models = OfferedModels(catalog, models, allowed=allowed, default_model=default_model)
        self._scheduler = scheduler
        self._texts = TextAdmission(scheduler, tokenizing)
        self._timeout_s = timeout_s
        self._results = ResultLookup(
            NoResults() if results is None else results,
            keys or ResultKeys(secrets.token_bytes(KEY_BYTES), per_caller=False),
        )
        self._usage: dict[str, Usage] = {}
        self._clock = clock

    def resolve_model(self, name: str) -> Model:
        """Return the model with this name, if callers may use it.

        Raises:
            UnknownModelError: it is not in the catalogue.
            ModelNotAllowedError: it is in the catalogue, but not allowed.
        """
        return self._models.resolve(name)

    @property
    def timeout_s(self) -> float:
        return self._timeout_s

    @property
    def has_results(self) -> bool:
        """Whether results are kept in memory, so that some requests need no lane."""
        return not self._results.store.is_empty

    @property
    def models(self) -> list[Model]:
        """The models that callers may use; those that need no download come first."""
        return self._models.all

    @property
    def allowed_models(self) -> list[str] | None:
        """Names of the allowed models; None: all of the catalogue."""
        return self._models.allowed

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
        work: RequestWork | None = None,
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
            work: gets what is done for the request; None: nobody wants to know.

        Raises:
            ServiceError: any of `engine.errors`. After a `DeadlineError`, waiting work was dropped.
        """
        work = work or RequestWork()

        def check(results: RequestResults) -> None:
            work.tokens, work.truncated = sum(results.tokens), sum(results.truncated)
            if on_tokens is not None:
                on_tokens(work.tokens)

        async with self._run(
            model_name,
            texts,
            options,
            caller=caller,
            timeout_s=timeout_s,
            if_fingerprint=if_fingerprint,
            cache=cache,
            work=work,
            check=check,
            count=lambda run: self._count(run, sum(run.tokens)),
            slice_texts=len(texts),
        ) as run:
            vectors, dimension = await run.next_slice()
        return EmbedResult(
            run.model,
            vectors,
            dimension,
            run.tokens,
            run.truncated,
            chunks=run.chunks,
            fingerprint=run.fingerprint,
            cache=run.cache,
        )

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
        work: RequestWork | None = None,
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
            work: as `embed`.

        Raises:
            ServiceError: as `embed`, at the start of the block, from `EmbedRun.slices`, or at the deadline, from any
                place in the block.
        """
        if options.long_text == "chunks":
            raise ValueError("long_text='chunks' has more than one vector per text")

        work = work or RequestWork()

        def check(results: RequestResults) -> None:
            work.tokens, work.truncated = results.used_tokens, sum(results.truncated)
            if check_tokens is not None:
                check_tokens(results.tokens)
            if on_tokens is not None:
                on_tokens(work.tokens)

        async with self._run(
            model_name,
            texts,
            options,
            caller=caller,
            timeout_s=timeout_s,
            if_fingerprint=if_fingerprint,
            cache=cache,
            work=work,
            check=check,
            count=lambda run: self._count(run, run.used_tokens),
            slice_texts=SLICE_TEXTS,
        ) as run:
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
        work: RequestWork | None = None,
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
            work: as `embed`.

        Raises:
            ServiceError: as `embed`.
        """
        model, deadline_s, work = self._models.resolve(model_name), self._deadline_s(timeout_s), work or RequestWork()
        work.model, work.texts = model.name, len(texts)
        async with Deadline(deadline_s), self._lease(model, caller, work) as encoder:
            self._models.check(encoder, model, DEFAULTS, if_fingerprint)
            model = encoder.model
            tokenizer, prompt = encoder.tokenizer, model.card.prompt_for(input_type)

            def count(some: Sequence[str], _: int) -> tuple[list[TokenizedText], list[list[Token]]]:
                pieces = tokenizer.tokens_of(some, prompt=prompt) if with_pieces else []
                return tokenizer.tokenize(some, prompt=prompt), pieces

            started_s = self._clock()
            counted = await self._texts.tokenize(count, texts, caller, passes=2 if with_pieces else 1)
            work.stages.append(Stage("tokenize", started_s, self._clock()))
            items = [item for some, _ in counted for item in some]
            work.tokens, work.truncated = sum(item.tokens for item in items), sum(item.is_truncated for item in items)
            if on_tokens is not None:
                on_tokens(work.tokens)
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
    async def _run(
        self,
        model_name: str | None,
        texts: Sequence[str],
        options: EmbedOptions,
        *,
        caller: Caller,
        timeout_s: float | None,
        if_fingerprint: str | None,
        cache: CacheUse,
        work: RequestWork,
        check: Callable[[RequestResults], None],
        count: Callable[[EmbedRun], None],
        slice_texts: int,
    ) -> AsyncIterator[EmbedRun]:
        """Find the results of *texts*; tokenise and admit those that are missing, all of them or nothing.

        If the model and all results are in memory, the request needs neither a lease nor room in the queue. *check* is
        called once the tokens of all texts are known; if it raises, the request fails with that error. *count* is
        called when the last slice, of *slice_texts* texts, is computed.
        """
        model, deadline_s = self._models.resolve(model_name), self._deadline_s(timeout_s)
        options.check(model)
        work.model, work.texts = model.name, len(texts)
        start = partial(
            EmbedRun, options=options, scheduler=self._scheduler, slice_texts=slice_texts, count=count, work=work
        )
        results, is_long = None, len(texts) > slice_texts
        if cache.may_read and (
            encoder := self._models.peek(model, options, caller=caller, if_fingerprint=if_fingerprint)
        ):
            started_s = self._clock()
            results = await self._results.results_of(encoder, texts, options, caller, cache)
            work.stages.append(Stage("cache", started_s, self._clock()))
            if results.is_complete:
                results.count_tokens()
                with self._results.hold(results, caller, is_long=is_long):
                    check(results)
                    async with Deadline(deadline_s) if is_long else nullcontext():  # a single slice is read at once
                        yield start(results)
                return
        if results is None or not self._results.store.is_layered:  # the model is not in memory, or nothing else is kept
            cache.refuse()
        async with Deadline(deadline_s), self._lease(model, caller, work) as encoder:
            self._models.check(encoder, model, options, if_fingerprint)
            started_s = self._clock()
            if results is None or results.encoder is not encoder:
                results = await self._results.results_of(encoder, texts, options, caller, cache)
            await results.fetch()
            work.stages.append(Stage("cache", started_s, self._clock()))
            with self._results.hold(results, caller, is_long=is_long):
                if results.is_complete:
                    results.count_tokens()
                    check(results)
                    yield start(results)
                    return
                cache.refuse()
                started_s = self._clock()
                admitted = await self._texts.admit(
                    results, options, caller=caller, deadline_s=deadline_s, check=check, is_compact=is_long
                )
                work.stages.append(Stage("tokenize", started_s, self._clock()))
                with admitted.reservation, start(results, admitted=admitted) as run:
                    yield run

    @asynccontextmanager
    async def _lease(self, model: Model, caller: Caller, work: RequestWork) -> AsyncIterator[Encoder]:
        """Lease *model*, and note how long it took to load."""
        started_s = self._clock()
        async with self._models.lease(model, caller=caller) as encoder:
            if (ended_s := self._clock()) - started_s >= LOAD_S:
                work.stages.append(Stage("load", started_s, ended_s))
            yield encoder

    def _deadline_s(self, timeout_s: float | None) -> float:
        """Return when the time of a request that begins now is over, on the event loop's clock."""
        return asyncio.get_running_loop().time() + min(timeout_s or self._timeout_s, self._timeout_s)

    def _count(self, run: EmbedRun, tokens: int) -> None:
        """Count an answered request."""
        usage = self._usage.setdefault(run.model.name, Usage())
        usage.requests += 1
        usage.texts += len(run.tokens)
        usage.tokens += tokens
        usage.truncated += sum(run.truncated)
        usage.cache.add(run.cache)
