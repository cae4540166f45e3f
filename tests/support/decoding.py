"""A body through the service's decoder, without a server, and what must hold of whatever comes out."""

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import msgspec
from litestar.types import Scope

from api.request_types import EmbedBatchRequest, EmbedRequest, TextLimits, TokenizeRequest
from engine.errors import ServiceError
from web.json_bodies import StrictRequest
from web.problems import problem_answer

KINDS: list[type[Any]] = [EmbedRequest, EmbedBatchRequest, TokenizeRequest]
RULES = TextLimits(8192, 32)
MAX_BYTES_OF_AN_ANSWER = 8_000
"""An error repeats at most some hundred characters of a caller's, each up to 12 bytes in JSON."""


class NoTurns:
    """In the place of `LargeBodyQueue`, which need a running loop: whoever comes has his turn."""

    async def take(self, work: Callable[[], Any]) -> Any:
        return work()


class Given(StrictRequest):
    """A request that has come in already."""

    def __init__(self, content: bytes, kind: type[Any], headers: list[tuple[bytes, bytes]]) -> None:
        handler = SimpleNamespace(parsed_data_field=SimpleNamespace(annotation=kind))
        app = SimpleNamespace(state=SimpleNamespace(turns=NoTurns()))
        scope = {"type": "http", "headers": headers, "route_handler": handler, "state": {}, "litestar_app": app}
        super().__init__(cast("Scope", scope))
        self._content = content

    async def body(self) -> bytes:
        return self._content


def decoded(content: bytes, kind: type[Any], headers: list[tuple[bytes, bytes]] | None = None) -> Any:
    """What the route would get.

    Raises:
        ServiceError: as the caller would be told.
    """
    waiting = Given(content, kind, headers or []).json()
    try:
        waiting.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("the decoder waits for something")


def judge(content: bytes, kind: type[Any]) -> bool:
    """Whether *content* is taken.

    Raises:
        AssertionError: an answer nobody should get, or something is taken that JSON does not have.
        Exception: a bug; a caller would get a 500.
    """
    try:
        data = decoded(content, kind)
        RULES.check_text(data.text) if kind is EmbedRequest else RULES.check_texts(data.texts)
    except ServiceError as refusal:
        judge_refusal(refusal)
        return False
    strict = json.loads(content.decode())
    assert isinstance(strict, dict)
    told = msgspec.to_builtins(data)
    assert all(told[name] == value for name, value in strict.items()), "the decoder reads other values than json does"
    assert json.dumps(told, ensure_ascii=False).encode()  # no half of a surrogate pair goes on to a model
    return True


def judge_refusal(refusal: ServiceError) -> None:
    """It is the caller's fault, told in few words that can be written."""
    assert refusal.status in {400, 415}
    _, answer = problem_answer(refusal, "id")
    assert len(answer) < MAX_BYTES_OF_AN_ANSWER
    assert json.loads(answer)["detail"]
