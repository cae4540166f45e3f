"""The routes of TEI (Text Embeddings Inference), Hugging Face's embedding server.

Its paths are served at the root and below `/tei`, and below `/tei/{owner}/{name}` for a model named in the URL. The
handlers of the native `/embed` and `/tokenize` call `embed_answer` and `tokenize_answer` for bodies with `inputs`.
"""

from collections.abc import Callable
from typing import Any

from litestar import Request, get, post
from litestar.di import NamedDependency
from litestar.handlers import HTTPRouteHandler
from litestar.response.base import ASGIResponse

from api import openapi, tei_answers, tei_examples
from api.model_names import ModelNames
from api.request_types import TextLimits, Timeout
from api.tei_answers import Call
from api.tei_errors import TEI
from api.tei_types import TeiSentences
from engine.embedder import Embedder
from engine.loaded_facts import ModelsInMemory

AnyRequest = Request[Any, Any, Any]
MODEL_PATHS = ("/tei/{name:str}", "/tei/{owner:str}/{name:str}")
"""The model in the URL. Its slash may be plain or percent-encoded."""


async def embed(
    data: tei_examples.EmbedBody,
    embedder: NamedDependency[Embedder],
    names: NamedDependency[ModelNames],
    request: AnyRequest,
    request_timeout: Timeout = None,
) -> ASGIResponse:
    """Embed one text or several."""
    return await tei_answers.embed_answer(data.inputs, data, Call(request, embedder, names, request_timeout))


async def similarity(
    data: tei_examples.SimilarityBody,
    embedder: NamedDependency[Embedder],
    names: NamedDependency[ModelNames],
    request: AnyRequest,
    request_timeout: Timeout = None,
) -> ASGIResponse:
    """Compare sentences with one sentence, by the cosine similarity of their vectors."""
    return await tei_answers.similarity_answer(data.inputs, data, Call(request, embedder, names, request_timeout))


async def embed_or_compare(
    data: tei_examples.EmbedOrCompareBody,
    embedder: NamedDependency[Embedder],
    names: NamedDependency[ModelNames],
    request: AnyRequest,
    request_timeout: Timeout = None,
) -> ASGIResponse:
    """Embed texts, or compare sentences if `inputs` is an object."""
    call = Call(request, embedder, names, request_timeout)
    if isinstance(data.inputs, TeiSentences):
        return await tei_answers.similarity_answer(data.inputs, data, call)
    return await tei_answers.embed_answer(data.inputs, data, call)


async def tokenize(
    data: tei_examples.TokenizeBody,
    *,
    embedder: NamedDependency[Embedder],
    names: NamedDependency[ModelNames],
    limits: NamedDependency[TextLimits],
    request: AnyRequest,
    request_timeout: Timeout = None,
) -> ASGIResponse:
    """Return the tokens of texts; no model is run."""
    return await tei_answers.tokenize_answer(data, Call(request, embedder, names, request_timeout), limits)


async def info(
    names: NamedDependency[ModelNames],
    in_memory: NamedDependency[ModelsInMemory],
    version: NamedDependency[str],
    request: AnyRequest,
) -> ASGIResponse:
    """Describe the model, and the batch size that clients should use."""
    model = names.resolve(tei_answers.model_in_url(request))
    return tei_answers.info_answer(model, (await in_memory.read()).get(model.name), version)


def _posts(
    handler: Callable[..., Any], action: str, *, shown: list[str], responses: openapi.Responses, runs_model: bool = True
) -> list[HTTPRouteHandler]:
    """Return the routes of an *action*: those that OpenAPI shows, and those with the model in the URL."""
    hidden = [path + action for path in ("/tei", *MODEL_PATHS) if path + action not in shown]
    return [
        post(
            paths,
            status_code=200,
            opt={"dialect": TEI, "permission": "embed", "work": "queued" if runs_model else "unqueued"},
            include_in_schema=paths is shown,
            tags=["TEI"],
            security=openapi.CREDENTIALS,
            responses=responses,
            operation_class=openapi.DialectVectorsOperation if runs_model else openapi.DialectOperation,
        )(handler)
        for paths in (shown, hidden)
    ]


def _gets(handler: Callable[..., Any], action: str, *, responses: openapi.Responses) -> list[HTTPRouteHandler]:
    """Return the routes of an *action* that reads, of which OpenAPI shows the shortest."""
    return [
        get(
            paths,
            opt={"dialect": TEI, "permission": "models"},
            include_in_schema=paths == [action],
            tags=["TEI"],
            security=openapi.CREDENTIALS,
            responses=responses,
        )(handler)
        for paths in ([action], [path + action for path in ("/tei", *MODEL_PATHS)])
    ]


ROUTES = (
    *_posts(embed, "/embed", shown=["/tei/embed"], responses=tei_examples.EMBED),
    *_posts(embed_or_compare, "", shown=["/", "/tei"], responses=tei_examples.EMBED_OR_COMPARE),
    *_posts(similarity, "/similarity", shown=["/similarity"], responses=tei_examples.SIMILARITY),
    *_posts(tokenize, "/tokenize", shown=["/tei/tokenize"], responses=tei_examples.TOKENIZE, runs_model=False),
    *_gets(info, "/info", responses=tei_examples.INFO),
)
