"""Finds the route of a request by its path before Litestar does."""

import re
from collections.abc import Iterable, Sequence

from web.litestar_adapter import normalize_path

PARAMETER = re.compile(r"\{\w+\}")
"""A parameter in a template. It may match several segments, since names of models contain slashes."""


class RouteTable:
    """Some path templates, such as `/openai/deployments/{name}/embeddings`."""

    def __init__(self, templates: Iterable[str]) -> None:
        """Index *templates*; those with the most text besides parameters win over others that match as well."""
        found = sorted(templates, key=lambda template: len(PARAMETER.sub("", template)), reverse=True)
        self._fixed = frozenset(template for template in found if "{" not in template)
        self._patterns = [(PARAMETER.split(template), template) for template in found if "{" in template]

    def find(self, path: str) -> str | None:
        """Return the template of *path*; None: none of these. Doubled slashes and those at the end do not count."""
        if path in self._fixed:
            return path
        normal = normalize_path(path)
        if normal in self._fixed:
            return normal
        return next((template for texts, template in self._patterns if _matches(normal, texts)), None)


def _matches(path: str, texts: Sequence[str]) -> bool:
    """Return whether *path* is these *texts* with something between each two of them.

    A regular expression would take quadratic time for a path of many slashes, which anyone may send.
    """
    first, *middle, last = texts
    at, end = len(first), len(path) - len(last)
    if not path.startswith(first) or not path.endswith(last):
        return False
    for text in middle:
        found = path.find(text, at + 1, end)
        if found < 0:
            return False
        at = found + len(text)
    return at < end
