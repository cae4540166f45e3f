"""Wire formats of embedding servers: the route, the body for some texts, and the vectors of an answer."""

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Format:
    """A wire format. *route* follows the base URL; *vectors* returns lists of numbers, or base64 where asked for."""

    route: Callable[[Sequence[str]], str]
    body: Callable[[str, Sequence[str]], dict[str, Any]]
    vectors: Callable[[Any], list[Any]]


def _native_body(_model: str, texts: Sequence[str]) -> dict[str, Any]:
    return {"text": texts[0]} if len(texts) == 1 else {"texts": texts}


def _native_vectors(answer: Any) -> list[Any]:
    return [answer["embedding"]] if "embedding" in answer else list(answer["embeddings"])


FORMATS = {
    "native": Format(lambda texts: "/embed" if len(texts) == 1 else "/embed/batch", _native_body, _native_vectors),
    "openai": Format(
        lambda _texts: "/embeddings",
        lambda model, texts: {"model": model, "input": texts, "encoding_format": "float"},
        lambda answer: [item["embedding"] for item in sorted(answer["data"], key=lambda item: item["index"])],
    ),
    "openai-base64": Format(
        lambda _texts: "/embeddings",
        lambda model, texts: {"model": model, "input": texts, "encoding_format": "base64"},
        lambda answer: [item["embedding"] for item in sorted(answer["data"], key=lambda item: item["index"])],
    ),
    "tei": Format(lambda _texts: "/embed", lambda _model, texts: {"inputs": texts}, list),
    "ollama": Format(
        lambda _texts: "/api/embed",
        lambda model, texts: {"model": model, "input": texts},
        lambda answer: list(answer["embeddings"]),
    ),
}
BASE_PATHS = {"openai": "/v1", "openai-base64": "/v1"}
"""What the base URL of this service ends with, by format; elsewhere nothing. Clients of OpenAI's API expect `/v1`."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go, and in which format. *path* is that of the base URL; *bearer* an API key."""

    port: int
    host: str = "127.0.0.1"
    path: str = ""
    format: str = "native"
    model: str = ""
    bearer: str = ""

    def request(self, texts: Sequence[str]) -> bytes:
        """Return a whole HTTP request to embed *texts*."""
        form = FORMATS[self.format]
        body = json.dumps(form.body(self.model, texts)).encode()
        head = [
            f"POST {self.path}{form.route(texts)} HTTP/1.1",
            f"Host: {self.host}:{self.port}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            *([f"Authorization: Bearer {self.bearer}"] if self.bearer else []),
        ]
        return "\r\n".join([*head, "", ""]).encode() + body

    def vectors(self, answer: Any) -> NDArray[np.float64]:
        """Return the vectors in the JSON of an answer, one per row."""
        found = FORMATS[self.format].vectors(answer)
        rows = [np.frombuffer(base64.b64decode(one), "<f4") if isinstance(one, str) else one for one in found]
        return np.array(rows, np.float64)
