"""A lane: one thread that runs one micro-batch after the other. If it dies, its callers learn of it and it is replaced.

The event loop hands a run over through a queue, and the thread hands the result back with one wake-up of the loop.
A `ThreadPoolExecutor` of one thread does that with two futures and two turns of the loop per run, and nobody notices
when its thread is gone: all who wait for it would wait for ever.
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
from engine.jobs import Matrix, Run
from host.cores import lower_priority

LANE_NICENESS = 5
"""Lanes yield to the event loop and to the express lane, which need a core for a moment only."""
LEAD_S = 0.005
"""A lane gets its next run this long before its current one is expected to end, so that it need not wait while the
event loop is busy with requests: in that time it handles a handful of them."""
OVERDUE_S = 1.0
"""A run that ends so much later than expected may never end: nothing is put behind it, and nothing waits for it."""
JOIN_S = 1.0
"""So long closing waits for a thread that has nothing to do."""

Ended = Callable[["Lane", Run, Matrix | Exception, float], None]
"""Is told on the event loop what came of a run, once for each: its vectors or the failure, and the seconds it took."""

log = structlog.get_logger()


@dataclass(slots=True, eq=False)
class _Given:
    """A run that the lane was given. Who takes the ticket has it: the thread that begins it, or the loop, back."""

    run: Run
    ended: Ended
    tickets: list[None] = field(default_factory=lambda: [None])

    def take(self) -> bool:
        """Whether the ticket was still there; two threads never both take it, as popping from a list is one step."""
        try:
            self.tickets.pop()
        except IndexError:
            return False
        return True


class Lane:
    """Owns one thread and the runs given to it: the current one and perhaps the next.

    All methods are called on the event loop; only the thread itself runs models.
    """

    def __init__(self, name: str, *, niceness: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        """Prepare a lane without a thread; the first run starts it.

        Args:
            name: of the thread, and in the log.
            niceness: how much lower than the process's the thread's priority is.
            clock: seconds, monotonic.
        """
        self.name = name
        self.deaths = 0
        self._niceness = niceness
        self._clock = clock
        self._given: dict[Run, _Given] = {}  # in the order in which they run
        self._inbox: SimpleQueue[_Given | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._begun: tuple[Run, float] | None = None

    @property
    def runs(self) -> tuple[Run, ...]:
        """The current one, and perhaps the next."""
        return tuple(self._given)

    @property
    def begun(self) -> tuple[Run, float] | None:
        """The run that the thread is in, and when it began on the lane's clock; None: it is in none."""
        return self._begun

    def is_overdue(self, now: float) -> bool:
        """Whether its run should have ended long ago."""
        return bool(self._given) and now > next(iter(self._given)).ends + OVERDUE_S

    def is_at_big_work(self, now: float) -> bool:
        """Whether small requests had better not wait for it."""
        return bool(self._given) and (not next(iter(self._given)).is_small or self.is_overdue(now))

    def takes_work(self, now: float) -> bool:
        """Whether it is idle, or near the end of its only run."""
        if not self._given:
            return True
        return len(self._given) == 1 and now >= next(iter(self._given)).ends - LEAD_S and not self.is_overdue(now)

    def start(self, run: Run, ended: Ended) -> None:
        """Run it as soon as the thread is free; *ended* is told in a later turn of the loop, whatever happens."""
        self.look()
        self._loop = asyncio.get_running_loop()
        self._given[run] = given = _Given(run, ended)
        self._hand_over([given])

    def take_back(self) -> list[Run]:
        """The runs that the thread has not begun. They are the lane's no more, and nobody is told of their end."""
        back = [given.run for given in self._given.values() if given.take()]
        for run in back:
            del self._given[run]
        return back

    def look(self) -> None:
        """Notice a thread that is gone without a word."""
        if self._thread is not None and not self._thread.is_alive():
            self._bury(self._thread, None)

    def close(self) -> None:
        """End the thread. One that hangs in a run is left alone: nothing can stop it but the end of the process."""
        self._inbox.put(None)
        if self._thread is not None:
            self._thread.join(0 if self._begun else JOIN_S)
            if self._thread.is_alive():
                log.warning("lane_left_running", lane=self.name)

    def _hand_over(self, waiting: list[_Given]) -> None:
        try:
            if self._thread is None:
                # A daemon: Python waits at its end for all other threads, and this one may hang.
                thread = threading.Thread(target=self._live, args=(self._inbox,), name=self.name, daemon=True)
                thread.start()
                self._thread = thread
        except (RuntimeError, MemoryError) as error:  # the next run tries again
            log.error("lane_not_started", lane=self.name, error=type(error).__name__)  # noqa: TRY400 - it has no news
            for given in waiting:
                lost = LaneLostError("No thread could be started for the model run.")
                lost.__cause__ = error
                self._tell(self._end, given, lost, 0.0)
        else:
            for given in waiting:
                self._inbox.put(given)

    def _end(self, given: _Given, outcome: Matrix | Exception, seconds: float) -> None:
        if self._given.pop(given.run, None) is not None:  # or it was told before its thread died
            given.ended(self, given.run, outcome, seconds)

    def _bury(self, thread: threading.Thread, error: BaseException | None) -> None:
        """Replace a thread that has died: the run that it was in is lost, one that it has not begun goes on."""
        if thread is not self._thread:
            return  # it has been noticed before
        self._thread, self._begun, self._inbox = None, None, SimpleQueue()
        self.deaths += 1
        given = tuple(self._given.values())
        lost, waiting = [one for one in given if not one.tickets], [one for one in given if one.tickets]
        log.error(
            "lane_died",
            lane=self.name,
            models=[one.run.model.name for one in lost],
            error=type(error).__name__ if error else None,
            deaths=self.deaths,
        )
        if waiting:
            self._hand_over(waiting)
        for one in lost:
            failure = LaneLostError("The thread that ran the model has died.")
            failure.__cause__ = error
            self._end(one, failure, 0.0)

    def _tell(self, callback: Callable[..., None], *facts: object) -> None:
        """Have the loop call it. Once that is closed nobody is left who wants to know."""
        if self._loop is not None:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(callback, *facts)

    def _live(self, inbox: SimpleQueue[_Given | None]) -> None:
        """The thread's life."""
        try:
            if self._niceness:
                lower_priority(self._niceness)
            while (given := inbox.get()) is not None:
                if given.take():
                    self._run(given)
                del given  # a waiting thread keeps no model alive
        except BaseException as error:  # noqa: BLE001 - whatever ends this thread, those who wait for it must learn of it
            self._tell(self._bury, threading.current_thread(), error)

    def _run(self, given: _Given) -> None:
        started = self._clock()
        self._begun = (given.run, started)
        outcome = _vectors_of(given.run)
        self._begun = None
        self._tell(self._end, given, outcome, self._clock() - started)


def _vectors_of(run: Run) -> Matrix | Exception:
    """Blocking: what the model makes of the run, one vector per text, or its failure."""
    try:
        matrix = run.model.encode(run.items, is_lone=run.is_lone)
    except Exception as error:  # noqa: BLE001 - its callers learn of it
        return error
    if matrix.shape != (due := (len(run.parts), run.model.dim)):
        return ModelMisbehavedError(f"the model returned an array of shape {matrix.shape} where {due} was due")
    return matrix


def open_lanes(count: int) -> list[Lane]:
    """Lanes for work of any size; where the system allows it they yield to the rest of the process."""
    return [Lane(f"lane-{number}", niceness=LANE_NICENESS) for number in range(count)]
