"""The supervisor: keeps N worker processes running, and stops them together.

uvicorn's supervisor (`uvicorn.supervisors.Multiprocess`) is not used: it stops a worker before it starts the
replacement, restarts one that fails again and again without a pause, and knows neither whether a worker is ready nor
why one could not start.
"""

import asyncio
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType

import structlog

from host.message_channel import Handler
from serving.child_processes import ChildProcesses
from serving.process_signals import ProcessSignals
from serving.restart_policy import RestartPolicy
from serving.worker_process import WorkerProcess, start_worker

KILL_MARGIN_S = 2.0
"""How much longer than SHUTDOWN_TIMEOUT a worker may take to end; it ends by itself before that, unless it hangs."""

log = structlog.get_logger()


@dataclass(eq=False, slots=True)
class Slot:
    """The place of one worker: its process changes, its number stays."""

    number: int
    restarts: int = 0
    worker: WorkerProcess | None = None
    policy: RestartPolicy = field(default_factory=RestartPolicy)


class Supervisor:
    """Owns the worker processes."""

    def __init__(
        self,
        *,
        workers: int,
        command: Sequence[str],
        environment: Mapping[str, str],
        listening: socket.socket,
        drain_s: float,
        handlers: Callable[[int], Mapping[str, Handler]],
    ) -> None:
        """Start nothing before `run`.

        Args:
            workers: the number of worker processes.
            command: starts a worker.
            environment: of the workers.
            listening: the socket that the service listens on.
            drain_s: seconds from a signal to the end of a worker.
            handlers: returns the handlers for the calls of the worker with this number.
        """
        self._command = command
        self._environment = environment
        self._listening = listening
        self._drain_s = drain_s
        self._handlers = handlers
        self._children = ChildProcesses()
        self._slots = [Slot(number) for number in range(1, workers + 1)]
        self._running: set[WorkerProcess] = set()
        self._stopped = asyncio.Event()
        self._failure: str | None = None
        self._was_ready = False

    @property
    def workers(self) -> Sequence[WorkerProcess]:
        """All worker processes that run, including those that start or drain."""
        return tuple(self._running)

    @property
    def failure(self) -> str | None:
        """Why the service could not start; None: it could."""
        return self._failure

    def stop(self) -> None:
        """Drain and end; call it in the event loop."""
        self._stopped.set()

    async def run(self) -> None:
        """Keep all workers running until `stop` is called or the first start fails; then end them all."""
        self._children.open()
        keepers = [asyncio.create_task(self._keep(slot)) for slot in self._slots]
        try:
            await self._stopped.wait()
        finally:
            for keeper in keepers:
                keeper.cancel()
            await asyncio.gather(*(self._end(worker) for worker in self.workers))

    async def _end(self, worker: WorkerProcess) -> None:
        await worker.stop(self._drain_s + KILL_MARGIN_S)
        self._forget(worker)

    async def _keep(self, slot: Slot) -> None:
        """Start a worker in *slot*, and another one each time it ends."""
        while True:
            worker = slot.worker = self._start(slot)
            watching = asyncio.create_task(self._watch_start(worker))
            code = await asyncio.shield(worker.ended)
            watching.cancel()
            reason = self._forget(worker)
            if reason is not None and not self._was_ready:
                self._fail(reason)
                return
            pause_s = slot.policy.pause_after_failure()
            slot.restarts += 1
            log.error("worker_ended", worker=slot.number, worker_pid=worker.pid, ended_by=name_of(code), reason=reason)
            await asyncio.sleep(pause_s)

    def _start(self, slot: Slot) -> WorkerProcess:
        worker = start_worker(
            self._children,
            self._command,
            environment=self._environment,
            number=slot.number,
            workers=len(self._slots),
            restarts=slot.restarts,
            listening=self._listening,
            handlers=self._handlers(slot.number),
        )
        slot.policy.started()
        self._running.add(worker)
        log.info("worker_started", worker=slot.number, worker_pid=worker.pid)
        return worker

    async def _watch_start(self, worker: WorkerProcess) -> None:
        await worker.ready.wait()
        log.info("worker_ready", worker=worker.number, worker_pid=worker.pid)
        if not self._was_ready and all(slot.worker and slot.worker.is_ready for slot in self._slots):
            self._was_ready = True
            log.info("workers_ready", workers=len(self._slots))

    def _forget(self, worker: WorkerProcess) -> str | None:
        self._running.discard(worker)
        return worker.close()

    def _fail(self, reason: str) -> None:
        self._failure = self._failure or reason
        self.stop()


def name_of(code: int) -> str:
    """Return how a process ended: `exit code 1`, or the name of the signal that killed it."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def run_supervisor(make: Callable[[], Supervisor], signals: ProcessSignals) -> str | None:
    """Run a supervisor until a signal stops it; return why it could not start, or None."""

    async def main() -> str | None:
        loop = asyncio.get_running_loop()
        supervisor = make()

        def stop(_number: int, _frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(supervisor.stop)

        signals.hand_over(
            stop=stop,
            reload=lambda: None,
            report_unused=lambda name: log.info("signal_ignored", signal=name),
        )
        await supervisor.run()
        return supervisor.failure

    return asyncio.run(main())
