"""OpenAPI descriptions of Cohere's routes: bodies and answers, each with a valid example."""

from typing import Any

from api.cohere_errors import COHERE, CohereProblem
from api.cohere_types import CohereEmbedAnswer, CohereEmbedRequest, CohereFloatsAnswer
from api.openapi import Responses, answer, body, dialect_problems, problem
from api.problem_examples import MODEL_NAME, RUN, WORK
from engine import errors

TEXT = "How do I reset my password?"
EmbedBody = body(
    CohereEmbedRequest,
    ("Documents", {"model": MODEL_NAME, "input_type": "search_document", "texts": [TEXT, "I forgot my login."]}),
    ("Two types of numbers", {"texts": [TEXT], "input_type": "search_query", "embedding_types": ["float", "int8"]}),
    ("Parts, as newer clients send them", {"inputs": [{"content": [{"type": "text", "text": TEXT}]}]}),
    ("No cut: a text that is too long is rejected", {"texts": [TEXT], "truncate": "NONE"}),
)
_FLOATS = [[0.00687232, -0.06304797, -0.07204665, -0.03246166]]
_ID = "da6e531f-54c5-4a73-bf92-f60566d8d753"


def embed_responses(*, has_floats: bool) -> Responses:
    """Return all answers of a route that embeds; *has_floats*: bare lists of numbers are among them."""
    by_type = _answer({"float": _FLOATS, "int8": [[1, -8, -9, -4]]}, "embeddings_by_type", "2")
    floats = _answer(_FLOATS, "embeddings_floats", "1")
    shortened = "The vectors are shortened to 4 of their 384 numbers"
    description = "The vectors, in the order of the texts"
    if has_floats:
        further = [("With embedding_types", _answer(by_type["embeddings"], "embeddings_by_type", "1"))]
        success = answer(
            CohereFloatsAnswer | CohereEmbedAnswer, floats, description=description, summary=shortened, further=further
        )
    else:
        success = answer(CohereEmbedAnswer, by_type, description=description, summary=shortened)
    return {200: success, **dialect_problems(COHERE, CohereProblem, *_PROBLEMS)}


def _answer(embeddings: object, response_type: str, version: str) -> dict[str, Any]:
    return {
        "id": _ID,
        "embeddings": embeddings,
        "texts": [TEXT],
        "meta": {"api_version": {"version": version}, "billed_units": {"input_tokens": 9}},
        "response_type": response_type,
    }


_PROBLEMS = (
    problem(
        errors.InvalidInputError,
        "texts: at least one text must be provided, in 'texts' or in 'inputs'.",
        field="texts",
        limit=1,
    ),
    problem(
        errors.InvalidInputError,
        "texts: the total number of texts must be at most 2048 - received 2049.",
        field="texts",
        limit=2048,
    ),
    problem(
        errors.UnknownModelError,
        "No model named 'bge-small' is offered. Did you mean 'BAAI/bge-small-en'?",
        closest=["BAAI/bge-small-en"],
        model="bge-small",
    ),
    *WORK,
    *RUN,
)
