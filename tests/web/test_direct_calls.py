"""Which requests are run directly and which by Litestar, and that both get the same answers."""

from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
import pytest
from litestar import Litestar, Request, Response, get, post
from litestar.di import NamedDependency, Provide
from litestar.exceptions import PermissionDeniedException
from litestar.params import FromPath, HeaderParameter, JSONBody
from litestar.testing import TestClient

from engine.errors import InvalidInputError
from web.direct_calls import DirectCalls
from web.json_bodies import StrictRequest
from web.problems import problem_handlers
from web.responses import json_answer

Limit = Annotated[float | None, HeaderParameter(name="X-Limit", gt=0)]


class Body(msgspec.Struct):
    text: str


@post("/body", status_code=202)
async def with_body(
    data: JSONBody[Body], way: NamedDependency[str], request: Request[Any, Any, Any], limit: Limit = None
) -> Response[Any]:
    if data.text == "bad":
        raise InvalidInputError("text: it is bad.")
    return Response({"way": way, "text": data.text, "method": request.method, "limit": limit})


@get("/{name:str}/path")
async def with_path(name: FromPath[str], way: NamedDependency[str]) -> dict[str, str]:
    return {"way": way, "name": name}


@get("/thread", sync_to_thread=False)
def synchronous(way: NamedDependency[str]) -> dict[str, str]:
    return {"way": way}


def refuse(*_: object) -> None:
    raise PermissionDeniedException


@get("/guarded", guards=[refuse])
async def guarded(way: NamedDependency[str]) -> dict[str, str]:
    return {"way": way}


@get("/ready")
async def ready(way: NamedDependency[str]) -> Any:
    return json_answer({"way": way}, status=503)


@pytest.fixture
def client() -> Iterator[TestClient[Litestar]]:
    app = Litestar(
        [with_body, with_path, synchronous, guarded, ready],
        dependencies={"way": Provide(lambda: "litestar", sync_to_thread=False)},
        middleware=[DirectCalls({"way": lambda: "direct"})],
        request_class=StrictRequest,
        exception_handlers=problem_handlers(),
        openapi_config=None,
        logging_config=None,
    )
    with TestClient(app) as client:
        yield client


def test_handler_gets_its_body_its_parts_and_the_request_without_litestar(client: TestClient[Litestar]) -> None:
    answer = client.post("/body", json={"text": "a"})
    assert answer.json() == {"way": "direct", "text": "a", "method": "POST", "limit": None}
    assert answer.status_code == 202  # that of the route, as with Litestar


def test_request_with_a_header_that_is_an_argument_is_left_to_litestar(client: TestClient[Litestar]) -> None:
    """Litestar converts and checks it."""
    answer = client.post("/body", json={"text": "a"}, headers={"x-limit": "1.5"})
    assert answer.json() == {"way": "litestar", "text": "a", "method": "POST", "limit": 1.5}
    assert answer.status_code == 202
    assert client.post("/body", json={"text": "a"}, headers={"X-Limit": "0"}).status_code == 400


def test_answer_that_is_ready_is_sent_as_it_is(client: TestClient[Litestar]) -> None:
    answer = client.get("/ready")
    assert (answer.status_code, answer.json()) == (503, {"way": "direct"})


@pytest.mark.parametrize(
    ("path", "answer"),
    [("/a/path", {"way": "litestar", "name": "a"}), ("/thread", {"way": "litestar"})],
    ids=["path", "function that is not asynchronous"],
)
def test_other_handlers_are_left_to_litestar(path: str, answer: object, client: TestClient[Litestar]) -> None:
    assert client.get(path).json() == answer


def test_guard_is_not_skipped(client: TestClient[Litestar]) -> None:
    assert client.get("/guarded").status_code == 403


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"text": 1}', b'{"text": "bad"}'])
def test_errors_are_the_same_both_ways(content: bytes, client: TestClient[Litestar]) -> None:
    direct = client.post("/body", content=content, headers={"content-type": "application/json"})
    general = client.post("/body", content=content, headers={"content-type": "application/json", "x-limit": "1"})
    assert direct.status_code == general.status_code == 400
    assert direct.json() | {"request_id": ""} == general.json() | {"request_id": ""}


def test_other_methods_are_left_to_litestar(client: TestClient[Litestar]) -> None:
    assert client.options("/body").headers["allow"] == "OPTIONS, POST"
    assert client.get("/body").status_code == 405
