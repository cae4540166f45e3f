"""`DELETE /cache` with several workers: the results of all are deleted, whichever of them is asked."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import pytest

from api.result_cache_admin import ClearedResults
from assembly.cache_admin import ServiceCache, WorkerCaches
from assembly.result_cache import ProcessCache, open_result_cache
from assembly.result_clearing import ClearHandlers
from host.message_channel import Handler, MessageChannel
from tests.support.apps import settings_of

KEY, RESULT = b"k" * 16, b"r" * 1000


@dataclass(eq=False)
class RunningWorker:
    """A worker with its results; its supervisor knows it by its channel."""

    cache: ProcessCache
    channel: MessageChannel
    own_channel: MessageChannel
    service: ServiceCache
    cleared: asyncio.Event
    ready: asyncio.Event = field(default_factory=asyncio.Event)

    def keep(self) -> None:
        self.cache.store.put("model", {KEY: RESULT}, generation=self.cache.store.generation)

    @property
    def has_kept(self) -> bool:
        return self.cache.store.get([KEY]) == [RESULT]


class Supervisor:
    """A supervisor, and the workers that a test starts."""

    def __init__(self) -> None:
        self.workers: list[RunningWorker] = []
        self.handlers = ClearHandlers(lambda: self.workers).handlers
        self.stack = AsyncExitStack()

    async def start(self, *, is_ready: bool = True, answers: bool = True) -> RunningWorker:
        """Start a worker that has kept one result; one that does not answer has not opened its channel."""
        theirs, ours = socket.socketpair()
        cache = open_result_cache(settings_of())
        handlers: dict[str, Handler] = {}
        channel, own_channel = MessageChannel(ours, self.handlers), MessageChannel(theirs, handlers)
        caches = WorkerCaches(cache, channel=own_channel, workers=2)
        [(method, clear)] = caches.handlers.items()
        cleared = asyncio.Event()

        async def clear_and_tell(payload: bytes) -> bytes:
            answer = clear(payload)
            assert not isinstance(answer, bytes)
            result = await answer
            cleared.set()
            return result

        handlers[method] = clear_and_tell
        service = ServiceCache(cache, clear_memory=caches.clear_memory)
        worker = RunningWorker(cache, channel, own_channel, service, cleared)
        await channel.open()
        self.stack.callback(own_channel.close)
        self.stack.callback(channel.close)
        if answers:
            await own_channel.open()
        if is_ready:
            worker.ready.set()
        self.workers.append(worker)
        worker.keep()
        return worker


@pytest.fixture
async def supervisor() -> AsyncIterator[Supervisor]:
    running = Supervisor()
    async with running.stack:
        yield running


async def test_whichever_worker_is_asked_the_results_of_all_are_deleted_and_counted(supervisor: Supervisor) -> None:
    one, two = await supervisor.start(), await supervisor.start()
    cleared = await two.service.clear()
    assert (cleared.entries, cleared.redis, cleared.workers_unreachable) == (2, "off", 0)
    assert cleared.bytes > 2 * len(RESULT)
    assert not one.has_kept
    assert not two.has_kept
    assert await one.service.clear() == ClearedResults()


async def test_a_worker_that_hangs_is_reported_and_deletes_its_results_when_it_continues(
    supervisor: Supervisor,
) -> None:
    one, hung = await supervisor.start(), await supervisor.start(answers=False)
    cleared = await one.service.clear()
    assert (cleared.entries, cleared.workers_unreachable) == (1, 1)
    assert hung.has_kept
    await hung.own_channel.open()
    await hung.cleared.wait()
    assert not hung.has_kept


async def test_nobody_waits_for_a_worker_that_starts_but_it_gets_the_order_too(supervisor: Supervisor) -> None:
    one, starting = await supervisor.start(), await supervisor.start(is_ready=False, answers=False)
    cleared = await one.service.clear()
    assert (cleared.entries, cleared.workers_unreachable) == (1, 0)
    await starting.own_channel.open()
    await starting.cleared.wait()
    assert not starting.has_kept


async def test_a_worker_that_has_ended_is_no_trouble(supervisor: Supervisor) -> None:
    one, ended = await supervisor.start(), await supervisor.start()
    supervisor.workers.remove(ended)
    assert (await one.service.clear()).workers_unreachable == 0


async def test_without_the_supervisor_a_worker_deletes_its_own_results_and_says_so(supervisor: Supervisor) -> None:
    one, two = await supervisor.start(), await supervisor.start()
    one.channel.close()
    cleared = await one.service.clear()
    assert (cleared.entries, cleared.workers_unreachable) == (1, 1)
    assert not one.has_kept
    assert two.has_kept
