"""What an abuser does: `python -m benchmarks.abusers NAME PORT SECONDS` does it, then tells what came of it, as JSON.

Every abuse is a coroutine that runs until it is told that the time is over; answers are counted by status.
"""

import asyncio
import gzip
import itertools
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress

from benchmarks.cpu import raise_open_files
from benchmarks.texts import distinct_texts

HEAD = b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
TEN_MB = 10_000_000
SLOW_CONNECTIONS, IDLE_CONNECTIONS = 500, 5_000
IDLE_AT_ONCE = 100
"""Connections opened between two breaths, so that the kernel's queue holds them."""
REOPENED_AFTER_S = 10.0
WAITS_S = 10.0
"""So long an abuser waits for an answer before he goes away."""


class Abuser:
    """Owns what came of one abuse: answers by status, and connections that ended without one."""

    def __init__(self, port: int, seconds: float) -> None:
        self.answers: Counter[str] = Counter()
        self._port = port
        self._end = time.monotonic() + seconds

    def has_time(self) -> bool:
        return time.monotonic() < self._end

    @property
    def left_s(self) -> float:
        return max(0.0, self._end - time.monotonic())

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self._port)

    async def send(self, request: bytes) -> None:
        """Send a request on a connection of its own, and count its answer."""
        try:
            async with asyncio.timeout(WAITS_S):
                reader, writer = await self.connect()
                try:
                    with suppress(ConnectionError):  # refused before all is sent: the answer may be there already
                        writer.write(request)
                        await writer.drain()
                    self.note(await reader.read(64))
                finally:
                    writer.close()
        except (OSError, TimeoutError) as error:
            self.answers[type(error).__name__] += 1

    def note(self, head: bytes) -> None:
        self.answers[head[9:12].decode("latin-1") if head.startswith(b"HTTP/") else "closed"] += 1

    async def again_and_again(self, request: bytes, *, at_once: int = 1, pause_s: float = 0.0) -> None:
        async def one_after_the_other() -> None:
            while self.has_time():
                await self.send(request)
                await asyncio.sleep(pause_s)

        await asyncio.gather(*(one_after_the_other() for _ in range(at_once)))

    async def dripping(self, beginning: bytes, drop: bytes) -> None:
        """Many connections, each of which sends *drop* once a second."""

        async def one() -> None:
            while self.has_time():
                try:
                    reader, writer = await self.connect()
                except OSError as error:
                    self.answers[type(error).__name__] += 1
                    await asyncio.sleep(0.5)
                    continue
                writer.write(beginning)
                answer = asyncio.ensure_future(reader.read(64))
                while self.has_time() and not answer.done():
                    writer.write(drop)
                    await asyncio.wait([answer], timeout=min(1.0, self.left_s + 0.01))
                if answer.done():
                    with suppress(OSError):
                        answer.result()
                    self.note(answer.result() if not answer.exception() else b"")
                else:
                    answer.cancel()
                    self.answers["still open at the end"] += 1
                writer.close()

        await asyncio.gather(*(one() for _ in range(SLOW_CONNECTIONS)))


async def slow_headers(abuser: Abuser) -> None:
    """500 connections that send a header's letter a second."""
    await abuser.dripping(HEAD % b"/embed" + b"X-Slow: ", b"a")


async def slow_bodies(abuser: Abuser) -> None:
    """500 connections that send a body's letter a second."""
    await abuser.dripping(HEAD % b"/embed" + b'Content-Length: 9000\r\n\r\n{"text": "', b"a")


