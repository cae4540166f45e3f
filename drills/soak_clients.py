"""Clients of the soak drill: they send valid and invalid requests at random, and disconnect in the middle of some."""

import asyncio
import itertools
import json
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from benchmarks.connections import content_length
from benchmarks.texts import distinct_texts

ANSWER_TIMEOUT_S = 60.0
TINY = ("soak/one", "soak/two", "soak/three", "soak/four")
"""Tiny models. With the bundled one they are more than the server may hold, so that models are evicted all the time."""
DTYPES = ("float32", "float16", "int8", "uint8", "binary", "ubinary")
SENT_AGAIN = 300
"""Texts, and bodies, of which one is sent again: fewer than the result cache of the drill holds."""
NO_ROUTE = "(no route)"


@dataclass(slots=True)
class Tally:
    """What the clients counted.

    Attributes:
        sent: requests by route, as the server must have counted them: those whose head was sent completely.
        answers: by problem code; `""` for answers of 200.
        texts: embedded in answers that clients received.
        abandoned: number of texts of each request whose client disconnected, by request id.
        unexpected: answers that the request may not get.
    """

    sent: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    texts: int = 0
    abandoned: dict[str, int] = field(default_factory=dict)
    unexpected: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Sent:
    """What the clients have sent lately, and send again."""

    texts: deque[str] = field(default_factory=lambda: deque(maxlen=SENT_AGAIN))
    bodies: deque[dict[str, str]] = field(default_factory=lambda: deque(maxlen=SENT_AGAIN))


