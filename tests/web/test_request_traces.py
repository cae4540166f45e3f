"""Traces of real requests, as a real receiver of OpenTelemetry's protocol gets them."""

import asyncio
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from httpx import Response
from litestar import Litestar
from litestar.testing import TestClient
from structlog.testing import capture_logs

import main
from engine import embedder
from engine.encoder import Encoder
from engine.errors import OverloadedError
from telemetry import span_names
from tests.support.apps import running_app, settings_of
from tests.support.otlp_receiver import RECEIVERS, OtlpReceiver, ReceivedSpan, http_receiver
from tests.support.servers import ROOT
from web.dialects import Rejection
from web.problems import known_codes
from web.request_context import KEY, RequestContext

TINY = {"REQUIRED_MODELS": "tiny/one", "ENABLE_TRACING": "true"}
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00"
HTTP_KEYS = {
    "http.request.method",
    "http.route",
    "http.response.status_code",
    "url.path",
    "url.scheme",
    "network.protocol.version",
    "server.address",
    "server.port",
    "user_agent.original",
}


class Traced:
    """A running service with tracing, its client, and the receiver of its spans."""

    def __init__(self, client: TestClient[Litestar], receiver: OtlpReceiver, stack: ExitStack) -> None:
        self.client = client
        self.receiver = receiver
        self._stack = stack

    def post(self, path: str, body: object, **headers: str) -> Response:
        return self.client.post(path, json=body, headers=headers)

    def finish(self) -> OtlpReceiver:
        """Stop the service, which sends what waits, and return the receiver."""
        self._stack.close()
        return self.receiver


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment, without variables of OpenTelemetry."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.fixture(params=RECEIVERS)
def receiver(request: pytest.FixtureRequest) -> Iterator[OtlpReceiver]:
    with RECEIVERS[request.param]() as receiver:
        yield receiver


@pytest.fixture
def one_receiver() -> Iterator[OtlpReceiver]:
    with http_receiver() as receiver:
        yield receiver


@contextmanager
def traced_by(
    receiver: OtlpReceiver, variables: pytest.MonkeyPatch, tiny_models: object, **settings: str
) -> Iterator[Traced]:
    for name, value in receiver.variables.items():
        variables.setenv(name, value)
    variables.setattr(embedder, "LOAD_S", 10.0)  # on a busy machine, leasing a loaded model may take longer than usual
    with ExitStack() as stack:
        client = stack.enter_context(running_app(MODELS_DIR=str(tiny_models), **{**TINY, **settings}))
        client.post("/embed", json={"text": "warm"}, headers={"traceparent": UNSAMPLED})  # the model is loaded now
        yield Traced(client, receiver, stack)


@pytest.fixture
def traced(one_receiver: OtlpReceiver, variables: pytest.MonkeyPatch, tiny_models: object) -> Iterator[Traced]:
    with traced_by(one_receiver, variables, tiny_models) as traced:
        yield traced


def check_times(receiver: OtlpReceiver, server: ReceivedSpan, stages: Sequence[str]) -> None:
    """Check that the children are these, in this order, one after the other, and inside their parent."""
    children = receiver.children_of(server)
    assert [child.name for child in children] == list(stages)
    assert {child.trace_id for child in children} <= {server.trace_id}
    moments = [server.raw.start_time_unix_nano]
    for child in children:
        moments += [child.raw.start_time_unix_nano, child.raw.end_time_unix_nano]
    moments.append(server.raw.end_time_unix_nano)
    assert moments == sorted(moments)


def test_embedding_has_a_span_with_its_stages_over_each_protocol(
    receiver: OtlpReceiver, variables: pytest.MonkeyPatch, tiny_models: object
) -> None:
    with traced_by(receiver, variables, tiny_models) as traced:
        answer = traced.post("/embed", {"text": "one two"}, traceparent=SAMPLED, tracestate="vendor=1")
        assert answer.status_code == 200
        traced.finish()
    span = receiver.only()
    assert (span.name, span.trace_id, span.parent_id, span.raw.trace_state) == (
        "embeddings tiny/one",
        TRACE,
        SPAN,
        "vendor=1",
    )
    assert span.raw.status.code == 0
    assert dict(span.attributes) == {
        "http.request.method": "POST",
        "http.route": "/embed",
        "http.response.status_code": 200,
        "url.path": "/embed",
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "server.address": "testserver.local",
        "server.port": 80,
        "user_agent.original": "testclient",
        "gen_ai.operation.name": "embeddings",
        "gen_ai.provider.name": "fast-embedding",
        "gen_ai.request.model": "tiny/one",
        "gen_ai.request.encoding_formats": ["float32"],
        "gen_ai.usage.input_tokens": 4,
        "gen_ai.embeddings.dimension.count": 4,
        "fast_embedding.dialect": "native",
        "fast_embedding.texts": 1,
    }
    check_times(receiver, span, ["cache", "tokenize", "queue", "run"])
    assert len(receiver.spans) == 5
    assert span.resource["service.name"] == "fast-embedding"
    assert span.resource["service.version"] == main.VERSION
    assert re.fullmatch(r"[0-9a-f-]{36}", span.resource["service.instance.id"])


