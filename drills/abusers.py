"""Abusive clients: `python -m drills.abusers NAME PORT SECONDS SEED` runs one kind, and prints what it got as JSON.

Each abuse is a coroutine that runs until the time is over. Answers are counted by status. No text that is embedded is
sent twice, by runs with other seeds neither: the service computes equal texts once, which would make the abuse weaker.
"""

import asyncio
import gzip
import itertools
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress

from benchmarks.texts import Kind, distinct_texts
from drills.process_limits import raise_open_files_limit

HEAD = b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
TEN_MB = 10_000_000
SLOW_CONNECTIONS, IDLE_CONNECTIONS = 500, 5_000
CONNECT_BATCH = 100
"""Idle connections opened at once: fewer than the kernel queues for a listening socket."""
STALLED_BODIES = 17
TINY_FIELDS = 30_000
ADDRESS = "127.0.0.2"
"""The abuser's address, so that the service takes it for another caller than the well-behaved client at 127.0.0.1."""
FLOOD_PAUSE_S = 0.05
"""How long a client of a flood waits after an answer. Rejected ones would take all of the core otherwise."""
RECONNECT_AFTER_S = 10.0
ANSWER_TIMEOUT_S = 60.0
STILL_OPEN = "still open at the end"
NUMBER = b"00000000"
"""Ends texts of requests that are sent repeatedly. A number that differs each time replaces it."""


