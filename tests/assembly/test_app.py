"""The overload guard follows the option `work` of the routes, so no route that embeds can bypass it."""

from litestar import Litestar, post
from litestar.routes import HTTPRoute

from assembly.app import build_app
from engine.encoder import load_encoder
from tests.support.apps import settings_of


def unguarded_routes(app: Litestar) -> set[str]:
    """Return the POST routes with the permission `embed` that the overload guard does not reject under overload."""
    return {
        route.path
        for route in app.routes
        if isinstance(route, HTTPRoute)
        for handler in route.route_handlers
        if "POST" in handler.http_methods and handler.opt.get("permission", "embed") == "embed"
        if handler.opt.get("work") not in ("queued", "unqueued")
    }


@post("/without-the-option", opt={"permission": "embed"})
async def without_the_option() -> None: ...


@post("/without-any-option")
async def without_any_option() -> None: ...


def test_every_route_that_embeds_is_guarded_against_overload() -> None:
    from main import create_app  # noqa: PLC0415 - importing main builds an app, too

    assert unguarded_routes(create_app(settings_of())) == {"/api/pull"}  # it runs no model


def test_route_that_embeds_and_is_not_guarded_is_found() -> None:
    new = [without_the_option, without_any_option]
    app = build_app(settings_of(), route_handlers=new, version="1", load=load_encoder, stop=None, cores=None)
    assert unguarded_routes(app) == {"/without-the-option", "/without-any-option"}