def test_kept_result_needs_the_cache_only(traced: Traced) -> None:
    traced.post("/embed", {"text": "warm"})
    receiver = traced.finish()
    span = receiver.only()
    check_times(receiver, span, ["cache"])
    assert span.attributes["fast_embedding.cached_texts"] == 1


def test_kept_answer_has_the_attributes_of_one_that_is_written(traced: Traced) -> None:
    for flag in (UNSAMPLED, SAMPLED, SAMPLED):
        traced.post("/embed", {"text": "warm", "dtype": "float16"}, traceparent=flag)
    written, kept = (span.attributes for span in traced.finish().spans if span.name.startswith("embeddings"))
    assert written == kept
    assert kept["gen_ai.request.encoding_formats"] == ["float16"]


def test_state_of_a_trace_that_is_too_long_to_be_kept_is_dropped(traced: Traced) -> None:
    state = ",".join(f"vendor{number}={'x' * 100}" for number in range(5))
    traced.post("/embed", {"text": "warm"}, traceparent=SAMPLED, tracestate=state)
    assert traced.finish().only().raw.trace_state == ""


def test_first_request_of_a_model_has_the_stage_of_its_load(
    one_receiver: OtlpReceiver, variables: pytest.MonkeyPatch, tiny_models: object
) -> None:
    with traced_by(one_receiver, variables, tiny_models) as traced:
        variables.setattr(embedder, "LOAD_S", 0.0)
        traced.post("/embed", {"text": "one", "model_name": "tiny/two"})
        receiver = traced.finish()
    check_times(receiver, receiver.only(), ["load", "cache", "tokenize", "queue", "run"])


def test_batch_counts_texts_that_are_equal_and_truncated(traced: Traced) -> None:
    traced.post("/embed/batch", {"texts": ["two", "two", "one " * 40], "encoding": "base64", "dtype": "int8"})
    receiver = traced.finish()
    attributes = receiver.only().attributes
    wanted = {
        "gen_ai.request.encoding_formats": ["int8", "base64"],
        "fast_embedding.texts": 3,
        "fast_embedding.truncated_texts": 1,
        "fast_embedding.coalesced_texts": 1,
    }
    assert {name: attributes[name] for name in wanted} == wanted
    check_times(receiver, receiver.only(), ["cache", "tokenize", "queue", "run"])


def test_tokenising_is_no_operation_of_genai(traced: Traced) -> None:
    traced.post("/tokenize", {"texts": ["one two"]})
    receiver = traced.finish()
    span = receiver.only()
    assert span.name == "POST /tokenize"
    assert set(span.attributes) == HTTP_KEYS | {
        "gen_ai.request.model",
        "gen_ai.usage.input_tokens",
        "fast_embedding.dialect",
        "fast_embedding.texts",
    }
    check_times(receiver, span, ["tokenize"])


@pytest.mark.parametrize(
    ("path", "body", "formats", "dialect"),
    [
        pytest.param(
            "/v1/embeddings", {"input": "one", "encoding_format": "base64"}, ["base64"], "openai", id="openai"
        ),
        pytest.param("/v1/embeddings", {"input": "one"}, None, "openai", id="openai-without"),
        pytest.param(
            "/v2/embed",
            {
                "model": "tiny/one",
                "texts": ["one"],
                "input_type": "classification",
                "embedding_types": ["int8", "float"],
            },
            ["int8", "float"],
            "cohere",
            id="cohere",
        ),
        pytest.param("/embed", {"inputs": ["one"]}, None, "tei", id="tei"),
        pytest.param("/api/embed", {"model": "tiny/one", "input": "one"}, None, "ollama", id="ollama"),
    ],
)
def test_dialects_have_the_formats_that_the_caller_names(
    traced: Traced, path: str, body: object, formats: list[str] | None, dialect: str
) -> None:
    assert traced.post(path, body).status_code == 200
    span = traced.finish().only()
    assert span.name == "embeddings tiny/one"
    assert (span.attributes.get("gen_ai.request.encoding_formats"), span.attributes["fast_embedding.dialect"]) == (
        formats,
        dialect,
    )