async def idle_connections(abuser: Abuser) -> None:
    """5,000 connections that send nothing; those that the server closes are opened anew after a while."""

    async def some() -> None:
        while abuser.has_time():
            try:
                reader, writer = await abuser.connect()
            except OSError as error:
                abuser.answers[type(error).__name__] += 1
                await asyncio.sleep(1)
                continue
            try:
                async with asyncio.timeout(abuser.left_s + 0.01):
                    abuser.note(await reader.read(64))
            except TimeoutError:
                abuser.answers["still open at the end"] += 1
            except OSError as error:
                abuser.answers[type(error).__name__] += 1
            finally:
                writer.close()
            await asyncio.sleep(min(REOPENED_AFTER_S, abuser.left_s))

    tasks = []
    for _ in range(IDLE_CONNECTIONS // IDLE_AT_ONCE):
        tasks += [asyncio.ensure_future(some()) for _ in range(IDLE_AT_ONCE)]
        await asyncio.sleep(0.02)
    await asyncio.gather(*tasks)


async def nested_json(abuser: Abuser) -> None:
    """10 MB of `[`, two at a time."""
    await abuser.again_and_again(posted(b"[" * (TEN_MB - 1)), at_once=2)


async def one_huge_text(abuser: Abuser) -> None:
    """10 MB of one text, two at a time."""
    await abuser.again_and_again(posted(b'{"text": "' + b"a" * (TEN_MB - 100) + b'"}'), at_once=2)


async def unknown_keys(abuser: Abuser) -> None:
    """10 MB of JSON with a million keys that nobody knows, two at a time."""
    keys = b", ".join(b'"%06d": 1' % number for number in range(800_000))
    await abuser.again_and_again(posted(b'{"text": "a", ' + keys[: TEN_MB - 200].rpartition(b",")[0] + b"}"), at_once=2)


async def wrong_json(abuser: Abuser) -> None:
    """10 MB of JSON that is wrong at its end, two at a time."""
    texts = b'"' + b'", "'.join([b"a" * 90] * 100_000) + b'"'
    await abuser.again_and_again(posted(b'{"texts": [' + texts + b', "\\ud800"]}', b"/embed/batch"), at_once=2)


async def long_texts(abuser: Abuser) -> None:
    """Batches of 32 texts of 8,192 characters, which are right: 16 callers at once."""
    texts = distinct_texts("mixed", "abuse")
    batches = [[" ".join(itertools.islice(texts, 60))[:8192] for _ in range(32)] for _ in range(4)]
    requests = [posted(json.dumps({"texts": batch}).encode(), b"/embed/batch") for batch in batches]
    await asyncio.gather(*(abuser.again_and_again(request, at_once=4, pause_s=0.1) for request in requests))


async def gzip_bombs(abuser: Abuser) -> None:
    """A gigabyte of one letter, compressed to a megabyte, four at a time."""
    bomb = gzip.compress(b"a" * 100_000_000, 9) * 10
    await abuser.again_and_again(posted(bomb, more=b"Content-Encoding: gzip\r\n"), at_once=4, pause_s=0.05)


async def gone_at_once(abuser: Abuser) -> None:
    """Batches whose callers go away at once, 100 a second."""
    texts = distinct_texts("mixed", "gone")
    requests = [posted(json.dumps({"texts": list(itertools.islice(texts, 8))}).encode(), b"/embed/batch") for _ in "ab"]
    for request in itertools.cycle(requests):
        if not abuser.has_time():
            return
        with suppress(OSError):
            _, writer = await abuser.connect()
            writer.write(request)
            writer.close()
            abuser.answers["not awaited"] += 1
        await asyncio.sleep(0.01)


async def many_headers(abuser: Abuser) -> None:
    """A megabyte of headers, four at a time."""
    headers = b"".join(b"X-%06d: %s\r\n" % (number, b"a" * 80) for number in range(10_000))
    await abuser.again_and_again(posted(b'{"text": "a"}', more=headers), at_once=4)


async def pipelining(abuser: Abuser) -> None:
    """10,000 requests sent on one connection without waiting for answers, four connections."""

    async def one() -> None:
        while abuser.has_time():
            reader, writer = await abuser.connect()
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(min(WAITS_S, abuser.left_s + 0.01)):
                    writer.write(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 10_000)
                    while received := await reader.read(1 << 18):
                        abuser.answers["200"] += received.count(b"HTTP/1.1 200")
            writer.close()

    await asyncio.gather(*(one() for _ in range(4)))


async def endless_chunks(abuser: Abuser) -> None:
    """A body in chunks that does not end at the bound, two at a time."""
    chunk = b"%x\r\n%s\r\n" % (1 << 20, b"a" * (1 << 20))
    request = HEAD % b"/embed" + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 40
    await abuser.again_and_again(request, at_once=2)


def posted(body: bytes, path: bytes = b"/embed", *, more: bytes = b"") -> bytes:
    return HEAD % path + more + b"Content-Length: %d\r\n\r\n" % len(body) + body


ABUSES: dict[str, Callable[[Abuser], Awaitable[None]]] = {
    abuse.__name__.replace("_", "-"): abuse
    for abuse in (
        slow_headers, slow_bodies, idle_connections, nested_json, one_huge_text, unknown_keys, wrong_json, long_texts,
        gzip_bombs, gone_at_once, many_headers, pipelining, endless_chunks,
    )
}  # fmt: skip


async def abused(name: str, port: int, seconds: float) -> Counter[str]:
    abuser = Abuser(port, seconds)
    await ABUSES[name](abuser)
    return abuser.answers


def main() -> None:
    name, port, seconds = sys.argv[1:]
    raise_open_files()
    os.nice(10)  # on a machine with few cores, the polite caller beside us shall lack none for our sake
    answers = asyncio.run(abused(name, int(port), float(seconds)))
    json.dump({"answers": answers, "cpu_s": time.process_time()}, sys.stdout)


if __name__ == "__main__":
    main()
