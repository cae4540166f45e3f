"""A client of one Redis server or of a cluster, with bounded replies and without retries of its own.

Imported only with `REDIS_URL`: importing the library takes half as long as importing the rest of the service. Only this
module uses private names of redis-py.
"""

import asyncio
import builtins
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

from redis._parsers import _AsyncRESP2Parser
from redis.asyncio import BlockingConnectionPool, Connection, Redis, RedisCluster, SSLConnection
from redis.asyncio.connection import AbstractConnection, RedisSSLContext, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ConnectionError,  # noqa: A004 - the client's own
    InvalidResponse,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    ResponseError,
    TimeoutError,  # noqa: A004 - the client's own
)

from host.time_limits import time_limit

ErrorKind = Literal["timeout", "connection", "refused", "full", "read-only", "oversized", "protocol", "unexpected"]
MAX_REPLY_BYTES = 8 * 1024 * 1024
"""Largest reply that is read. Otherwise, a program that writes huge values to Redis could fill our memory."""
LINE_BYTES = 256
"""What each line of a reply counts for besides its length. Millions of empty elements would block the event loop."""
VALUE_TYPES = {bytes, type(None)}
CONNECT_S = 2.0
"""Seconds to connect for a check: TLS, a password and the servers of a cluster take several round trips. After that,
shorter limits hold."""
CLOSE_S = 1.0
"""Seconds in which connections must close; TLS would wait longer for a server that hangs."""
SCAN_COUNT = 1000
"""Keys that Redis looks at per step of a scan: some 0.2 ms, in which it does nothing else."""


class OversizedReplyError(InvalidResponse):
    """A reply is larger than `MAX_REPLY_BYTES`."""


class BoundedParser(_AsyncRESP2Parser):
    """Raises an error as soon as a reply announces too much, before that is read. The client then disconnects."""

    _room = 0

    async def read_response(self, disable_decoding: bool = False) -> Any:  # noqa: FBT001, FBT002 - as in the parent
        self._room = MAX_REPLY_BYTES
        return await super().read_response(disable_decoding=disable_decoding)

    async def _readline(self) -> bytes:
        self._take_room(LINE_BYTES)
        return await super()._readline()

    async def _read(self, length: int) -> bytes:
        self._take_room(length)
        return await super()._read(length)

    def _take_room(self, size: int) -> None:
        self._room -= size
        if size < 0 or self._room < 0:
            raise OversizedReplyError("a reply is too large")


KINDS: tuple[tuple[tuple[type[BaseException], ...], ErrorKind], ...] = (
    ((builtins.TimeoutError, TimeoutError), "timeout"),
    ((OversizedReplyError,), "oversized"),
    ((OutOfMemoryError,), "full"),
    ((ReadOnlyError,), "read-only"),
    ((ResponseError, AuthenticationError, AuthorizationError), "refused"),
    ((ConnectionError, OSError, RedisClusterException), "connection"),
    ((InvalidResponse, ValueError, RecursionError), "protocol"),
)
"""What errors mean; the first that fits."""


