"""The supervisor's side of the reports of workers: the last one of each, and the sum of those that have ended.

Counters therefore never go back when a worker ends or crashes. Imports little, as all of the supervisor.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Protocol

import msgspec

from api.process_reports import (
    Collected,
    Counts,
    Phase,
    ProcessReport,
    Question,
    Restarts,
    ServiceView,
    WorkerPart,
)
from host.message_channel import ChannelClosedError, Handler, MessageChannel, RemoteCallError
from host.process_usage import process_usage
from telemetry.log_output import dropped_lines
from telemetry.merging import at_end, merge

READ_TIMEOUT_S = 0.5
"""Seconds in which a worker must report when all are asked. After that, its last report is used."""

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(ProcessReport).decode
_decode_question: Final = msgspec.msgpack.Decoder(Question).decode


class Worker(Protocol):
    """A worker process that runs."""

    number: int
    pid: int
    channel: MessageChannel

    @property
    def is_ready(self) -> bool:
        """Whether it accepts requests."""
        ...


@dataclass(eq=False, slots=True)
class _Kept:
    """What is known of one worker process; *report* is None before its first one."""

    number: int
    report: ProcessReport | None = None
    view: ServiceView | None = None

    def keep(self, report: ProcessReport) -> None:
        """Keep *report*; what it does not contain stays as it was."""
        if self.report is not None:
            report = replace(
                report, models=report.models or self.report.models, usage=report.usage or self.report.usage
            )
        self.report = report


class WorkerReports:
    """Owns the reports of all workers, and the view of the whole that each worker gets."""

    def __init__(
        self,
        *,
        slots: int,
        workers: Callable[[], Sequence[Worker]],
        restarts: Callable[[], Mapping[tuple[int, str], int]],
        overdue_s: float,
        dropped_lines: Callable[[], int] = dropped_lines,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Hold no report yet.

        Args:
            slots: the number of workers.
            workers: returns the worker processes that run.
            restarts: returns how often workers were replaced, by slot and reason.
            overdue_s: seconds of a model run after which its worker should have been replaced.
            dropped_lines: returns how many lines of the supervisor's log could not be written.
            clock: monotonic seconds.
        """
        self._dropped_lines = dropped_lines
        self._slots = slots
        self._workers = workers
        self._restarts = restarts
        self._overdue_s = overdue_s
        self._started_s = clock()
        self._kept: list[_Kept] = []
        self._ended: Counts | None = None
        self._were_ready: set[int] = set()
        self._is_draining = False

    def handlers(self, number: int) -> dict[str, Handler]:
        """Return the handlers for the channel of a new process in slot *number*."""
        # A process of this slot that has never reported has ended before.
        self._kept = [kept for kept in self._kept if kept.number != number or kept.report is not None]
        kept = _Kept(number)
        self._kept.append(kept)
        take = partial(self._take, kept)
        return {"report.push": take, "report.last": take, "report.collect": partial(self._collect, kept)}

    def refresh(self, *, is_draining: bool = False) -> None:
        """Look which workers run, and send each the view of the whole if it has changed.

        Args:
            is_draining: the whole service stops; it will not do anything else any more.
        """
        self._is_draining |= is_draining
        running = {worker.pid: worker for worker in self._workers()}
        self._fold_ended(running)
        view = self._view(running)
        for kept in self._kept:
            if kept.report is not None and kept.view != view:
                kept.view = view
                running[kept.report.pid].channel.notify("report.view", _encode(view))

    def _take(self, kept: _Kept, payload: bytes) -> bytes:
        kept.keep(_decode(payload))
        self.refresh()
        return b""

    async def _collect(self, asking: _Kept, payload: bytes) -> bytes:
        """Return the reports of all as an answer to the worker *asking*."""
        question = _decode_question(payload)
        asking.keep(question.own)
        self.refresh()
        running = {worker.pid: worker for worker in self._workers()}
        others = [(kept, running[kept.report.pid]) for kept in self._kept if kept.report and kept is not asking]
        answered = await asyncio.gather(*(self._read(kept, worker, question) for kept, worker in others))
        stale = [kept for (kept, _), is_fresh in zip(others, answered, strict=True) if not is_fresh]
        self.refresh()
        parts = [WorkerPart(kept.number, kept.report, is_stale=kept in stale) for kept in self._kept if kept.report]
        restarts = [Restarts(number, reason, count) for (number, reason), count in sorted(self._restarts().items())]
        parts.sort(key=lambda part: part.number)
        return _encode(
            Collected(
                workers=parts,
                ended=self._ended,
                restarts=restarts,
                supervisor=process_usage() if question.for_metrics else None,
                supervisor_lines_dropped=self._dropped_lines(),
            )
        )

    async def _read(self, kept: _Kept, worker: Worker, question: Question) -> bool:
        """Ask a worker for its report; return whether it has answered in time."""
        try:
            payload = await worker.channel.call("report.read", _encode(question.for_metrics), timeout_s=READ_TIMEOUT_S)
        except (ChannelClosedError, RemoteCallError, TimeoutError):
            return False
        kept.keep(_decode(payload))
        return True

    def _fold_ended(self, running: Mapping[int, Worker]) -> None:
        """Add the counts of processes that have ended to the sum."""
        for kept in tuple(self._kept):
            if kept.report is not None and kept.report.pid not in running:
                self._kept.remove(kept)
                counts = at_end(kept.report.counts)
                self._ended = counts if self._ended is None else merge([self._ended, counts])

    def _view(self, running: Mapping[int, Worker]) -> ServiceView:
        reports = [kept.report for kept in self._kept if kept.report]
        ready = {worker.number for worker in running.values() if worker.is_ready}  # a replacement has the same number
        self._were_ready.update(ready)
        stuck = [run for report in reports for run in report.stuck]
        return ServiceView(
            phase=self._phase([report.phase for report in reports], is_ready=bool(ready)),
            started_s=self._started_s,
            workers=self._slots,
            ready=len(ready),
            restarts=sum(self._restarts().values()),
            stuck=[run for run in stuck if run.seconds > self._overdue_s],
            cached_models=list(
                dict.fromkeys(name for report in reports for name in report.counts.answer.cache_info.cached_models)
            ),
        )

    def _phase(self, phases: Sequence[Phase], *, is_ready: bool) -> Phase:
        if self._is_draining:
            return "draining"
        if len(self._were_ready) < self._slots:
            return "starting"
        if is_ready:
            return "healthy"
        return "starting" if "starting" in phases else "draining"
