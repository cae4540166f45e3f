"""The API docs: /docs shows the OpenAPI document to people, /schema/openapi.json and .yaml are for programs."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Final

import msgspec
import yaml
from litestar import Litestar, Request, get
from litestar.di import NamedDependency
from litestar.exceptions import NotFoundException
from litestar.params import PathParameter
from litestar.response.base import ASGIResponse

from web.kept_bodies import KeptBody
from web.redirects import has_final_slash, redirect_to
from web.static_files import STATIC_DIR, NoFiles, StaticFiles

START: Final = "index.html"
DOCS_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Swagger UI needs nothing more: its icons are data URLs, and it sets styles by script."""
FORMER_PAGES: Final = ("/schema", "/schema/swagger", "/schema/redoc", "/schema/rapidoc", "/schema/elements")
"""Addresses at which older versions showed the API; they lead to /docs."""
JSON_TYPE: Final = "application/vnd.oai.openapi+json"
YAML_TYPE: Final = "application/vnd.oai.openapi"


class ApiDocs:
    """The files of the docs, and the OpenAPI document as JSON and as YAML."""

    def __init__(self, *, is_on: bool) -> None:
        """Find the files. If the docs are off, there are none, and no document."""
        self._is_on = is_on
        self.files = StaticFiles(STATIC_DIR / "docs", policy=DOCS_POLICY) if is_on else NoFiles()
        self._documents: dict[str, KeptBody] = {}
        self._describing = threading.Lock()

    async def document(self, media_type: str, request: Request[Any, Any, Any]) -> ASGIResponse:
        """Return the OpenAPI document of the app. It is made at the first request: 0.2 s, in a thread.

        Raises:
            NotFoundException: the docs are off.
        """
        self.check_on()
        if (kept := self._documents.get(media_type)) is None:
            write = _as_yaml if media_type == YAML_TYPE else msgspec.json.encode
            kept = KeptBody(partial(self._write, request.app, write), media_type=media_type)
            self._documents[media_type] = kept
        return await kept.answer(request.scope)

    def check_on(self) -> None:
        """Raise a NotFoundException if the docs are off."""
        if not self._is_on:
            raise NotFoundException

    def _write(self, app: Litestar, write: Callable[[dict[str, Any]], bytes]) -> bytes:
        with self._describing:
            document = app.openapi_schema.to_schema()
        # Litestar keeps the paths of a handler in a set, whose order differs from process to process.
        return write({**document, "paths": dict(sorted(document["paths"].items()))})


def _as_yaml(document: dict[str, Any]) -> bytes:
    plain = msgspec.json.decode(msgspec.json.encode(document))
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # the one in C is five times as fast
    return yaml.dump(plain, Dumper=dumper, encoding="utf-8", sort_keys=False)


@get("/docs", opt={"polled": True}, include_in_schema=False)
async def show_docs(api_docs: NamedDependency[ApiDocs], request: Request[Any, Any, Any]) -> ASGIResponse:
    """The API docs for people. The page contains nothing, so it needs no key; the document that it loads may."""
    api_docs.check_on()
    if has_final_slash(request.scope):  # addresses in the document are relative to /docs
        return redirect_to("docs", request.scope)
    return await api_docs.files.answer(START, request.scope)


@get("/docs/{file:path}", opt={"polled": True}, include_in_schema=False)
async def show_docs_file(
    file: Annotated[str, PathParameter(description="The path of a file of the docs")],
    api_docs: NamedDependency[ApiDocs],
    request: Request[Any, Any, Any],
) -> ASGIResponse:
    """A file of the docs."""
    return await api_docs.files.answer(file.strip("/"), request.scope)


@get([*FORMER_PAGES], opt={"polled": True}, include_in_schema=False)
async def lead_to_docs(api_docs: NamedDependency[ApiDocs], request: Request[Any, Any, Any]) -> ASGIResponse:
    """Older addresses of the docs."""
    api_docs.check_on()
    return redirect_to("docs", request.scope)


@get("/schema/openapi.json", opt={"permission": "docs"}, include_in_schema=False)
async def show_json(api_docs: NamedDependency[ApiDocs], request: Request[Any, Any, Any]) -> ASGIResponse:
    """The OpenAPI document as JSON."""
    return await api_docs.document(JSON_TYPE, request)


@get(["/schema/openapi.yaml", "/schema/openapi.yml"], opt={"permission": "docs"}, include_in_schema=False)
async def show_yaml(api_docs: NamedDependency[ApiDocs], request: Request[Any, Any, Any]) -> ASGIResponse:
    """The OpenAPI document as YAML."""
    return await api_docs.document(YAML_TYPE, request)


ROUTES = (show_docs, show_docs_file, lead_to_docs, show_json, show_yaml)
