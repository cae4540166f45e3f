"""Redirects by relative addresses. They hold behind proxies that put a prefix before all paths, known to us or not."""

from litestar.types import HTTPScope

from web.responses import PlainAnswer


def has_final_slash(scope: HTTPScope) -> bool:
    """Return whether the path, as it was sent, ends with a slash. Litestar removes it from `path`."""
    return _sent_path(scope).endswith("/")


def redirect_to(target: str, scope: HTTPScope) -> PlainAnswer:
    """Return a redirect from the address of the request of *scope* to the path *target* of this service.

    Args:
        target: without a slash at its beginning, such as `docs`.
        scope: of the request; its `path` is normal, as behind the router.
    """
    left, depth = scope["path"].count("/"), -1
    for segment in reversed(_sent_path(scope).split("/")):  # empty ones count for browsers, not for the router
        depth += 1
        left -= bool(segment)
        if not left:
            break
    return _redirect(f"{'../' * depth}{target}")


def redirect_to_folder(scope: HTTPScope) -> PlainAnswer:
    """Return a redirect to the same address with a final slash, which relative addresses in a document need."""
    return _redirect(f"{_sent_path(scope).rpartition('/')[2]}/")


def _sent_path(scope: HTTPScope) -> str:
    return bytes(scope.get("raw_path") or scope["path"].encode()).decode("latin-1")


def _redirect(location: str) -> PlainAnswer:
    return PlainAnswer(b"", status=307, headers={"Location": location}, media_type="text/plain")
