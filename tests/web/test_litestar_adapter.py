"""Litestar's undocumented names that we use, in one place: an upgrade that removes one fails here."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from litestar import Litestar, Request, get, post
from litestar.config.cors import CORSConfig
from litestar.enums import ScopeType
from litestar.exceptions import PermissionDeniedException
from litestar.params import FromPath, JSONBody
from litestar.response.base import ASGIResponse
from litestar.testing import TestClient
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from engine.errors import InvalidInputError
from web.litestar_adapter import (
    LeanLitestar,
    ShortWay,
    body_type,
    normalize_path,
    options_routes,
    paths_with,
    route_of,
    route_option,
    wrap,
)
from web.problems import problem_handlers


@get("/asked/{name:path}", opt={"work": "queued"})
async def asked(request: Request, name: FromPath[str]) -> dict[str, str | None]:  # type: ignore[type-arg]
    return {"route": route_of(request.scope), "work": route_option(request.scope, "work"), "name": name}


@post("/typed", status_code=200)
async def typed(request: Request, data: JSONBody[dict[str, int]]) -> str:  # type: ignore[type-arg]
    del data
    return str(body_type(request))


def test_undocumented_names_of_the_installed_litestar_do_what_we_use_them_for() -> None:
    seen: list[str | None] = []

    def outermost(inner: ASGIApp) -> ASGIApp:
        async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
            await inner(scope, receive, send)
            if scope["type"] == ScopeType.HTTP:
                seen.append(route_of(scope))  # `scope["path_template"]`, set by the router

        return middleware

    app = Litestar([asked, typed], openapi_config=None, logging_config=None)
    wrap(app, outermost)  # `app.asgi_handler`
    with TestClient(app) as client:
        assert client.get("/asked/a/b").json() == {"route": "/asked/{name}", "work": "queued", "name": "/a/b"}
        assert client.post("/typed", json={"a": 1}).text == "dict[str, int]"  # `handler.parsed_data_field`
        assert client.get("/nothing").status_code == 404
    assert seen == ["/asked/{name}", "/typed", None]
    assert paths_with(app, "work", ["queued"]) == {"/asked/{name}"}
    assert normalize_path("//embed/batch/") == "/embed/batch"  # `litestar.utils.path`


def test_options_names_the_methods_of_all_routes_of_an_address() -> None:
    """Litestar's own answer names only those of the route that was registered first."""

    @post("/asked/{name:path}")
    async def answer(name: FromPath[str]) -> str:
        return name

    routes = [asked, answer, typed]
    with TestClient(Litestar([*options_routes(routes), *routes], openapi_config=None, logging_config=None)) as client:
        assert client.options("/asked/a").headers["allow"] == "GET, OPTIONS, POST"
        assert client.options("/typed").headers["allow"] == "OPTIONS, POST"
        assert client.get("/asked/a").status_code == 200


def test_app_has_no_plugins_for_libraries_that_no_body_uses() -> None:
    @get("/", sync_to_thread=False)
    def answer() -> dict[str, int]:
        return {"a": 1}

    app = LeanLitestar([answer], openapi_config=None, logging_config=None)
    assert {plugin.__class__.__module__.partition("litestar.plugins.")[2] for plugin in app.plugins} <= {
        "core._msgspec",
        "",
    }
    with TestClient(app) as client:
        assert client.get("/").json() == {"a": 1}


class StartsThenFails(ASGIResponse):
    """An answer of which only the start can be sent."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ValueError("after the start")


@get(["/fixed", "/fixed/below"])
async def fixed(request: Request) -> dict[str, Any]:  # type: ignore[type-arg]
    return {"route": route_of(request.scope), "query": request.url.query, "parameters": dict(request.path_params)}


@get("/started")
async def started() -> StartsThenFails:
    return StartsThenFails()


@post("/failing")
async def failing() -> None:
    raise InvalidInputError("text: it is bad.")


def reject_some(app: ASGIApp) -> ASGIApp:
    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        if any(name == b"x-reject" for name, _ in scope["headers"]):
            raise PermissionDeniedException
        await app(scope, receive, send)

    return middleware


WAYS = [False, True]


@pytest.fixture(scope="module")
def ways() -> Iterator[list[TestClient[Litestar]]]:
    """The same app, through all of Litestar and by the short way."""
    with ExitStack() as stack:
        yield [stack.enter_context(TestClient(_app(is_short=way), raise_server_exceptions=False)) for way in WAYS]


def _app(*, is_short: bool) -> Litestar:
    app = Litestar(
        [fixed, typed, asked, failing, started],
        middleware=[reject_some],
        exception_handlers=problem_handlers(),
        cors_config=CORSConfig(allow_origins=["https://app.example"]),
        openapi_config=None,
        logging_config=None,
    )
    has_started: set[int] = set()
    inner = ShortWay(app, has_started=lambda scope: id(scope) in has_started) if is_short else app.asgi_handler

    async def outermost(scope: Scope, receive: Receive, send: Send) -> None:
        async def note(message: Message) -> None:
            has_started.add(id(scope))
            await send(message)

        has_started.discard(id(scope))
        await inner(scope, receive, note)

    wrap(app, lambda _: outermost)
    return app


@pytest.mark.parametrize("headers", [{}, {"Origin": "https://app.example"}, {"Host": "a b"}, {"X-Reject": "1"}])
@pytest.mark.parametrize("path", ["/fixed", "/fixed?a=b", "//fixed/", "/fixed/below", "/typed", "/asked/a", "/failing"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS", "DELETE"])
def test_short_way_gives_the_answers_of_all_of_litestar(
    method: str, path: str, headers: dict[str, str], ways: list[TestClient[Litestar]]
) -> None:
    same = {"X-Request-ID": "of-both", **headers}
    content = b'{"a":1}' if method == "POST" else b""
    whole, short = (client.request(method, path, headers=same, content=content) for client in ways)
    assert (short.status_code, short.headers, short.content) == (whole.status_code, whole.headers, whole.content)


@pytest.mark.parametrize("is_short", WAYS)
async def test_failure_after_the_start_of_an_answer_is_raised_to_the_server(*, is_short: bool) -> None:
    sent: list[str] = []

    async def send(message: Message) -> None:
        sent.append(message["type"])

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    with pytest.raises(Exception, match="after"):  # Litestar replaces the error by its own
        await _app(is_short=is_short)(scope_of("/started"), receive, send)
    assert sent == ["http.response.start"]


def scope_of(path: str) -> Any:
    return {
        "type": "http",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [],
        "scheme": "http",
        "http_version": "1.1",
        "server": None,
        "client": None,
        "state": {},
    }
