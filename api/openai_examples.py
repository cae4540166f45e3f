"""OpenAPI descriptions of OpenAI's routes: bodies and answers, each with a valid example."""

from dataclasses import dataclass

from litestar.openapi.spec import Example, Parameter

from api.openai_answers import Embedding, EmbeddingsAnswer, OpenAIModel, OpenAIModelList, Usage, model_list
from api.openai_errors import OPENAI, OpenAIProblem
from api.openai_requests import EmbeddingsRequest
from api.openapi import DialectVectorsOperation, Responses, answer, body, dialect_problems, problem
from api.problem_examples import MODEL_NAME, NOT_ALLOWED, NOT_AUTHENTICATED, RUN, WORK, BadRequestError
from engine import errors

TEXT, OTHER_TEXT = "How do I reset my password?", "I forgot my login."
_VECTOR = [0.00687232, -0.06304797, -0.07204665, -0.03246166]


EmbeddingsBody = body(
    EmbeddingsRequest,
    ("One text", {"input": TEXT, "model": MODEL_NAME}),
    ("Several texts, as base64", {"input": [TEXT, OTHER_TEXT], "model": MODEL_NAME, "encoding_format": "base64"}),
    ("Token ids, as LangChain sends them", {"input": [[4438, 656, 358, 7738, 856, 3636, 30]], "model": MODEL_NAME}),
    ("Voyage: a query, as int8", {"input": [TEXT], "input_type": "query", "output_dtype": "int8"}),
    ("Jina: a document", {"input": [{"text": TEXT}], "task": "retrieval.passage", "normalized": True}),
)

_MODEL = OpenAIModel(
    id=MODEL_NAME,
    object="model",
    created=1_795_772_100,
    owned_by="sentence-transformers",
    dimension=384,
    max_tokens=256,
    size=46_000_000,
    fingerprint="853622761c0bc2c3",
)
_UNKNOWN_MODEL = problem(
    errors.UnknownModelError,
    "No model named 'bge-small' is offered. Did you mean 'BAAI/bge-small-en'?",
    closest=["BAAI/bge-small-en"],
    model="bge-small",
)
EMBEDDINGS: Responses = {
    200: answer(
        EmbeddingsAnswer,
        EmbeddingsAnswer("list", [Embedding("embedding", 0, _VECTOR)], MODEL_NAME, Usage(9, 9)),
        description="The vectors, in the order of the texts",
        summary="The vectors are shortened to 4 of their 384 numbers",
        further=[
            (
                "In base64",
                EmbeddingsAnswer("list", [Embedding("embedding", 0, "dTHhO7QjgVaYj5O9")], MODEL_NAME, Usage(9, 9)),
            )
        ],
    ),
    **dialect_problems(
        OPENAI,
        OpenAIProblem,
        problem(
            errors.InvalidInputError,
            "input: 2049 texts are more than the 2048 allowed in one request.",
            field="input",
            limit=2048,
        ),
        problem(
            errors.InvalidInputError,
            "input[1]: 9000 tokens are more than the maximum context length of 8192 tokens. Split the text.",
            field="input",
            index=1,
            tokens=9000,
            limit=8192,
        ),
        problem(
            errors.InvalidInputError,
            "encoding_format: 'hex' is not allowed. Choose one of base64, float.",
            field="encoding_format",
            choices=["base64", "float"],
        ),
        _UNKNOWN_MODEL,
        *WORK,
        *RUN,
    ),
}
MODELS: Responses = {
    200: answer(OpenAIModelList, model_list([_MODEL]), description="The models"),
    **dialect_problems(OPENAI, OpenAIProblem, *NOT_AUTHENTICATED),
}
MODEL: Responses = {
    200: answer(OpenAIModel, _MODEL, description="The model"),
    **dialect_problems(
        OPENAI,
        OpenAIProblem,
        *NOT_AUTHENTICATED,
        problem(BadRequestError, "Invalid host header"),
        NOT_ALLOWED,
        _UNKNOWN_MODEL,
    ),
}


@dataclass
class AzureOperation(DialectVectorsOperation):
    """Describes the name in the path, which is no parameter of the handler: that serves two paths."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for parameter in self.parameters or []:
            if isinstance(parameter, Parameter) and parameter.param_in == "path":
                parameter.description = "A model or an alias. Slashes may be plain or percent-encoded."
                parameter.examples = {"model": Example(summary="A model", value=MODEL_NAME)}
