"""Several workers and their supervisor, each with its end of a real channel, in one event loop."""

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import pytest

from api.metric_answers import metrics_answer
from api.metric_types import CacheInfo, LimitMetrics, TextSources
from api.process_reports import Counts, ProcessReport, StuckModel
from assembly.lifecycle import Lifecycle
from assembly.processes import OneOfWorkers
from assembly.reports import whole_of
from assembly.result_cache import ProcessCache, open_result_cache
from assembly.worker_reports import WorkerReports
from engine.downloads import LoadState
from engine.loaded_facts import LoadedFacts
from engine.scheduler_state import SchedulerState
from engine.usage import Usage
from host.message_channel import Handler, MessageChannel
from host.process_usage import ProcessUsage
from telemetry.metrics import Metrics
from tests.support.answered_requests import answered
from tests.support.apps import settings_of
from tests.support.clock import ManualClock

ENDPOINT = "POST /embed"
OVERDUE_S = 300.0
DROPPED_LINES = 6
"""Lines of the log that the supervisor could not write."""


@dataclass
class PartsReporter:
    """Reports the parts of a worker that has no models."""

    pid: int
    lifecycle: Lifecycle
    metrics: Metrics = field(default_factory=Metrics)
    scheduler: SchedulerState = field(default_factory=lambda: SchedulerState(lanes=1))
    usage: dict[str, Usage] = field(default_factory=dict)
    sources: dict[str, TextSources] = field(default_factory=dict)
    results: ProcessCache = field(default_factory=lambda: open_result_cache(settings_of()))
    loaded: list[str] = field(default_factory=list)
    stuck: list[StuckModel] = field(default_factory=list)

    def models(self) -> dict[str, LoadedFacts]:
        return {}

    def read(
        self, *, usage: ProcessUsage | None = None, with_models: bool = False, with_recent: bool = False
    ) -> ProcessReport:
        del with_models
        answer = metrics_answer(
            self.metrics,
            self.scheduler,
            self.usage,
            (),
            cache_info=CacheInfo(self.loaded, len(self.loaded), 5, 3600.0, 60.0),
            uptime_s=self.lifecycle.uptime_s,
            loads=LoadState(0, 0, 0, 0),
            results=self.results.metrics(self.sources),
            limits=LimitMetrics("supervisor", 0),
        )
        recent_s = self.metrics.recent_s() if with_recent else {}
        return ProcessReport(
            pid=self.pid,
            phase=self.lifecycle.phase,
            stuck=self.stuck,
            counts=Counts(
                answer=answer,
                requests=self.metrics.counts(),
                runs=self.scheduler.runs,
                busy_s=self.scheduler.busy_s,
                recent_s=recent_s,
                exemplars={},
            ),
            fingerprints={},
            usage=usage,
        )


@dataclass(eq=False)
class RunningWorker:
    """One worker; its supervisor knows it by number, process id and channel. *pushed* is set by each report."""

    number: int
    pid: int
    channel: MessageChannel
    own_channel: MessageChannel
    handlers: dict[str, Handler]
    reporter: PartsReporter
    processes: OneOfWorkers
    pushed: asyncio.Event
    is_ready: bool = False
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    def count(self, times: int = 1, problem: str | None = None) -> None:
        for _ in range(times):
            self.reporter.metrics.observe(answered(ENDPOINT, 0.125, problem))

    async def requests(self) -> int:
        """Return what this worker answers for all."""
        return whole_of(await self.processes.collect()).answer.total_requests


