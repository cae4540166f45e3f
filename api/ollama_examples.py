"""OpenAPI descriptions of Ollama's routes: bodies and answers, each with a valid example."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast

from litestar.openapi.spec import Example, OpenAPIMediaType, OpenAPIResponse, OpenAPIType, Schema

from api.ollama_errors import OLLAMA, OllamaProblem
from api.ollama_types import (
    OllamaDetails,
    OllamaEmbedAnswer,
    OllamaEmbeddingsAnswer,
    OllamaEmbeddingsRequest,
    OllamaEmbedRequest,
    OllamaModelRequest,
    OllamaProcesses,
    OllamaPullRequest,
    OllamaRunning,
    OllamaShowAnswer,
    OllamaStatus,
    OllamaTag,
    OllamaTags,
    OllamaVersion,
)
from api.openapi import LimitedOperation, Responses, answer, body, dialect_problems, problem
from api.problem_examples import MODEL_NAME, NOT_ALLOWED, NOT_AUTHENTICATED, RUN, WORK, TooLargeError
from engine import errors
from web.json_bodies import NotJsonError

NDJSON = "application/x-ndjson"
TEXT = "How do I reset my password?"
NAME = "all-minilm"
EmbedBody = body(
    OllamaEmbedRequest,
    ("Two texts", {"model": NAME, "input": [TEXT, "I forgot my login."]}),
    ("One text, which must not be cut", {"model": MODEL_NAME, "input": TEXT, "truncate": False}),
    ("Load the model", {"model": NAME}),
)
EmbeddingsBody = body(OllamaEmbeddingsRequest, ("One text", {"model": NAME, "prompt": TEXT}))
ModelBody = body(OllamaModelRequest, ("A model", {"model": NAME}))
PullBody = body(OllamaPullRequest, ("A model, with one answer", {"model": NAME, "stream": False}))

_VECTOR = [0.00687232, -0.06304797, -0.07204665, -0.03246166]
_SHORTENED = "The vectors are shortened to 4 of their 384 numbers"
_DETAILS = OllamaDetails(format="onnx", family="fastembed", families=["fastembed"])
_WHEN = datetime(2026, 11, 23, 9, 30, tzinfo=UTC)
_UNKNOWN = problem(
    errors.UnknownModelError,
    "No model named 'all-minilm:l12-v2' is offered. Did you mean 'all-minilm'?",
    closest=["all-minilm"],
    model="all-minilm:l12-v2",
)
_WRONG_TYPE = problem(
    errors.InvalidInputError, "input[1]: Expected a string, got a whole number.", field="input", index=1
)
_NOT_JSON = problem(NotJsonError, "Send the body as JSON, with the header 'Content-Type: application/json'.")
_TOO_LARGE = problem(TooLargeError, "The body is larger than MAX_REQUEST_SIZE allows.", limit=10_000_000)
_WRONG_NAME = problem(errors.InvalidInputError, "model: Expected a string or null, got a whole number.", field="model")


def embed_responses() -> Responses:
    value = OllamaEmbedAnswer(NAME, [_VECTOR], total_duration=5_127_000, load_duration=0, prompt_eval_count=9)
    too_long = problem(
        errors.InvalidInputError,
        "Text 0 has 300 tokens; the model accepts at most 256.",
        index=0,
        tokens=300,
        limit=256,
    )
    return {
        200: answer(OllamaEmbedAnswer, value, description="The vectors, in the order of the texts", summary=_SHORTENED),
        **dialect_problems(OLLAMA, OllamaProblem, _WRONG_TYPE, too_long, _UNKNOWN, *WORK, *RUN),
    }


def embeddings_responses() -> Responses:
    value = OllamaEmbeddingsAnswer(_VECTOR)
    wrong = problem(errors.InvalidInputError, "prompt: Expected a string or null, got an array.", field="prompt")
    return {
        200: answer(OllamaEmbeddingsAnswer, value, description="The vector", summary=_SHORTENED),
        **dialect_problems(OLLAMA, OllamaProblem, wrong, _UNKNOWN, *WORK, *RUN),
    }


def show_responses() -> Responses:
    value = OllamaShowAnswer(
        modelfile=f"FROM {MODEL_NAME}\n",
        parameters="",
        template="{{ .Prompt }}",
        license="apache-2.0",
        modified_at=_WHEN,
        details=_DETAILS,
        model_info={
            "general.architecture": "fastembed",
            "general.basename": MODEL_NAME,
            "fastembed.context_length": 256,
            "fastembed.embedding_length": 384,
        },
        capabilities=["embedding"],
    )
    return {
        200: answer(OllamaShowAnswer, value, description="The model"),
        **dialect_problems(
            OLLAMA, OllamaProblem, _WRONG_NAME, _UNKNOWN, _NOT_JSON, _TOO_LARGE, NOT_ALLOWED, *NOT_AUTHENTICATED
        ),
    }


def pull_responses() -> Responses:
    one = answer(OllamaStatus, OllamaStatus("success"), description="The model may be used")
    without = {412, 504}
    work = [(status, example) for status, example in WORK if status not in without]
    return {200: one, **dialect_problems(OLLAMA, OllamaProblem, _WRONG_NAME, _UNKNOWN, *work)}


def tags_responses() -> Responses:
    tag = OllamaTag(
        name="all-minilm:latest",
        model="all-minilm:latest",
        modified_at=_WHEN,
        size=46_000_000,
        digest="853622761c0bc2c3",
        dimension=384,
        context_length=256,
        details=_DETAILS,
    )
    return {
        200: answer(OllamaTags, OllamaTags([tag]), description="The models"),
        **dialect_problems(OLLAMA, OllamaProblem, *NOT_AUTHENTICATED),
    }


def ps_responses() -> Responses:
    running = OllamaRunning(
        name=f"{MODEL_NAME}:latest",
        model=f"{MODEL_NAME}:latest",
        size=46_000_000,
        size_vram=0,
        digest="853622761c0bc2c3",
        context_length=256,
        expires_at=_WHEN,
        details=_DETAILS,
    )
    return {
        200: answer(OllamaProcesses, OllamaProcesses([running]), description="The models in memory"),
        **dialect_problems(OLLAMA, OllamaProblem, *NOT_AUTHENTICATED),
    }


VERSION: Responses = {200: answer(OllamaVersion, OllamaVersion("2.0.0"), description="The version")}


@dataclass
class PullOperation(LimitedOperation):
    """The operation of `/api/pull`: adds the format with one object per line."""

    def __post_init__(self) -> None:
        super().__post_init__()
        response = cast("OpenAPIResponse", (self.responses or {})["200"])
        shown = Example("The lines", value='{"status":"pulling manifest"}\n{"status":"success"}\n')
        lines = OpenAPIMediaType(schema=Schema(type=OpenAPIType.STRING), examples={"lines": shown})
        response.content = {**(response.content or {}), NDJSON: lines}
