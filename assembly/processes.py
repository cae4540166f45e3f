"""The processes of the service as one of them sees them: it is the only one, or one of several workers.

A worker sends its report to the supervisor soon after a count has changed, and answers for all with the reports that
the supervisor collects. Probes need no question at all: the supervisor sends each worker a view of the whole whenever
it changes.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Final, Protocol

import msgspec
from litestar import Litestar

from api.process_reports import Collected, Phase, ProcessReport, Question, ServiceView, StuckModel, WorkerPart
from assembly.lifecycle import Lifecycle
from assembly.process_reporter import models_of
from assembly.shared_rounds import SharedRounds
from engine.loaded_facts import LoadedFacts, merge_facts
from host.message_channel import ChannelClosedError, Handler, MessageChannel, RemoteCallError
from host.process_usage import ProcessUsage, process_usage

PUSH_DELAY_S = 0.1
"""Seconds from a change of a count to the report with it. So much may be lost when a worker is killed."""
HEARTBEAT_S = 1.0
"""Seconds between two reports when nothing was counted: other things change, such as models in memory."""
COLLECT_TIMEOUT_S = 2.0
"""Seconds in which the supervisor must have collected all reports. It waits less for each worker."""
LAST_REPORT_TIMEOUT_S = 1.0
"""Seconds in which the supervisor must confirm the last report of a worker that ends."""
PUSH: Final = "report.push"
LAST: Final = "report.last"
COLLECT: Final = "report.collect"
READ: Final = "report.read"
VIEW: Final = "report.view"

encode: Final = msgspec.msgpack.Encoder().encode
_decode_collected: Final = msgspec.msgpack.Decoder(Collected).decode
_decode_view: Final = msgspec.msgpack.Decoder(ServiceView).decode


class Reporter(Protocol):
    """Reads what this process has counted; `ProcessReporter` does."""

    @property
    def loaded(self) -> list[str]: ...

    @property
    def stuck(self) -> list[StuckModel]: ...

    def models(self) -> dict[str, LoadedFacts]: ...

    def read(
        self, *, usage: ProcessUsage | None = None, with_models: bool = False, with_recent: bool = False
    ) -> ProcessReport: ...


class Processes(Protocol):
    """All processes of the service, whichever of them answers."""

    @property
    def phase(self) -> Phase:
        """The phase of the whole."""
        ...

    @property
    def uptime_s(self) -> float:
        """Seconds since the service was started."""
        ...

    @property
    def view(self) -> ServiceView | None:
        """What the supervisor knows of the whole; None: this is the only process."""
        ...

    @property
    def stuck(self) -> list[StuckModel]:
        """Model runs for which an orchestrator must restart the service."""
        ...

    @property
    def loaded(self) -> list[str]:
        """Models in memory of any process."""
        ...

    async def collect(self, *, for_metrics: bool = False) -> Collected:
        """Return the reports of all processes, as they are now.

        *for_metrics*: with what only metrics need, which is the larger part: what each takes, and latest latencies.
        """
        ...

    async def read(self) -> Mapping[str, LoadedFacts]:
        """Return the models in memory of any process, by name."""
        ...


class OneProcess:
    """The service has no other process than this one."""

    view: ServiceView | None = None

    def __init__(self, reporter: Reporter, lifecycle: Lifecycle) -> None:
        self._reporter = reporter
        self._lifecycle = lifecycle

    @property
    def phase(self) -> Phase:
        return self._lifecycle.phase

    @property
    def uptime_s(self) -> float:
        return self._lifecycle.uptime_s

    @property
    def stuck(self) -> list[StuckModel]:
        return self._reporter.stuck

    @property
    def loaded(self) -> list[str]:
        return self._reporter.loaded

    async def collect(self, *, for_metrics: bool = False) -> Collected:
        return Collected(
            workers=[WorkerPart(0, self._reporter.read(with_models=True, with_recent=for_metrics))], restarts=[]
        )

    async def read(self) -> Mapping[str, LoadedFacts]:
        return self._reporter.models()


class OneOfWorkers:
    """This process is one of several workers."""

    def __init__(
        self,
        reporter: Reporter,
        lifecycle: Lifecycle,
        *,
        number: int,
        channel: MessageChannel,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Send nothing before `lifespan`.

        Args:
            reporter: of this process.
            lifecycle: of this process.
            number: of this worker's slot.
            channel: to the supervisor; it must get `handlers`.
            clock: monotonic seconds, the same clock as the supervisor's.
        """
        self._reporter = reporter
        self._lifecycle = lifecycle
        self._number = number
        self._channel = channel
        self._clock = clock
        self._view: ServiceView | None = None
        self._collected: Collected | None = None
        self._rounds = {
            for_metrics: SharedRounds(partial(self._collect, for_metrics=for_metrics)) for for_metrics in (False, True)
        }
        self._push: asyncio.TimerHandle | None = None
        self._is_running = False

    @property
    def handlers(self) -> dict[str, Handler]:
        """What this worker answers to the supervisor."""
        return {READ: self._read_for_others, VIEW: self._take_view}

    @property
    def view(self) -> ServiceView | None:
        return self._view

    @property
    def phase(self) -> Phase:
        if self._view is None or not self._channel.is_open:
            return self._lifecycle.phase
        return self._view.phase

    @property
    def uptime_s(self) -> float:
        return self._lifecycle.uptime_s if self._view is None else round(self._clock() - self._view.started_s, 3)

    @property
    def stuck(self) -> list[StuckModel]:
        """Only runs whose worker should have been replaced by now: the supervisor replaces workers by itself."""
        return [] if self._view is None else self._view.stuck

    @property
    def loaded(self) -> list[str]:
        elsewhere = [] if self._view is None else self._view.cached_models
        own = self._reporter.loaded
        return [*(name for name in elsewhere if name not in own), *own]

    async def collect(self, *, for_metrics: bool = False) -> Collected:
        """Return the reports of all processes.

        However many ask at a time, the others are asked once. If the supervisor does not answer in time, the last
        reports of the others are used, marked as stale.
        """
        return await self._rounds[for_metrics].result()

    async def _collect(self, *, for_metrics: bool) -> Collected:
        own = await self._read_own(for_metrics=for_metrics)
        try:
            answer = await self._channel.call(COLLECT, encode(Question(own, for_metrics)), timeout_s=COLLECT_TIMEOUT_S)
            self._collected = _decode_collected(answer)
        except (ChannelClosedError, RemoteCallError, TimeoutError):
            self._collected = self._last_known(own)
        return self._collected

    async def read(self) -> Mapping[str, LoadedFacts]:
        collected = await self.collect()
        return merge_facts(models_of(part.report) for part in collected.workers)

    def report_soon(self) -> None:
        """Send a report soon: something was counted."""
        if self._push is None and self._is_running:
            self._push = asyncio.get_running_loop().call_later(PUSH_DELAY_S, self._report)

    @asynccontextmanager
    async def lifespan(self, _: Litestar) -> AsyncIterator[None]:
        """Send reports; the last one when all requests have been answered."""
        self._is_running = True
        self._lifecycle.on_change = self._report
        beating = asyncio.create_task(self._beat())
        try:
            yield
        finally:
            self._is_running = False
            self._lifecycle.on_change = lambda: None
            beating.cancel()
            if self._push is not None:
                self._push.cancel()
            with suppress(ChannelClosedError, RemoteCallError, TimeoutError):
                await self._channel.call(LAST, encode(self._reporter.read()), timeout_s=LAST_REPORT_TIMEOUT_S)

    async def _beat(self) -> None:
        while True:
            self._report()
            await asyncio.sleep(HEARTBEAT_S)

    def _report(self) -> None:
        if self._push is not None:
            self._push.cancel()
            self._push = None
        self._channel.notify(PUSH, encode(self._reporter.read()))

    async def _read_own(self, *, for_metrics: bool) -> ProcessReport:
        usage = await asyncio.to_thread(process_usage) if for_metrics else None
        return self._reporter.read(usage=usage, with_models=True, with_recent=for_metrics)

    async def _read_for_others(self, payload: bytes) -> bytes:
        return encode(await self._read_own(for_metrics=msgspec.msgpack.decode(payload, type=bool)))

    def _take_view(self, payload: bytes) -> bytes:
        self._view = _decode_view(payload)
        return b""

    def _last_known(self, own: ProcessReport) -> Collected:
        known = self._collected or Collected(workers=[], restarts=[])
        others = [
            WorkerPart(part.number, part.report, is_stale=True) for part in known.workers if part.report.pid != own.pid
        ]
        return Collected(
            workers=sorted([WorkerPart(self._number, own), *others], key=lambda part: part.number),
            ended=known.ended,
            restarts=known.restarts,
            supervisor=known.supervisor,
            supervisor_lines_dropped=known.supervisor_lines_dropped,
        )
