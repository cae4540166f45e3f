"""Gets the files of models: at once if they are here, otherwise by a download that waits for its slot."""

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass, field

from engine.catalog import Model
from engine.download_queue import DownloadQueue, LoadAbandonedError
from engine.load_counters import ModelLoads


@dataclass(frozen=True, slots=True)
class LoadState:
    """Downloads and loads at one moment.

    Attributes:
        downloads_running: downloads that have a slot.
        downloads_waiting: downloads that wait for one.
        downloads_refused: downloads that were refused since the start, because too many waited.
        loads: models that are asked for and not in memory yet, those downloads included.
        models: what happened to each model that was loaded, or failed to load, by name.
    """

    downloads_running: int
    downloads_waiting: int
    downloads_refused: int
    loads: int
    models: dict[str, ModelLoads] = field(default_factory=dict)


class Downloads:
    """Fetches the files of models, with few downloads at a time.

    Attributes:
        queue: the downloads that run and wait.
    """

    def __init__(
        self,
        *,
        fetch: Callable[[Model], object],
        needs_download: Callable[[Model], bool],
        executor: Executor,
        download_executor: Executor,
        queue: DownloadQueue,
    ) -> None:
        """Start no download.

        Args:
            fetch: gets a model's files; blocks, perhaps for minutes; raises `ModelUnavailableError`.
            needs_download: whether `fetch` has to download the model; blocks for a short time.
            executor: runs what needs no download.
            download_executor: runs the downloads.
            queue: decides which downloads run.
        """
        self.queue = queue
        self._fetch = fetch
        self._needs_download = needs_download
        self._executor = executor
        self._download_executor = download_executor

    async def fetch(self, model: Model, owner: str, callers: Callable[[], Iterable[str]], *, is_required: bool) -> None:
        """Get the files of *model*. The arguments are those of `DownloadQueue.slot`.

        Raises:
            ModelUnavailableError: they cannot be had.
            DownloadRefusedError: they have to be downloaded, and too many downloads wait.
            LoadAbandonedError: all callers left before the download started.
        """
        run = asyncio.get_running_loop().run_in_executor
        if not await run(self._executor, self._needs_download, model):
            await run(self._executor, self._fetch, model)
            return
        if not is_required and not any(True for _ in callers()):
            raise LoadAbandonedError
        async with self.queue.slot(model.name, owner, callers, is_required=is_required):
            await run(self._download_executor, self._fetch, model)
