"""Turns the signals of the supervisor's process into its commands."""

import asyncio
import signal
import time
from collections.abc import Callable
from types import FrameType

import structlog

from serving.process_exit import exit_now
from serving.process_signals import REPEATED_S, ProcessSignals
from serving.supervisor import Supervisor

log = structlog.get_logger()


class SupervisorSignals:
    """Handles signals: the first one that stops drains, a later one ends at once, SIGHUP reloads."""

    def __init__(
        self,
        supervisor: Supervisor,
        *,
        reload: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Handle nothing before `install`; create it in the event loop of *supervisor*.

        Args:
            supervisor: of the workers.
            reload: called in the event loop at each SIGHUP.
            clock: monotonic seconds.
        """
        self._supervisor = supervisor
        self._reload = reload
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._stopped_s: float | None = None

    def install(self, signals: ProcessSignals) -> None:
        """Handle the signals that *signals* receives from now on."""
        signals.hand_over(stop=self._stop, reload=self._request_reload, report_unused=_report_unused)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self._stopped_s is None:
            self._stopped_s = self._clock()
            self._loop.call_soon_threadsafe(self._start_draining, name)
        elif self._clock() - self._stopped_s < REPEATED_S:
            log.info("signal_repeated", signal=name)
        else:
            log.warning("stopped_at_once", signal=name)
            self._supervisor.kill()
            exit_now(128 + number)

    def _start_draining(self, name: str) -> None:
        log.info("workers_stopping", signal=name, workers=len(self._supervisor.workers))
        self._supervisor.stop()

    def _request_reload(self) -> None:
        self._loop.call_soon_threadsafe(self._reload)


def _report_unused(name: str) -> None:
    log.info("signal_ignored", signal=name)
