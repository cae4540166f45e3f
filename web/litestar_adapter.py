"""Adapter to Litestar: the only module that uses its undocumented names. A test checks the installed version."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

from litestar import Litestar, Request, Response, Router
from litestar._asgi.utils import is_valid_host
from litestar._openapi.schema_generation.plugins.struct import StructSchemaPlugin
from litestar.config.app import AppConfig
from litestar.enums import HttpMethod, ScopeType
from litestar.handlers import HTTPRouteHandler
from litestar.handlers import route as routed
from litestar.middleware._internal.cors import CORSMiddleware
from litestar.middleware._internal.exceptions import ExceptionHandlerMiddleware
from litestar.params import HeaderParameter
from litestar.plugins import PluginProtocol
from litestar.plugins.core import MsgspecDIPlugin
from litestar.routes import BaseRoute, HTTPRoute
from litestar.types import ASGIApp, Empty, ExceptionHandlersMap, HTTPScope, Method, Receive, Scope, Send
from litestar.utils.path import normalize_path
from litestar.utils.scope.state import ScopeState

__all__ = [
    "LeanLitestar",
    "NoRoutes",
    "ShortWay",
    "StructSchemaPlugin",
    "arguments_of",
    "body_type",
    "dialect_routes",
    "has_hooks",
    "is_valid_host",
    "normalize_path",
    "options_routes",
    "paths_with",
    "route_methods",
    "route_of",
    "route_option",
    "set_route",
    "wrap",
]


class LeanLitestar(Litestar):
    """Litestar without its plugins for pydantic and attrs, which take 50 ms to import: no body or answer uses them."""

    @staticmethod
    def _get_default_plugins(plugins: list[PluginProtocol]) -> list[PluginProtocol]:
        return [*plugins, MsgspecDIPlugin()]

    @staticmethod
    def _patch_opentelemetry_middleware(config: AppConfig) -> AppConfig:
        """Leave the app as it is: Litestar would import OpenTelemetry if it is installed, although nothing uses it."""
        return config


class NoRoutes(Router):
    """A router that takes no routes: for Litestar's own pages with the API description, which it adds by itself."""

    def register(self, value: Any) -> list[BaseRoute]:  # noqa: ARG002 - the signature of `Router`
        return []


def wrap(app: Litestar, middleware: Callable[[ASGIApp], ASGIApp]) -> None:
    """Put *middleware* around all of Litestar, so that it sees 404s, CORS answers and crashes, too."""
    app.asgi_handler = middleware(app.asgi_handler)


@dataclass(frozen=True, slots=True)
class _FixedRoute:
    """What Litestar's router finds for a path without parameters, and a method."""

    app: ASGIApp
    handler: Any
    template: str
    exception_handlers: ExceptionHandlersMap

    @classmethod
    def find(cls, app: Litestar, path: str, method: Method) -> Self:
        found, handler, _, _, template = app.asgi_router.handle_routing(path=path, method=method)
        return cls(found, handler, template, handler.resolve_exception_handlers())


class ShortWay:
    """Calls an app's routes, most of them without Litestar's router and its layers around it.

    A route without parameters is found by its path alone. Requests without the header `Origin` need no CORS middleware:
    it reads all headers, and then does nothing. Everything else goes through all of Litestar.
    """

    def __init__(self, app: Litestar, *, has_started: Callable[[Scope], bool]) -> None:
        """Call the routes of *app*; *has_started* returns whether a part of the answer to a request was sent."""
        self._whole, self._has_started = app.asgi_handler, has_started
        self._inner = self._whole.app if isinstance(self._whole, CORSMiddleware) else self._whole
        self._routes = {
            (route.path, str(method)): _FixedRoute.find(app, route.path, method)
            for route in app.routes
            if isinstance(route, HTTPRoute) and not route.path_parameters
            for method in route.methods
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self._whole(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if b"origin" in headers:
            await self._whole(scope, receive, send)
            return
        found = self._routes.get((scope["path"], scope["method"]))
        if found is None or scope["root_path"] or not is_valid_host(headers.get(b"host", b"")):
            await self._inner(scope, receive, send)
            return
        scope["path_params"], scope["path_template"], scope["route_handler"] = {}, found.template, found.handler
        ScopeState.from_scope(scope).exception_handlers = found.exception_handlers
        try:
            await found.app(scope, receive, send)
        except Exception as error:
            if self._has_started(scope):
                raise
            await ExceptionHandlerMiddleware(_raise(error), debug=None)(scope, receive, send)


def _raise(error: Exception) -> ASGIApp:
    async def app(*_: object) -> None:
        raise error

    return app


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


def route_methods(app: Litestar) -> dict[str, set[str]]:
    """Return the methods of all routes, by path template."""
    return {route.path_format: {*route.methods} for route in app.routes if isinstance(route, HTTPRoute)}


def dialect_routes(app: Litestar) -> list[tuple[str, Any]]:
    """Return path template and dialect of all routes; a route without the option `dialect` has None."""
    return list(_options(app, "dialect"))


def _options(app: Litestar, option: str) -> Iterator[tuple[str, Any]]:
    for route in app.routes:
        if isinstance(route, HTTPRoute):
            for handler in route.route_handlers:
                yield route.path_format, handler.opt.get(option)
