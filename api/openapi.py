"""How OpenAPI is told of bodies, answers and problems: each with an example that is valid."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Annotated, Any, cast

import msgspec
from litestar import Router
from litestar.enums import RequestEncodingType
from litestar.openapi import OpenAPIConfig
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import (
    Components,
    Example,
    OpenAPIHeader,
    OpenAPIMediaType,
    OpenAPIResponse,
    OpenAPIType,
    Operation,
    Reference,
    Schema,
    SecurityRequirement,
    SecurityScheme,
)
from litestar.params import BodyKwarg
from litestar.typing import FieldDefinition

from access.quotas import RateLimitedError
from api.answer_formats import ARROW, EMBEDDING_HEADERS, FINGERPRINT_HEADER, OCTETS, TEXT_TYPES
from engine import errors
from web.litestar_adapter import StructSchemaPlugin
from web.problems import MEDIA_TYPE, Problem, problem_document
from web.rate_limits import LIMIT_HEADERS

Responses = Mapping[int, ResponseSpec]
KEY: list[SecurityRequirement] = [{}, {"bearer": []}, {"apiKey": []}]
"""Nothing, a bearer, or a key in a header of its own: what is needed depends on the service's settings."""
SCHEMES: dict[str, SecurityScheme | Reference] = {
    "bearer": SecurityScheme(
        type="http", scheme="bearer", description="An API key, or a signed token (JWT) of an issuer known here."
    ),
    "apiKey": SecurityScheme(type="apiKey", name="X-API-Key", security_scheme_in="header", description="An API key."),
}


def openapi_config(version: str) -> OpenAPIConfig:
    """The API's description, at /schema for people and at /schema/openapi.json for programs."""
    return OpenAPIConfig(
        title="Fast Embedding API",
        version=version,
        description=(
            "Turns text into vectors with FastEmbed's models, on CPU. Errors are RFC 9457 problem details. Besides "
            "what each route tells, any address may answer 400 (a broken head), 404 and 405."
        ),
        openapi_router=Router("/schema", route_handlers=[], include_in_schema=False, opt={"permission": "docs"}),
        components=Components(security_schemes=SCHEMES),
        use_handler_docstrings=True,
    )


def body(kind: type, *examples: tuple[str, dict[str, object]]) -> Any:
    """A JSON body with examples, each told by a summary."""
    told = [Example(summary=summary, value=value) for summary, value in examples]
    return Annotated[kind, BodyKwarg(media_type=RequestEncodingType.JSON, examples=told)]


def answer(
    container: Any,
    value: object,
    *,
    description: str,
    summary: str = "An answer",
    further: Sequence[tuple[str, object]] = (),
) -> ResponseSpec:
    examples = [Example(summary=told, value=_plain(shown)) for told, shown in ((summary, value), *further)]
    return ResponseSpec(container, generate_examples=False, description=description, examples=examples)


def _plain(value: object) -> Any:
    """As JSON has it: dates become text."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    return _plain(asdict(value)) if hasattr(value, "__dataclass_fields__") else value  # type: ignore[call-overload]


def problem(kind: type[errors.ServiceError], detail: str, **facts: object) -> tuple[int, Example]:
    return kind.status, Example(
        summary=kind.title,
        value=problem_document(
            status=kind.status,
            code=kind.code,
            title=kind.title,
            detail=detail,
            request_id="0f5e8c4d2b7a4c39a6d1f8e7b2c3d4e5",
            facts=facts,
        ),
    )


def problems(*told: tuple[int, Example]) -> dict[int, ResponseSpec]:
    """One row per status; its examples are told apart by their titles."""
    by_status: dict[int, list[Example]] = {}
    for status, example in told:
        by_status.setdefault(status, []).append(example)
    return {
        status: ResponseSpec(
            Problem,
            generate_examples=False,
            description="; or: ".join(dict.fromkeys(str(example.summary) for example in same)),
            media_type=MEDIA_TYPE,
            examples=same,
        )
        for status, same in by_status.items()
    }


class StrictBodies(StructSchemaPlugin):
    """Tells OpenAPI of bodies that they may hold no other fields, as `forbid_unknown_fields` has it."""

    def is_plugin_supported_field(self, field_definition: FieldDefinition) -> bool:
        kind = field_definition.annotation
        return (
            isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind.__struct_config__.forbid_unknown_fields
        )

    def to_openapi_schema(self, field_definition: FieldDefinition, schema_creator: Any) -> Schema:
        schema = super().to_openapi_schema(field_definition, schema_creator)
        schema.additional_properties = False
        return schema


@dataclass
class LimitedOperation(Operation):
    """A route of which a caller may ask only so much: its answers tell how much is left."""

    def __post_init__(self) -> None:
        for status, response in (self.responses or {}).items():
            headers = LIMIT_HEADERS
            if status == str(RateLimitedError.status):
                headers = {**headers, "Retry-After": "Seconds after which a request is taken again"}
            cast("OpenAPIResponse", response).headers = _headers(headers)


@dataclass
class VectorsOperation(LimitedOperation):
    """A route that gives vectors: its answer may be bytes, too, and its headers say which model they are of."""

    def __post_init__(self) -> None:
        super().__post_init__()
        response = cast("OpenAPIResponse", (self.responses or {})["200"])
        content = response.content = dict(response.content or {})
        union = cast("Schema", content["application/json"].schema)
        union.any_of, union.one_of = union.one_of, None  # an answer with chunks is a valid batch answer, too
        rows = Schema(type=OpenAPIType.STRING, content_encoding="binary")
        for media_type, summary in ((OCTETS, "The matrix, little-endian"), (ARROW, "A table, if pyarrow is installed")):
            content[media_type] = OpenAPIMediaType(schema=rows, examples={"bytes": Example(summary, value="(bytes)")})
        headers = {
            FINGERPRINT_HEADER: "of the model, see `stamp` in `/models/{name}`",
            **EMBEDDING_HEADERS,
            **LIMIT_HEADERS,
        }
        response.headers = _headers(headers)


@dataclass
class MetricsOperation(Operation):
    """A route that answers Prometheus with text."""

    def __post_init__(self) -> None:
        response = cast("OpenAPIResponse", (self.responses or {})["200"])
        lines = Schema(type=OpenAPIType.STRING)
        shown = Example("A line of many", value="fast_embedding_queue_seconds 0.0\n")
        told = {kind: OpenAPIMediaType(schema=lines, examples={"text": shown}) for kind in TEXT_TYPES.values()}
        response.content = {**(response.content or {}), **told}


def _headers(told: Mapping[str, str]) -> dict[str, OpenAPIHeader | Reference]:
    return {
        name: OpenAPIHeader(schema=Schema(type=OpenAPIType.STRING), description=text) for name, text in told.items()
    }
