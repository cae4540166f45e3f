"""The only path from texts to vectors: every route calls `Embedder.embed`, `Embedder.open` or `Embedder.tokenize`."""

import asyncio
import secrets
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from functools import partial

from engine.catalog import Catalog, Model
from engine.embed_results import EmbedResult, TokenCount
from engine.embed_run import SLICE_TEXTS, EmbedRun
from engine.encoder import Encoder
from engine.ledger import Account
from engine.model_cards import InputType
from engine.model_leases import TimedEntry
from engine.offered_models import Deadline, ModelLeases, OfferedModels
from engine.options import DEFAULTS, EmbedOptions
from engine.request_results import RequestResults
from engine.request_terms import RequestTerms
from engine.result_keys import KEY_BYTES, ResultKeys
from engine.result_lookup import ResultLookup
from engine.result_store import CacheCounts, NoResults, ResultStore
from engine.scheduler import Scheduler
from engine.single_hit import SingleHit
from engine.text_admission import TextAdmission
from engine.tokenizer import Token, TokenizedText
from engine.tokenizer_queue import TokenizerQueue
from engine.usage import Usage
from telemetry.request_work import Stage

ONE_HIT = CacheCounts(hit=1)
LOAD_S = 0.001
"""Leasing a model that is in memory takes less; then it is no part of a request's time worth a line."""


