"""Finds the route of a request by its path before Litestar does."""

import re
from collections.abc import Iterable

from web.litestar_adapter import normalize_path

PARAMETER = re.compile(r"\\\{\w+\\\}")
"""A parameter in an escaped template. It may match several segments, since names of models contain slashes."""


class RouteTable:
    """Some path templates, such as `/openai/deployments/{name}/embeddings`."""

    def __init__(self, templates: Iterable[str]) -> None:
        """Index *templates*; those with the most text win over others that match as well."""
        found = sorted(templates, key=len, reverse=True)
        self._fixed = frozenset(template for template in found if "{" not in template)
        self._patterns = [
            (re.compile(PARAMETER.sub(".+", re.escape(template))), template) for template in found if "{" in template
        ]

    def find(self, path: str) -> str | None:
        """Return the template of *path*; None: none of these. Doubled slashes and those at the end do not count."""
        if path in self._fixed:
            return path
        normal = normalize_path(path)
        if normal in self._fixed:
            return normal
        return next((template for pattern, template in self._patterns if pattern.fullmatch(normal)), None)
