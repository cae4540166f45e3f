"""Describes bodies, answers and problem documents in OpenAPI, each with a valid example."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import Enum
from typing import Annotated, Any, ClassVar, cast

import msgspec
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
    Server,
    Tag,
)
from litestar.params import BodyKwarg, PathParameter
from litestar.plugins import ReceiveRoutePlugin
from litestar.routes import BaseRoute, HTTPRoute
from litestar.typing import FieldDefinition

from access.quotas import RateLimitedError
from api import cache_headers, fingerprint_header
from api.answer_formats import ARROW, EMBEDDING_HEADERS, FINGERPRINT_HEADER, OCTETS, TEXT_TYPES
from api.cache_headers import CACHE_HEADERS
from engine import errors
from web.dialects import Dialect
from web.litestar_adapter import NoRoutes, StructSchemaPlugin
from web.problems import MEDIA_TYPE, Problem, dialect_document, problem_document
from web.rate_limits import LIMIT_HEADERS

Responses = Mapping[int, ResponseSpec]
END_OF_SUMMARY = re.compile(r"[.;:](\s|$)")
"""Ends the part of a docstring that a list of operations has room for."""

CREDENTIALS: list[SecurityRequirement] = [{}, {"bearer": []}, {"apiKey": []}]
"""No credentials, a key or token as Bearer, or a key in `X-API-Key`: the settings decide which is required."""
SCHEMES: dict[str, SecurityScheme | Reference] = {
    "bearer": SecurityScheme(
        type="http", scheme="bearer", description="An API key, or a signed token (JWT) of a configured issuer."
    ),
    "apiKey": SecurityScheme(
        type="apiKey",
        name="X-API-Key",
        security_scheme_in="header",
        description="An API key. The header `api-key` works as well.",
    ),
}
TAGS = [
    Tag("Embedding", "The native API: vectors and tokens"),
    Tag("Models", "The native API: which models there are"),
    Tag("Operation", "Health, metrics and the result cache"),
    Tag("OpenAI", "OpenAI's API, with the further fields of Voyage, Jina and NVIDIA NIM"),
    Tag("Ollama", "Ollama's API"),
    Tag("Cohere", "Cohere's API"),
    Tag("TEI", "The API of Hugging Face's Text Embeddings Inference"),
]
"""Groups of operations, in the order in which /docs shows them."""

VECTOR_HEADERS = {
    FINGERPRINT_HEADER: "of the model, see `stamp` in `/models/{name}`",
    **{name: EMBEDDING_HEADERS[name] for name in ("X-Embedding-Tokens", "X-Embedding-Truncated")},
    **CACHE_HEADERS,
}
"""Headers of every answer with vectors. The other `EMBEDDING_HEADERS` are those of binary formats."""
RETRIED = frozenset({"429", "503"})
RETRY_HEADERS = {
    "Retry-After": "Seconds after which to send the request again",
    "retry-after-ms": "The same in milliseconds",
    "x-should-retry": "`true`: send the request again later",
}
"""Headers of errors after which a client should try again, on routes of dialects."""


def openapi_config(version: str, *, root_path: str = "") -> OpenAPIConfig:
    """Return the configuration of the API description; *root_path* is what proxies put before all paths."""
    return OpenAPIConfig(
        title="Fast Embedding API",
        version=version,
        description=(
            "Turns text into vectors with FastEmbed's models, on CPU, by an API of its own and by those of other "
            "servers. Errors are RFC 9457 problem details; on routes of other APIs they also have the members that "
            "clients of that API read. Besides what each route lists, any address may answer 400 (malformed headers), "
            "404 and 405, and what answers GET answers HEAD as well."
        ),
        openapi_router=NoRoutes("/schema", route_handlers=[]),  # api/docs.py serves the document
        servers=[Server(url=root_path or "/")],
        components=Components(security_schemes=SCHEMES),
        tags=TAGS,
        use_handler_docstrings=True,
    )


def model_in_path(description: str, example: str) -> PathParameter:
    """Describe a parameter of the path that names a model."""
    return PathParameter(description=description, examples=[Example(summary="A model", value=example)])


def body(body_type: type, *examples: tuple[str, dict[str, object]]) -> Any:
    """Annotate *body_type*, the type of a JSON body, with examples: pairs of summary and value."""
    described = [Example(summary=summary, value=value) for summary, value in examples]
    return Annotated[body_type, BodyKwarg(media_type=RequestEncodingType.JSON, examples=described)]


def answer(
    answer_type: Any,
    value: object,
    *,
    description: str,
    summary: str = "An answer",
    further: Sequence[tuple[str, object]] = (),
) -> ResponseSpec:
    """Describe an answer of *answer_type* with the example *value* and *further* pairs of summary and value."""
    examples = [Example(summary=text, value=_as_json(example)) for text, example in ((summary, value), *further)]
    return ResponseSpec(answer_type, generate_examples=False, description=description, examples=examples)


class _Null(Enum):
    """Null in an example: Litestar leaves out members that are None, but replaces those of an Enum by their value."""

    NULL = None


def _as_json(value: object) -> Any:
    """Return *value* with dates as strings and dataclasses as objects, as in JSON."""
    if value is None:
        return _Null.NULL
    if isinstance(value, dict):
        return {key: _as_json(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_as_json(part) for part in value]
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    return _as_json(asdict(value)) if hasattr(value, "__dataclass_fields__") else value  # type: ignore[call-overload]


def problem(error: type[errors.ServiceError], detail: str, **extensions: object) -> tuple[int, Example]:
    """Return status and example of the problem document of an *error*."""
    return error.status, Example(
        summary=error.title,
        value=problem_document(
            status=error.status,
            code=error.code,
            title=error.title,
            detail=detail,
            request_id="0f5e8c4d2b7a4c39a6d1f8e7b2c3d4e5",
            extensions=extensions,
        ),
    )


def problems(*examples: tuple[int, Example]) -> dict[int, ResponseSpec]:
    """Return a description for each status of *examples*; it lists their titles."""
    return _by_status(Problem, MEDIA_TYPE, examples)


def _by_status(
    problem_type: type[Problem], media_type: str, examples: Sequence[tuple[int, Example]]
) -> dict[int, ResponseSpec]:
    by_status: dict[int, list[Example]] = {}
    for status, example in examples:
        by_status.setdefault(status, []).append(example)
    return {
        status: ResponseSpec(
            problem_type,
            generate_examples=False,
            description="; or: ".join(dict.fromkeys(str(example.summary) for example in same)),
            media_type=media_type,
            examples=same,
        )
        for status, same in by_status.items()
    }


def dialect_problems(
    dialect: Dialect, problem_type: type[Problem], *examples: tuple[int, Example]
) -> dict[int, ResponseSpec]:
    """Return a description for each status that the *examples* have in *dialect*.

    Args:
        dialect: changes the statuses, and adds its members to each example.
        problem_type: describes the body: a subclass of `Problem` with the members of *dialect*.
        examples: from `problem`, as the native API would answer; names of native fields are translated.
    """
    translated = []
    for _, example in examples:
        document = dialect_document(cast("Mapping[str, object]", example.value), dialect)
        translated.append(
            (cast("int", document["status_code"]), Example(summary=example.summary, value=_as_json(document)))
        )
    return _by_status(problem_type, dialect.media_type, translated)


class StrictBodies(StructSchemaPlugin):
    """OpenAPI plugin: bodies with `forbid_unknown_fields` allow no additional properties."""

    def is_plugin_supported_field(self, field_definition: FieldDefinition) -> bool:
        body_type = field_definition.annotation
        return (
            isinstance(body_type, type)
            and issubclass(body_type, msgspec.Struct)
            and body_type.__struct_config__.forbid_unknown_fields
        )

    def to_openapi_schema(self, field_definition: FieldDefinition, schema_creator: Any) -> Schema:
        schema = super().to_openapi_schema(field_definition, schema_creator)
        schema.additional_properties = False
        return schema


class Summaries(ReceiveRoutePlugin):
    """OpenAPI plugin: the summary of an operation is the start of its docstring, instead of a name in our code."""

    def receive_route(self, route: BaseRoute) -> None:
        if isinstance(route, HTTPRoute):
            for handler in route.route_handlers:
                handler.summary = END_OF_SUMMARY.split(handler.fn.__doc__ or "")[0].replace("`", "")


@dataclass
class LimitedOperation(Operation):
    """An operation with a quota: adds the headers that state what is left of it."""

    def __post_init__(self) -> None:
        for status, response in (self.responses or {}).items():
            headers = LIMIT_HEADERS
            if status == str(RateLimitedError.status):
                headers = {**headers, "Retry-After": "Seconds after which a request is admitted again"}
            cast("OpenAPIResponse", response).headers = _headers(headers)


@dataclass
class ModelOperation(LimitedOperation):
    """An operation that uses a model: adds the header that requires a fingerprint."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.parameters = [*(self.parameters or []), fingerprint_header.PARAMETER]