class Embedder:
    """Runs requests: finds cached results, has the others computed, and counts what was done."""

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
        self._usage = defaultdict[str, Usage](Usage)
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
        """Whether any result can be found, so that some requests need no lane."""
        return not self._results.store.is_empty

    @property
    def held_results(self) -> Account:
        """The texts of long answers that are not sent yet, as `ResultLookup.account`."""
        return self._results.account

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
        terms: RequestTerms | None = None,
    ) -> EmbedResult:
        """Embed *texts*. Their number and lengths must have been checked.

        Args:
            model_name: a model of the catalogue; None: the default model.
            texts: at least one.
            options: how texts are preprocessed and vectors postprocessed.
            terms: of the request. Tokens are counted before truncation.

        Raises:
            ServiceError: any of `engine.errors`. After a `DeadlineError`, waiting work was dropped.
        """
        terms = terms or RequestTerms()

        def check(results: RequestResults) -> None:
            terms.count_tokens(sum(results.tokens), sum(results.truncated))

        async with self._run(model_name, texts, options, terms, check=check, slice_texts=len(texts)) as run:
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
            single_hit=run.single_hit,
        )

    def repeat(self, hit: SingleHit, terms: RequestTerms) -> bool:
        """Count and charge a request whose cached answer contains *hit*, as `embed` does; make no vectors.

        Args:
            hit: the only result in the answer.
            terms: of the request. `cache`, `if_fingerprint` and `timeout_s` are not read: the caller compares requests.

        Returns:
            Whether the answer is still right: its model and its result are in memory. If not, nothing is done.
        """
        started_s = self._clock()
        if not self._models.is_in_memory(hit.model, hit.fingerprint, caller=terms.caller):
            return False
        [packed] = self._results.store.get([hit.key])
        if packed is None or hash(packed) != hit.digest:
            return False
        work, name = terms.work, hit.model.name
        work.model, work.texts, work.hits, work.dimension = name, 1, 1, hit.dimension
        work.stages.append(Stage("cache", started_s, self._clock()))
        terms.count_tokens(hit.tokens, hit.truncated)
        self._usage[name].count(1, hit.tokens, hit.truncated, ONE_HIT)
        return True

    @asynccontextmanager
    async def open(
        self,
        model_name: str | None,
        texts: Sequence[str],
        options: EmbedOptions = DEFAULTS,
        terms: RequestTerms | None = None,
        *,
        check_tokens: Callable[[Sequence[int]], None] | None = None,
    ) -> AsyncIterator[EmbedRun]:
        """Embed any number of *texts* in slices, for an answer that is written while it is computed.

        The request is tokenised, checked and admitted before the block begins, all of it or nothing. The model is
        leased, and the deadline counts, until the block ends. Leaving the block drops what has not run. `long_text` may
        not be ``chunks``.

        Args:
            model_name: as `embed`.
            texts: as `embed`.
            options: as `embed`.
            terms: as `embed`, but tokens are those that the model runs, after truncation.
            check_tokens: called with the tokens per text before truncation. If it raises, the request fails with that
                error, and no tokens are charged.

        Raises:
            ServiceError: as `embed`, at the start of the block, from `EmbedRun.slices`, or at the deadline, from any
                place in the block.
        """
        if options.long_text == "chunks":
            raise ValueError("long_text='chunks' has more than one vector per text")
        terms = terms or RequestTerms()

        def check(results: RequestResults) -> None:
            if check_tokens is not None:
                check_tokens(results.tokens)
            terms.count_tokens(results.used_tokens, sum(results.truncated))

        async with self._run(model_name, texts, options, terms, check=check, slice_texts=SLICE_TEXTS) as run:
            yield run

    async def tokenize(
        self,
        model_name: str | None,
        texts: Sequence[str],
        input_type: InputType | None = None,
        terms: RequestTerms | None = None,
        *,
        with_pieces: bool = False,
    ) -> TokenCount:
        """Count the tokens of *texts* and estimate their work. Loads the model if necessary, but does not run it.

        Args:
            model_name: a model of the catalogue; None: the default model.
            texts: at least one.
            input_type: selects the prompt, which counts as well; None: no prompt.
            terms: as `embed`.
            with_pieces: return the tokens themselves, too.

        Raises:
            ServiceError: as `embed`.
        """
        terms = terms or RequestTerms()
        model, deadline_s, work = self._models.resolve(model_name), self._deadline_s(terms), terms.work
        work.model, work.texts = model.name, len(texts)
        async with Deadline(deadline_s), self._lease(model, terms) as encoder:
            self._models.check(encoder, model, DEFAULTS, terms.if_fingerprint)
            model = encoder.model
            tokenizer, prompt = encoder.tokenizer, model.card.prompt_for(input_type)

            def count(some: Sequence[str], _: int) -> tuple[list[TokenizedText], list[list[Token]]]:
                pieces = tokenizer.tokens_of(some, prompt=prompt) if with_pieces else []
                return tokenizer.tokenize(some, prompt=prompt), pieces

            with work.timed("tokenize", self._clock):
                counted = await self._texts.tokenize(count, texts, terms.caller, passes=2 if with_pieces else 1)
            items = [item for some, _ in counted for item in some]
            terms.count_tokens(sum(item.tokens for item in items), sum(item.is_truncated for item in items))
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
        terms: RequestTerms,
        *,
        check: Callable[[RequestResults], None],
        slice_texts: int,
    ) -> AsyncIterator[EmbedRun]:
        """Find the results of *texts*; tokenise and admit those that are missing, all of them or nothing.

        If the model is in memory and all results are cached, this needs neither a lease nor the queue. *check* is
        called once all tokens are known, and may raise. A slice has *slice_texts* texts.
        """
        model, deadline_s = self._models.resolve(model_name), self._deadline_s(terms)
        caller, cache, work = terms.caller, terms.cache, terms.work
        options.check(model)
        work.model, work.texts = model.name, len(texts)

        def count(run: EmbedRun) -> None:
            self._usage[run.model.name].count(len(texts), work.tokens, work.truncated, run.cache)

        start = partial(EmbedRun, options=options, scheduler=self._scheduler, work=work, clock=self._clock)
        start = partial(start, slice_texts=slice_texts, count=count)
        results, is_long = None, len(texts) > slice_texts
        if cache.may_read and (
            encoder := self._models.peek(model, options, caller=caller, if_fingerprint=terms.if_fingerprint)
        ):
            with work.timed("cache", self._clock):
                results = await self._results.results_of(encoder, texts, options, caller, cache)
                if not results.is_complete:
                    await self._fetch(results, deadline_s)
            if results.is_complete:
                results.count_tokens()
                with self._results.hold(results, caller, is_long=is_long):
                    check(results)
                    async with Deadline(deadline_s) if is_long else nullcontext():  # a single slice is read at once
                        yield start(results)
                return
        terms.check_may_compute()
        async with Deadline(deadline_s), self._lease(model, terms) as encoder:
            self._models.check(encoder, model, options, terms.if_fingerprint)
            if results is None or results.encoder is not encoder:
                with work.timed("cache", self._clock):
                    results = await self._results.results_of(encoder, texts, options, caller, cache)
                    await results.fetch()
            with self._results.hold(results, caller, is_long=is_long):
                if results.is_complete:
                    results.count_tokens()
                    check(results)
                    yield start(results)
                    return
                with work.timed("tokenize", self._clock):
                    admitted = await self._texts.admit(
                        results, options, caller=caller, deadline_s=deadline_s, check=check, is_compact=is_long
                    )
                with admitted.reservation, start(results, admitted=admitted) as run:
                    yield run

    async def _fetch(self, results: RequestResults, deadline_s: float) -> None:
        """Take what the shared store has of the missing results, if there is one."""
        if self._results.store.has_shared_tier:
            async with Deadline(deadline_s):
                await results.fetch()

    def _lease(self, model: Model, terms: RequestTerms) -> TimedEntry[Encoder]:
        """Lease *model*, and note how long it took to load."""
        lease = self._models.lease(model, caller=terms.caller)
        return TimedEntry(lease, terms.work.timed("load", self._clock, least_s=LOAD_S))

    def _deadline_s(self, terms: RequestTerms) -> float:
        """Return when the time of a request that begins now is over, on the event loop's clock."""
        return asyncio.get_running_loop().time() + min(terms.timeout_s or self._timeout_s, self._timeout_s)
