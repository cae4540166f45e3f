"""What the paths of the app's routes mean: their dialects, and the prefix that a proxy puts before them."""

from collections.abc import Callable
from dataclasses import dataclass

from litestar import Litestar

from config import SettingsError
from web.dialects import Dialect, DialectPaths
from web.litestar_adapter import dialect_routes, route_methods
from web.path_prefix import PathConflictError, PathPrefix


@dataclass(frozen=True, slots=True)
class Paths:
    """What the paths of requests mean.

    Attributes:
        prefix: what a proxy puts before all paths.
        find_dialect: returns the dialect of a path, with the prefix or without; None: ours.
    """

    prefix: PathPrefix
    find_dialect: Callable[[str], Dialect | None]


def read_paths(app: Litestar, *, root_path: str) -> Paths:
    """Return what the paths of *app* mean behind a proxy with the prefix *root_path*.

    Raises:
        SettingsError: a path of the app may begin with ROOT_PATH.
    """
    try:
        prefix = PathPrefix(root_path, route_methods(app))
    except PathConflictError as error:
        message = f"ROOT_PATH={root_path} cannot be used: {error}"
        raise SettingsError(message) from None
    return Paths(prefix, prefix.find_dialect(DialectPaths(dialect_routes(app)).find))
