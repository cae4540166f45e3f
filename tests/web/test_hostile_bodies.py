"""Bodies made to break the decoder: each is read as JSON means it, or rejected with a reason."""

import gc
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from api.cohere_types import CohereEmbedRequest
from api.openai_requests import EmbeddingsRequest
from engine.errors import InvalidInputError, ServiceError
from tests.support.decoding import DIALECT_TYPES, REQUEST_TYPES, check_body, check_dialect_body, check_rejection, decode
from tests.support.garbage import collect_garbage
from tests.support.servers import ROOT

SEEDS = (
    b'{"text": "a", "dimensions": 5, "normalize": true}',
    b'{"texts": ["a", "\\u00e9", "\\ud83d\\ude00"], "dtype": "int8", "model_name": null}',
    b'{"texts": [" ", ""], "truncate": "none", "return_tokens": false}',
    b'{"texts": ["a", ""], "model": null, "embedding_types": ["float", "int8"], "truncate": "START", "user": {}}',
    b'{"inputs": [{"content": [{"type": "text", "text": "a"}]}], "output_dimension": 5, "max_tokens": null}',
    b'{"input": ["a", {"text": "b"}, 5, [6, 7]], "model": null, "encoding_format": "base64", "truncate": false}',
    b'{"input": [[1, 2], []], "task": "retrieval.query", "normalized": false, "truncate_prompt_tokens": -1}',
    b'{"input": ["a", {"text": "b"}], "encoding_format": "base64", "truncate": "END", "dimensions": 5}',
    b'{"inputs": {"source_sentence": "a", "sentences": ["b"]}, "parameters": {"truncate": true}}',
    b'{"text": "half \\ud800", "input_type": "query", "encoding": "base64"}',
)
WORDS = (b"\\ud800", b"NaN", b'"', b"[", b"\xef\xbb\xbf", b"9" * 400)
FUZZ_RUNS = os.environ.get("FUZZ_RUNS", "15000")