class Abuser:
    """Counts the answers of one abuse by status, and connections that ended without one by reason."""

    def __init__(self, port: int, seconds: float, seed: str) -> None:
        self.answers: Counter[str] = Counter()
        self._port = port
        self.seed = seed
        self._numbers = itertools.count()
        self._end = time.monotonic() + seconds

    def has_time(self) -> bool:
        return time.monotonic() < self._end

    @property
    def left_s(self) -> float:
        return max(0.01, self._end - time.monotonic())

    def batch(self, kind: Kind, count: int, *, length: int | None = None, joined: int = 1) -> list[str]:
        """Return *count* distinct texts, each *joined* of them and cut to *length* characters, that end with NUMBER."""
        texts = distinct_texts(kind, f"{self.seed}/{next(self._numbers)}")
        cut = length and length - len(NUMBER) - 1
        return [f"{' '.join(itertools.islice(texts, joined))[:cut]} {NUMBER.decode()}" for _ in range(count)]

    def numbered(self, request: bytes) -> bytes:
        """Return *request* with a new number in its texts."""
        return request.replace(NUMBER, b"%08d" % next(self._numbers))

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self._port, local_addr=(ADDRESS, 0))

    def count(self, head: bytes) -> None:
        self.answers[head[9:12].decode("latin-1") if head.startswith(b"HTTP/") else "closed"] += 1

    async def send(self, request: bytes) -> None:
        """Send a request on a connection of its own, and count its answer."""
        try:
            async with asyncio.timeout(min(ANSWER_TIMEOUT_S, self.left_s)):
                reader, writer = await self.connect()
                try:
                    with suppress(ConnectionError):  # rejected before all is sent: the answer may have arrived already
                        writer.write(request)
                        await writer.drain()
                    self.count(await reader.read(64))
                finally:
                    writer.close()
        except (OSError, TimeoutError) as error:
            self.answers[type(error).__name__ if self.has_time() else STILL_OPEN] += 1

    async def repeat(self, request: bytes, *, clients: int = 1, pause_s: float = 0.0) -> None:
        """Send *request* with a new number in its texts again and again, from several clients at once."""

        async def send_repeatedly() -> None:
            while self.has_time():
                await self.send(self.numbered(request))
                await asyncio.sleep(pause_s)

        await asyncio.gather(*(send_repeatedly() for _ in range(clients)))

    async def hold(self, beginning: bytes, more: bytes) -> None:
        """Open a connection, send *beginning*, then *more* every second until it is answered or the time is over."""
        try:
            reader, writer = await self.connect()
        except OSError as error:
            self.answers[type(error).__name__] += 1
            await asyncio.sleep(0.5)
            return
        writer.write(beginning)
        answer = asyncio.ensure_future(reader.read(64))
        while self.has_time() and not answer.done():
            writer.write(more)
            await asyncio.wait([answer], timeout=min(1.0, self.left_s) if more else self.left_s)
        if answer.done():
            self.count(b"" if answer.exception() else answer.result())
        else:
            answer.cancel()
            self.answers[STILL_OPEN] += 1
        writer.close()

    async def hold_many(
        self, connections: int, beginning: bytes = b"", more: bytes = b"", *, pause_s: float = 0.0
    ) -> None:
        """Hold many connections; one that the server closes is opened again after a pause."""

        async def hold_one(number: int) -> None:
            await asyncio.sleep(number // CONNECT_BATCH * 0.02)
            while self.has_time():
                await self.hold(beginning, more)
                await asyncio.sleep(min(pause_s, self.left_s))

        await asyncio.gather(*(hold_one(number) for number in range(connections)))


async def slow_headers(abuser: Abuser) -> None:
    """500 connections that send one letter of a header per second."""
    await abuser.hold_many(SLOW_CONNECTIONS, HEAD % b"/embed" + b"X-Slow: ", b"a")


async def slow_bodies(abuser: Abuser) -> None:
    """500 connections that send one letter of a body per second."""
    await abuser.hold_many(SLOW_CONNECTIONS, HEAD % b"/embed" + b'Content-Length: 9000\r\n\r\n{"text": "', b"a")


async def idle_connections(abuser: Abuser) -> None:
    """5,000 connections that send nothing."""
    await abuser.hold_many(IDLE_CONNECTIONS, pause_s=RECONNECT_AFTER_S)


async def nested_json(abuser: Abuser) -> None:
    """10 MB of `[`, two at a time."""
    await abuser.repeat(_post(b"[" * (TEN_MB - 1)), clients=2)


async def one_huge_text(abuser: Abuser) -> None:
    """10 MB of one text, two at a time."""
    await abuser.repeat(_post(b'{"text": "' + b"a" * (TEN_MB - 100) + b'"}'), clients=2)


async def unknown_keys(abuser: Abuser) -> None:
    """10 MB of JSON with 800,000 unknown keys, two at a time."""
    keys = b", ".join(b'"%06d": 1' % number for number in range(800_000))
    await abuser.repeat(_post(b'{"text": "a", ' + keys[: TEN_MB - 200].rpartition(b",")[0] + b"}"), clients=2)


async def wrong_json(abuser: Abuser) -> None:
    """10 MB of JSON that is invalid at its end, two at a time."""
    texts = b'"' + b'", "'.join([b"a" * 90] * 100_000) + b'"'
    await abuser.repeat(_post(b'{"texts": [' + texts + b', "\\ud800"]}', b"/embed/batch"), clients=2)


async def long_texts(abuser: Abuser) -> None:
    """Valid batches of 32 texts of 8,192 characters, from 16 clients."""
    requests = [_batch(abuser.batch("mixed", 32, length=8192, joined=32)) for _ in range(4)]
    await asyncio.gather(*(abuser.repeat(request, clients=4, pause_s=0.1) for request in requests))


async def mixed_flood(abuser: Abuser) -> None:
    """Texts of mixed lengths, 200 of them outstanding."""
    await _flood(abuser, _singles(abuser.batch("mixed", 200)))


async def short_flood(abuser: Abuser) -> None:
    """Short texts, 400 of them outstanding."""
    await _flood(abuser, _singles(abuser.batch("short", 400)))


async def bulk_flood(abuser: Abuser) -> None:
    """Batches of 32 long texts, 16 of them outstanding."""
    await _flood(abuser, [_batch(abuser.batch("mixed", 32, joined=8))] * 16)


async def tokenize_flood(abuser: Abuser) -> None:
    """Batches of 32 texts of 8,192 Chinese characters to `/tokenize`, from 16 clients."""
    ends = [f" {abuser.seed} {place} {NUMBER.decode()}" for place in range(32)]
    texts = [("\u6f22\u5b57\u4eee\u540d" * 2048)[: -len(end)] + end for end in ends]
    body = json.dumps({"texts": texts}, ensure_ascii=False).encode()
    await abuser.repeat(_post(body, b"/tokenize"), clients=16, pause_s=FLOOD_PAUSE_S)


async def stalled_bodies(abuser: Abuser) -> None:
    """17 bodies of 10 MB that stop in the middle."""
    head = HEAD % b"/embed" + b"Content-Length: %d\r\n\r\n" % (TEN_MB - 1)
    await abuser.hold_many(STALLED_BODIES, head + b'{"text": "' + b"a" * (TEN_MB // 2), pause_s=1.0)


async def tiny_headers(abuser: Abuser) -> None:
    """Heads of 30,000 tiny fields, from 24 clients."""
    await abuser.repeat(_post(b'{"text": "a"}', more_headers=b"a:\r\n" * TINY_FIELDS), clients=24)


async def gzip_bombs(abuser: Abuser) -> None:
    """A gigabyte of one letter, compressed to a megabyte, four at a time."""
    bomb = gzip.compress(b"a" * 100_000_000, 9) * 10
    await abuser.repeat(_post(bomb, more_headers=b"Content-Encoding: gzip\r\n"), clients=4, pause_s=0.05)


async def gone_at_once(abuser: Abuser) -> None:
    """Batches whose clients disconnect at once, 100 per second."""
    request = _batch(abuser.batch("mixed", 8))
    while abuser.has_time():
        with suppress(OSError):
            _, writer = await abuser.connect()
            writer.write(abuser.numbered(request))
            writer.close()
            abuser.answers["not awaited"] += 1
        await asyncio.sleep(0.01)


async def many_headers(abuser: Abuser) -> None:
    """A megabyte of headers, four at a time."""
    headers = b"".join(b"X-%06d: %s\r\n" % (number, b"a" * 80) for number in range(10_000))
    await abuser.repeat(_post(b'{"text": "a"}', more_headers=headers), clients=4)


async def pipelining(abuser: Abuser) -> None:
    """10,000 requests sent on one connection without waiting for answers, on four connections."""

    async def pipeline() -> None:
        while abuser.has_time():
            reader, writer = await abuser.connect()
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(min(ANSWER_TIMEOUT_S, abuser.left_s)):
                    writer.write(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 10_000)
                    while received := await reader.read(1 << 18):
                        abuser.answers["200"] += received.count(b"HTTP/1.1 200")
            writer.close()

    await asyncio.gather(*(pipeline() for _ in range(4)))


async def endless_chunks(abuser: Abuser) -> None:
    """A chunked body that does not end at the size limit, two at a time."""
    chunk = b"%x\r\n%s\r\n" % (1 << 20, b"a" * (1 << 20))
    request = HEAD % b"/embed" + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 40
    await abuser.repeat(request, clients=2)


async def _flood(abuser: Abuser, requests: Iterable[bytes]) -> None:
    """Keep all *requests* outstanding, each from a client of its own."""
    async with asyncio.TaskGroup() as tasks:
        for request in requests:
            tasks.create_task(abuser.repeat(request, pause_s=FLOOD_PAUSE_S))


def _singles(texts: list[str]) -> list[bytes]:
    return [_post(json.dumps({"text": text}).encode()) for text in texts]


def _batch(texts: list[str]) -> bytes:
    return _post(json.dumps({"texts": texts}).encode(), b"/embed/batch")


def _post(body: bytes, path: bytes = b"/embed", *, more_headers: bytes = b"") -> bytes:
    return HEAD % path + more_headers + b"Content-Length: %d\r\n\r\n" % len(body) + body


ABUSES: dict[str, Callable[[Abuser], Awaitable[None]]] = {
    abuse.__name__.replace("_", "-"): abuse
    for abuse in (
        slow_headers, slow_bodies, idle_connections, nested_json, one_huge_text, unknown_keys, wrong_json, long_texts,
        gzip_bombs, gone_at_once, many_headers, pipelining, endless_chunks, mixed_flood, short_flood, bulk_flood,
        tokenize_flood, stalled_bodies, tiny_headers,
    )
}  # fmt: skip


async def _run(name: str, port: int, seconds: float, seed: str) -> Counter[str]:
    abuser = Abuser(port, seconds, seed)
    await ABUSES[name](abuser)
    return abuser.answers


def main() -> None:
    name, port, seconds, seed = sys.argv[1:]
    raise_open_files_limit()
    os.nice(10)  # the well-behaved client uses the same core and must not get less of it
    json.dump(asyncio.run(_run(name, int(port), float(seconds), seed)), sys.stdout)


if __name__ == "__main__":
    main()
