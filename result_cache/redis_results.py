"""Results that replicas and workers share in Redis. Whatever Redis does, a request waits once at most, and never fails.

Imported only with `RESULT_CACHE_REDIS`: importing the client takes half as long as importing the rest of the service.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import structlog

from host.redis_client import CONNECT_S, ErrorKind, OversizedReplyError, RedisClient, kind_of
from host.time_limits import time_limit
from result_cache.circuit_breaker import CircuitBreaker
from result_cache.redis_counts import RedisCounter, RedisCounts
from result_cache.redis_reads import read_values
from result_cache.shared_reads import SharedReads
from result_cache.value_signing import SIGNATURE_BYTES, ValueSigner, derived_secret
from result_cache.write_queue import Write, WriteQueue

PREFIX = b"fast-embedding:result:"
"""Begins all keys in Redis. An id that depends on the secret comes next: services with other secrets are apart."""
MAX_CONNECTIONS = 8
"""To a server: for `MAX_READS`, for writes, checks and deletion."""
MAX_READS = 4
"""Reads in flight. Only full ones run side by side."""
MAX_KEYS = 32
"""Keys per read and per write. Longer requests make several: short ones are served in between, and large results, of
long texts in windows, still arrive in time."""
MAX_RESULT_BYTES = 1024 * 1024
"""Largest result that is written or used. One vector has a few kilobytes, the windows of a long text some hundred."""
MAX_VALUE_BYTES = MAX_RESULT_BYTES + SIGNATURE_BYTES
MAX_VERIFIED_BYTES = 256 * 1024
"""Bytes of values that are verified at once. Hashing and copying them blocks the event loop, 1 to 5 ms per MiB."""
MAX_QUEUE_BYTES = 8 * 1024 * 1024
"""Bytes of results that may wait to be written."""
MAX_WRITE_BYTES = 256 * 1024
"""Bytes of results after which a write takes no more."""
WRITE_S = 1.0
"""Seconds for a write, if the time limit of reads is shorter: no request waits for it."""
WRITE_DELAY_S = 0.002
"""Seconds after which results are written: the answer goes out before, and requests share writes."""
STEP_S = 2.0
"""Seconds for each step of deleting all results."""
UNLINK_KEYS = 500
"""Keys that are deleted at once."""
FIRST_PAUSE_S = 0.1
MAX_PAUSE_S = 10.0
"""Pauses before Redis is tried again."""
LOST: frozenset[ErrorKind] = frozenset({"timeout", "connection", "protocol", "oversized", "unexpected"})
"""Errors of writes that concern reads, too. After others, reads go on: Redis is full, or a replica, for example."""

log = structlog.get_logger()


class RedisUnreachableError(Exception):
    """Redis did not delete all results."""


class RedisResults:
    """Reads and writes results in Redis while that works. Otherwise it does nothing, at no cost.

    Only requests in flight at the first failure wait for Redis in vain, for *timeout_s* at most. Later ones do not use
    Redis: a check in the background, which they start after a pause, finds out when it works again.
    """

    def __init__(
        self, *, url: str, secret: bytes, ttl_s: float, timeout_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Open no socket before `running`.

        Args:
            url: of Redis, or of any server of a cluster; it may contain a password.
            secret: with it, others can write results that are used; at least 16 bytes.
            ttl_s: seconds after which Redis deletes a result.
            timeout_s: seconds in which Redis must answer.
            clock: returns seconds.

        Raises:
            ValueError: the URL has an option that the client does not support.
        """
        self._client = RedisClient(url, max_connections=MAX_CONNECTIONS)
        self._prefix = PREFIX + derived_secret(secret, b"id of a result cache")[:8].hex().encode() + b":"
        self._secret = derived_secret(secret, b"values of a result cache")
        self._ttl_ms = max(1, round(ttl_s * 1000))
        self._timeout_s = timeout_s
        self._clock = clock
        self._breaker = CircuitBreaker(first_pause_s=FIRST_PAUSE_S, max_pause_s=MAX_PAUSE_S, clock=clock)
        self._write_breaker = CircuitBreaker(first_pause_s=FIRST_PAUSE_S, max_pause_s=MAX_PAUSE_S, clock=clock)
        self._counter = RedisCounter()
        self._reads = SharedReads(self._read, max_reads=MAX_READS, max_keys=MAX_KEYS, timeout_s=timeout_s)
        self._queue = WriteQueue(max_bytes=MAX_QUEUE_BYTES, max_result_bytes=MAX_RESULT_BYTES)
        self._places: dict[str, tuple[bytes, ValueSigner]] = {}
        self._suspects: set[bytes] = set()  # names whose values Redis could not return in time
        self._writing: asyncio.Task[None] | None = None
        self._one_write = asyncio.Lock()
        self._checking: asyncio.Task[None] | None = None

    @property
    def counts(self) -> RedisCounts:
        """The counts until now."""
        return self._counter.counts(
            queue_bytes=self._queue.size, reading=self._breaker.state, writing=self._write_breaker.state
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Connect; at the end, write what waits and close all connections."""
        try:
            await self._check()
        except Exception as error:  # noqa: BLE001 - no error of Redis may stop the start
            self._fail(error)
        try:
            yield
        finally:
            if self._writing is not None:
                await self._writing
            if self._checking is not None:
                self._checking.cancel()
                await asyncio.gather(self._checking, return_exceptions=True)
            await self._reads.aclose()
            await self._client.disconnect()

    async def fetch(self, namespace: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the results that Redis has, in the order of *keys*. No read begins after *timeout_s*."""
        prefix, signer = self._place(namespace)
        results = list[bytes | None]()
        started, verified_bytes = self._clock(), 0
        for start in range(0, len(keys), MAX_KEYS):
            if not self._breaker.is_closed:
                self._begin_check_if_due()
                break
            if start and self._clock() - started >= self._timeout_s:
                break
            some = keys[start : start + MAX_KEYS]
            values = await self._reads.values([_name(prefix, key) for key in some])
            for key, value in zip(some, values, strict=True):
                results.append(None if value is None else self._verified(signer, key, value))
                verified_bytes += len(value or b"")
                if verified_bytes > MAX_VERIFIED_BYTES:
                    await asyncio.sleep(0)
                    verified_bytes = 0
        return results + [None] * (len(keys) - len(results))

    def put_later(self, namespace: str, results: Mapping[bytes, bytes]) -> None:
        """Write results in the background, or drop them if Redis cannot be written to or too many wait."""
        if not (self._breaker.is_closed and self._write_breaker.may_allow):
            self._counter.dropped += len(results)
            return
        self._counter.dropped += self._queue.put(namespace, results)
        if self._queue and self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write_queue())

    async def drop_waiting(self) -> None:
        """Forget what is not written yet, and wait for what is being written: nothing of it comes afterwards.

        It does not wait for results that come meanwhile; callers may disconnect.
        """
        self._counter.dropped += self._queue.clear()
        async with self._one_write:
            pass

    async def clear(self) -> int:
        """Delete all results of the services with this secret, and return their number.

        Raises:
            RedisUnreachableError: Redis cannot be reached, or does not allow it. It may have deleted some of them.
        """
        await self.drop_waiting()
        try:
            await self._check()
            return await self._delete_all()
        except Exception as error:
            raise RedisUnreachableError(f"Redis did not delete all results ({self._count(error)})") from error

    async def _delete_all(self) -> int:
        deleted, names = 0, []
        found = self._client.scan(self._prefix)
        while True:
            async with time_limit(STEP_S):
                name = await anext(found, None)
            if name is not None:
                names.append(name)
            if names and (name is None or len(names) == UNLINK_KEYS):
                async with time_limit(STEP_S):
                    deleted += await self._client.unlink(names)
                names = []
            if name is None:
                return deleted

    def check_if_due(self) -> None:
        """Have Redis checked if it failed and its pause is over: an idle service must not report an old failure."""
        is_checked = self._checking is not None and not self._checking.done()
        if not self._breaker.is_closed:
            self._begin_check_if_due()
        elif not is_checked and not self._write_breaker.is_closed and self._write_breaker.may_allow:
            self._checking = asyncio.get_running_loop().create_task(self._check_write())

    def _begin_check_if_due(self) -> None:
        """Have Redis, which failed, checked in the background if its pause is over."""
        if self._breaker.allows():
            self._checking = asyncio.get_running_loop().create_task(self._check_again())

    def _verified(self, signer: ValueSigner, key: bytes, value: bytes) -> bytes | None:
        """Return the result that is in *value*, if this service or another one with the secret wrote it there."""
        result = signer.verify(key, value) if len(value) <= MAX_VALUE_BYTES else None
        if result is None:
            self._report_bad_value()
        else:
            self._counter.hits += 1
        return result

    async def _read(self, names: Sequence[bytes]) -> Sequence[bytes | None]:
        """Return what Redis has; nothing if it fails."""
        started = self._clock()
        try:
            async with time_limit(self._timeout_s):
                values, is_complete = await read_values(self._client, names, max_bytes=MAX_VALUE_BYTES)
        except Exception as error:  # noqa: BLE001 - no error of Redis may fail a request
            if self._fail(error) == "timeout":
                self._suspects.update(names)
            return [None] * len(names)
        finally:
            self._counter.count_read(self._clock() - started)
        if not is_complete:
            self._count(OversizedReplyError())
        self._breaker.succeed()
        self._counter.lookups += len(names)
        return values

    async def _write_queue(self) -> None:
        await asyncio.sleep(WRITE_DELAY_S)
        try:
            while self._queue:
                async with self._one_write:
                    writes = self._queue.take(max_writes=MAX_KEYS, max_bytes=MAX_WRITE_BYTES)
                    stored = await self._write(writes) if writes else 0
                self._counter.writes += stored
                self._counter.dropped += len(writes) - stored
        finally:
            self._writing = None

    async def _write(self, writes: Sequence[Write]) -> int:
        """Write what Redis accepts, and return the number of results that it stored."""
        if not (self._breaker.is_closed and self._write_breaker.allows()):
            return 0
        values = {}
        for write in writes:
            prefix, signer = self._place(write.namespace)
            values[_name(prefix, write.key)] = signer.sign(write.key, write.result)
        try:
            async with time_limit(max(WRITE_S, self._timeout_s)):
                errors = await self._client.set_all(values, ttl_ms=self._ttl_ms)
        except Exception as error:  # noqa: BLE001 - a task of its own: only the log shows its errors
            errors = [error] * len(values)
        if errors:
            await self._stop_writes(errors)
        else:
            self._resume_writes()
        return len(values) - len(errors)

    async def _stop_writes(self, errors: Sequence[Exception]) -> None:
        error = errors[0]
        kind = kind_of(error)
        if kind in LOST:
            self._fail(error)
        else:
            self._count(error)
            if kind == "read-only":
                await self._client.disconnect(only_idle=True)  # perhaps its name leads to another server by now
        if self._write_breaker.fail() and kind not in LOST:
            log.warning("result_cache_writes_stopped", store="redis", reason=kind)

    def _resume_writes(self) -> None:
        if not self._write_breaker.is_closed:
            log.info("result_cache_writes_resumed", store="redis")
        self._write_breaker.succeed()

    async def _check(self) -> None:
        """Do what a request does, after connecting; raise an error if that does not work."""
        name = self._prefix + b"check"
        async with time_limit(CONNECT_S):
            await self._client.find_out()
            await self._client.get_all([name])
        async with time_limit(self._timeout_s):
            await self._client.get_all([name])

    async def _check_again(self) -> None:
        try:
            await self._client.disconnect()
            await self._check()
            await self._delete_suspects()
        except Exception as error:  # noqa: BLE001 - a task of its own: only the log shows its errors
            self._fail(error)
        else:
            self._breaker.succeed()
            log.info("result_cache_recovered", store="redis")

    async def _check_write(self) -> None:
        """Write a value that no request reads."""
        async with self._one_write:
            await self._write([Write("check", b"check", b"")])

    async def _delete_suspects(self) -> None:
        """Delete what could not be read in time: if one of the values is huge, Redis would hang again."""
        names, self._suspects = list(self._suspects), set()
        if names:
            async with time_limit(STEP_S):
                await self._client.unlink(names)

    def _fail(self, error: Exception) -> ErrorKind:
        """Do not use Redis until a check succeeds; return what went wrong."""
        kind = self._count(error)
        if self._breaker.fail():
            trace = error if kind == "unexpected" else None
            log.warning("result_cache_lost", store="redis", reason=kind, exc_info=trace)
            self._reads.release()
            self._counter.dropped += self._queue.clear()
        return kind

    def _count(self, error: Exception) -> ErrorKind:
        kind = kind_of(error)
        self._counter.errors[kind] += 1
        return kind

    def _report_bad_value(self) -> None:
        self._counter.errors["bad-value"] += 1
        if self._counter.errors["bad-value"] == 1:
            log.warning(
                "result_cache_bad_value",
                advice="another program writes to these keys in Redis, or changed a value; results are computed",
            )

    def _place(self, namespace: str) -> tuple[bytes, ValueSigner]:
        """Return what the names of the results of a namespace begin with, and what signs its values."""
        place = self._places.get(namespace)
        if place is None:
            prefix = self._prefix + namespace.encode()
            place = self._places[namespace] = (prefix + b":", ValueSigner(self._secret, prefix))
        return place


def _name(prefix: bytes, key: bytes) -> bytes:
    return prefix + key.hex().encode()
