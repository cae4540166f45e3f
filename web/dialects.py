"""Dialects: what errors and metrics need to know of the APIs of other servers that this service speaks."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import cast

from engine.errors import ServiceError, UnknownModelError
from telemetry.answered_request import NATIVE
from web.litestar_adapter import normalize_path
from web.responses import JSON


def _keep_status(code: str, status: int) -> int:  # noqa: ARG001 - every dialect gets the code
    return status


@dataclass(frozen=True, slots=True, eq=False)
class Dialect:
    """How the clients of another server expect errors. One body serves both: a problem document with more members.

    Attributes:
        name: the metrics label.
        members: returns the dialect's own members, given the problem document with its final status.
        status: returns the status that the clients expect, given a problem's code and native status.
        fields: the dialect's names of the native API's fields.
        prefixes: paths below which addresses that do not exist are answered in this dialect, too.
        media_type: the media type of errors.
        omits: members of the problem document that are left out, because clients would misread them.
        takes_forms: a body that is sent as a form is JSON: curl says so if no header is given.
    """

    name: str
    members: Callable[[Mapping[str, object]], Mapping[str, object]]
    status: Callable[[str, int], int] = _keep_status
    fields: Mapping[str, str] = field(default_factory=dict)
    prefixes: tuple[str, ...] = ()
    media_type: str = JSON
    omits: frozenset[str] = frozenset()
    takes_forms: bool = False

    def rename(self, detail: str) -> str:
        """Return *detail* with the dialect's name of the field at its beginning, as in `texts[3]: too long`."""
        match = re.match(r"([a-z_]+)(?=(?:\[\d+\])?: )", detail)
        if match is None or match[1] not in self.fields:
            return detail
        return self.fields[match[1]] + detail[match.end() :]


def not_found_for_unknown_model(code: str, status: int) -> int:
    """Return 404 for an unknown model, and *status* for all other problems. A `Dialect.status` of several dialects."""
    return HTTPStatus.NOT_FOUND if code == UnknownModelError.code else status


def unknown_model_advice(document: Mapping[str, object], model_list: str) -> str | None:
    """Return a sentence with the closest names for a problem *document* about an unknown model; None: it is another.

    Args:
        document: a problem document; about a model, it has the member `model`.
        model_list: the method and path that list all models, for a name that resembles none.
    """
    if document["code"] != UnknownModelError.code or "model" not in document:
        return None
    names = " or ".join(map(repr, cast("Iterable[str]", document["closest"])))
    return f"Did you mean {names}?" if names else f"{model_list} lists all."


@dataclass(frozen=True, slots=True)
class Rejection:
    """An error with which a request is answered before the app sees it, and the dialect of the answer."""

    error: ServiceError
    dialect: Dialect | None

    @property
    def status(self) -> int:
        """The status of the answer."""
        error, dialect = self.error, self.dialect
        return error.status if dialect is None else int(dialect.status(error.code, error.status))


def label_of(dialect: Dialect | None) -> str:
    """Return the metrics label of a request."""
    return NATIVE if dialect is None else dialect.name


class DialectPaths:
    """Finds the dialect of a request by its path, before it is routed."""

    def __init__(self, routes: Iterable[tuple[str, Dialect | None]]) -> None:
        """Index *routes*, pairs of a path template and its dialect; a template's parameters match by prefix only.

        A route without a dialect is native unless its path is below a prefix of a dialect.
        """
        found = list(routes)
        by_prefix = {prefix: dialect for _, dialect in found if dialect is not None for prefix in dialect.prefixes}
        self._by_prefix = sorted(by_prefix.items(), key=lambda entry: -len(entry[0]))
        paths = {path: dialect for path, dialect in found if "{" not in path and dialect is not None}
        native = {path: self._find_by_prefix(path) for path, _ in found if "{" not in path}
        self._by_path: dict[str, Dialect | None] = {**native, **paths}

    def find(self, path: str) -> Dialect | None:
        """Return the dialect of *path*, which may have a query; None: it is native."""
        if path in self._by_path:
            return self._by_path[path]
        normal = normalize_path(path.partition("?")[0])
        return self._by_path[normal] if normal in self._by_path else self._find_by_prefix(normal)

    def _find_by_prefix(self, path: str) -> Dialect | None:
        return next((dialect for prefix, dialect in self._by_prefix if f"{path}/".startswith(prefix)), None)