class Service:
    """A supervisor with its workers. Only this test decides which of them run."""

    def __init__(self, slots: int) -> None:
        self.workers: list[RunningWorker] = []
        self.replaced: Counter[tuple[int, str]] = Counter()
        self.clock = ManualClock()
        self.reports = WorkerReports(
            slots=slots,
            workers=lambda: self.workers,
            restarts=lambda: self.replaced,
            overdue_s=OVERDUE_S,
            dropped_lines=lambda: DROPPED_LINES,
            clock=self.clock,
        )
        self._pids = iter(range(1000, 2000))

    async def start(self, number: int, *, is_ready: bool = True) -> RunningWorker:
        theirs, ours = socket.socketpair()
        handlers: dict[str, Handler] = {}
        at_supervisor = self.reports.handlers(number)
        push, pushed = at_supervisor["report.push"], asyncio.Event()

        def take(payload: bytes) -> bytes:
            pushed.set()
            answer = push(payload)
            assert isinstance(answer, bytes)
            return answer

        at_supervisor["report.push"] = take
        channel, own_channel = MessageChannel(ours, at_supervisor), MessageChannel(theirs, handlers)
        lifecycle = Lifecycle()
        reporter = PartsReporter(next(self._pids), lifecycle)
        processes = OneOfWorkers(reporter, lifecycle, number=number, channel=own_channel, clock=self.clock)
        handlers |= processes.handlers
        reporter.metrics.on_change = processes.report_soon
        worker = RunningWorker(number, reporter.pid, channel, own_channel, handlers, reporter, processes, pushed)
        await channel.open()
        await own_channel.open()
        self.workers.append(worker)
        await worker.stack.enter_async_context(processes.lifespan(None))  # type: ignore[arg-type]  # it needs no app
        if is_ready:
            worker.is_ready = lifecycle.finish_start()
        await self.settle(worker)
        return worker

    async def settle(self, worker: RunningWorker) -> None:
        """Let everything arrive that was sent so far."""
        await worker.processes.collect()

    async def end(self, worker: RunningWorker) -> None:
        """Let a worker end in order."""
        await worker.stack.aclose()
        await self.kill(worker)

    async def kill(self, worker: RunningWorker) -> None:
        """End a worker as SIGKILL does; the supervisor notes it."""
        worker.own_channel.close()
        await worker.channel.run()
        self.workers.remove(worker)
        self.reports.refresh()

    async def close(self) -> None:
        for worker in tuple(self.workers):
            await worker.stack.aclose()
            worker.own_channel.close()
            await worker.channel.run()


@asynccontextmanager
async def service(slots: int) -> AsyncIterator[Service]:
    running = Service(slots)
    try:
        yield running
    finally:
        await running.close()


@pytest.fixture
async def two() -> AsyncIterator[tuple[Service, RunningWorker, RunningWorker]]:
    """A service of two workers that are ready."""
    async with service(2) as running:
        yield running, await running.start(1), await running.start(2)


Two = tuple[Service, RunningWorker, RunningWorker]


async def test_any_worker_answers_for_all_of_them(two: Two) -> None:
    _, first, second = two
    first.count(3)
    second.count(4, problem="overloaded")
    first.reporter.usage["m"] = Usage(1, 2, 3)
    second.reporter.usage["m"] = Usage(10, 20, 30)
    for worker in (first, second):
        collected = await worker.processes.collect(for_metrics=True)
        answer = whole_of(collected).answer
        assert (answer.total_requests, answer.errors, answer.total_embeddings) == (7, {"overloaded": 4}, 22)
        assert answer.endpoints[ENDPOINT].latency_ms == {"p50": 125.0, "p95": 125.0, "p99": 125.0}
        assert (answer.queue.lanes, answer.log.lines_dropped) == (2, DROPPED_LINES)
        assert [(part.number, part.report.pid, part.is_stale) for part in collected.workers] == [
            (1, first.pid, False),
            (2, second.pid, False),
        ]


async def test_counts_of_kept_results_add_up_and_what_a_worker_had_in_memory_ends_with_it(two: Two) -> None:
    running, first, second = two
    for number, worker in enumerate((first, second), 1):
        worker.reporter.sources["m"] = TextSources(hits=number, misses=10 * number, coalesced=100 * number)
        store = worker.reporter.results.store
        store.put("", {bytes([key]) * 16: b"result" for key in range(number)}, generation=store.generation)
    for worker in (first, second):
        results = whole_of(await worker.processes.collect()).answer.result_cache
        assert (results.hits, results.misses, results.coalesced) == (3, 30, 300)
        assert results.models == {"m": TextSources(3, 30, 300)}
        assert (results.entries, results.limit_bytes) == (3, 2 * 62_000_000)
    await running.end(second)
    results = whole_of(await first.processes.collect()).answer.result_cache
    assert (results.hits, results.entries, results.limit_bytes) == (3, 1, 62_000_000)


async def test_questions_about_models_carry_nothing_that_only_metrics_need(two: Two) -> None:
    _, first, second = two
    first.count(3)
    second.count(4)
    collected = await second.processes.collect()
    assert [part.report.counts.recent_s for part in collected.workers] == [{}, {}]
    assert [part.report.usage for part in collected.workers] == [None, None]
    assert collected.supervisor is None


async def test_counters_never_go_back_when_workers_end_and_are_replaced(two: Two) -> None:
    running, first, second = two
    first.count(3)
    await running.end(first)
    assert await second.requests() == 3
    for expected in (5, 7, 9):
        replacement = await running.start(1)
        replacement.count(2)
        await running.end(replacement)
        assert await second.requests() == expected
    collected = await second.processes.collect()
    assert whole_of(collected).answer.queue.lanes == 1, "amounts of this moment end with their process"
    assert [part.number for part in collected.workers] == [2]


