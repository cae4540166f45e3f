"""OpenAI's routes: embeddings and models, also as Azure, Voyage, Jina, NVIDIA NIM and vLLM serve them."""

from dataclasses import dataclass, replace
from typing import Annotated, Any

from litestar import Request, get, post
from litestar.di import NamedDependency
from litestar.handlers import HTTPRouteHandler
from litestar.response.base import ASGIResponse

from api import openai_examples, openapi
from api.model_names import ModelNames
from api.openai_answers import EmbeddingsWriter, model_entry, model_list
from api.openai_errors import OPENAI
from api.openai_inputs import check_tokens, read_texts
from api.openai_requests import EmbeddingsRequest, find_model
from api.openai_token_ids import TokenVocabulary
from api.request_types import Timeout
from api.vector_answers import vectors_answer, without_prompt
from engine.embedder import Embedder
from engine.loaded_facts import ModelsInMemory
from web.request_context import context_of
from web.responses import json_answer

TAGS = ["OpenAI"]
AZURE_PATH = "/openai/deployments/{name:str}/embeddings"
AZURE_PATH_WITH_OWNER = "/openai/deployments/{owner:str}/{name:str}/embeddings"
"""The same for a model whose name contains a slash, plain or percent-encoded."""


@dataclass(frozen=True, slots=True)
class OpenAIParts:
    """The parts that OpenAI's routes for embedding use, in one dependency, as in `EmbeddingParts`."""

    embedder: Embedder
    names: ModelNames
    vocabulary: TokenVocabulary


@post(
    ["/v1/embeddings", "/embeddings", "/openai/v1/embeddings"],
    status_code=200,
    opt={"dialect": OPENAI, "permission": "embed", "work": "queued"},
    tags=TAGS,
    security=openapi.CREDENTIALS,
    responses=openai_examples.EMBEDDINGS,
    operation_class=openapi.DialectVectorsOperation,
)
async def create_embeddings(
    data: openai_examples.EmbeddingsBody,
    openai: NamedDependency[OpenAIParts],
    request: Request[Any, Any, Any],
    request_timeout: Timeout = None,
) -> ASGIResponse:
    """Embed texts. Vectors have length 1, in the order of the texts."""
    return await _embed(data, data.model, openai, request, request_timeout)


def _azure(paths: list[str], *, is_shown: bool) -> HTTPRouteHandler:
    """Return the route of Azure's embeddings at *paths*."""
    return post(
        paths,
        status_code=200,
        opt={"dialect": OPENAI, "permission": "embed", "work": "queued"},
        include_in_schema=is_shown,
        tags=TAGS,
        security=openapi.CREDENTIALS,
        responses=openai_examples.EMBEDDINGS,
        operation_class=openai_examples.AzureOperation,
    )(create_azure_embeddings)


async def create_azure_embeddings(
    data: openai_examples.EmbeddingsBody,
    openai: NamedDependency[OpenAIParts],
    request: Request[Any, Any, Any],
    request_timeout: Timeout = None,
) -> ASGIResponse:
    """Embed texts, as at Azure: the deployment names the model. `model` and `api-version` are ignored."""
    found = request.path_params
    deployment = "/".join(str(found[part]) for part in ("owner", "name") if part in found)
    return await _embed(data, deployment, openai, request, request_timeout)


async def _embed(
    data: EmbeddingsRequest,
    name: str | None,
    parts: OpenAIParts,
    request: Request[Any, Any, Any],
    timeout_s: float | None,
) -> ASGIResponse:
    """Answer with the vectors of *data* by the model *name*."""
    model, type_in_name = find_model(parts.names, name)
    options = data.options(type_in_name)
    data.check_cut(model.max_tokens)
    context = context_of(request.scope)
    context.encoding_formats = data.encoding_formats
    given = await read_texts(data.input, parts.vocabulary, context.caller)
    return await vectors_answer(
        parts.embedder,
        request,
        EmbeddingsWriter(data.is_base64),
        model_name=model.name,
        texts=without_prompt(given.texts, model, options.input_type),
        options=replace(options, clip=given.are_ids),
        timeout_s=timeout_s,
        check_tokens=None if given.are_ids else check_tokens,
    )


@get(
    ["/v1/models", "/openai/v1/models"],
    opt={"dialect": OPENAI, "permission": "models"},
    tags=TAGS,
    security=openapi.CREDENTIALS,
    responses=openai_examples.MODELS,
)
async def list_openai_models(
    embedder: NamedDependency[Embedder], in_memory: NamedDependency[ModelsInMemory]
) -> ASGIResponse:
    """All models that may be used, those that need no download first."""
    loaded = await in_memory.read()
    entries = [model_entry(model, loaded.get(model.name)) for model in embedder.models]
    return json_answer(model_list(entries))


@get(
    ["/v1/models/{name:path}", "/openai/v1/models/{name:path}"],
    opt={"dialect": OPENAI, "permission": "models"},
    tags=TAGS,
    security=openapi.CREDENTIALS,
    responses=openai_examples.MODEL,
)
async def show_openai_model(
    name: Annotated[
        str,
        openapi.model_in_path(
            "A model or an alias. Slashes may be plain or percent-encoded.", openai_examples.MODEL_NAME
        ),
    ],
    names: NamedDependency[ModelNames],
    in_memory: NamedDependency[ModelsInMemory],
) -> ASGIResponse:
    """One model."""
    model, _ = find_model(names, name.strip("/"))
    return json_answer(model_entry(model, (await in_memory.read()).get(model.name)))


ROUTES = (
    create_embeddings,
    _azure([AZURE_PATH], is_shown=True),
    _azure([AZURE_PATH_WITH_OWNER], is_shown=False),
    list_openai_models,
    show_openai_model,
)
