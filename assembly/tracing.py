"""Tracing is built from the settings: an object that does nothing, unless ENABLE_TRACING is set."""

import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from litestar import Litestar
from litestar.types import ASGIApp

from config import Settings, SettingsError
from web.allowed_hosts import EarlyRejection

NOT_INSTALLED = (
    "ENABLE_TRACING: OpenTelemetry is not installed. Run: pip install '.[tracing]' (image: --build-arg EXTRAS=tracing)."
)
PACKAGES = (
    "opentelemetry-sdk",
    "opentelemetry-exporter-otlp-proto-grpc",
    "opentelemetry-exporter-otlp-proto-http",
)
"""Those that requirements/tracing.txt names."""
HTTP = "http/protobuf"
PROTOCOLS = ("grpc", HTTP)
SAMPLERS = tuple(
    f"{parent}{name}" for parent in ("", "parentbased_") for name in ("always_on", "always_off", "traceidratio")
)
FOR_TRACES, FOR_ALL = "OTEL_EXPORTER_OTLP_TRACES_", "OTEL_EXPORTER_OTLP_"
"""How the variables of the exporter begin: those for traces win over those for all signals."""
COUNTS = ("OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "OTEL_BSP_SCHEDULE_DELAY")


class Tracing(Protocol):
    """What the app and the server use of tracing."""

    @property
    def is_off(self) -> bool:
        """Whether nothing is recorded."""

    def lifespan(self, app: Litestar) -> AbstractAsyncContextManager[None]:
        """Trace requests in the block; send what waits at its end."""

    def around(self, app: ASGIApp, *, embedding: frozenset[str], tokenizing: frozenset[str]) -> ASGIApp:
        """Return *app* with spans for its requests to these routes, and for others of callers who record theirs."""

    def reject_early(self, reject: EarlyRejection) -> EarlyRejection:
        """Return *reject* with a span for each rejection."""


class NoTracing:
    """Records nothing, and adds no step to any request."""

    is_off = True

    @asynccontextmanager
    async def lifespan(self, _: Litestar) -> AsyncIterator[None]:
        yield

    def around(self, app: ASGIApp, *, embedding: frozenset[str], tokenizing: frozenset[str]) -> ASGIApp:  # noqa: ARG002
        return app

    def reject_early(self, reject: EarlyRejection) -> EarlyRejection:
        return reject


def read_tracing(settings: Settings, *, version: str) -> Tracing:
    """Return what traces requests. OpenTelemetry is imported only if it is needed.

    Raises:
        SettingsError: OpenTelemetry is not installed, or a variable OTEL_* cannot be used.
    """
    if not settings.enable_tracing or is_disabled(os.environ):
        return NoTracing()
    for reason in why_unusable(os.environ):
        raise SettingsError(reason)
    _drop_empty()
    from web.request_traces import RequestTraces  # noqa: PLC0415 - it imports OpenTelemetry

    return RequestTraces(version=version, protocol=protocol_of(os.environ))


def is_disabled(environment: Mapping[str, str]) -> bool:
    """Return whether OTEL_SDK_DISABLED turns tracing off, whatever the settings say."""
    return environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


def why_unusable(environment: Mapping[str, str]) -> Iterator[str]:
    """Yield why tracing cannot work: the extra is not installed, or variables OTEL_* have values it cannot use.

    OpenTelemetry would ignore some of these values, and fail at others only when it sends. Values are not repeated.
    """
    for package in PACKAGES:
        try:
            distribution(package)
        except PackageNotFoundError:
            yield NOT_INSTALLED
            return
    are_usable = True
    for name, check in CHECKS.items():
        value = environment.get(name, "").strip()
        if value and (advice := check(value)):
            are_usable = False
            yield f"ENABLE_TRACING: {name} cannot be used: {advice}"
    if are_usable:
        yield from _contradictions(environment)


def _contradictions(environment: Mapping[str, str]) -> Iterator[str]:
    """Yield what is wrong with several variables together."""
    needs_scheme = protocol_of(environment) == HTTP
    for name in (f"{FOR_TRACES}ENDPOINT", f"{FOR_ALL}ENDPOINT"):
        value = environment.get(name, "").strip()
        if value and needs_scheme and not value.startswith(("http://", "https://")):
            yield f"ENABLE_TRACING: {name} cannot be used: {HTTP} needs an address like http://collector:4318"
    queue, batch = (environment.get(name, "").strip() for name in COUNTS[:2])
    if (int(batch) if batch.isdecimal() else 512) > (int(queue) if queue.isdecimal() else 2048):
        yield f"ENABLE_TRACING: {COUNTS[1]} (512) cannot be more than {COUNTS[0]} (2048)"


def protocol_of(environment: Mapping[str, str]) -> str:
    """Return the protocol that the variables ask for; `grpc` by default, as with OpenTelemetry's own start."""
    found = (environment.get(f"{start}PROTOCOL", "").strip() for start in (FOR_TRACES, FOR_ALL))
    return next(filter(None, found), PROTOCOLS[0])


def _drop_empty() -> None:
    """Remove empty variables OTEL_*: they count as absent by the specification, but fail in the library."""
    for name in [name for name, value in os.environ.items() if name.startswith("OTEL_") and not value.strip()]:
        del os.environ[name]


def _one_of(*values: str) -> Callable[[str], str | None]:
    return lambda value: None if value in values else f"use one of {', '.join(values)}"


def _endpoint(value: str) -> str | None:
    try:
        parts = urlsplit(value if "://" in value else f"//{value}")
        is_valid = bool(parts.hostname) and parts.scheme in {"", "http", "https"} and parts.port != 0
    except ValueError:
        is_valid = False
    return None if is_valid else "use an address like http://collector:4317"


def _seconds(value: str) -> str | None:
    try:
        is_valid = 0 < float(value) < float("inf")
    except ValueError:
        is_valid = False
    return None if is_valid else "use a number of seconds above 0"


def _count(value: str) -> str | None:
    is_valid = value.isascii() and value.isdecimal() and int(value[:10]) > 0
    return None if is_valid else "use a whole number above 0"


def _ratio(value: str) -> str | None:
    try:
        is_valid = 0 <= float(value) <= 1
    except ValueError:
        is_valid = False
    return None if is_valid else "use a number from 0 to 1"


def _file(value: str) -> str | None:
    return None if Path(value).is_file() else "use the path of a file that exists"


CHECKS: Mapping[str, Callable[[str], str | None]] = {
    "OTEL_TRACES_EXPORTER": _one_of("otlp", "none"),
    "OTEL_TRACES_SAMPLER": _one_of(*SAMPLERS),
    "OTEL_TRACES_SAMPLER_ARG": _ratio,
    **dict.fromkeys(COUNTS, _count),
    **{
        f"{start}{name}": check
        for start in (FOR_ALL, FOR_TRACES)
        for name, check in {
            "PROTOCOL": _one_of(*PROTOCOLS),
            "ENDPOINT": _endpoint,
            "TIMEOUT": _seconds,
            "COMPRESSION": _one_of("none", "gzip"),
            **dict.fromkeys(("CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE"), _file),
        }.items()
    },
}
"""How each variable is checked: returns what to write instead, or None."""
