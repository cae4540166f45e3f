"""The work on optimised copies that no load waits for: write them, adopt them, and verify those that are in use."""

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace

import structlog

from engine.encoder import COMPARED, Encoder
from engine.file_hashes import CorruptFileError
from engine.optimised_copy import BUSY, DAMAGED, CopyState, OptimisedCopy
from engine.optimised_models import OptimisedModels
from host.memory import trim_memory

PAUSE_S, MAX_TRIES = 2.0, 900
"""How often the thread looks whether another process has finished a copy, and how many times: as long as writing one
may take (`engine.optimised_writer.MAX_WRITE_S`)."""

log = structlog.get_logger()


class CopyUpkeep:
    """Works on one model after the other, in a thread of its own."""

    def __init__(
        self,
        copies: OptimisedModels,
        *,
        reload: Callable[[str], object],
        pause_s: float = PAUSE_S,
        max_tries: int = MAX_TRIES,
        adopting: Callable[[str], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        """Start nothing.

        Args:
            copies: the copies.
            reload: called with the name of a model that must be loaded anew, because its files or its copy have
                changed under it. Called in the thread.
            pause_s: seconds until a copy that another process is writing is looked for again.
            max_tries: how often it is looked for.
            adopting: entered with the name of a model while it exchanges its sessions for those of its copy, in the
                thread; measures what that changes.
        """
        self._copies = copies
        self._reload = reload
        self._adopting = adopting
        self._pause_s = pause_s
        self._max_tries = max_tries
        self._closing = threading.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="copies")

    def tend(self, encoder: Encoder) -> None:
        """Verify what *encoder* runs if that is an optimised copy, else write one and adopt it. Does not block.

        A model that is evicted meanwhile is left alone.
        """
        if not self._copies.why_off and encoder.graph is not None:
            with suppress(RuntimeError):  # the service is ending
                self._thread.submit(self._tend, weakref.ref(encoder))

    def wait(self) -> None:
        """Wait until all models have been worked on that were handed over before; blocks."""
        self._thread.submit(lambda: None).result()

    def close(self) -> None:
        """End what runs, and start no more."""
        self._closing.set()
        self._copies.close()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _tend(self, alive: weakref.ref[Encoder]) -> None:
        for _ in range(self._max_tries):
            if self._tend_once(alive()) or self._closing.wait(self._pause_s):
                return

    def _tend_once(self, encoder: Encoder | None) -> bool:
        """Verify or write the copy of *encoder*; return False if another process is writing it."""
        if encoder is None:
            return True
        try:
            if encoder.copy:
                self._verify(encoder, encoder.copy)
            else:
                self._write(encoder)
            self._copies.clean()
        except Exception as error:
            log.exception("optimised_copy_failed", model=encoder.name, exc_info=error)
        return encoder.copy_state.reason != BUSY

    def _write(self, encoder: Encoder) -> None:
        files, graph = encoder.files, encoder.graph
        if files is None or graph is None:
            return
        ids = [list(item.ids) for item in encoder.tokenizer.tokenize(COMPARED)]
        reason = self._copies.write(encoder.name, files, graph, ids)
        copy = reason or self._copies.find(encoder.name, files.verified)
        if isinstance(copy, OptimisedCopy):
            self._copies.remember(files, encoder.file_states)
            copy = self._adopt(encoder, copy)
        if copy:
            encoder.copy_state = CopyState(is_used=False, reason=copy)

    def _adopt(self, encoder: Encoder, copy: OptimisedCopy) -> str:
        """Have *encoder* run *copy*; return why that is impossible, or an empty string."""
        try:
            with self._adopting(encoder.name):
                reason = "" if encoder.adopt(copy) else "its vectors differ from those of the model"
                trim_memory()
        except Exception as error:  # noqa: BLE001 - the model serves as before
            reason = f"the model cannot run it ({type(error).__name__})"
        if reason:
            self._copies.reject(encoder.name, copy, reason)
            return reason
        log.info("optimised_copy_adopted", model=encoder.name, size_bytes=copy.record.size_bytes)
        return ""

    def _verify(self, encoder: Encoder, copy: OptimisedCopy) -> None:
        """Compare a copy in use, and the files that were not read at the load, with their hashes."""
        if not copy.is_intact():
            self._copies.reject(encoder.name, copy, DAMAGED)
        elif reason := self._why_changed(encoder):
            self._copies.forget(encoder.files) if encoder.files else None
            log.error("model_files_changed", model=encoder.name, reason=reason)
        else:
            return
        self._reload(encoder.name)

    def _why_changed(self, encoder: Encoder) -> str:
        if encoder.files is None or not encoder.is_trusted:
            return ""
        try:
            found = replace(encoder.files).fingerprint
        except CorruptFileError as error:
            return str(error)
        return "" if found == encoder.fingerprint else "they are not those that were verified earlier"
