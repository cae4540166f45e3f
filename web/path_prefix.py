"""The prefix that a proxy puts before all paths (ROOT_PATH), whether it removes it from requests or passes it on."""

from collections.abc import Callable, Collection, Mapping

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, Scope, Send

from web.allowed_hosts import EarlyRejection
from web.dialects import Dialect
from web.request_context import context_of

READS = frozenset({"GET", "HEAD"})


class PathConflictError(Exception):
    """The prefix cannot be told from the beginning of a route."""

    def __init__(self, route: str) -> None:
        super().__init__(f"the service's own path {route} begins with it; use another one")


class PathPrefix:
    """Removes the prefix from the paths of requests that have it.

    Requests without it are valid, too: proxies that remove it, health checks and scrapers send them. So no route may
    begin with the prefix. A route may equal it if it only accepts POST, such as `/embeddings`: then the prefix alone is
    the root address for GET, and this route for POST.
    """

    def __init__(self, prefix: str, routes: Mapping[str, Collection[str]]) -> None:
        """Remove *prefix*, such as `/embeddings`; empty: there is none.

        Args:
            prefix: without a slash at its end.
            routes: the methods of each route, by templates such as `/models/{name}`.

        Raises:
            PathConflictError: a path could be meant with or without the prefix.
        """
        self._prefix = prefix
        self._beginning = f"{prefix}/"
        self._is_route = prefix in routes
        if prefix:
            for route, methods in routes.items():
                if self._may_begin(route) or (route == prefix and not READS.isdisjoint(methods)):
                    raise PathConflictError(route)

    def _may_begin(self, route: str) -> bool:
        fixed, brace, _ = route.partition("{")
        return fixed.startswith(self._beginning) or bool(brace and self._beginning.startswith(fixed))

    def remove_from(self, path: str, *, method: str = "POST") -> str:
        """Return *path*, which may have a query, without the prefix."""
        if path.startswith(self._beginning):
            return path[len(self._prefix) :]
        before_query, mark, query = path.partition("?")
        is_root = before_query == self._prefix and (method in READS or not self._is_route)
        return f"/{mark}{query}" if is_root else path

    def around(self, app: ASGIApp) -> ASGIApp:
        """Return ASGI middleware around *app*, outside of all other middleware."""
        if not self._prefix:
            return app

        async def call(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != ScopeType.HTTP:
                await app(scope, receive, send)
                return
            context_of(scope).root_path = self._prefix
            await app({**scope, "path": self.remove_from(scope["path"], method=scope["method"])}, receive, send)

        return call

    def find_dialect(self, find: Callable[[str], Dialect | None]) -> Callable[[str], Dialect | None]:
        """Return *find*, which returns the dialect of a path, for paths that may have the prefix."""
        return (lambda path: find(self.remove_from(path))) if self._prefix else find

    def reject_early(self, reject: EarlyRejection) -> EarlyRejection:
        """Return *reject*, which gets paths of POST requests, for paths that may have the prefix."""
        if not self._prefix:
            return reject
        return lambda path, client, headers: reject(self.remove_from(path), client, headers)
