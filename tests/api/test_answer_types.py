"""The OpenAPI schema of vectors."""

from dataclasses import dataclass
from typing import Any

from litestar import Litestar, Response, get

from api.answer_types import Vectors, VectorsSchema


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
