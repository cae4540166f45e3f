"""A lane: one thread that runs micro-batches one after the other. A thread that dies is replaced.

The event loop passes micro-batches to the thread through a queue; the thread passes each result back with one
`call_soon_threadsafe`. A `ThreadPoolExecutor` with one thread would need two futures and two iterations of the loop per
micro-batch. It also does not notice that its thread has died, so callers would wait forever.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from queue import SimpleQueue

import structlog

from engine.errors import LaneLostError, ModelMisbehavedError
from engine.job_queue import MicroBatch
from engine.vectors import Matrix
from host.cores import lower_priority

LANE_NICENESS = 5
"""Added to the niceness of the threads of `open_lanes`. The event loop and the express lane keep a higher priority:
they need a core only for a moment, and callers wait for them."""
PREFETCH_S = 0.005
"""A lane accepts its next micro-batch this long before the current one is expected to end, so that its thread need not
wait for an event loop that is busy: it handles a handful of requests in 5 ms. A longer prefetch would fix the order of
the queue earlier than necessary."""
OVERDUE_S = 1.0
"""A micro-batch that is this late may never end: its lane accepts no more work. Ordinary delays are far shorter."""
JOIN_TIMEOUT_S = 1.0
"""Seconds that `Lane.close` waits for an idle thread to end. It only has to read one entry of its queue."""

OnDone = Callable[["Lane", MicroBatch, Matrix | Exception, float], None]
"""Called on the event loop, once per micro-batch: with its vectors or the error, and the seconds it took."""

log = structlog.get_logger()


@dataclass(slots=True, eq=False)
class _Assignment:
    """A micro-batch that was submitted to the lane.

    The thread claims it to run it, or the event loop claims it to withdraw it; the first claim wins.
    """

    batch: MicroBatch
    on_done: OnDone
    _claimed: threading.Lock = field(default_factory=threading.Lock)

    def claim(self) -> bool:
        """Return True to the first caller only, whatever its thread."""
        return self._claimed.acquire(blocking=False)

    @property
    def is_claimed(self) -> bool:
        return self._claimed.locked()


class Lane:
    """Owns one thread and its micro-batches: the current one and perhaps the next one.

    All methods must be called on the event loop. Only the thread runs models.
    """

    def __init__(self, name: str, *, niceness: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        """Prepare a lane; its thread starts with the first micro-batch.

        Args:
            name: name of the thread, and of the lane in the log.
            niceness: added to the process's niceness for the thread, where the system supports it.
            clock: returns seconds, monotonic.
        """
        self.name = name
        self.restarts = 0
        self._niceness = niceness
        self._clock = clock
        self._assigned: dict[MicroBatch, _Assignment] = {}  # in the order in which they run
        self._inbox: SimpleQueue[_Assignment | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._running: tuple[MicroBatch, float] | None = None
        self._busy: tuple[float, float | None] = 0.0, None  # seconds of runs that ended, and when the current one began

    @property
    def batches(self) -> tuple[MicroBatch, ...]:
        """The current micro-batch, and perhaps the next one."""
        return tuple(self._assigned)

    @property
    def running(self) -> tuple[MicroBatch, float] | None:
        """The micro-batch that the thread runs, and when it started on the lane's clock; None: it runs none."""
        return self._running

    @property
    def busy_s(self) -> float:
        """Seconds in which the lane has run models; it never goes back."""
        now = self._clock()  # first: a run that ends meanwhile counts until its end, so a later value is not lower
        ended_s, started = self._busy  # one attribute, because the thread changes it
        return ended_s if started is None else ended_s + max(0.0, now - started)

    def is_overdue(self, now: float) -> bool:
        """Whether the current micro-batch should have ended long ago."""
        return bool(self._assigned) and now > next(iter(self._assigned)).expected_end + OVERDUE_S

    def is_busy_with_large(self, now: float) -> bool:
        """Whether small requests should not wait for the current micro-batch: it is large, or overdue."""
        return bool(self._assigned) and (not next(iter(self._assigned)).is_small or self.is_overdue(now))

    def accepts_work(self, now: float) -> bool:
        """Whether the lane is idle, or its only micro-batch is about to end."""
        if not self._assigned:
            return True
        if len(self._assigned) > 1 or self.is_overdue(now):
            return False
        return now >= next(iter(self._assigned)).expected_end - PREFETCH_S

    def submit(self, batch: MicroBatch, on_done: OnDone) -> None:
        """Run *batch* after the current one. *on_done* is called later, whatever happens, unless it is withdrawn."""
        self.check_thread()
        self._loop = asyncio.get_running_loop()
        self._assigned[batch] = assignment = _Assignment(batch, on_done)
        self._enqueue([assignment])

    def withdraw(self) -> list[MicroBatch]:
        """Remove and return the micro-batches that the thread has not started. Their *on_done* is never called."""
        withdrawn = [assignment.batch for assignment in self._assigned.values() if assignment.claim()]
        for batch in withdrawn:
            del self._assigned[batch]
        return withdrawn

    def check_thread(self) -> None:
        """Replace a thread that has died without reporting it."""
        if self._thread is not None and not self._thread.is_alive():
            self._replace_thread(self._thread, None)

    def close(self) -> None:
        """End the thread. A thread that hangs in a model run is left alone: only the end of the process stops it."""
        self._inbox.put(None)
        if self._thread is not None:
            self._thread.join(0 if self._running else JOIN_TIMEOUT_S)
            if self._thread.is_alive():
                log.warning("lane_left_running", lane=self.name)

    def _enqueue(self, assignments: list[_Assignment]) -> None:
        """Pass *assignments* to the thread; start it if there is none."""
        try:
            if self._thread is None:
                # A daemon thread: at exit, Python waits for all others, and this one may hang.
                thread = threading.Thread(target=self._work, args=(self._inbox,), name=self.name, daemon=True)
                thread.start()
                self._thread = thread
        except (RuntimeError, MemoryError) as error:  # the next micro-batch tries again
            log.error("lane_not_started", lane=self.name, error=type(error).__name__)  # noqa: TRY400 - no use for places
            for assignment in assignments:
                failure = LaneLostError("No thread could be started for the model run.")
                failure.__cause__ = error
                self._call_on_loop(self._finish, assignment, failure, 0.0)
        else:
            for assignment in assignments:
                self._inbox.put(assignment)

    def _finish(self, assignment: _Assignment, outcome: Matrix | Exception, seconds: float) -> None:
        if self._assigned.pop(assignment.batch, None) is not None:  # else it was finished before its thread died
            assignment.on_done(self, assignment.batch, outcome, seconds)

    def _replace_thread(self, thread: threading.Thread, error: BaseException | None) -> None:
        """Replace a dead thread. The micro-batch that it ran has failed; the next one moves to the new thread."""
        if thread is not self._thread:
            return  # replaced already
        self._thread, self._running, self._inbox = None, None, SimpleQueue()
        self._busy = self.busy_s, None
        self.restarts += 1
        assigned = self._assigned.values()
        lost = [assignment for assignment in assigned if assignment.is_claimed]
        unclaimed = [assignment for assignment in assigned if not assignment.is_claimed]
        log.error(
            "lane_died",
            lane=self.name,
            models=[assignment.batch.model.name for assignment in lost],
            error=type(error).__name__ if error else None,
            restarts=self.restarts,
        )
        if unclaimed:
            self._enqueue(unclaimed)
        for assignment in lost:
            failure = LaneLostError("The thread that ran the model has died.")
            failure.__cause__ = error
            self._finish(assignment, failure, 0.0)

    def _call_on_loop(self, callback: Callable[..., None], *arguments: object) -> None:
        """Call *callback* on the event loop; do nothing once the loop is closed, as no caller waits any more."""
        if self._loop is not None:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(callback, *arguments)

    def _work(self, inbox: SimpleQueue[_Assignment | None]) -> None:
        """Run micro-batches until None arrives. The thread executes this method."""
        try:
            if self._niceness:
                lower_priority(self._niceness)
            while (assignment := inbox.get()) is not None:
                if assignment.claim():
                    self._run(assignment)
                del assignment  # an idle thread must not keep a model in memory
        except BaseException as error:  # noqa: BLE001 - whatever ends the thread, its callers must get an answer
            self._call_on_loop(self._replace_thread, threading.current_thread(), error)

    def _run(self, assignment: _Assignment) -> None:
        started = self._clock()
        assignment.batch.started_s = started
        self._running, busy_s = (assignment.batch, started), self._busy[0]
        self._busy = busy_s, started
        outcome = _encode(assignment.batch)
        seconds = self._clock() - started
        self._busy = busy_s + seconds, None
        self._running = None
        self._call_on_loop(self._finish, assignment, outcome, seconds)


def _encode(batch: MicroBatch) -> Matrix | Exception:
    """Blocking: return the model's vectors, one row per text, or the error."""
    try:
        matrix = batch.model.encode(batch.items, is_lone=batch.is_lone)
    except Exception as error:  # noqa: BLE001 - reported to the callers
        return error
    if matrix.shape != (expected := (len(batch.parts), batch.model.dim)):
        return ModelMisbehavedError(f"the model returned an array of shape {matrix.shape} instead of {expected}")
    return matrix


def open_lanes(count: int) -> list[Lane]:
    """Return *count* lanes for work of any size, with a lower priority than the rest of the process."""
    return [Lane(f"lane-{number}", niceness=LANE_NICENESS) for number in range(count)]
