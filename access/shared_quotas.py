"""Quotas that several processes share through a store outside this process, and that memory replaces without it."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import structlog

from access.quotas import MemoryQuotas, Quota, QuotaState, ShareKeys, Store
from host.time_limits import time_limit

CHECK_INTERVAL_S = 1.0
"""Seconds between two checks whether the store is reachable again."""

log = structlog.get_logger()


class SharedQuotas(ABC):
    """Counts in a shared store while it answers in time, and in memory from the first error until it answers again.

    Only the requests in flight at that error wait for the store in vain, for *timeout_s* at most. A background task
    checks whether the store is reachable again, so later requests do not have to.
    """

    def __init__(
        self,
        quotas: tuple[Quota, ...],
        *,
        store: Store,
        memory: MemoryQuotas,
        timeout_s: float,
        pause: Callable[[], Awaitable[object]] = lambda: asyncio.sleep(CHECK_INTERVAL_S),
    ) -> None:
        """Ask nothing before `running`.

        Args:
            quotas: of each caller.
            store: the name of the shared store.
            memory: counts while the store is unreachable.
            timeout_s: seconds in which the store must answer.
            pause: waits between two checks whether the store is reachable again.
        """
        self.quotas = quotas
        self.fallbacks = 0
        self.fallback_reason: str | None = None
        self._store = store
        self._memory = memory
        self._timeout_s = timeout_s
        self._pause = pause
        self._checking: asyncio.Task[None] | None = None
        self._charges: set[asyncio.Task[None]] = set()

    @property
    def store(self) -> Store:
        """Where usage is counted now."""
        return self._store if self.fallback_reason is None else "memory"

    async def take(self, keys: ShareKeys) -> QuotaState:
        if self.fallback_reason is None:
            try:
                async with time_limit(self._timeout_s):
                    return await self._take(keys)
            except Exception as error:  # noqa: BLE001 - no error of the store may fail a request
                self._fall_back(error)
        return self._memory.take_now(keys)

    def charge(self, keys: ShareKeys, tokens: int) -> None:
        """Charge the tokens of a request that was admitted, in the background."""
        if self.fallback_reason is not None:
            self._memory.charge(keys, tokens)
            return
        charging = asyncio.get_running_loop().create_task(self._charge_or_fall_back(keys, tokens))
        self._charges.add(charging)
        charging.add_done_callback(self._charges.discard)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Connect; at the end, finish the charges in flight and close all connections."""
        try:
            await self._check_in_time()
        except Exception as error:  # noqa: BLE001 - no error of the store may stop the start
            self._fall_back(error)
        try:
            yield
        finally:
            await asyncio.gather(*self._charges)  # each is bounded by timeout_s
            if self._checking is not None:
                self._checking.cancel()
                with suppress(asyncio.CancelledError):
                    await self._checking
            await self._close()

    @abstractmethod
    async def _take(self, keys: ShareKeys) -> QuotaState:
        """Do what `take` does, in the shared store."""

    @abstractmethod
    async def _charge(self, keys: ShareKeys, tokens: int) -> None:
        """Do what `charge` does, in the shared store."""

    @abstractmethod
    async def _check(self) -> None:
        """Raise an error unless the store works."""

    @abstractmethod
    async def _close(self) -> None:
        """Close the connections to the store."""

    def _is_expected(self, error: Exception) -> bool:
        """Return whether *error* means that the store is unreachable; others are logged with their traceback."""
        return isinstance(error, OSError)  # a TimeoutError is one

    async def _charge_or_fall_back(self, keys: ShareKeys, tokens: int) -> None:
        try:
            async with time_limit(self._timeout_s):
                await self._charge(keys, tokens)
        except Exception as error:  # noqa: BLE001 - no error of the store may fail a request
            self._fall_back(error)
            self._memory.charge(keys, tokens)

    def _fall_back(self, error: Exception) -> None:
        if self.fallback_reason is not None:
            return  # another request has detected it before
        self.fallback_reason = type(error).__name__  # without the message, which may contain addresses
        self.fallbacks += 1
        log.warning(
            "limits_fell_back",
            store="memory",
            reason=self.fallback_reason,
            exc_info=None if self._is_expected(error) else error,
        )
        self._checking = asyncio.get_running_loop().create_task(self._check_until_reachable())

    async def _check_until_reachable(self) -> None:
        while True:
            await self._pause()
            with suppress(Exception):
                await self._check_in_time()
                break
        self.fallback_reason = None
        log.info("limits_recovered", store=self._store)

    async def _check_in_time(self) -> None:
        async with time_limit(self._timeout_s):
            await self._check()
