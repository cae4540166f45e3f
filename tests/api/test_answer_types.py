"""The OpenAPI schema of vectors, and the rule that no engine type is an answer."""

from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from datetime import datetime
from typing import Any, get_args, get_origin, get_type_hints

from litestar import Litestar, Response, get

from api.answer_types import EmbedAnswer, ModelDetails, Vectors, VectorsSchema
from api.metric_types import (
    MetricsAnswer,
)
from web.problems import Problem


@dataclass(frozen=True, slots=True)
class Answer:
    embedding: Vectors
    embeddings: Vectors
    name: str


def test_schema_describes_vectors_as_numbers_or_base64() -> None:
    @get("/answer")
    async def answer() -> Response[Answer]:
        raise NotImplementedError

    schema: Any = Litestar([answer], plugins=[VectorsSchema()], logging_config=None).openapi_schema.to_schema()
    [properties] = [facts["properties"] for facts in schema["components"]["schemas"].values() if "Answer" in str(facts)]
    numbers = {"type": "array", "items": {"type": "number"}}
    vector = {"oneOf": [numbers, {"type": "string", "contentEncoding": "base64"}]}
    assert properties["embedding"] == vector
    assert properties["embeddings"] == {"type": "array", "items": vector}
    assert properties["name"] == {"type": "string"}


def classes_in(hint: Any) -> Iterator[type]:
    """Yield every class that a value of this type can contain."""
    for part in get_args(hint) if hint != Vectors else ():
        yield from classes_in(part)
    if isinstance(hint, type) and get_origin(hint) is None:
        yield hint
        for part in get_type_hints(hint).values() if is_dataclass(hint) else ():
            yield from classes_in(part)


def test_answers_contain_no_type_of_the_engine() -> None:
    """Otherwise renaming a field in the engine would change an answer."""
    from main import ROUTES  # noqa: PLC0415 - importing main builds an app, too

    answers = [spec.data_container for route in ROUTES for spec in (route.responses or {}).values()]
    classes = {found for answer in answers for found in classes_in(answer)}
    ours = {found for found in classes if found.__module__.startswith("api.")}
    assert {EmbedAnswer, ModelDetails, MetricsAnswer} < ours
    assert {found for found in classes - ours if found.__module__ not in {"builtins", "typing"}} == {datetime, Problem}
