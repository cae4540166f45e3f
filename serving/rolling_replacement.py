"""SIGHUP with several workers: replaces them one by one, each by one that is ready before the old one ends."""

import time
from collections.abc import Callable

import structlog

from serving.supervisor import Supervisor, WorkerPlan

log = structlog.get_logger()


class PlanError(Exception):
    """The settings cannot be used; the message is one line."""


class RollingReplacement:
    """Owns the replacement that runs. Requests that arrive meanwhile cause one more after it, however many they are."""

    def __init__(
        self,
        supervisor: Supervisor,
        *,
        read_plan: Callable[[], WorkerPlan],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Replace nothing yet.

        Args:
            supervisor: of the workers.
            read_plan: reads the settings again; raises PlanError.
            clock: monotonic seconds.
        """
        self._supervisor = supervisor
        self._read_plan = read_plan
        self._clock = clock
        self._is_due = False
        self._is_running = False

    def request(self) -> None:
        """Replace all workers soon, unless they are being stopped; call it in the event loop."""
        if self._supervisor.is_stopping:
            return
        self._is_due = True
        if not self._is_running:
            self._is_running = True
            self._supervisor.spawn(self._run())

    async def _run(self) -> None:
        await self._supervisor.was_ready.wait()
        try:
            while self._is_due:
                self._is_due = False
                await self._replace_all()
        finally:
            self._is_running = False

    async def _replace_all(self) -> None:
        """Replace all workers. If one replacement does not become ready, the others would not either: stop there."""
        started_s = self._clock()
        log.info("reload_started", workers=len(self._supervisor.slots))
        try:
            plan = self._read_plan()
        except PlanError as error:
            log.error("reload_failed", reason=str(error), replaced=0)  # noqa: TRY400 - the reason says it all
            return
        for replaced, slot in enumerate(self._supervisor.slots):
            if not await self._supervisor.replace(slot, plan, "reload"):
                log.error("reload_failed", reason="the replacement of a worker did not become ready", replaced=replaced)
                return
            self._supervisor.adopt(plan)
        log.info("reload_ended", seconds=round(self._clock() - started_s, 3))
