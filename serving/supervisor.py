"""The supervisor: keeps N worker processes running, replaces them, and stops them together.

uvicorn's supervisor (`uvicorn.supervisors.Multiprocess`) is not used: it stops a worker before it starts the
replacement, restarts one that fails again and again without a pause, and knows neither whether a worker is ready nor
why one could not start.
"""

import asyncio
import math
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import structlog

from host.listening_socket import listening_address
from host.message_channel import Handler
from serving.child_processes import ChildProcesses, end_of
from serving.connection_dispatcher import Address, ConnectionDispatcher, host_of
from serving.restart_policy import RestartPolicy
from serving.worker_process import WorkerProcess, start_worker
from serving.worker_watch import MAX_HUNG_S, wait_for_trouble

KILL_MARGIN_S = 2.0
"""How much longer than SHUTDOWN_TIMEOUT a worker may take to end. It ends by itself before that, unless it hangs."""
KILLED_S = 1.0
"""How long the supervisor waits for workers that it has killed at once: then their memory is free when it has ended."""
REPLACEMENT_S = 900.0
"""How long a replacement may take to be ready, which includes the download of models. After that, it is given up."""
MAX_START_CRASHES = 3
"""Crashes in a row of one worker that end the first start of the service; afterwards, crashes only cause pauses."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """How workers are started and stopped; a reload may change it.

    Attributes:
        environment: the environment variables of a worker.
        drain_s: seconds from the signal to the end of a worker.
        stuck_s: seconds until a model run counts as stuck.
        max_connections_per_address: of all workers together; None: there is no limit.
    """

    environment: Mapping[str, str]
    drain_s: float
    stuck_s: float
    max_connections_per_address: int | None = None


@dataclass(eq=False, slots=True)
class Slot:
    """The place of one worker: its process changes, its number stays."""

    number: int
    policy: RestartPolicy = field(default_factory=RestartPolicy)
    worker: WorkerProcess | None = None
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while `worker` is replaced."""
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    """Ends the pause before the next start."""