def test_streamed_answer_is_one_span(traced: Traced) -> None:
    texts = [f"one two {'three ' * (number % 7)}{number}" for number in range(600)]
    assert traced.post("/v1/embeddings", {"input": texts}).status_code == 200
    receiver = traced.finish()
    assert receiver.only().attributes["fast_embedding.texts"] == 600
    check_times(receiver, receiver.only(), ["cache", "tokenize", "queue", "run"])


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        pytest.param({"text": "one", "model_name": "poison-secret"}, 400, "unknown-model", id="unknown-model"),
        pytest.param({"text": ""}, 400, "invalid-input", id="invalid"),
    ],
)
def test_error_of_the_caller_has_its_code_and_is_no_failure(
    traced: Traced, body: object, status: int, code: str
) -> None:
    assert traced.post("/embed", body).status_code == status
    receiver = traced.finish()
    span = receiver.only()
    assert (span.name, span.attributes["error.type"], span.raw.status.code) == ("POST /embed", code, 0)
    assert span.attributes["http.response.status_code"] == status
    assert "poison-secret" not in str(span.raw)


def test_request_over_the_quota_has_a_span(
    one_receiver: OtlpReceiver, variables: pytest.MonkeyPatch, tiny_models: object
) -> None:
    limits = {"ENABLE_RATE_LIMIT": "true", "RATE_LIMIT_REQUESTS": "1"}
    with traced_by(one_receiver, variables, tiny_models, **limits) as traced:
        assert traced.post("/embed", {"text": "one"}).status_code == 429
        receiver = traced.finish()
    span = receiver.only()
    assert (span.attributes["error.type"], span.attributes["http.response.status_code"]) == ("rate-limited", 429)
    assert receiver.children_of(span) == []


def test_failure_of_the_service_is_an_error_of_its_span(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("a secret text")

    monkeypatch.setattr(Encoder, "encode", fail)
    assert traced.post("/embed", {"text": "three"}).status_code == 500
    span = traced.finish().only()
    assert (span.raw.status.code, span.raw.status.message, span.attributes["error.type"]) == (
        2,
        "",
        "inference-failed",
    )
    assert len(span.raw.events) == 0


def test_request_that_is_rejected_before_the_app_has_a_span(
    one_receiver: OtlpReceiver, variables: pytest.MonkeyPatch, tiny_models: object
) -> None:
    with traced_by(one_receiver, variables, tiny_models) as traced:
        parts = traced.client.app.state.parts
        rejection = Rejection(OverloadedError("full", retry_after_s=1), None)
        reject = parts.tracing.reject_early(lambda *_: rejection)
        assert reject("/embed?x=1", None, [(b"traceparent", SAMPLED.encode())]) is rejection
        assert parts.tracing.reject_early(lambda *_: None)("/embed", None, []) is None
        receiver = traced.finish()
    span = receiver.only()
    assert (span.name, span.trace_id, span.parent_id, span.raw.status.code) == ("POST /embed", TRACE, SPAN, 2)
    assert dict(span.attributes) == {
        "http.request.method": "POST",
        "http.route": "/embed",
        "http.response.status_code": 503,
        "error.type": "overloaded",
        "fast_embedding.dialect": "native",
    }


async def test_caller_that_leaves_has_a_span_without_a_status(
    one_receiver: OtlpReceiver, variables: pytest.MonkeyPatch, tiny_models: object
) -> None:
    for name, value in one_receiver.variables.items():
        variables.setenv(name, value)
    variables.setattr(embedder, "LOAD_S", 10.0)
    app = main.create_app(settings_of(MODELS_DIR=str(tiny_models), **TINY))
    encode, gate, loop = Encoder.encode, threading.Event(), asyncio.get_running_loop()
    context = RequestContext(server_reports_disconnect=True)

    def held(self: Encoder, *arguments: Any, **more: Any) -> Any:
        assert context.on_disconnect
        loop.call_soon_threadsafe(context.on_disconnect)
        assert gate.wait(20)
        return encode(self, *arguments, **more)

    async def receive() -> Any:
        return {"type": "http.request", "body": b'{"text": "four"}', "more_body": False}

    async def send(message: Any) -> None:
        pytest.fail(f"{message} is sent to a caller that has left")

    scope: Any = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/embed",
        "raw_path": b"/embed",
        "query_string": b"",
        "root_path": "",
        "client": None,
        "server": ("/run/socket", None),
        "headers": [(b"content-type", b"application/json")],
        "state": {KEY: context},
    }
    async with app.lifespan():
        await app.state.parts.service.parts.models.load_all(
            [app.state.parts.service.parts.embedder.resolve_model("tiny/one")]
        )
        variables.setattr(Encoder, "encode", held)
        await app(scope, receive, send)
        gate.set()
    span = one_receiver.only()
    assert (span.name, span.attributes["error.type"], span.raw.status.code) == (
        "embeddings tiny/one",
        "caller-left",
        0,
    )
    assert "http.response.status_code" not in span.attributes
    assert (span.attributes["server.address"], "server.port" in span.attributes) == ("/run/socket", False)
    check_times(one_receiver, span, ["cache", "tokenize", "queue", "run"])


