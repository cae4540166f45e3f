"""Runs an admitted request of any number of texts slice by slice, so that its vectors need little memory."""

from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Any, Self

from numpy.typing import NDArray

from engine.admission import Admitted
from engine.catalog import Model
from engine.encoder import Encoder
from engine.job_queue import Job
from engine.options import EmbedOptions
from engine.pipeline import ModelInputs, postprocess
from engine.result_store import CacheCounts
from engine.scheduler import Scheduler

SLICE_TEXTS = 256
"""Texts of a slice. Enough to form micro-batches of texts of similar length; few enough that finished vectors take
about 1 MB, and that the first part of an answer is soon ready."""
MAX_STARTED = 2
"""Slices that are queued or computed beyond the one that the caller reads: the lanes have work while a slice ends and
the next one is written. If the caller stops reading, this many slices stay in memory, but no lane is held."""


class EmbedRun:
    """An admitted request whose vectors are computed slice by slice. As a context manager, its end drops what waits.

    Attributes:
        model: the model that computes the vectors.
        tokens: per text, the number of its tokens before truncation, with prompt and special tokens.
        used_tokens: the number of tokens that the model runs, of all texts.
        truncated: per text, whether the model sees only a part of it.
        fingerprint: as `EmbedResult.fingerprint`.
        cache: as `EmbedResult.cache`, of the slices that have started; texts of the others count as computed.
    """

    def __init__(
        self,
        encoder: Encoder,
        inputs: ModelInputs,
        options: EmbedOptions,
        scheduler: Scheduler,
        admitted: Admitted,
        *,
        count: Callable[[Model, int, int], None],
    ) -> None:
        """Prepare the slices; the first call for vectors starts them.

        Args:
            encoder: the leased model.
            inputs: the tokens of all texts.
            options: the request's options.
            scheduler: runs the model.
            admitted: the request.
            count: called when the last slice is computed: with the model, and the number of texts and of tokens.

        Raises:
            ValueError: the options split texts into chunks, which `postprocess` would return as several rows per text.
        """
        if options.long_text == "chunks":
            raise ValueError("long_text='chunks' has more than one vector per text")
        self.model = encoder.model
        self.tokens = inputs.tokens
        self.used_tokens = inputs.used_tokens
        self.truncated = inputs.truncated
        self.fingerprint = encoder.fingerprint.digest if encoder.fingerprint else ""
        self.cache = CacheCounts(miss=len(self.tokens))
        self._options = options
        self._scheduler = scheduler
        self._admitted = admitted
        self._count = count
        self._waiting = deque(inputs.slices(SLICE_TEXTS))
        self._started: deque[tuple[Job, ModelInputs]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.clear()
        while self._started:
            self._scheduler.drop(self._started.popleft()[0])

    @property
    def is_computed(self) -> bool:
        """Whether the last slice has been computed: nothing is left that needs the model."""
        return not self._waiting and not self._started

    async def slices(self) -> AsyncGenerator[NDArray[Any]]:
        """Yield the vectors of up to `SLICE_TEXTS` texts at a time, one row per text, in the order of the texts.

        Raises:
            ServiceError: as `Embedder.embed`; the slices before were right.
        """
        while self._waiting or self._started:
            yield await self._next()

    async def _next(self) -> NDArray[Any]:
        self._start()
        job, inputs = self._started[0]  # stays there while it runs, so that the end of the block drops it
        raw = await job.result
        self._started.popleft()
        self._start()  # first, because postprocessing takes a moment
        vectors, _ = postprocess(raw, inputs, self._options, self.model)
        if self.is_computed:
            self._count(self.model, len(self.tokens), self.used_tokens)
        return vectors

    def _start(self) -> None:
        """Queue slices until enough have started."""
        while self._waiting and len(self._started) < MAX_STARTED:
            inputs = self._waiting.popleft()
            job = self._scheduler.start(self._admitted, inputs.items, is_last=not self._waiting)
            self._started.append((job, inputs))