repeatable = settings(derandomize=True, deadline=None, max_examples=200)
each_type = pytest.mark.parametrize("body_type", REQUEST_TYPES)
numbers = st.integers(-(10**400), 10**400) | st.floats()
names = (
    st.sampled_from(["text", "texts", "model_name", "dimensions", "dtype", "return_tokens"])
    | st.sampled_from(["input", "task", "truncation", "output_dtype", "normalized", "encoding_format"])
    | st.sampled_from(["model", "inputs", "content", "type", "truncate", "embedding_types", "images"])
    | st.text()
)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text() | st.text(st.characters(categories=["Cs", "L", "Zs"])),
    lambda inner: st.lists(inner) | st.dictionaries(names, inner),
    max_leaves=20,
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Draw a valid body with some bytes removed, doubled or inserted."""
    body = draw(st.sampled_from(SEEDS))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(body)))
        end = min(len(body), start + draw(st.integers(0, 12)))
        inserted = draw(st.binary(max_size=3) | st.sampled_from(WORDS))
        body = body[:start] + inserted + (body[start:end] * 2 if draw(st.booleans()) else b"") + body[end:]
    return body


@pytest.mark.parametrize(
    ("body", "body_type", "field"),
    [
        pytest.param(b'{"input": [[], [1, 2], [3]]}', EmbeddingsRequest, "input", id="token-ids"),
        pytest.param(b'{"input": [{"text": "a"}, {"text": ""}]}', EmbeddingsRequest, "input", id="texts-in-objects"),
        pytest.param(
            b'{"inputs": [{"content": []}, {"content": [{"text": "a"}]}]}',
            CohereEmbedRequest,
            "inputs",
            id="cohere-inputs",
        ),
    ],
)
def test_items_of_a_list_are_no_work_for_the_garbage_collector(body: bytes, body_type: type[Any], field: str) -> None:
    """10 MB may contain 3 million of them: examined again and again, they would block the event loop for seconds."""
    items = getattr(msgspec.json.decode(body, type=body_type), field)
    collect_garbage()  # it stops tracking tuples without tracked items
    assert len(items) > 1
    assert not any(map(gc.is_tracked, items))


@each_type
@given(body=st.binary() | mutated())
@example(body=b'{"texts\\ud800": ["\\ud800"]}')
@example(body=b"\xff\xfe{\x00}\x00")
@example(body=b"\xef\xbb\xbf{}")
@repeatable
def test_any_bytes_are_read_as_json_means_them_or_rejected(body_type: type[Any], body: bytes) -> None:
    check_body(body, body_type)


@each_type
@given(value=values)
@repeatable
def test_any_json_is_read_as_it_is_or_rejected(body_type: type[Any], value: object) -> None:
    check_body(json.dumps(value).encode(), body_type)


each_huge_body = pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"[" * 10_000_000, id="arrays-within-arrays"),
        pytest.param(b'{"a":' * 2_000_000, id="objects-within-objects"),
        pytest.param(b'{"text":' + b"[" * 9_000_000, id="arrays-within-a-text"),
        pytest.param(b'{"texts":[' + b"[" * 9_000_000, id="arrays-within-texts"),
        pytest.param(b'{"dimensions":' + b"9" * 9_000_000 + b"}", id="a-number-of-9-million-digits"),
        pytest.param(b'{"dimensions":1e' + b"9" * 1_000 + b"}", id="a-number-past-all-floats"),
        pytest.param(b'{"' + b"k" * 9_000_000 + b'":1}', id="a-name-of-9-MB"),
        pytest.param(b'{"a - at `$.' + b"k" * 9_000_000 + b'":1}', id="a-name-that-looks-like-a-place"),
        pytest.param(b'{"dtype":"' + b"x" * 9_000_000 + b'"}', id="a-word-of-9-MB"),
        pytest.param(b'{"text":"a","texts":["a"],' + b'"text":"b",' * 500_000 + b'"text":0}', id="a-name-many-times"),
        pytest.param(b'{"text":"' + b"\\ud800" * 1_500_000 + b'"}', id="halves-of-surrogate-pairs"),
        pytest.param(b'{"texts":[' + b'"a",' * 2_000_000 + b'"\\ud800"]}', id="half-a-pair-after-2-million-texts"),
        pytest.param(b'{"text":"' + b"a" * 9_900_000 + b'"}', id="a-text-of-10-MB"),
        pytest.param(b'{"text":"' + b" " * 9_900_000 + b'"}', id="blanks-of-10-MB"),
        pytest.param(b'{"text":"' + b"a" * 9_900_000 + b'\xff"}', id="no-UTF-8-after-10-MB"),
        pytest.param(b'{"texts":[' + b'"a",' * 2_400_000 + b'"a"]}', id="2-million-texts"),
        pytest.param(b'{"model_name":"' + b"a/" * 4_900_000 + b'","text":0}', id="a-model-of-10-MB"),
    ],
)


@each_type
@each_huge_body
def test_huge_body_is_rejected_with_a_short_answer(body_type: type[Any], body: bytes) -> None:
    assert check_body(body, body_type) is False


@each_huge_body
def test_huge_body_of_a_dialect_is_read_or_rejected_with_a_short_answer(body: bytes) -> None:
    for body_type in DIALECT_TYPES:
        check_dialect_body(body, body_type)


@given(body=st.binary() | mutated())
@example(body=b'{"texts\\ud800": ["\\ud800"]}')
@example(body=b'{"texts": ["\\ud800"]}')
@repeatable
def test_any_bytes_are_read_by_dialects_as_json_means_them_or_rejected(body: bytes) -> None:
    for body_type in DIALECT_TYPES:
        check_dialect_body(body, body_type)


@given(value=values)
@repeatable
def test_any_json_is_read_by_dialects_as_it_is_or_rejected(value: object) -> None:
    for body_type in DIALECT_TYPES:
        check_dialect_body(json.dumps(value).encode(), body_type)


def test_lone_surrogate_in_a_field_name_is_replaced_in_the_answer() -> None:
    """Regression: the name was repeated as it was, which cannot be encoded, so the caller got a 500."""
    with pytest.raises(InvalidInputError) as rejection:
        decode(b'{"texts\\ud800": ["\\ud800"]}', REQUEST_TYPES[1])
    assert rejection.value.extensions == {"field": "texts\ufffd", "index": 0}


def test_last_value_of_a_repeated_field_counts_as_in_json() -> None:
    assert decode(b'{"text": "a", "text": "b"}', REQUEST_TYPES[0]).text == "b"


@given(name=st.sampled_from([b"content-type", b"content-encoding"]), value=st.binary(max_size=80))
@repeatable
def test_any_content_header_is_accepted_or_rejected(name: bytes, value: bytes) -> None:
    try:
        decode(b'{"text": "a"}', REQUEST_TYPES[0], [(name, value)])
    except ServiceError as error:
        check_rejection(error)


@pytest.mark.slow
@pytest.mark.timeout(120 + int(FUZZ_RUNS) // 50)
@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris has wheels for Linux on x86-64 only")
def test_coverage_guided_fuzzer_finds_no_crash(tmp_path: Path) -> None:
    """It tries the same bodies each time; `FUZZ_RUNS=1000000 pytest -m slow -k fuzzer` tries more."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, body in enumerate(SEEDS):
        (corpus / str(number)).write_bytes(body)
    bounds = (f"-runs={FUZZ_RUNS}", "-seed=4", "-max_len=2000", f"-artifact_prefix={tmp_path}/")
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.fuzz_bodies", *bounds, str(corpus)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4_000:]
    assert f"Done {FUZZ_RUNS} runs" in done.stderr
