"""The format of an answer by the Accept header, and what each format contains."""

import sys
from collections.abc import Sequence

import numpy as np
import pytest

from api.answer_formats import (
    ARROW,
    METRIC_FORMATS,
    OCTETS,
    OPEN_METRICS,
    PLAIN,
    PROMETHEUS_FORMATS,
    Format,
    NotAcceptableError,
    accepted_format,
    arrow,
    check_format,
    metrics_format,
    octets,
)
from engine.catalog import Model
from engine.embed_results import EmbedResult
from engine.errors import InvalidInputError
from engine.pipeline import Chunk
from web.responses import JSON

MODEL = Model("a/b", 4, 16, 0, 0, "", "", "local")


def answer(dtype: str, *, chunks: list[Chunk] | None = None) -> EmbedResult:
    vectors = np.arange(8).reshape(2, 4).astype(dtype)
    return EmbedResult(MODEL, vectors, 4, [3, 5], [False, True], chunks, fingerprint="0123456789abcdef")


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        pytest.param(None, JSON, id="nothing"),
        pytest.param("", JSON, id="empty"),
        pytest.param("*/*", JSON, id="anything"),
        pytest.param("image/png", JSON, id="unknown"),
        pytest.param("application/*", JSON, id="any-application"),
        pytest.param(OCTETS, OCTETS, id="bytes"),
        pytest.param(OCTETS.upper(), JSON, id="bytes-in-capitals"),
        pytest.param(ARROW, ARROW, id="arrow"),
        pytest.param(f"{ARROW}, {OCTETS};q=0.5", ARROW, id="arrow-first"),
        pytest.param(f"{ARROW};q=0.2, {OCTETS};q=0.5", OCTETS, id="bytes-first"),
        pytest.param(f"{OCTETS};q=1e999", JSON, id="endless-quality"),
        pytest.param("arrow", JSON, id="no-media-type"),
        pytest.param(f"{OCTETS};q=0", JSON, id="not-bytes"),
        pytest.param(f"{OCTETS}; q=0.000, {ARROW};q=0.1", ARROW, id="not-bytes-but-arrow"),
    ],
)
def test_format_is_chosen_by_the_accept_header(accept: str | None, wanted: Format) -> None:
    assert accepted_format(accept) == wanted


PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;"
    "q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        pytest.param(None, JSON, id="nothing"),
        pytest.param("", JSON, id="empty"),
        pytest.param("*/*", JSON, id="curl"),
        pytest.param(JSON, JSON, id="json"),
        pytest.param("application/json, text/plain, */*", JSON, id="axios"),
        pytest.param("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", JSON, id="browser"),
        pytest.param(PROMETHEUS_2, OPEN_METRICS, id="prometheus-2"),
        pytest.param(PROMETHEUS_3, OPEN_METRICS, id="prometheus-3"),
        pytest.param(f"application/vnd.google.protobuf;q=0.7,{PROMETHEUS_3}", OPEN_METRICS, id="with-protobuf"),
        pytest.param("text/plain;version=0.0.4;q=1,*/*;q=0.1", PLAIN, id="vmagent"),
        pytest.param("text/plain", PLAIN, id="text"),
        pytest.param("text/*", PLAIN, id="any-text"),
        pytest.param("text/plain;q=0.5, application/json;q=0.9", JSON, id="json-preferred"),
        pytest.param("application/json;q=0, */*", OPEN_METRICS, id="not-json"),
        pytest.param("application/json;q=0.1, */*", OPEN_METRICS, id="anything-rather-than-json"),
        pytest.param("text/*;q=0.9, text/plain;q=0.1, application/json;q=0.5", JSON, id="most-specific-quality"),
        pytest.param("application/*;q=0, */*;q=0.1", PLAIN, id="nothing-of-application"),
        pytest.param("text/plain; Q=0.2, Application/JSON ;q=0.3", JSON, id="capitals-and-spaces"),
        pytest.param(", text/plain,", PLAIN, id="empty-parts"),
        pytest.param("text/plain;q=1e999", JSON, id="endless-quality"),
        pytest.param("text/plain;q=-1", JSON, id="negative-quality"),
        pytest.param("text/plain;q=nan", JSON, id="no-quality"),
    ],
)
def test_metrics_are_text_if_the_accept_header_prefers_text(accept: str | None, wanted: str) -> None:
    assert metrics_format(accept, METRIC_FORMATS) == wanted


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        pytest.param(None, PLAIN, id="nothing"),
        pytest.param("*/*", PLAIN, id="curl"),
        pytest.param("text/html,application/xml;q=0.9,*/*;q=0.8", PLAIN, id="browser"),
        pytest.param(PROMETHEUS_2, OPEN_METRICS, id="prometheus-2"),
        pytest.param(PROMETHEUS_3, OPEN_METRICS, id="prometheus-3"),
        pytest.param("text/plain;version=0.0.4", PLAIN, id="text"),
        pytest.param("text/plain;q=0.1, */*", OPEN_METRICS, id="anything-rather-than-text"),
    ],
)
def test_metrics_for_prometheus_are_text_whatever_is_preferred(accept: str | None, wanted: str) -> None:
    assert metrics_format(accept, PROMETHEUS_FORMATS) == wanted


