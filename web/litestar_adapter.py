"""Adapter to Litestar: the only module that uses its undocumented names. A test checks the installed version."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from litestar import Litestar, Request, Response, Router
from litestar._openapi.schema_generation.plugins.struct import StructSchemaPlugin
from litestar.enums import HttpMethod, ScopeType
from litestar.handlers import HTTPRouteHandler
from litestar.handlers import route as routed
from litestar.middleware._internal.cors import CORSMiddleware
from litestar.params import HeaderParameter
from litestar.plugins import PluginProtocol
from litestar.plugins.core import MsgspecDIPlugin
from litestar.routes import BaseRoute, HTTPRoute
from litestar.types import ASGIApp, Empty, HTTPScope, Receive, Scope, Send
from litestar.utils.path import normalize_path

__all__ = [
    "LeanLitestar",
    "NoRoutes",
    "StructSchemaPlugin",
    "arguments_of",
    "body_type",
    "dialect_routes",
    "has_hooks",
    "normalize_path",
    "options_routes",
    "paths_with",
    "route_of",
    "route_option",
    "set_route",
    "without_cors",
    "wrap",
]


class LeanLitestar(Litestar):
    """Litestar without its plugins for pydantic and attrs, which take 50 ms to import: no body or answer uses them."""

    @staticmethod
    def _get_default_plugins(plugins: list[PluginProtocol]) -> list[PluginProtocol]:
        return [*plugins, MsgspecDIPlugin()]


class NoRoutes(Router):
    """A router that takes no routes: for Litestar's own pages with the API description, which it adds by itself."""

    def register(self, value: Any) -> list[BaseRoute]:  # noqa: ARG002 - the signature of `Router`
        return []


def wrap(app: Litestar, middleware: Callable[[ASGIApp], ASGIApp]) -> None:
    """Put *middleware* around all of Litestar, so that it sees 404s, CORS answers and crashes, too."""
    app.asgi_handler = middleware(app.asgi_handler)


def without_cors(handler: ASGIApp) -> ASGIApp:
    """Return *handler*, an app's `asgi_handler`, without its CORS middleware for requests that have no `Origin`.

    These get the same answer: the middleware reads all headers, and then does nothing.
    """
    if not isinstance(handler, CORSMiddleware):
        return handler
    inner = handler.app

    async def choose(scope: Scope, receive: Receive, send: Send) -> None:
        is_plain = scope["type"] == ScopeType.HTTP and all(name != b"origin" for name, _ in scope["headers"])
        await (inner if is_plain else handler)(scope, receive, send)

    return choose


def options_routes(handlers: Iterable[HTTPRouteHandler]) -> list[HTTPRouteHandler]:
    """Return routes that answer OPTIONS on paths of several *handlers*; register them before these.

    Litestar's own answer names the methods of the handler only that was registered first.
    """
    methods: dict[str, list[str]] = {}
    for handler in handlers:
        for path in handler.paths:
            methods.setdefault(path, []).extend(str(method.value) for method in map(HttpMethod, handler.http_methods))
    return [_options_route(path, found) for path, found in methods.items() if len(found) > 1]


def _options_route(path: str, methods: Iterable[str]) -> HTTPRouteHandler:
    allow = ", ".join(sorted({*methods, HttpMethod.OPTIONS.value}))

    @routed(path, http_method=[HttpMethod.OPTIONS], status_code=204, include_in_schema=False)
    async def options() -> Response[None]:
        return Response(None, status_code=204, headers={"Allow": allow})

    return options


def body_type(request: Request[Any, Any, Any]) -> Any:
    """Return the type of the body that the route of *request* declares; Any: none."""
    field = getattr(request.route_handler, "parsed_data_field", None)
    return field.annotation if field else Any


def arguments_of(handler: HTTPRouteHandler) -> tuple[set[str], dict[str, str]]:
    """Return the names of the arguments of *handler*; and those that are request headers, with the headers' names."""
    found = handler.parsed_fn_signature.parameters
    headers = {
        name: field.kwarg_definition.name or name
        for name, field in found.items()
        if isinstance(field.kwarg_definition, HeaderParameter)
    }
    return set(found), headers


def has_hooks(handler: HTTPRouteHandler) -> bool:
    """Return whether Litestar itself does something before *handler* or instead of it, or allows it a body of its own.

    Such are guards, `before_request`, a cache, and its own limit for bodies.
    """
    has_own_limit = handler.request_max_body_size is not Empty
    return bool(handler.resolve_guards() or handler.resolve_before_request() or handler.cache or has_own_limit)


def route_of(scope: HTTPScope) -> str | None:
    """Return the path template of the route, such as `/models/{name}`; None if no route matched."""
    return scope.get("path_template")


def set_route(scope: HTTPScope, path: str) -> None:
    """Record *path* as the route of a request that is answered before it reaches the router."""
    scope["path_template"] = path


def route_option(scope: Scope, name: str, default: str | None = None) -> str | None:
    """Return an option of the route (`opt=` of its decorator)."""
    value: str | None = scope["route_handler"].opt.get(name, default)
    return value


def paths_with(app: Litestar, option: str, values: Iterable[object]) -> frozenset[str]:
    """Return the path templates of all routes whose *option* has one of *values*."""
    wanted = set(values)
    return frozenset(path for path, found in _options(app, option) if found in wanted)


def dialect_routes(app: Litestar) -> list[tuple[str, Any]]:
    """Return path template and dialect of all routes; a route without the option `dialect` has None."""
    return list(_options(app, "dialect"))


def _options(app: Litestar, option: str) -> Iterator[tuple[str, Any]]:
    for route in app.routes:
        if isinstance(route, HTTPRoute):
            for handler in route.route_handlers:
                yield route.path_format, handler.opt.get(option)
