"""Real receivers of traces in this process: OTLP over gRPC and over HTTP, as the OpenTelemetry Collector has them."""

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

WAIT_S = 20.0


@dataclass(frozen=True, slots=True)
class ReceivedSpan:
    """One span as it arrived; ids in hexadecimal digits, attributes as Python's values."""

    raw: Span
    resource: Mapping[str, Any]
    attributes: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.raw.name

    @property
    def trace_id(self) -> str:
        return self.raw.trace_id.hex()

    @property
    def span_id(self) -> str:
        return self.raw.span_id.hex()

    @property
    def parent_id(self) -> str:
        return self.raw.parent_span_id.hex()


@dataclass
class OtlpReceiver:
    """What has arrived, and at which variables a service sends it there."""

    variables: Mapping[str, str]
    spans: list[ReceivedSpan] = field(default_factory=list)
    requests: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)

    def receive(self, request: trace_service_pb2.ExportTraceServiceRequest) -> None:
        with self.changed:
            self.requests += 1
            for group in request.resource_spans:
                resource = _values(group.resource.attributes)
                for scope in group.scope_spans:
                    self.spans += [ReceivedSpan(span, resource, _values(span.attributes)) for span in scope.spans]
            self.changed.notify_all()

    def servers(self) -> list[ReceivedSpan]:
        """Return the spans of requests, in the order of their ends."""
        return [span for span in self.spans if span.raw.kind == Span.SPAN_KIND_SERVER]

    def only(self) -> ReceivedSpan:
        """Return the span of the only request."""
        [span] = self.servers()
        return span

    def children_of(self, parent: ReceivedSpan) -> list[ReceivedSpan]:
        return [span for span in self.spans if span.parent_id == parent.span_id]

    def wait_for(self, servers: int) -> None:
        """Wait until the spans of this many requests have arrived."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.servers()) >= servers, timeout=WAIT_S)


def _values(attributes: Any) -> dict[str, Any]:
    pairs: list[KeyValue] = list(attributes)
    assert len({pair.key for pair in pairs}) == len(pairs)
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    assert kind is not None
    return [_value(item) for item in value.array_value.values] if kind == "array_value" else getattr(value, kind)


@contextmanager
def grpc_receiver() -> Iterator[OtlpReceiver]:
    """Receive over gRPC until the end of the block."""

    class Service(trace_service_pb2_grpc.TraceServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:  # noqa: N802, ARG002 - gRPC's names
            receiver.receive(request)
            return trace_service_pb2.ExportTraceServiceResponse()

    with ThreadPoolExecutor(2) as threads:
        server = grpc.server(threads)
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Service(), server)  # type: ignore[no-untyped-call]
        address = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        receiver = OtlpReceiver({"OTEL_EXPORTER_OTLP_ENDPOINT": address})
        server.start()
        try:
            yield receiver
        finally:
            server.stop(None).wait()


@contextmanager
def http_receiver() -> Iterator[OtlpReceiver]:
    """Receive over HTTP until the end of the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            assert (self.path, self.headers["content-type"]) == ("/v1/traces", "application/x-protobuf")
            receiver.receive(trace_service_pb2.ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Write nothing."""

    with http_server(Handler) as address:
        receiver = OtlpReceiver(
            {"OTEL_EXPORTER_OTLP_ENDPOINT": address, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
        )
        yield receiver


@contextmanager
def http_server(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Serve by *handler* until the end of the block; yield the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


RECEIVERS = {"grpc": grpc_receiver, "http": http_receiver}
"""Each protocol, by its name in tests."""
