"""Litestar's undocumented names that we use, in one place: an upgrade that removes one fails here."""

from litestar import Litestar, Request, get, post
from litestar.enums import ScopeType
from litestar.params import FromPath, JSONBody
from litestar.testing import TestClient
from litestar.types import ASGIApp, Receive, Scope, Send

from web.litestar_adapter import (
    LeanLitestar,
    body_type,
    normalize_path,
    options_routes,
    paths_with,
    route_of,
    route_option,
    wrap,
)


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