@pytest.mark.parametrize("accept", ["image/png", "application/vnd.google.protobuf", "text/plain;q=0", "*/*;q=0"])
@pytest.mark.parametrize("offered", [METRIC_FORMATS, PROMETHEUS_FORMATS], ids=["metrics", "prometheus"])
def test_metrics_are_refused_only_if_no_format_fits(accept: str, offered: Sequence[str]) -> None:
    with pytest.raises(NotAcceptableError) as refused:
        metrics_format(accept, offered)
    assert all(kind in refused.value.detail for kind in offered)


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", "i1", "u1"])
def test_matrix_is_little_endian_and_its_headers_describe_it(dtype: str) -> None:
    response = octets(answer(dtype))
    shape = [int(size) for size in response.answer_headers["X-Embedding-Shape"].split(",")]
    stored = np.dtype(response.answer_headers["X-Embedding-Dtype"]).newbyteorder("<")
    np.testing.assert_array_equal(np.frombuffer(response.body, stored).reshape(shape), answer(dtype).vectors)
    assert response.answer_headers["X-Embedding-Tokens"] == "8"
    assert response.answer_headers["X-Embedding-Truncated"] == "1"
    assert response.answer_headers["X-Model-Fingerprint"] == "0123456789abcdef"


@pytest.mark.parametrize("dtype", ["<f4", "<f2", "i1", "u1"])
def test_arrow_table_has_the_exact_numbers_and_the_model(dtype: str) -> None:
    ipc = pytest.importorskip("pyarrow.ipc")
    table = ipc.open_stream(arrow(answer(dtype)).body).read_all()
    np.testing.assert_array_equal(np.array(table["embedding"].to_pylist(), dtype), answer(dtype).vectors)
    assert table.drop_columns("embedding").to_pylist() == [
        {"tokens": 3, "truncated": False},
        {"tokens": 5, "truncated": True},
    ]
    assert table.schema.metadata == {b"model_name": b"a/b", b"dimension": b"4", b"fingerprint": b"0123456789abcdef"}


def test_arrow_table_of_chunks_has_their_character_ranges() -> None:
    ipc = pytest.importorskip("pyarrow.ipc")
    chunks = [Chunk(0, 0, 7, 16), Chunk(0, 8, 9, 3)]
    table = ipc.open_stream(arrow(answer("<f4", chunks=chunks)).body).read_all()
    assert table.drop_columns("embedding").to_pylist() == [
        {"index": 0, "start": 0, "end": 7, "tokens": 16},
        {"index": 0, "start": 8, "end": 9, "tokens": 3},
    ]


@pytest.mark.parametrize("wanted", [OCTETS, ARROW])
def test_binary_formats_reject_base64(wanted: Format) -> None:
    with pytest.raises(InvalidInputError, match="encoding") as rejection:
        check_format(wanted, is_base64=True, has_chunks=False)
    assert rejection.value.extensions == {"field": "encoding"}


def test_matrix_rejects_chunks() -> None:
    check_format(JSON, is_base64=True, has_chunks=True)
    check_format(ARROW, is_base64=False, has_chunks=True)
    with pytest.raises(InvalidInputError, match="long_text"):
        check_format(OCTETS, is_base64=False, has_chunks=True)


def test_arrow_without_pyarrow_is_a_406_that_names_other_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # Python's mark of a module that cannot be imported
    for call in (lambda: check_format(ARROW, is_base64=False, has_chunks=False), lambda: arrow(answer("<f4"))):
        with pytest.raises(NotAcceptableError, match="pyarrow") as rejection:
            call()
        assert rejection.value.status == 406
        assert OCTETS in rejection.value.detail
