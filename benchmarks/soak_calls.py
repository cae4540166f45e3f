"""What the callers of the soak test do: right requests, wrong ones, and leaving in the middle of one."""

import asyncio
import itertools
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from benchmarks.texts import distinct_texts

ANSWERED_WITHIN_S = 60.0
BUNDLED = "sentence-transformers/all-MiniLM-L6-v2"
TINY = ("soak/one", "soak/two", "soak/three", "soak/four")
"""Tiny models; together with the bundled one they are more than the server may hold."""
DTYPES = ("float32", "float16", "int8", "uint8", "binary", "ubinary")


@dataclass(slots=True)
class Tally:
    """What the callers counted themselves.

    Attributes:
        sent: requests whose head went out whole, so that the server must have counted them, by route.
        answers: by problem code; `""` is an answer that is no problem.
        texts: embedded in answers that callers got.
        left: texts of the requests whose callers left, by request id.
        surprises: answers other than those that an action may get.
    """

    sent: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    texts: int = 0
    left: dict[str, int] = field(default_factory=dict)
    surprises: Counter[str] = field(default_factory=Counter)


class Principal:
    """Does actions at random, on a connection that it keeps while it can."""

    def __init__(self, port: int, tally: Tally, seed: str) -> None:
        self._port = port
        self._tally = tally
        self._rng = random.Random(seed)
        self._name = seed.replace("/", ".")
        self._numbers = itertools.count()
        self._short, self._mixed = distinct_texts("short", seed), distinct_texts("mixed", seed)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def call_until(self, is_over: Callable[[], bool]) -> None:
        actions: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (6, self._embeds), (4, self._embeds_many), (2, self._tokenizes), (1, self._asks_for_chunks),
            (4, self._asks_a_tiny_model), (4, self._errs), (1, self._makes_a_model_fail), (2, self._is_in_a_hurry),
            (3, self._looks_around), (4, self._leaves),
        ]  # fmt: skip
        while not is_over():
            await self._rng.choices([act for _, act in actions], [weight for weight, _ in actions])[0]()
        await self.hang_up()

    async def hang_up(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            with suppress(OSError):
                await self._streams[1].wait_closed()
            self._streams = None

    async def _embeds(self) -> None:
        dtype = self._rng.choice(DTYPES)
        encoding = self._rng.choice(("list", "base64"))
        await self.post("/embed", {"text": next(self._short), "dtype": dtype, "encoding": encoding}, texts=1)

    async def _embeds_many(self) -> None:
        texts = list(itertools.islice(self._mixed, self._rng.randint(2, 8)))
        await self.post("/embed/batch", {"texts": texts}, texts=len(texts))

    async def _tokenizes(self) -> None:
        texts = list(itertools.islice(self._mixed, 4))
        await self.post("/tokenize", {"texts": texts, "return_tokens": self._rng.random() < 0.5})

    async def _asks_for_chunks(self) -> None:
        text = " ".join(itertools.islice(self._mixed, 6))[:8000]
        await self.post("/embed", {"text": text, "long_text": "chunks"}, texts=1)

    async def _asks_a_tiny_model(self) -> None:
        await self.post("/embed", {"text": "one two three", "model_name": self._rng.choice(TINY)}, texts=1)

    async def _makes_a_model_fail(self) -> None:
        word, code = self._rng.choice((("poison", "inference-failed"), ("nan", "invalid-vector")))
        body = {"text": f"one {word}", "model_name": self._rng.choice(TINY)}
        await self.post("/embed", body, texts=1, expected=(code, "overloaded"))

    async def _is_in_a_hurry(self) -> None:
        texts = list(itertools.islice(self._mixed, 8))
        expected = ("", "deadline-exceeded", "overloaded")
        hurry = {"X-Request-Timeout": f"{self._rng.uniform(0.001, 0.2):.3f}"}
        await self.post("/embed/batch", {"texts": texts}, texts=8, expected=expected, headers=hurry)

    async def _looks_around(self) -> None:
        path = self._rng.choice(("/health", "/health/live", "/models", "/metrics", "/schema/openapi.json"))
        await self._exchange("GET", path, path, b"", {}, expected=("",))

    async def _errs(self) -> None:
        method, path, route, body, headers, code = self._rng.choice(list(mistakes()))
        await self._exchange(method, path, route, body, headers, expected=(code, "overloaded"))

    async def post(
        self,
        path: str,
        content: object,
        *,
        texts: int = 0,
        expected: tuple[str, ...] = ("", "overloaded"),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        body = json.dumps(content).encode()
        if await self._exchange("POST", path, path, body, headers or {}, expected=expected) == "":
            self._tally.texts += texts

    async def _leaves(self) -> None:
        """Go away with the head half sent, with the body half sent, or while the answer is awaited."""
        await self.hang_up()
        texts = list(itertools.islice(self._mixed, 8))
        request_id = f"{self._name}-{next(self._numbers)}"
        request = written("POST", "/embed/batch", json.dumps({"texts": texts}).encode(), {"X-Request-ID": request_id})
        head_ends = request.index(b"\r\n\r\n") + 4
        _, writer = await asyncio.open_connection("127.0.0.1", self._port)
        sent = self._rng.choice((head_ends // 2, head_ends + 10, len(request), len(request)))
        writer.write(request[:sent])
        await writer.drain()
        if sent > head_ends:
            self._tally.sent["POST /embed/batch"] += 1
            self._tally.left[request_id] = len(texts) if sent == len(request) else 0
            await asyncio.sleep(self._rng.choice((0.0, 0.05, 0.3)))
        writer.close()

    async def _exchange(
        self, method: str, path: str, route: str, body: bytes, headers: Mapping[str, str], *, expected: tuple[str, ...]
    ) -> str:
        """Send a request, and note and give the code of its answer."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        self._tally.sent[f"{method} {route}" if route else "(no route)"] += 1
        try:
            async with asyncio.timeout(ANSWERED_WITHIN_S):
                with suppress(ConnectionError):  # the answer may come before all is sent, and the connection end
                    writer.write(written(method, path, body, headers))
                    await writer.drain()
                head = await reader.readuntil(b"\r\n\r\n")
                answer = await reader.readexactly(length_of(head))
        except (TimeoutError, asyncio.IncompleteReadError, OSError) as error:
            self._tally.surprises[f"{method} {path}: {type(error).__name__}"] += 1
            await self.hang_up()
            return "no answer"
        code = "" if head[9:12] == b"200" else str(json.loads(answer).get("code", head[9:12].decode()))
        self._tally.answers[code] += 1
        if code not in expected:
            self._tally.surprises[f"{method} {path}: {head[9:12].decode()} {code}"] += 1
        if b"connection: close" in head.lower() or self._rng.random() < 0.05:
            await self.hang_up()
        return code


def mistakes() -> Iterator[tuple[str, str, str, bytes, dict[str, str], str]]:
    """Method, path, route as it is counted, body, headers, and the code of the answer."""
    bad: list[tuple[Any, str]] = [
        ({"text": " "}, "invalid-input"),
        ({"text": "a" * 9000}, "invalid-input"),
        ({"text": "a", "no_such_field": 1}, "invalid-input"),
        ({"text": 5}, "invalid-input"),
        ({"text": "a", "dtype": "float8"}, "invalid-input"),
        ({"text": "a", "model_name": "no/such-model"}, "unknown-model"),
        ({"text": "word " * 1000, "truncate": "none"}, "invalid-input"),
    ]
    for content, code in bad:
        yield "POST", "/embed", "/embed", json.dumps(content).encode(), {}, code
    yield "POST", "/embed", "/embed", b'{"text": ', {}, "invalid-input"
    yield "POST", "/embed", "/embed", b'{"text": "a"}', {"Content-Type": "text/plain"}, "not-json"
    yield "POST", "/embed/batch", "/embed/batch", json.dumps({"texts": ["a"] * 33}).encode(), {}, "invalid-input"
    yield "GET", "/nowhere", "", b"", {}, "not-found"
    yield "GET", "/models/no/such-model", "/models/{name}", b"", {}, "unknown-model"


def written(method: str, path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    lines = {"Host": "127.0.0.1", "Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body


def length_of(head: bytes) -> int:
    _, found, after = head.lower().partition(b"\r\ncontent-length:")
    return int(after.split(b"\r\n", 1)[0]) if found else 0
