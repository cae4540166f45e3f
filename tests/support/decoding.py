"""The service's body decoder without a server, and what must hold for every body."""

import json
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, cast

import msgspec
from litestar.types import Scope

from api.cohere_types import CohereEmbedRequest
from api.ollama_types import OllamaEmbedRequest, OllamaPullRequest
from api.openai_requests import EmbeddingsRequest
from api.request_types import EmbedBatchRequest, EmbedRequest, TextLimits, TokenizeRequest
from api.tei_types import TeiRequest, TeiSentences, TeiTokenizeRequest, texts_of
from engine.errors import ServiceError
from web.json_bodies import StrictRequest
from web.problems import problem_answer

REQUEST_TYPES: list[type[Any]] = [EmbedRequest, EmbedBatchRequest, TokenizeRequest]
DIALECT_TYPES: Mapping[type[Any], Callable[[Any], object]] = {
    CohereEmbedRequest: lambda data: (data.all_texts(), data.kinds, data.options),
    EmbeddingsRequest: lambda data: (data.options(None), data.is_base64, data.check_cut(16)),
    OllamaEmbedRequest: lambda data: data.input,
    OllamaPullRequest: lambda data: data.model or data.name,
    TeiRequest: lambda data: (data.options, isinstance(data.inputs, TeiSentences) or texts_of(data.inputs)),
    TeiTokenizeRequest: lambda data: texts_of(data.inputs),
}
"""Bodies of dialects, each with what its handler reads of it before it calls the engine."""
LIMITS = TextLimits(8192, 32)
MAX_PROBLEM_BYTES = 8_000
"""Largest body of a problem. It repeats at most some hundred characters of the request, each up to 12 bytes in JSON."""


class ReceivedRequest(StrictRequest):
    """A request whose body has arrived."""

    def __init__(self, content: bytes, body_type: type[Any], headers: list[tuple[bytes, bytes]]) -> None:
        handler = SimpleNamespace(parsed_data_field=SimpleNamespace(annotation=body_type))
        scope = {"type": "http", "headers": headers, "route_handler": handler, "state": {}}
        super().__init__(cast("Scope", scope))
        self._content = content

    async def body(self) -> bytes:
        return self._content


def decode(content: bytes, body_type: type[Any], headers: list[tuple[bytes, bytes]] | None = None) -> Any:
    """Return what a route with a body of this type receives.

    Raises:
        ServiceError: the answer to the caller.
    """
    decoding = ReceivedRequest(content, body_type, headers or []).json()
    try:
        decoding.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("the decoder waits for something")


def check_body(content: bytes, body_type: type[Any]) -> bool:
    """Decode *content*, and return whether it was accepted.

    Raises:
        AssertionError: the answer is not one that a caller should get, or the decoder accepts what is not JSON.
        Exception: a bug, which a caller would get as a 500.
    """
    try:
        data = decode(content, body_type)
        LIMITS.check_text(data.text) if body_type is EmbedRequest else LIMITS.check_texts(data.texts)
    except ServiceError as error:
        check_rejection(error)
        return False
    expected = json.loads(content.decode())
    assert isinstance(expected, dict)
    accepted = msgspec.to_builtins(data)
    assert all(accepted[name] == value for name, value in expected.items()), "the decoder and json read other values"
    assert json.dumps(accepted, ensure_ascii=False).encode()  # fails for lone surrogates, which no tokenizer accepts
    return True


def check_dialect_body(content: bytes, body_type: type[Any]) -> bool:
    """Decode *content* as the body of a dialect, which may have unknown fields, and return whether it was accepted.

    Raises:
        AssertionError, Exception: as `check_body`.
    """
    try:
        data = decode(content, body_type)
        DIALECT_TYPES[body_type](data)
    except ServiceError as error:
        check_rejection(error)
        return False
    try:
        expected = json.loads(content.decode(errors="replace"))
    except ValueError:  # in what it ignores, the decoder accepts more than json does
        expected = {}
    assert isinstance(expected, dict)
    for name, value in msgspec.to_builtins(data).items():
        sent = expected.get(name)
        assert value == sent or isinstance(sent, dict | list), "the decoder and json read other values"
    assert json.dumps(msgspec.to_builtins(data), ensure_ascii=False).encode()  # fails for lone surrogates
    return True


def check_rejection(error: ServiceError) -> None:
    """Check that *error* blames the caller, in a short body that can be encoded."""
    assert error.status in {400, 415}
    _, _, body = problem_answer(error, "id")
    assert len(body) < MAX_PROBLEM_BYTES
    assert json.loads(body)["detail"]