@dataclass
class VectorsOperation(ModelOperation):
    """An operation that returns vectors: adds the binary formats, and the headers of vectors and the result cache."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.parameters = [*(self.parameters or []), cache_headers.PARAMETER]
        response = cast("OpenAPIResponse", (self.responses or {})["200"])
        content = response.content = dict(response.content or {})
        union = cast("Schema", content["application/json"].schema)
        union.any_of, union.one_of = union.one_of, None  # an answer with chunks is a valid batch answer, too
        rows = Schema(type=OpenAPIType.STRING, content_encoding="binary")
        for media_type, summary in ((OCTETS, "The matrix, little-endian"), (ARROW, "A table, if pyarrow is installed")):
            content[media_type] = OpenAPIMediaType(schema=rows, examples={"bytes": Example(summary, value="(bytes)")})
        response.headers = _headers({**EMBEDDING_HEADERS, **VECTOR_HEADERS, **LIMIT_HEADERS})


@dataclass
class DialectOperation(ModelOperation):
    """An operation of a dialect that uses a model: adds the headers of retries, and those of an answer."""

    HEADERS: ClassVar[Mapping[str, str]] = {FINGERPRINT_HEADER: VECTOR_HEADERS[FINGERPRINT_HEADER]}

    def __post_init__(self) -> None:
        super().__post_init__()
        for status, response in (self.responses or {}).items():
            further = RETRY_HEADERS if status in RETRIED else self.HEADERS if status == "200" else {}
            described = cast("OpenAPIResponse", response)
            described.headers = {**(described.headers or {}), **_headers(further)}


@dataclass
class DialectVectorsOperation(DialectOperation):
    """An operation of a dialect that returns vectors: adds their headers, and that of the result cache."""

    HEADERS: ClassVar[Mapping[str, str]] = VECTOR_HEADERS

    def __post_init__(self) -> None:
        super().__post_init__()
        self.parameters = [*(self.parameters or []), cache_headers.PARAMETER]


@dataclass
class MetricsOperation(Operation):
    """An operation that returns metrics: adds the text formats for Prometheus."""

    def __post_init__(self) -> None:
        response = cast("OpenAPIResponse", (self.responses or {})["200"])
        response.content = {**(response.content or {}), **_prometheus_texts()}


@dataclass
class PrometheusOperation(Operation):
    """An operation that returns metrics as text for Prometheus only."""

    def __post_init__(self) -> None:
        cast("OpenAPIResponse", (self.responses or {})["200"]).content = _prometheus_texts()


def _prometheus_texts() -> dict[str, OpenAPIMediaType]:
    lines = Schema(type=OpenAPIType.STRING)
    shown = Example("A line of many", value="fast_embedding_queue_seconds 0.0\n")
    return {kind: OpenAPIMediaType(schema=lines, examples={"text": shown}) for kind in TEXT_TYPES.values()}


def _headers(descriptions: Mapping[str, str]) -> dict[str, OpenAPIHeader | Reference]:
    return {
        name: OpenAPIHeader(schema=Schema(type=OpenAPIType.STRING), description=text)
        for name, text in descriptions.items()
    }