def test_request_that_waits_in_vain_has_the_stage_of_its_queue(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, gate, started = Encoder.encode, threading.Event(), threading.Semaphore(0)

    def held(self: Encoder, *arguments: Any, **more: Any) -> Any:
        started.release()
        assert gate.wait(20)
        return encode(self, *arguments, **more)

    monkeypatch.setattr(Encoder, "encode", held)
    with ThreadPoolExecutor() as others:
        lanes = traced.client.app.state.parts.service.parts.scheduler.state().lanes + 1  # and the express lane
        for number in range(lanes):
            others.submit(traced.post, "/embed", {"text": f"one {'two ' * number}"}, traceparent=UNSAMPLED)
            assert started.acquire(timeout=20)
        answer = traced.post("/embed", {"text": "three"}, **{"x-request-timeout": "0.5"})
        gate.set()
    assert answer.status_code == 504
    receiver = traced.finish()
    check_times(receiver, receiver.only(), ["cache", "tokenize", "queue"])
    assert (receiver.only().attributes["error.type"], receiver.only().raw.status.code) == ("deadline-exceeded", 2)


@pytest.mark.parametrize("path", ["/health/live", "/models", "/nowhere/a-secret-text", "/metrics"])
def test_request_that_does_no_work_is_traced_only_for_a_caller_that_records(traced: Traced, path: str) -> None:
    for headers in ({}, {"traceparent": UNSAMPLED}, {"traceparent": "00-malformed-01"}, {"traceparent": SAMPLED}):
        traced.client.get(path, headers=headers)
    receiver = traced.finish()
    span = receiver.only()
    is_known = path != "/nowhere/a-secret-text"
    assert (span.name, span.parent_id) == (f"GET {path}" if is_known else "GET", SPAN)
    assert "secret" not in str(span.raw)
    assert set(span.attributes) == (
        HTTP_KEYS if is_known else (HTTP_KEYS | {"error.type"}) - {"http.route", "url.path"}
    )


def test_head_has_the_route_of_get(traced: Traced) -> None:
    traced.client.head("/health/live", headers={"traceparent": SAMPLED})
    span = traced.finish().only()
    assert (span.name, set(span.attributes)) == ("HEAD /health/live", HTTP_KEYS)


def test_methods_that_nobody_knows_are_not_repeated(traced: Traced) -> None:
    traced.client.request("SECRET", "/embed", headers={"traceparent": SAMPLED})
    span = traced.finish().only()
    assert (span.name.split()[0], span.attributes["http.request.method"]) == ("HTTP", "_OTHER")


def test_caller_that_does_not_record_gets_no_span_but_the_trace_goes_on(traced: Traced) -> None:
    traced.post("/embed", {"text": "one"}, traceparent=UNSAMPLED)
    assert traced.finish().spans == []


@pytest.mark.parametrize(
    ("sampler", "spans"),
    [
        pytest.param("always_off", 0, id="off"),
        pytest.param("always_on", 3, id="on-whatever-the-caller-does"),
        pytest.param("parentbased_always_off", 1, id="parent"),
        pytest.param("parentbased_traceidratio", 1, id="ratio"),
    ],
)
def test_sampler_decides_which_requests_have_spans(
    one_receiver: OtlpReceiver, variables: pytest.MonkeyPatch, tiny_models: object, sampler: str, spans: int
) -> None:
    variables.setenv("OTEL_TRACES_SAMPLER", sampler)
    variables.setenv("OTEL_TRACES_SAMPLER_ARG", "0")
    with traced_by(one_receiver, variables, tiny_models) as traced:  # its first request is not recorded by the caller
        traced.post("/embed", {"text": "one"}, traceparent=SAMPLED)
        traced.post("/embed", {"text": "one"})
        assert len(traced.finish().servers()) == spans


def test_trace_that_begins_here_is_in_the_log_and_in_the_exemplars(traced: Traced) -> None:
    with capture_logs() as events:
        traced.post("/embed", {"text": "one"})
        metrics = traced.client.get("/metrics", headers={"accept": "application/openmetrics-text"}).text
        span = traced.finish().only()
    assert f'{{trace_id="{span.trace_id}"}}' in metrics
    assert span.parent_id == ""
    assert [event["trace_id"] for event in events if event["event"] == "request_answered"] == [span.trace_id]


def test_service_runs_without_traces_if_opentelemetry_cannot_start(
    one_receiver: OtlpReceiver, variables: pytest.MonkeyPatch, tiny_models: object, capsys: pytest.CaptureFixture[str]
) -> None:
    variables.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "many")
    with traced_by(one_receiver, variables, tiny_models) as traced:
        assert traced.post("/embed", {"text": "one"}, traceparent=SAMPLED).status_code == 200
        assert traced.finish().spans == []
    assert "tracing_unavailable" in capsys.readouterr().out


