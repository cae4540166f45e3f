"""Runs a request of any number of texts slice by slice, so that its vectors need little memory."""

from collections import deque
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import Any, Self

from numpy.typing import NDArray

from engine.admission import Admitted
from engine.job_queue import Job
from engine.missing_slice import MissingSlice
from engine.options import EmbedOptions
from engine.pipeline import Chunk, finish
from engine.request_results import RequestResults
from engine.scheduler import Scheduler
from engine.single_hit import SingleHit
from telemetry.request_work import RequestWork

SLICE_TEXTS = 256
"""Texts of a slice. Enough to form micro-batches of texts of similar length; few enough that finished vectors take
about 1 MB, and that the first part of an answer is soon ready."""
MAX_STARTED = 2
"""Slices that are queued or computed beyond the one that the caller reads: the lanes have work while a slice ends and
the next one is written. If the caller stops reading, this many slices stay in memory, but no lane is held."""


class EmbedRun:
    """A request whose vectors are computed slice by slice. As a context manager, its end drops what waits.

    Attributes:
        model: the model that computes the vectors.
        tokens: per text, the number of its tokens before truncation, with prompt and special tokens.
        used_tokens: the number of tokens that the model runs, of all texts.
        truncated: per text, whether the model sees only a part of it.
        fingerprint: as `EmbedResult.fingerprint`.
        cache: as `EmbedResult.cache`, at this moment: a text whose slice has not ended counts as computed
            unless its result was found before.
    """

    def __init__(
        self,
        results: RequestResults,
        options: EmbedOptions,
        scheduler: Scheduler,
        admitted: Admitted | None = None,
        *,
        slice_texts: int = SLICE_TEXTS,
        count: Callable[["EmbedRun"], None],
        work: RequestWork,
        clock: Callable[[], float],
    ) -> None:
        """Prepare the slices; the first call for vectors starts them.

        Args:
            results: those of the texts; their tokens were counted.
            options: the request's options.
            scheduler: runs the model.
            admitted: the request; None: no result is missing.
            slice_texts: the number of texts of a slice.
            count: called when the last slice is computed.
            work: gets what is done for the request.
            clock: the scheduler's.
        """
        encoder = results.encoder
        self.model = encoder.model
        self.tokens = results.tokens
        self.used_tokens = results.used_tokens
        self.truncated = results.truncated
        self.fingerprint = encoder.fingerprint.digest if encoder.fingerprint else ""
        self.cache = results.counts
        self._results = results
        self._options = options
        self._scheduler = scheduler
        self._admitted = admitted
        self._count = count
        self._work = work
        self._clock = clock
        texts = len(self.tokens)
        self._waiting = deque([range(start, min(start + slice_texts, texts)) for start in range(0, texts, slice_texts)])
        self._started: deque[tuple[range, tuple[MissingSlice, Job] | None]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.clear()
        while self._started:
            if (running := self._started.popleft()[1]) is not None:
                job = running[1]
                self._scheduler.drop(job)
                ended_s = (
                    self._clock() if job.unfinished else job.ended_s
                )  # it may have ended long before it is dropped
                self._work.add_unfinished(job.queued_s, job.started_s, ended_s)

    @property
    def is_computed(self) -> bool:
        """Whether the last slice has been read: nothing is left that needs the model."""
        return not self._waiting and not self._started

    @property
    def single_hit(self) -> SingleHit | None:
        """The only result of the request, if it was found in the cache; None: it was computed, or there are several.

        Complete once the vectors are read.
        """
        if (found := self._results.single_hit) is None:
            return None
        (key, packed), work = found, self._work
        return SingleHit(self.model, self.fingerprint, key, hash(packed), work.tokens, work.truncated, work.dimension)

    @property
    def chunks(self) -> list[Chunk] | None:
        """As `EmbedResult.chunks`, if one slice contains all texts and has been read."""
        return self._results.chunks

    async def slices(self) -> AsyncGenerator[NDArray[Any]]:
        """Yield the vectors of a slice of texts at a time, one row per text, in the order of the texts.

        Raises:
            ServiceError: as `Embedder.embed`; the slices before were right.
        """
        while self._waiting or self._started:
            vectors, _ = await self.next_slice()
            yield vectors

    async def next_slice(self) -> tuple[NDArray[Any], int]:
        """Return the vectors of the next slice, and the dimension of a vector, as `pipeline.postprocess` does.

        Raises:
            ServiceError: as `Embedder.embed`.
        """
        self._start()
        texts, running = self._started[0]  # stays there while it runs, so that the end of the block drops it
        if running is not None:
            await running[1].result
        self._started.popleft()
        if self._waiting:
            self._start()  # first, because postprocessing takes a moment
        if running is not None:
            missing, job = running
            self._results.add(missing, job.result.result(), coalesced_items=job.coalesced, texts=texts)
            self._work.add_run(job.queued_s, job.started_s, job.ended_s)
        vectors, text_indexes = self._results.vectors(texts)
        finished = finish(vectors, self._options, self.model, text_indexes=text_indexes)
        self._work.hits, self._work.coalesced, self._work.dimension = self.cache.hit, self.cache.coalesced, finished[1]
        if self.is_computed:
            self._count(self)
        else:
            self._results.release(texts)
        return finished

    def _start(self) -> None:
        """Queue slices until enough have started."""
        while self._waiting and len(self._started) < MAX_STARTED:
            texts = self._waiting.popleft()
            self._started.append((texts, self._start_missing(texts)))

    def _start_missing(self, texts: range) -> tuple[MissingSlice, Job] | None:
        """Queue what the model must run for a slice of *texts*; None: nothing."""
        missing, admitted = self._results.take(texts), self._admitted
        if missing is None or admitted is None:
            return None
        if missing.found:  # they hold nothing any more
            admitted.split(missing.found)
        if not missing.numbers:
            return None
        is_last = self._results.is_complete
        job = self._scheduler.start(admitted, missing.inputs.items, is_last=is_last, keys=missing.keys)
        if self._results.may_keep_rows:
            job.on_rows = partial(self._results.keep_rows, missing)
        return missing, job
