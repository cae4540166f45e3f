"""Cohere's errors: messages, statuses, names of fields, and the type that describes them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from web.dialects import Dialect, not_found_for_unknown_model, unknown_model_advice
from web.problems import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class CohereProblem(Problem):
    """A problem document with the members of Cohere's errors."""

    id: str
    message: str


def _members(document: Mapping[str, object]) -> Mapping[str, object]:
    return {"id": document["request_id"], "message": _message(document)}


def _message(document: Mapping[str, object]) -> object:
    if (advice := unknown_model_advice(document, "GET /v1/models")) is None:
        return document["detail"]
    return f"model {document['model']!r} not found, make sure the correct model ID was used. {advice}"


COHERE: Final = Dialect(
    name="cohere",
    members=_members,
    status=not_found_for_unknown_model,
    fields={"model_name": "model", "dimensions": "output_dimension", "dtype": "embedding_types"},
    prefixes=("/v2/", "/v1/embed/", "/v1/rerank/"),
)