class Client:
    """Performs random actions, on one connection as long as it stays open."""

    def __init__(self, port: int, tally: Tally, seed: str, sent: Sent | None = None) -> None:
        """Send half of the texts and bodies of *sent* again; None: no text comes twice."""
        self._port = port
        self._sent = sent
        self._tally = tally
        self._rng = random.Random(seed)
        self._name = seed.replace("/", ".")
        self._numbers = itertools.count()
        self._short = self._with_repeats(distinct_texts("short", seed))
        self._mixed = self._with_repeats(distinct_texts("mixed", seed))
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def run_until(self, is_over: Callable[[], bool]) -> None:
        actions: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (6, self._embed), (4, self._embed_batch), (2, self._tokenize), (1, self._embed_chunks),
            (4, self._use_tiny_model), (4, self._send_invalid), (1, self._make_model_fail),
            (2, self._set_short_timeout), (3, self._get), (4, self._disconnect),
        ]  # fmt: skip
        while not is_over():
            await self._rng.choices([act for _, act in actions], [weight for weight, _ in actions])[0]()
        await self.close()

    async def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            with suppress(OSError):
                await self._streams[1].wait_closed()
            self._streams = None

    async def _embed(self) -> None:
        dtype = self._rng.choice(DTYPES)
        encoding = self._rng.choice(("list", "base64"))
        body = {"text": next(self._short), "dtype": dtype, "encoding": encoding}
        if self._sent is not None:
            if self._sent.bodies and self._rng.random() < 0.5:
                body = self._rng.choice(self._sent.bodies)
            self._sent.bodies.append(body)
        await self.post("/embed", body, texts=1)

    async def _embed_batch(self) -> None:
        await self.embed_texts(self._rng.randint(2, 8))

    async def embed_texts(self, count: int) -> None:
        texts = list(itertools.islice(self._mixed, count))
        await self.post("/embed/batch", {"texts": texts}, texts=len(texts))

    async def _tokenize(self) -> None:
        texts = list(itertools.islice(self._mixed, 4))
        await self.post("/tokenize", {"texts": texts, "return_tokens": self._rng.random() < 0.5})

    async def _embed_chunks(self) -> None:
        text = " ".join(itertools.islice(self._mixed, 6))[:8000]
        await self.post("/embed", {"text": text, "long_text": "chunks"}, texts=1)

    async def _use_tiny_model(self) -> None:
        await self.embed_words("one two three", self._rng.choice(TINY))

    async def _make_model_fail(self) -> None:
        word, code = self._rng.choice((("poison", "inference-failed"), ("nan", "invalid-vector")))
        await self.embed_words(f"one {word}", self._rng.choice(TINY), expected=(code, "overloaded"))

    async def embed_words(self, words: str, model: str, *, expected: tuple[str, ...] = ("", "overloaded")) -> None:
        """Embed *words* with a number that makes the text another one each time. Tiny models do not know numbers."""
        text = f"{words} {self._name} {next(self._numbers)}"
        await self.post("/embed", {"text": text, "model_name": model}, texts=1, expected=expected)

    async def _set_short_timeout(self) -> None:
        texts = list(itertools.islice(self._mixed, 8))
        expected = ("", "deadline-exceeded", "overloaded")
        timeout = {"X-Request-Timeout": f"{self._rng.uniform(0.001, 0.2):.3f}"}
        await self.post("/embed/batch", {"texts": texts}, texts=8, expected=expected, headers=timeout)

    async def _get(self) -> None:
        path = self._rng.choice(("/health", "/health/live", "/models", "/metrics", "/schema/openapi.json"))
        await self._exchange(Request("GET", path), route=f"GET {path}", expected=("",))

    async def delete_results(self) -> None:
        await self._exchange(Request("DELETE", "/cache"), route="DELETE /cache", expected=("",))

    def _with_repeats(self, texts: Iterator[str]) -> Iterator[str]:
        """Yield *texts*, or half of the time what some client has sent, if the clients send texts again."""
        for text in texts:
            if self._sent is not None:
                while self._sent.texts and self._rng.random() < 0.5:
                    yield self._rng.choice(self._sent.texts)
                self._sent.texts.append(text)
            yield text

    async def _send_invalid(self) -> None:
        request, route, code = self._rng.choice(list(invalid_requests()))
        await self._exchange(request, route=route, expected=(code, "overloaded"))

    async def post(
        self,
        path: str,
        content: object,
        *,
        texts: int = 0,
        expected: tuple[str, ...] = ("", "overloaded"),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        request = Request("POST", path, json.dumps(content).encode(), headers or {})
        if await self._exchange(request, route=f"POST {path}", expected=expected) == "":
            self._tally.texts += texts

    async def _disconnect(self) -> None:
        """Disconnect after half of the head, after half of the body, or while waiting for the answer."""
        await self.close()
        texts = list(itertools.islice(self._mixed, 8))
        request_id = f"{self._name}-{next(self._numbers)}"
        body = json.dumps({"texts": texts}).encode()
        request = Request("POST", "/embed/batch", body, {"X-Request-ID": request_id}).encode()
        head_bytes = request.index(b"\r\n\r\n") + 4
        _, writer = await asyncio.open_connection("127.0.0.1", self._port)
        sent = self._rng.choice((head_bytes // 2, head_bytes + 10, len(request), len(request)))
        writer.write(request[:sent])
        await writer.drain()
        if sent > head_bytes:
            self._tally.sent["POST /embed/batch"] += 1
            self._tally.abandoned[request_id] = len(texts) if sent == len(request) else 0
            await asyncio.sleep(self._rng.choice((0.0, 0.05, 0.3)))
        writer.close()

    async def _exchange(self, request: "Request", *, route: str, expected: tuple[str, ...]) -> str:
        """Send a request, and return the code of its answer; `""` for 200."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        self._tally.sent[route] += 1
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                with suppress(ConnectionError):  # the server may answer and close before all is sent
                    writer.write(request.encode())
                    await writer.drain()
                head = await reader.readuntil(b"\r\n\r\n")
                answer = await reader.readexactly(content_length(head))
        except (TimeoutError, asyncio.IncompleteReadError, OSError) as error:
            self._tally.unexpected[f"{request.method} {request.path}: {type(error).__name__}"] += 1
            await self.close()
            return "no answer"
        code = "" if head[9:12] == b"200" else str(json.loads(answer).get("code", head[9:12].decode()))
        self._tally.answers[code] += 1
        if code not in expected:
            self._tally.unexpected[f"{request.method} {request.path}: {head[9:12].decode()} {code}"] += 1
        if b"connection: close" in head.lower() or self._rng.random() < 0.05:
            await self.close()
        return code


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP request."""

    method: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    def encode(self) -> bytes:
        """Return the bytes to send. JSON is the default content type."""
        headers = {
            "Host": "127.0.0.1",
            "Content-Type": "application/json",
            "Content-Length": str(len(self.body)),
            **self.headers,
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"{self.method} {self.path} HTTP/1.1\r\n{head}\r\n".encode() + self.body


def invalid_requests() -> Iterator[tuple[Request, str, str]]:
    """Yield a request, the route under which the server counts it, and the code of its answer."""
    bodies: list[tuple[object, str]] = [
        ({"text": " "}, "invalid-input"),
        ({"text": "a" * 9000}, "invalid-input"),
        ({"text": "a", "no_such_field": 1}, "invalid-input"),
        ({"text": 5}, "invalid-input"),
        ({"text": "a", "dtype": "float8"}, "invalid-input"),
        ({"text": "a", "model_name": "no/such-model"}, "unknown-model"),
        ({"text": "word " * 1000, "truncate": "none"}, "invalid-input"),
    ]
    for content, code in bodies:
        yield Request("POST", "/embed", json.dumps(content).encode()), "POST /embed", code
    yield Request("POST", "/embed", b'{"text": '), "POST /embed", "invalid-input"
    yield Request("POST", "/embed", b'{"text": "a"}', {"Content-Type": "text/plain"}), "POST /embed", "not-json"
    too_many = json.dumps({"texts": ["a"] * 33}).encode()
    yield Request("POST", "/embed/batch", too_many), "POST /embed/batch", "invalid-input"
    yield Request("GET", "/nowhere"), NO_ROUTE, "not-found"
    yield Request("GET", "/models/no/such-model"), "GET /models/{name}", "unknown-model"