class RedisClient:
    """Commands that work on one server and on a cluster alike. `find_out` asks the server which of them it is.

    No command has a time limit of its own: use `time_limit`. A command that is cancelled closes its connection.
    """

    def __init__(self, url: str, *, max_connections: int, stale_retries: int = 0) -> None:
        """Open no socket yet.

        Args:
            url: of a server, or of any server of a cluster; it may contain a password.
            max_connections: to a server; when all are in use, commands wait for one.
            stale_retries: how often a command is repeated if Redis has closed its connection since the last command.

        Raises:
            ValueError, TypeError: the URL has an option that the client does not support.
        """
        self._max_connections = max_connections
        self._options: dict[str, Any] = {
            **parse_url(url),
            # Whatever the URL says: replies are bytes, and other parsers are not bounded.
            "protocol": 2,
            "decode_responses": False,
            "driver_info": None,  # else each connection sends a command that few users are allowed
            "socket_timeout": None,
            "socket_connect_timeout": None,
        }
        if self._options.get("connection_class") is SSLConnection:
            self._options["connection_class"] = _class_with_one_context()
        pool = BlockingConnectionPool(
            **{
                **self._options,
                "parser_class": BoundedParser,
                "max_connections": max_connections,
                "timeout": None,
                "retry_on_timeout": False,
                "retry": Retry(NoBackoff(), stale_retries, supported_errors=(ConnectionError,)),
            }
        )
        pool.make_connection()  # type: ignore[no-untyped-call]  # opens none; raises for unsupported options
        self._pool = pool
        self._connections: list[AbstractConnection] = []
        self._free: list[AbstractConnection] = []
        self._server: Redis = Redis.from_pool(pool)
        self._cluster: RedisCluster | None = None
        self._is_known = "path" in self._options

    @property
    def commands(self) -> Redis | RedisCluster:
        """The client of redis-py."""
        return self._cluster or self._server

    async def find_out(self) -> None:
        """Ask the server whether it belongs to a cluster, unless that is known, and connect to the whole cluster.

        Every user is allowed this. Servers before Redis 6 are taken for single ones.
        """
        if not self._is_known:
            if await self._is_part_of_a_cluster():
                self._cluster = self._new_cluster()
            self._is_known = True
        if self._cluster is not None:
            try:
                await self._cluster.initialize()
            except RedisClusterException:
                self._cluster, self._is_known = None, False  # next time begin with the address in the URL
                raise

    async def get_all(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the values of *keys*; None: it has none, or not a string."""
        values: Any
        if self._cluster is None:
            [values] = await self._exchange([(b"MGET", *keys)])
        else:
            values = await self._cluster.mget_nonatomic(keys)
        if isinstance(values, Exception):
            raise values
        if not (isinstance(values, list) and len(values) == len(keys) and set(map(type, values)) <= VALUE_TYPES):
            raise InvalidResponse("a reply does not fit its command")
        return values

    async def set_all(self, values: Mapping[bytes, bytes], *, ttl_ms: int) -> list[Exception]:
        """Store values in one trip, and return the errors of those that were not stored."""
        ttl = b"%d" % ttl_ms
        replies = await self._run([(b"SET", key, value, b"PX", ttl) for key, value in values.items()])
        return [reply for reply in replies if isinstance(reply, Exception)]

    async def sizes(self, keys: Sequence[bytes]) -> list[int]:
        """Return how many bytes the values of *keys* have; 0: it has none, or not a string."""
        replies = await self._run([(b"STRLEN", key) for key in keys])
        return [reply if isinstance(reply, int) else 0 for reply in replies]

    async def scan(self, prefix: bytes) -> AsyncIterator[bytes]:
        """Yield the keys that begin with *prefix*, which has no special characters; some perhaps twice."""
        async for key in self.commands.scan_iter(match=prefix + b"*", count=SCAN_COUNT):
            yield key

    async def unlink(self, keys: Sequence[bytes]) -> int:
        """Delete keys, and return how many of them existed."""
        return int(await self.commands.unlink(*keys))

    async def disconnect(self, *, only_idle: bool = False) -> None:
        """Close connections. The next command connects anew: it looks up the address, and who belongs to the cluster.

        Args:
            only_idle: leave connections alone that are in use, and those to a cluster.
        """
        with suppress(OSError, ConnectionError):
            async with time_limit(CLOSE_S):
                await self._pool.disconnect(inuse_connections=not only_idle)
                connections = self._free if only_idle else self._connections
                await asyncio.gather(*(connection.disconnect() for connection in connections))
                if self._cluster is not None and not only_idle:
                    await self._cluster.aclose()

    async def _run(self, commands: Sequence[tuple[bytes, ...]]) -> list[Any]:
        """Send commands, each about one key, in one trip; return their replies and errors."""
        if self._cluster is None:
            return await self._exchange(commands)
        pipeline = self._cluster.pipeline()
        for name, *arguments in commands:
            pipeline.execute_command(name.decode(), *arguments)
        replies: list[Any] = await pipeline.execute(raise_on_error=False)
        return replies

    async def _exchange(self, commands: Sequence[tuple[bytes, ...]]) -> list[Any]:
        """Send commands in one trip, and return their replies and errors.

        It does what `Redis` does, at half the CPU time, but never waits for a connection: callers limit their number.
        """
        if self._free:
            connection = self._free.pop()
        else:
            connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
            self._connections.append(connection)
        try:
            if (
                connection.is_connected and await connection.can_read()
            ):  # Redis has closed it, or sends what was not asked for
                await connection.disconnect()
            await connection.send_packed_command(_packed(commands))
            replies: list[Any] = []
            for _ in commands:
                try:
                    replies.append(await connection.read_response())
                except ResponseError as error:
                    replies.append(error)
            return replies
        finally:
            self._free.append(connection)  # if an error has closed it, it connects again when it is used

    async def _is_part_of_a_cluster(self) -> bool:
        [facts] = await self._exchange([(b"HELLO",)])
        if isinstance(facts, Exception):  # it does not know the command
            return False
        if not isinstance(facts, list):
            raise InvalidResponse("a reply does not fit its command")
        return (b"mode", b"cluster") in zip(facts[::2], facts[1::2], strict=False)

    def _new_cluster(self) -> RedisCluster:
        options = {**self._options}
        options.pop("db", None)
        connection_class = options.pop("connection_class", Connection)
        options |= {"max_connections": self._max_connections, "retry": Retry(NoBackoff(), 0)}
        cluster = RedisCluster(**options, ssl=connection_class is not Connection, require_full_coverage=False)
        # It has no options for these, but hands them on to its servers.
        cluster.connection_kwargs |= {"connection_class": connection_class, "parser_class": BoundedParser}
        for node in cluster.startup_nodes:
            node.connection_class = connection_class
            node.connection_kwargs["parser_class"] = BoundedParser
        return cluster


def _packed(commands: Iterable[Sequence[bytes]]) -> bytes:
    """Return *commands* as bytes. redis-py's own takes ten times as long, because it accepts other types, too."""
    parts = list[bytes]()
    for words in commands:
        parts.append(b"*%d\r\n" % len(words))
        parts += [b"$%d\r\n%b\r\n" % (len(word), word) for word in words]
    return b"".join(parts)


def _class_with_one_context() -> type[SSLConnection]:
    """Return a class whose connections share a TLS context: making one blocks the event loop for up to 30 ms."""
    context: RedisSSLContext | None = None

    class TlsConnection(SSLConnection):
        def __init__(self, **options: Any) -> None:
            nonlocal context
            super().__init__(**options)
            self.ssl_context = context = context or self.ssl_context

    return TlsConnection


def kind_of(error: BaseException) -> ErrorKind:
    """Return what went wrong, for metrics and the log. Messages may contain addresses and keys."""
    for kinds, kind in KINDS:
        if isinstance(error, kinds):
            return kind
    return "unexpected"
