"""Names of spans and attributes: the only place where they are written, since OpenTelemetry's for GenAI still change.

docs/MONITORING.md explains each. Those for HTTP and GenAI are OpenTelemetry's semantic conventions.
"""

from typing import Final, get_args

from telemetry.request_work import StageName

EMBEDDINGS: Final = "embeddings"
"""The operation of routes that embed; with the name of the model, their span's name."""
STAGES: Final[tuple[StageName, ...]] = get_args(StageName)
"""The child spans: they have the names of the stages."""
PROVIDER: Final = "fast-embedding"
SERVICE: Final = "fast-embedding"
"""`service.name` without OTEL_SERVICE_NAME."""

HTTP_METHOD: Final = "http.request.method"
HTTP_ROUTE: Final = "http.route"
HTTP_STATUS: Final = "http.response.status_code"
URL_PATH: Final = "url.path"
URL_SCHEME: Final = "url.scheme"
PROTOCOL_VERSION: Final = "network.protocol.version"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
USER_AGENT: Final = "user_agent.original"
ERROR_TYPE: Final = "error.type"

GENAI_OPERATION: Final = "gen_ai.operation.name"
GENAI_PROVIDER: Final = "gen_ai.provider.name"
GENAI_MODEL: Final = "gen_ai.request.model"
GENAI_FORMATS: Final = "gen_ai.request.encoding_formats"
GENAI_TOKENS: Final = "gen_ai.usage.input_tokens"
GENAI_DIMENSION: Final = "gen_ai.embeddings.dimension.count"

DIALECT: Final = "fast_embedding.dialect"
TEXTS: Final = "fast_embedding.texts"
TRUNCATED_TEXTS: Final = "fast_embedding.truncated_texts"
CACHED_TEXTS: Final = "fast_embedding.cached_texts"
COALESCED_TEXTS: Final = "fast_embedding.coalesced_texts"

SERVICE_NAME: Final = "service.name"
SERVICE_VERSION: Final = "service.version"
SERVICE_INSTANCE: Final = "service.instance.id"

SPAN_ATTRIBUTES: Final = frozenset(
    {
        *(HTTP_METHOD, HTTP_ROUTE, HTTP_STATUS, URL_PATH, URL_SCHEME, PROTOCOL_VERSION, SERVER_ADDRESS, SERVER_PORT),
        *(USER_AGENT, ERROR_TYPE),
        *(GENAI_OPERATION, GENAI_PROVIDER, GENAI_MODEL, GENAI_FORMATS, GENAI_TOKENS, GENAI_DIMENSION),
        *(DIALECT, TEXTS, TRUNCATED_TEXTS, CACHED_TEXTS, COALESCED_TEXTS),
    }
)
"""All attributes that a span may have."""
RESOURCE_ATTRIBUTES: Final = frozenset({SERVICE_NAME, SERVICE_VERSION, SERVICE_INSTANCE})
"""What each resource has; OTEL_RESOURCE_ATTRIBUTES adds more."""
