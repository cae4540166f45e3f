"""Quotas that replicas share through Redis. While Redis is unreachable, they are counted in memory.

Imported only with `REDIS_URL`: importing the client takes half as long as importing the rest of the service.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence

from redis.exceptions import RedisClusterException, RedisError

from access.quotas import MemoryQuotas, Quota, QuotaState, ShareKeys, charged_quotas, tokens_taken
from access.shared_quotas import CHECK_INTERVAL_S, SharedQuotas
from host.redis_client import CONNECT_S, RedisClient
from host.time_limits import time_limit

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


class RedisQuotas(SharedQuotas):
    """Counts in Redis, and in memory while Redis is unreachable."""

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
        super().__init__(quotas, store="redis", memory=memory, timeout_s=timeout_s, pause=pause)
        # One retry, for a connection that Redis has closed since its last use.
        self._redis = RedisClient(url, max_connections=MAX_CONNECTIONS, stale_retries=1)
        self._free = asyncio.Semaphore(MAX_CONNECTIONS)  # a cluster's client would raise an error instead of waiting
        self._script = self._redis.commands.register_script(TAKE)
        # Replicas with other quotas count other shares, so they must not share counters.
        self._suffix = "/".join(str(number) for quota in quotas for number in (quota.units, quota.window_s))

    async def _take(self, keys: ShareKeys) -> QuotaState:
        quotas = charged_quotas(self.quotas, keys)
        return await self._run(keys, quotas, [quota.taken for quota in quotas])

    async def _charge(self, keys: ShareKeys, tokens: int) -> None:
        quotas = charged_quotas(self.quotas, keys)
        await self._run(keys, quotas, tokens_taken(quotas, tokens), force=True)

    async def _check(self) -> None:
        """Run the script that requests run. A ping is not enough: a read-only replica answers it, too."""
        await self._run(PROBE, self.quotas, [0 for _ in self.quotas], force=True)

    async def _check_in_time(self) -> None:
        async with time_limit(max(CONNECT_S, self._timeout_s)):
            await self._redis.find_out()
        await super()._check_in_time()

    async def _close(self) -> None:
        await self._redis.disconnect()

    def _is_expected(self, error: Exception) -> bool:
        return isinstance(error, RedisError | RedisClusterException) or super()._is_expected(error)

    async def _run(
        self, keys: ShareKeys, quotas: tuple[Quota, ...], taken: Sequence[int], *, force: bool = False
    ) -> QuotaState:
        """Take the shares *taken* if all quotas allow it, or in any case with *force*."""
        arguments: list[int] = [self.quotas[0].window_us, int(force)]
        for quota, shares in zip(quotas, taken, strict=True):
            arguments += quota.shares_per_us, quota.needed, shares
        async with self._free:
            is_admitted, *used = await self._script(
                keys=self._redis_keys(keys), args=arguments, client=self._redis.commands
            )
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
