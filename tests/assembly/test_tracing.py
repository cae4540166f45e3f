"""Tracing and its settings: what turns it on, what keeps the service from starting, and what `check` says of it."""

import os
from typing import Any

import pytest

import main
from assembly import tracing
from assembly.app import parts_of
from assembly.catalog import open_catalog
from assembly.tracing import COUNTS, NoTracing, why_unusable
from cli.check_settings import check_settings
from cli.findings import Finding
from config import SettingsError
from tests.support.apps import settings_of
from web.request_traces import RequestTraces


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    return monkeypatch


def finding_of(**settings: str) -> list[Finding]:
    found = settings_of(**settings)
    return [one for one in check_settings(found, open_catalog(found)) if one.subject == "ENABLE_TRACING"]


def built(**settings: str) -> object:
    return parts_of(main.create_app(settings_of(**settings))).tracing


def test_tracing_that_is_off_adds_nothing_to_a_request() -> None:
    off = NoTracing()
    part: Any
    reject: Any
    part, reject = object(), object()
    assert off.around(part, embedding=frozenset(), tokenizing=frozenset()) is part
    assert off.reject_early(reject) is reject


def test_tracing_is_off_unless_it_is_asked_for(variables: pytest.MonkeyPatch) -> None:
    assert isinstance(built(), NoTracing)
    assert isinstance(built(ENABLE_TRACING="true"), RequestTraces)
    variables.setenv("OTEL_SDK_DISABLED", "true")
    assert isinstance(built(ENABLE_TRACING="true"), NoTracing)


def test_missing_extra_is_an_error_that_names_the_command(variables: pytest.MonkeyPatch) -> None:
    variables.setattr(tracing, "PACKAGES", (*tracing.PACKAGES, "no-such-package"))
    with pytest.raises(SettingsError, match=r"pip install '\.\[tracing\]' \(image: --build-arg EXTRAS=tracing\)\.$"):
        built(ENABLE_TRACING="true")
    assert isinstance(built(), NoTracing)
    [finding] = finding_of(ENABLE_TRACING="true")
    assert finding.level == "FAIL"
    assert finding.detail.startswith("OpenTelemetry is not installed. Run: pip install")


def test_check_says_how_traces_are_sent(variables: pytest.MonkeyPatch) -> None:
    assert finding_of() == []
    assert [(one.level, one.detail) for one in finding_of(ENABLE_TRACING="true")] == [("ok", "traces are sent by grpc")]
    variables.setenv("OTEL_SDK_DISABLED", "True")
    assert [one.level for one in finding_of(ENABLE_TRACING="true")] == ["warn"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "HTTP"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://collector"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:99999"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://[collector"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "0"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zip"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/no/such/file"),
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("OTEL_TRACES_SAMPLER", "sometimes"),
        ("OTEL_TRACES_SAMPLER_ARG", "110%"),
        ("OTEL_TRACES_SAMPLER_ARG", "2"),
        *((count, value) for count in COUNTS for value in ("many", "0", "-1")),
    ],
)
def test_variable_that_cannot_be_used_ends_the_start_and_is_found_by_check(
    variables: pytest.MonkeyPatch, name: str, value: str
) -> None:
    variables.setenv(name, value)
    with pytest.raises(SettingsError, match=f"^ENABLE_TRACING: {name} cannot be used: use ") as raised:
        built(ENABLE_TRACING="true")
    assert value not in str(raised.value).partition(": use ")[0]
    assert [one.level for one in finding_of(ENABLE_TRACING="true")] == ["FAIL"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://[::1]:4317"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "0.5"),
        ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
        ("OTEL_TRACES_SAMPLER", ""),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "100000"),
    ],
)
def test_usual_values_can_be_used(name: str, value: str) -> None:
    assert list(why_unusable({name: value})) == []


def test_values_that_contradict_each_other_cannot_be_used() -> None:
    assert list(why_unusable({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", "OTEL_EXPORTER_OTLP_ENDPOINT": "one:1"}))
    assert list(why_unusable({"OTEL_BSP_MAX_QUEUE_SIZE": "100"}))
    assert list(why_unusable({"OTEL_BSP_MAX_QUEUE_SIZE": "100", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "100"})) == []
