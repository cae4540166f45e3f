"""The root address and the page: charts and the playground for browsers, facts as JSON for programs."""

from dataclasses import dataclass
from typing import Annotated, Any, Final, cast

from litestar import Request, get
from litestar.di import NamedDependency
from litestar.openapi.spec import Example, OpenAPIMediaType, OpenAPIResponse, OpenAPIType, Operation, Schema
from litestar.params import PathParameter
from litestar.response.base import ASGIResponse

from api import openapi
from api.answer_formats import NotAcceptableError, best_match
from engine.embedder import Embedder
from web.redirects import has_final_slash, redirect_to_folder
from web.request_context import context_of, header_values
from web.responses import JSON, json_answer
from web.static_files import STATIC_DIR, NoFiles, StaticFiles

HTML: Final = "text/html"
START: Final = "index.html"
"""The page's document, served at the root address. All addresses in it are relative."""
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The page loads files of this service only, and no inline script or style."""
VARY = {"Vary": "Accept"}


class PageFiles:
    """The files of the page.

    Attributes:
        has_docs: whether the root address names the API docs.
    """

    def __init__(self, *, is_on: bool, has_docs: bool) -> None:
        """Find the files. If the page is off, there are none, and the root address answers JSON only."""
        self.has_docs = has_docs
        self.files = StaticFiles(STATIC_DIR / "page", policy=PAGE_POLICY) if is_on else NoFiles()

    @property
    def offered(self) -> list[str]:
        """The media types of the root address, the default first."""
        return [JSON, HTML] if START in self.files else [JSON]


@dataclass
class ServiceInfo:
    """What this service is. `docs` is absent if they are off, `models` for callers that may not see them."""

    name: str
    version: str
    docs: str | None = None
    models: list[str] | None = None


@dataclass
class RootOperation(Operation):
    """The operation of the root address: adds the page."""

    def __post_init__(self) -> None:
        response = cast("OpenAPIResponse", (self.responses or {})["200"])
        page = OpenAPIMediaType(
            schema=Schema(type=OpenAPIType.STRING), examples={"page": Example("The page", value="<!doctype html>…")}
        )
        response.content = {**(response.content or {}), HTML: page}


ROOT: openapi.Responses = {
    200: openapi.answer(
        ServiceInfo,
        ServiceInfo("Fast Embedding API", "2.0.0", "/docs", ["sentence-transformers/all-MiniLM-L6-v2"]),
        description="The service; `models` only for callers that may see them. For browsers, the page",
    ),
    **openapi.problems(openapi.problem(NotAcceptableError, f"Send 'Accept: {JSON}' or 'Accept: {HTML}'.")),
}


@get(
    "/",
    opt={"shows_more_with": "models", "polled": True},
    tags=["Operation"],
    responses=ROOT,
    operation_class=RootOperation,
)
async def show_root(
    embedder: NamedDependency[Embedder],
    page_files: NamedDependency[PageFiles],
    request: Request[Any, Any, Any],
    version: NamedDependency[str],
) -> ASGIResponse:
    """What this service is: JSON for programs, a page with charts and a playground for browsers.

    Ollama's clients ask here before each job whether anything answers.
    """
    context = context_of(request.scope)
    context.dialect = None  # the path's is that of POST, TEI's
    accept = ", ".join(header_values(request.scope, b"accept"))
    offered = page_files.offered
    found = best_match(accept, offered) if accept else JSON
    if found is None:
        raise NotAcceptableError(f"Send {' or '.join(repr(f'Accept: {kind}') for kind in offered)}.")
    if found == HTML:
        if not has_final_slash(request.scope):  # the prefix alone: addresses in the page are relative to what follows
            return redirect_to_folder(request.scope)
        return await page_files.files.answer(START, request.scope, vary=b"accept")
    info: dict[str, Any] = {"name": "Fast Embedding API", "version": version}
    if page_files.has_docs:
        info["docs"] = f"{context.root_path}/docs"
    if context.principal is not None:
        info["models"] = [model.name for model in embedder.models]
    return json_answer(info, headers=VARY)


@get("/page/{file:path}", opt={"polled": True}, include_in_schema=False)
async def show_page_file(
    file: Annotated[str, PathParameter(description="The path of a file of the page")],
    page_files: NamedDependency[PageFiles],
    request: Request[Any, Any, Any],
) -> ASGIResponse:
    """A file of the page. Files contain nothing secret, so they need no key; what the page asks for does."""
    return await page_files.files.answer(file.strip("/"), request.scope)


ROUTES = (show_root, show_page_file)
