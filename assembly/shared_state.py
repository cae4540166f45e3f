"""What the supervisor keeps or does for all workers: quotas, reports, deleting cached results. Imports little."""

from collections.abc import Callable, Mapping, Sequence

from access.worker_quotas import QuotaHandlers
from assembly.result_clearing import ClearHandlers
from assembly.worker_reports import WorkerReports
from config import Settings
from host.message_channel import Handler
from serving.worker_process import WorkerProcess

REPLACEMENT_S = 60.0
"""Seconds in which a worker that hangs is replaced, besides SHUTDOWN_TIMEOUT, in which it may end by itself."""


class SharedState:
    """Owns the state that all workers share, and answers them on their channels."""

    def __init__(
        self,
        settings: Settings,
        *,
        slots: int,
        workers: Callable[[], Sequence[WorkerProcess]],
        restarts: Callable[[], Mapping[tuple[int, str], int]],
    ) -> None:
        """Hold no report yet.

        Args:
            settings: of the whole service.
            slots: the number of workers.
            workers: returns the worker processes that run.
            restarts: returns how often workers were replaced, by slot and reason.
        """
        self.reports = WorkerReports(
            slots=slots,
            workers=workers,
            restarts=restarts,
            overdue_s=settings.lane_stuck_seconds + settings.shutdown_timeout + REPLACEMENT_S,
        )
        self._quotas = QuotaHandlers()  # used only if workers ask
        self._clearing = ClearHandlers(workers)

    def handlers(self, number: int) -> Mapping[str, Handler]:
        """Return the handlers for the channel of a new process in slot *number*."""
        return {**self._quotas.handlers, **self._clearing.handlers, **self.reports.handlers(number)}
