"""Adapter to Litestar: the only module that uses its undocumented names. A test checks the installed version."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from litestar import Litestar, Request
from litestar._openapi.schema_generation.plugins.struct import StructSchemaPlugin
from litestar.routes import HTTPRoute
from litestar.types import ASGIApp, HTTPScope, Scope
from litestar.utils.path import normalize_path

__all__ = [
    "StructSchemaPlugin",
    "body_type",
    "complete_options",
    "dialect_routes",
    "normalize_path",
    "paths_with",
    "route_of",
    "route_option",
    "set_route",
    "wrap",
]


def wrap(app: Litestar, middleware: Callable[[ASGIApp], ASGIApp]) -> None:
    """Put *middleware* around all of Litestar, so that it sees 404s, CORS answers and crashes, too."""
    app.asgi_handler = middleware(app.asgi_handler)


def body_type(request: Request[Any, Any, Any]) -> Any:
    """Return the type of the body that the route of *request* declares; Any: none."""
    field = getattr(request.route_handler, "parsed_data_field", None)
    return field.annotation if field else Any


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


def complete_options(app: Litestar) -> None:
    """Make OPTIONS state all methods of a path. Litestar states those of the handler that was registered first."""
    for route in app.routes:
        if isinstance(route, HTTPRoute):
            handler, _ = route.route_handler_map["OPTIONS"]
            handler._fn = route.create_options_handler(route.path).fn  # noqa: SLF001 - the handler is bound to an older route


def dialect_routes(app: Litestar) -> list[tuple[str, Any]]:
    """Return path template and dialect of all routes with the option `dialect`."""
    return [(path, dialect) for path, dialect in _options(app, "dialect") if dialect is not None]


def _options(app: Litestar, option: str) -> Iterator[tuple[str, Any]]:
    for route in app.routes:
        if isinstance(route, HTTPRoute):
            for handler in route.route_handlers:
                yield route.path_format, handler.opt.get(option)
