"""Deletes the cached results of the whole service: of this process, or of all workers, and those in Redis."""

from collections.abc import Awaitable, Callable

import msgspec
import structlog

from api.result_cache_admin import ClearedResults
from assembly.result_cache import ProcessCache
from assembly.result_clearing import CLEAR, CLEAR_OWN, TIMEOUT_S, ClearedMemory
from host.message_channel import ChannelClosedError, Handler, MessageChannel, RemoteCallError

log = structlog.get_logger()


class ServiceCache:
    """The results of all processes of the service. `DELETE /cache` deletes them."""

    def __init__(self, cache: ProcessCache, *, clear_memory: Callable[[], Awaitable[ClearedMemory]]) -> None:
        """Delete nothing yet.

        Args:
            cache: of this process.
            clear_memory: deletes what all processes have in memory.
        """
        self._cache = cache
        self._clear_memory = clear_memory

    async def clear(self) -> ClearedResults:
        """Delete all results. What runs now is not kept afterwards."""
        cleared = await self._clear_memory()
        if not self._cache.has_redis:
            return ClearedResults(cleared.entries, cleared.bytes, workers_unreachable=cleared.unreachable)
        is_deleted = await self._cache.clear_redis()
        if not is_deleted:
            log.warning("result_cache_not_cleared", reason="Redis cannot be reached")
        again = await self._clear_memory()  # what was read from Redis before it was deleted there
        return ClearedResults(
            cleared.entries + again.entries,
            cleared.bytes + again.bytes,
            redis="deleted" if is_deleted else "unreachable",
            workers_unreachable=again.unreachable,
        )


class WorkerCaches:
    """What all workers have in memory, as one of them sees it."""

    def __init__(self, cache: ProcessCache, *, channel: MessageChannel, workers: int) -> None:
        """Ask nothing yet; *channel* leads to the supervisor of *workers* and must get `handlers`."""
        self._cache = cache
        self._channel = channel
        self._workers = workers

    @property
    def handlers(self) -> dict[str, Handler]:
        """What this worker answers to the supervisor."""
        return {CLEAR_OWN: self._clear_own}

    async def clear_memory(self) -> ClearedMemory:
        """Delete what is in memory of all workers; without the supervisor, only of this one."""
        try:
            answer = await self._channel.call(CLEAR, timeout_s=TIMEOUT_S)
        except (ChannelClosedError, RemoteCallError, TimeoutError):
            own = await self._cache.clear_memory()
            return msgspec.structs.replace(own, unreachable=self._workers - 1)
        return msgspec.msgpack.decode(answer, type=ClearedMemory)

    async def _clear_own(self, _: bytes) -> bytes:
        return msgspec.msgpack.encode(await self._cache.clear_memory())
