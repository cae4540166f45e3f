"""Quotas that replicas share through Redis. While Redis is unreachable, they are counted in memory.

Imported only with `REDIS_URL`: importing the client takes half as long as importing the rest of the service.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import structlog
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, RedisError  # noqa: A004 - the client's own

from access.quotas import MemoryQuotas, Quota, QuotaState, ShareKeys, Store, charged_quotas, tokens_taken

CHECK_INTERVAL_S = 1.0
"""Seconds between two checks whether Redis is reachable again."""
SLICES = 5
"""Number of parts of the time limit, see `_time_limit`."""
MAX_CONNECTIONS = 16
"""Maximum number of connections to Redis; when all are in use, requests wait for one."""
PROBE = ("probe",)
"""The caller for which a check writes to Redis. No principal has this key."""

TAKE = """
-- Free the shares that have expired, then take more if all quotas allow it: one atomic step, by the clock of Redis.
-- KEYS: the caller, and perhaps its wide network. ARGV: microseconds of a window; 1 to take shares beyond the quotas,
-- too; then per quota, in the order of the keys, the shares that a microsecond frees, the shares that must be free, and
-- the shares to take. Numbers stay below 2^53, so doubles are exact.
local window_us, force = tonumber(ARGV[1]), ARGV[2] == '1'
local clock = redis.call('TIME')
local now_us = clock[1] * 1000000 + clock[2]
local count = (#ARGV - 2) / #KEYS
local used, fits, passed_us = {}, true, {}
for k, key in ipairs(KEYS) do
  passed_us[k] = math.max(0, now_us - tonumber(redis.call('HGET', key, 'at') or now_us))
end
for i = 3, #ARGV, 3 do
  local k = math.ceil((i - 2) / count)
  local rate, kept = tonumber(ARGV[i]), tonumber(redis.call('HGET', KEYS[k], i) or 0)
  used[#used + 1] = math.max(0, kept - passed_us[k] * rate)
  fits = fits and used[#used] + ARGV[i + 1] <= rate * window_us
end
local answer, lasts_us = {(fits or force) and 1 or 0}, {}
for n, shares in ipairs(used) do
  local i = 3 * n
  local k = math.ceil((i - 2) / count)
  if fits or force then
    shares = shares + ARGV[i + 2]
    redis.call('HSET', KEYS[k], 'at', string.format('%.0f', now_us), i, string.format('%.0f', shares))
    lasts_us[k] = math.max(lasts_us[k] or 1, shares / ARGV[i])
  end
  answer[n + 1] = string.format('%.0f', shares)
end
for k, us in ipairs(lasts_us) do redis.call('PEXPIRE', KEYS[k], math.ceil(us / 1000) + 1) end
return answer
"""

log = structlog.get_logger()


class RedisQuotas:
    """Counts in Redis while it answers in time, and in memory from the first error until it answers again.

    Only the requests in flight at that error wait for Redis in vain, for *timeout_s* at most. A background task checks
    whether Redis is reachable again, so later requests do not have to.
    """

    def __init__(
        self,
        quotas: tuple[Quota, ...],
        *,
        url: str,
        memory: MemoryQuotas,
        timeout_s: float,
        pause: Callable[[], Awaitable[object]] = lambda: asyncio.sleep(CHECK_INTERVAL_S),
    ) -> None:
        """Open no socket before `running`.

        Args:
            quotas: of each caller.
            url: of Redis; it may contain a password.
            memory: counts while Redis is unreachable.
            timeout_s: seconds in which Redis must answer.
            pause: waits between two checks whether Redis is reachable again.

        Raises:
            ValueError: the URL has an option that the client does not support.
        """
        self.quotas = quotas
        self.fallbacks = 0
        self.fallback_reason: str | None = None
        self._memory = memory
        self._timeout_s = timeout_s
        self._pause = pause
        self._checking: asyncio.Task[None] | None = None
        self._charges: set[asyncio.Task[None]] = set()
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=MAX_CONNECTIONS,
            timeout=None,  # bounded by timeout_s, like every call to Redis
            socket_connect_timeout=None,
            socket_timeout=None,
            # One retry, for a connection that Redis has closed since its last use.
            retry=Retry(NoBackoff(), 1, supported_errors=(ConnectionError,)),
        )
        pool.make_connection()  # type: ignore[no-untyped-call]  # opens none; raises for unsupported options
        self._redis: Redis = Redis.from_pool(pool)
        self._script = self._redis.register_script(TAKE)
        # Replicas with other quotas count other shares, so they must not share counters.
        self._suffix = "/".join(str(number) for quota in quotas for number in (quota.units, quota.window_s))

    @property
    def store(self) -> Store:
        """Where usage is counted now."""
        return "redis" if self.fallback_reason is None else "memory"

    async def take(self, keys: ShareKeys) -> QuotaState:
        if self.fallback_reason is None:
            quotas = charged_quotas(self.quotas, keys)
            try:
                return await self._take(keys, quotas, [quota.taken for quota in quotas])
            except Exception as error:  # noqa: BLE001 - no error of Redis may fail a request
                self._fall_back(error)
        return self._memory.take_now(keys)

    def charge(self, keys: ShareKeys, tokens: int) -> None:
        """Charge the tokens of a request that was admitted, in the background."""
        if self.fallback_reason is not None:
            self._memory.charge(keys, tokens)
            return
        charging = asyncio.get_running_loop().create_task(self._charge(keys, tokens))
        self._charges.add(charging)
        charging.add_done_callback(self._charges.discard)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Connect; at the end, finish the charges in flight and close all connections."""
        try:
            await self._check()
        except Exception as error:  # noqa: BLE001 - no error of Redis may stop the start
            self._fall_back(error)
        try:
            yield
        finally:
            await asyncio.gather(*self._charges)  # each is bounded by timeout_s
            if self._checking is not None:
                self._checking.cancel()
                with suppress(asyncio.CancelledError):
                    await self._checking
            await self._redis.aclose()
            await self._redis.connection_pool.disconnect()

    async def _charge(self, keys: ShareKeys, tokens: int) -> None:
        quotas = charged_quotas(self.quotas, keys)
        try:
            await self._take(keys, quotas, tokens_taken(quotas, tokens), force=True)
        except Exception as error:  # noqa: BLE001 - no error of Redis may fail a request
            self._fall_back(error)
            self._memory.charge(keys, tokens)

    async def _take(
        self, keys: ShareKeys, quotas: tuple[Quota, ...], taken: Sequence[int], *, force: bool = False
    ) -> QuotaState:
        """Take the shares *taken* if all quotas allow it, or in any case with *force*."""
        arguments: list[int] = [self.quotas[0].window_us, int(force)]
        for quota, shares in zip(quotas, taken, strict=True):
            arguments += quota.shares_per_us, quota.needed, shares
        async with _time_limit(self._timeout_s):
            is_admitted, *used = await self._script(keys=self._redis_keys(keys), args=arguments)
        return QuotaState(quotas, tuple(map(int, used)), is_admitted=bool(is_admitted))

    def _redis_keys(self, keys: ShareKeys) -> list[str]:
        """Return the keys in Redis: hashes, which do not reveal callers.

        All keys of one script must be on the same server of a cluster. The part in braces, which chooses the server, is
        therefore the wide network.
        """
        digests = [hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=16).hexdigest() for key in keys]
        if len(digests) > 1:
            tag = f"{{{digests[-1]}}}"
            digests = [*(f"{tag}:{digest}" for digest in digests[:-1]), tag]
        return [f"fast-embedding:allowance:{digest}:{self._suffix}" for digest in digests]

    def _fall_back(self, error: Exception) -> None:
        if self.fallback_reason is not None:
            return  # another request has detected it before
        self.fallback_reason = type(error).__name__  # without the message, which may contain addresses
        self.fallbacks += 1
        is_expected = isinstance(error, RedisError | OSError)
        log.warning(
            "limits_fell_back", store="memory", reason=self.fallback_reason, exc_info=None if is_expected else error
        )
        self._checking = asyncio.get_running_loop().create_task(self._check_until_reachable())

    async def _check_until_reachable(self) -> None:
        while True:
            await self._pause()
            with suppress(Exception):
                await self._check()
                break
        self.fallback_reason = None
        log.info("limits_recovered", store="redis")

    async def _check(self) -> None:
        """Run the script that requests run. A ping is not enough: a read-only replica answers it, too."""
        await self._take(PROBE, self.quotas, [0 for _ in self.quotas], force=True)


@asynccontextmanager
async def _time_limit(seconds: float) -> AsyncIterator[None]:
    """Limit the block to *seconds*, as `asyncio.timeout` does, but without timing out because of a busy event loop.

    The time is counted in slices. A period in which the event loop was blocked counts as one slice, however long it
    was, so an answer that arrived meanwhile is read before the time is over.

    Raises:
        TimeoutError: the time is over.
    """
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle | None = None
    async with asyncio.timeout(None) as limit:

        def wait_for(slices: int) -> None:
            nonlocal timer
            if slices:
                timer = loop.call_later(seconds / SLICES, wait_for, slices - 1)
            else:
                limit.reschedule(loop.time())

        wait_for(SLICES)
        try:
            yield
        finally:
            if timer is not None:
                timer.cancel()