class Supervisor:
    """Owns the worker processes. Belongs to one event loop."""

    def __init__(
        self,
        *,
        workers: int,
        command: Sequence[str],
        plan: WorkerPlan,
        listening: socket.socket,
        address_of: Callable[[Address], object] = host_of,
        handlers: Callable[[int], Mapping[str, Handler]],
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """Start nothing before `run`.

        Args:
            workers: the number of worker processes.
            command: starts a worker.
            plan: how workers are started and stopped.
            listening: the socket that the service listens on; the supervisor closes it.
            address_of: returns the address to which a peer's connections are counted, as workers count them; None: to
                none.
            handlers: returns the handlers for the calls of the worker with this number.
            on_change: called when a worker is ready or has ended, and when all are about to be stopped.
        """
        self._on_change = on_change
        self.was_ready = asyncio.Event()
        """Set when all workers have been ready at the same time. From then on, no failure ends the service."""
        self.replaced: Counter[tuple[int, str]] = Counter()
        """How often workers were replaced, by number and reason: `exit` and `signal` (it has ended by itself), `hung`,
        `stuck`, `draining` and `reload`."""
        self._command = command
        self._address = listening_address(listening)
        self._dispatcher = ConnectionDispatcher(listening, address_of=address_of)
        self._handlers = handlers
        self._children = ChildProcesses()
        self.slots = tuple(Slot(number) for number in range(1, workers + 1))
        self.adopt(plan)
        self._running: dict[WorkerProcess, asyncio.Task[None]] = {}  # and the tasks that watch them
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = asyncio.Event()
        self._failure: str | None = None
        self._began_s = time.monotonic()

    def adopt(self, plan: WorkerPlan) -> None:
        """Start and stop workers as *plan* says from now on."""
        self.plan = plan
        most = plan.max_connections_per_address
        self._dispatcher.max_per_address = most and math.ceil(most / len(self.slots))

    @property
    def workers(self) -> Sequence[WorkerProcess]:
        """All worker processes that run, including those that start or drain."""
        return tuple(self._running)

    @property
    def is_stopping(self) -> bool:
        return self._stopped.is_set()

    @property
    def failure(self) -> str | None:
        """Why the service could not start, in one line; None: it could."""
        return self._failure

    def stop(self) -> None:
        """Drain all workers and end; call it in the event loop."""
        self._stopped.set()
        self._on_change()

    def kill(self) -> None:
        """Kill all workers at once; a signal handler may call it."""
        for worker in self.workers:
            worker.signal(signal.SIGKILL)
        self._children.wait_for_all(KILLED_S)

    async def run(self) -> None:
        """Keep all workers running until `stop` is called or the first start fails; then end them all."""
        self._children.open()
        for slot in self.slots:
            self.spawn(self._keep(slot))
        await self._stopped.wait()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await asyncio.gather(*(self._end(worker, worker.stop) for worker in self.workers))
        self._dispatcher.close()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run *work* as a task until the supervisor stops."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finish)
        return task

    def _finish(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:  # a bug; without its tasks, the service
            log.critical("supervisor_failed", exc_info=error)  # would stay with fewer workers
            self._fail("The service failed; its log contains the reason.")

    # --- One slot -------------------------------------------------------------------------------------------------

    async def _keep(self, slot: Slot) -> None:
        """Start a worker in *slot*, and another one each time it ends by itself."""
        slot.worker = self._start(slot, self.plan)
        while True:
            worker = slot.worker
            if worker is not None:
                code = await asyncio.shield(worker.ended)
                await worker.read_rest()
                async with slot.changing:  # a replacement may be on its way
                    if slot.worker is not worker:
                        continue
                    slot.worker = None
                self._note_end(slot, worker, code)
                if self._stopped.is_set():
                    return
            pause_s = slot.policy.pause_after_failure()
            slot.woken.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(slot.woken.wait(), pause_s)
            async with slot.changing:
                if slot.worker is None:
                    slot.worker = self._start(slot, self.plan)

    def _note_end(self, slot: Slot, worker: WorkerProcess, code: int) -> None:
        """Count and log that *worker* has ended by itself; end the service if it cannot start."""
        reason = self._forget(worker)
        self.replaced[slot.number, "signal" if code < 0 else "exit"] += 1
        if not self.was_ready.is_set():
            if code > 0:
                self._fail(
                    reason or f"Cannot start: a worker has ended with {end_of(code)}; the log contains the reason."
                )
                return
            if not worker.ready.is_set() and slot.policy.failures + 1 >= MAX_START_CRASHES:
                self._fail(
                    f"Cannot start: worker {slot.number} has ended with {end_of(code)} {MAX_START_CRASHES} times."
                )
                return
        log.error("worker_ended", worker=slot.number, worker_pid=worker.pid, ended_with=end_of(code), reason=reason)

    async def replace(self, slot: Slot, plan: WorkerPlan, reason: str) -> bool:
        """Start a replacement of the worker in *slot*; when it is ready, let the old worker end.

        Returns:
            False: the replacement did not become ready and was ended. The old worker runs as before.
        """
        async with slot.changing:
            slot.woken.set()
            old, new = slot.worker, self._start(slot, plan)
            if new is None or not await self._becomes_ready(new):
                return False
            slot.worker = new
            self.replaced[slot.number, reason] += 1
        if old is not None:
            await self._end(old, old.retire if reason == "reload" else old.stop, drain_s=_drain_s(reason, self.plan))
        return True

    async def _becomes_ready(self, worker: WorkerProcess) -> bool:
        """Wait until *worker* is ready; return False, and end it, if that does not happen."""
        starting: list[asyncio.Future[Any]] = [asyncio.create_task(worker.ready.wait()), worker.ended]
        try:
            await asyncio.wait(starting, timeout=REPLACEMENT_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            starting[0].cancel()
        if worker.is_ready:
            return True
        ended_with = end_of(worker.ended.result()) if worker.ended.done() else f"no answer for {REPLACEMENT_S:.0f} s"
        reason = await self._end(worker, worker.stop)
        log.error(
            "replacement_failed", worker=worker.number, worker_pid=worker.pid, ended_with=ended_with, reason=reason
        )
        return False

    def _start(self, slot: Slot, plan: WorkerPlan) -> WorkerProcess | None:
        """Start a worker; return None, and log why, if the system cannot."""
        slot.policy.started()
        try:
            worker = start_worker(
                self._children,
                self._command,
                environment=plan.environment,
                number=slot.number,
                workers=len(self.slots),
                dispatcher=self._dispatcher,
                handlers=self._handlers(slot.number),
            )
        except OSError as error:
            log.error("worker_not_started", worker=slot.number, reason=error.strerror)  # noqa: TRY400 - no bug of ours
            if not self.was_ready.is_set():
                self._fail(f"Cannot start: the system cannot start worker {slot.number} ({error.strerror}).")
            return None
        self._running[worker] = self.spawn(self._watch(slot, worker))
        log.info("worker_started", worker=slot.number, worker_pid=worker.pid)
        return worker

    # --- One process ----------------------------------------------------------------------------------------------

    async def _watch(self, slot: Slot, worker: WorkerProcess) -> None:
        """Report that *worker* is ready, and replace it if it stops working."""
        try:
            # At the first start, the orchestrator decides how long a start may take.
            await asyncio.wait_for(worker.ready.wait(), REPLACEMENT_S if self.was_ready.is_set() else None)
        except TimeoutError:
            if slot.worker is worker:  # else `replace` waits for it, and for no longer
                log.error("worker_unusable", worker=worker.number, worker_pid=worker.pid, trouble="not ready")  # noqa: TRY400 - no bug of ours
                await worker.stop(KILL_MARGIN_S)  # then `_keep` starts another one
            return
        self._on_change()
        log.info("worker_ready", worker=worker.number, worker_pid=worker.pid)
        worker.is_reported = True
        reported = [slot.worker for slot in self.slots if slot.worker and slot.worker.is_reported]
        if not self.was_ready.is_set() and all(one.is_ready for one in reported) and len(reported) == len(self.slots):
            self.was_ready.set()
            seconds = round(time.monotonic() - self._began_s, 3)
            log.info("service_ready", workers=len(self.slots), seconds=seconds, address=self._address)
        trouble = await wait_for_trouble(worker, hung_s=min(MAX_HUNG_S, self.plan.stuck_s))
        if slot.worker is not worker or worker.ended.done():
            return
        write = log.warning if trouble == "draining" else log.error  # it has received a signal
        write("worker_unusable", worker=worker.number, worker_pid=worker.pid, trouble=trouble)
        worker.withdraw()
        if not await self.replace(slot, self.plan, trouble):
            await worker.stop(_drain_s(trouble, self.plan) + KILL_MARGIN_S)  # then `_keep` starts another one

    async def _end(
        self, worker: WorkerProcess, end: Callable[[float], Coroutine[Any, Any, None]], *, drain_s: float | None = None
    ) -> str | None:
        """End *worker*, which may drain for *drain_s* (default: as planned); return the reason it gave, if any."""
        await end((self.plan.drain_s if drain_s is None else drain_s) + KILL_MARGIN_S)
        return self._forget(worker)

    def _forget(self, worker: WorkerProcess) -> str | None:
        if (watching := self._running.pop(worker, None)) is None:
            return None
        if watching is not asyncio.current_task():
            watching.cancel()
        self._on_change()
        return worker.close()

    def _fail(self, reason: str) -> None:
        self._failure = self._failure or reason
        self.stop()


def _drain_s(reason: str, plan: WorkerPlan) -> float:
    """Return the time for a worker that is replaced for *reason*. One that hangs does not notice the signal."""
    return 0.0 if reason == "hung" else plan.drain_s