def test_names_of_the_service_come_from_the_environment(
    one_receiver: OtlpReceiver, variables: pytest.MonkeyPatch, tiny_models: object
) -> None:
    variables.setenv("OTEL_SERVICE_NAME", "mine")
    variables.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.instance.id=seven,deployment.environment.name=test")
    variables.setenv("OTEL_TRACES_SAMPLER", "")  # counts as absent
    with traced_by(one_receiver, variables, tiny_models) as traced:
        traced.post("/embed", {"text": "one"})
        resource = traced.finish().only().resource
    assert (resource["service.name"], resource["service.instance.id"]) == ("mine", "seven")
    assert resource["deployment.environment.name"] == "test"


def test_spans_have_no_text_vector_or_key(
    one_receiver: OtlpReceiver, variables: pytest.MonkeyPatch, tiny_models: object
) -> None:
    key = "key-that-is-secret-0123456789"
    with traced_by(one_receiver, variables, tiny_models, API_KEYS=f"alice:{key}") as traced:
        for headers in ({"authorization": f"Bearer {key}"}, {"authorization": "Bearer wrong-secret"}):
            traced.client.post(f"/embed?api-key={key}", json={"text": "secret one"}, headers=headers)
            traced.client.post("/v1/embeddings", json={"input": "secret two", "user": "secret"}, headers=headers)
        receiver = traced.finish()
    assert len(receiver.servers()) == 4
    assert {span.attributes.get("error.type") for span in receiver.servers()} == {None, "unauthenticated"}
    for span in receiver.spans:
        assert re.search(r"secret|alice", str(span.raw)) is None
        assert set(span.attributes) <= span_names.SPAN_ATTRIBUTES
        assert set(span.attributes.get("error.type", "").split()) <= known_codes()


def test_without_the_setting_nothing_of_opentelemetry_is_imported() -> None:
    code = (
        "import main, sys; main.create_app(); from assembly.app import parts_of; "
        "from assembly.tracing import NoTracing; assert isinstance(parts_of(main.app).tracing, NoTracing); "
        "sys.exit([name for name in sys.modules if name.split('.')[0] in ('opentelemetry', 'grpc', 'requests')] or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_sdk_that_is_disabled_changes_nothing(
    variables: pytest.MonkeyPatch, tiny_models: object, one_receiver: OtlpReceiver
) -> None:
    variables.setenv("OTEL_SDK_DISABLED", "TRUE")
    with traced_by(one_receiver, variables, tiny_models) as traced:
        traced.post("/embed", {"text": "one"}, traceparent=SAMPLED)
        assert traced.finish().spans == []


def test_exporter_none_sends_nothing(
    variables: pytest.MonkeyPatch, tiny_models: object, one_receiver: OtlpReceiver, capsys: pytest.CaptureFixture[str]
) -> None:
    variables.setenv("OTEL_TRACES_EXPORTER", "none")
    with traced_by(one_receiver, variables, tiny_models) as traced:
        traced.post("/embed", {"text": "one"})
        assert traced.finish().spans == []
    assert '"trace_id":"' in capsys.readouterr().out
