"""Spans by OpenTelemetry: the only module that imports it. It is imported only with ENABLE_TRACING."""

import os
import threading
from collections.abc import Mapping, Sequence
from uuid import uuid4

from opentelemetry.context import Context
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from telemetry import span_names
from telemetry.trace_context import TraceContext

Attributes = Mapping[str, str | int | Sequence[str]]


class ServerSpan:
    """The span of one request, and its children."""

    def __init__(self, tracer: "Tracer", span: Span) -> None:
        """Continue *span*, which *tracer* has started."""
        found = span.get_span_context()
        self.context = TraceContext(f"{found.trace_id:032x}", f"{found.span_id:016x}", int(found.trace_flags))
        """Trace and span, for the log; also those of a span that is not recorded."""
        self.is_recording = span.is_recording()
        self._tracer = tracer
        self._span = span

    def add_child(self, name: str, started_ns: int, ended_ns: int) -> None:
        """Add a span that has ended, in nanoseconds since 1970."""
        child = self._tracer.begin(name, set_span_in_context(self._span, Context()), SpanKind.INTERNAL, {}, started_ns)
        child.end(ended_ns)

    def end(self, name: str, attributes: Attributes, ended_ns: int, *, is_failure: bool) -> None:
        """End the span and hand it to the exporter, which sends it later, in a thread of its own."""
        self._span.update_name(name)
        self._span.set_attributes(attributes)
        if is_failure:
            self._span.set_status(StatusCode.ERROR)
        self._span.end(ended_ns)


class Tracer:
    """Makes spans, and sends them in the background. Which are recorded, OTEL_TRACES_SAMPLER says.

    While the receiver is down or slow, spans wait, 2,048 at most (OTEL_BSP_MAX_QUEUE_SIZE); further ones replace the
    oldest.
    """

    def __init__(self, *, version: str, protocol: str) -> None:
        """Start the thread that sends spans, as the variables OTEL_* say.

        Args:
            version: of the service.
            protocol: `grpc` or `http/protobuf`.

        Raises:
            Exception: any, because of variables that cannot be used.
        """
        # Without the handler for the end of the interpreter: `close` has flushed by then.
        self._provider = TracerProvider(resource=_resource(version), shutdown_on_exit=False)
        self._exporter = _exporter(protocol)
        if self._exporter is not None:
            self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer(span_names.SERVICE, version)

    def start(
        self, name: str, *, parent: TraceContext | None, state: str, attributes: Attributes, started_ns: int
    ) -> ServerSpan:
        """Start the span of a request.

        Args:
            name: until its end, where it may change.
            parent: the caller's span, of `traceparent`; None: a new trace begins.
            state: the value of `tracestate`; empty: there is none.
            attributes: those that are known now.
            started_ns: nanoseconds since 1970.
        """
        context = Context()
        if parent is not None:
            caller = SpanContext(
                int(parent.trace_id, 16),
                int(parent.span_id, 16),
                is_remote=True,
                trace_flags=TraceFlags(parent.flags),
                trace_state=TraceState.from_header([state]) if state else TraceState(),
            )
            context = set_span_in_context(NonRecordingSpan(caller), context)
        return ServerSpan(self, self.begin(name, context, SpanKind.SERVER, attributes, started_ns))

    def begin(self, name: str, context: Context, kind: SpanKind, attributes: Attributes, started_ns: int) -> Span:
        """Start a span of any kind; the parent is in *context*."""
        return self._tracer.start_span(name, context, kind, attributes, start_time=started_ns)

    def close(self, timeout_s: float) -> None:
        """Send what waits, for at most *timeout_s*; what is left then is lost. Blocks meanwhile."""
        closing = threading.Thread(target=self._provider.shutdown, name="tracing-end", daemon=True)
        closing.start()
        closing.join(timeout_s)
        if closing.is_alive() and self._exporter is not None:
            self._exporter.shutdown()  # ends its attempts


def _resource(version: str) -> Resource:
    """Return what describes this process; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win."""
    own = {
        span_names.SERVICE_NAME: span_names.SERVICE,
        span_names.SERVICE_VERSION: version,
        span_names.SERVICE_INSTANCE: str(uuid4()),
    }
    return Resource.create(own).merge(OTELResourceDetector().detect())


def _exporter(protocol: str) -> SpanExporter | None:
    """Return what sends spans; None: OTEL_TRACES_EXPORTER is `none`."""
    if os.environ.get("OTEL_TRACES_EXPORTER") == "none":
        return None
    if protocol == "http/protobuf":
        from opentelemetry.exporter.otlp.proto.http import trace_exporter as http  # noqa: PLC0415 - one is used

        from telemetry.tracing_session import UnreadAnswers  # noqa: PLC0415 - the same

        return http.OTLPSpanExporter(session=UnreadAnswers())
    # gRPC's C library writes to standard error by itself, and has handlers for forks, which the service does not do.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as grpc  # noqa: PLC0415 - one of both is used

    return grpc.OTLPSpanExporter()