async def test_worker_that_is_killed_loses_only_what_it_had_not_sent(two: Two) -> None:
    running, first, second = two
    first.count(3)
    first.pushed.clear()
    await first.pushed.wait()  # soon after the count has changed
    first.count(5)
    await running.kill(first)
    assert await second.requests() == 3


async def test_worker_that_does_not_answer_is_stale_and_counts_with_its_last_report(two: Two) -> None:
    running, first, second = two
    first.count(3)
    await running.settle(first)
    hangs = asyncio.Event()

    async def hang(_: bytes) -> bytes:
        await hangs.wait()
        return b""

    first.handlers["report.read"] = hang
    second.count(4)
    collected = await second.processes.collect(for_metrics=True)
    assert whole_of(collected).answer.total_requests == 7
    assert [part.is_stale for part in collected.workers] == [True, False]
    assert collected.workers[1].report.usage is not None
    assert collected.supervisor is not None


async def test_a_draining_process_and_its_replacement_share_a_slot(two: Two) -> None:
    running, first, second = two
    first.count(3)
    replacement = await running.start(1)
    view = second.processes.view
    assert view is not None
    assert view.ready == 2, "the old process and its replacement count once"
    first.reporter.lifecycle.start_draining()
    first.is_ready = False
    replacement.count(2)
    await running.settle(first)
    collected = await second.processes.collect()
    assert [(part.number, part.report.phase) for part in collected.workers] == [
        (1, "draining"),
        (1, "healthy"),
        (2, "healthy"),
    ]
    assert whole_of(collected).answer.total_requests == 5
    assert second.processes.phase == "healthy"


async def test_service_is_starting_until_all_workers_were_ready_and_then_ready_with_one() -> None:
    async with service(2) as running:
        first = await running.start(1)
        second = await running.start(2, is_ready=False)
        assert (first.processes.phase, second.processes.phase) == ("starting", "starting")
        second.is_ready = second.reporter.lifecycle.finish_start()
        await running.settle(second)
        await running.settle(first)
        assert (first.processes.phase, second.processes.phase) == ("healthy", "healthy")
        running.replaced[2, "signal"] += 1
        await running.kill(second)
        await running.settle(first)
        view = first.processes.view
        assert view is not None
        assert (first.processes.phase, view.workers, view.ready, view.restarts) == ("healthy", 2, 1, 1)
        first.is_ready = False
        running.reports.refresh()
        await running.settle(first)
        assert first.processes.phase == "draining"


async def test_all_workers_know_that_the_service_stops(two: Two) -> None:
    running, first, second = two
    running.reports.refresh(is_draining=True)
    for worker in (first, second):
        await running.settle(worker)
        assert worker.processes.phase == "draining"


async def test_uptime_is_that_of_the_service(two: Two) -> None:
    running, first, _ = two
    running.clock.now_s += 50
    replacement = await running.start(2)
    running.clock.now_s += 7
    assert (first.processes.uptime_s, replacement.processes.uptime_s) == (57, 57)


async def test_models_in_memory_of_another_worker_are_known_without_a_question(two: Two) -> None:
    running, first, second = two
    first.reporter.loaded, second.reporter.loaded = ["a", "b"], ["b"]
    await running.settle(first)
    await running.settle(second)
    assert second.processes.loaded == ["a", "b"]


async def test_run_that_does_not_end_is_a_reason_to_restart_only_if_its_worker_was_not_replaced(two: Two) -> None:
    running, first, second = two
    first.reporter.stuck = [StuckModel("m", OVERDUE_S - 1)]
    await running.settle(first)
    assert second.processes.stuck == []
    first.reporter.stuck = [StuckModel("m", OVERDUE_S + 1)]
    await running.settle(first)
    await running.settle(second)
    assert second.processes.stuck == [StuckModel("m", OVERDUE_S + 1)]


async def test_without_supervisor_processes_of_one_slot_stay_together(two: Two) -> None:
    running, _, second = two
    await running.start(2)
    await second.processes.collect()
    second.channel.close()
    await second.own_channel.run()
    collected = await second.processes.collect()
    assert [part.number for part in collected.workers] == [1, 2, 2]
    running.workers.remove(second)
    await second.stack.aclose()


async def test_without_supervisor_a_worker_answers_with_what_it_knows(two: Two) -> None:
    running, first, second = two
    first.count(3)
    second.count(4)
    assert await second.requests() == 7
    second.channel.close()
    await second.own_channel.run()
    second.count(1)
    collected = await second.processes.collect()
    assert whole_of(collected).answer.total_requests == 8
    assert [(part.number, part.is_stale) for part in collected.workers] == [(1, True), (2, False)]
    second.reporter.lifecycle.start_draining()
    assert second.processes.phase == "draining"
    running.workers.remove(second)
    await second.stack.aclose()
