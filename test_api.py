"""The HTTP contract, against a new server process, or against a running one: `pytest test_api.py --base-url=URL`."""

import http.client
import json
import re
import shlex
import shutil
import subprocess
import sys
from base64 import b64decode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import numpy as np
import pytest
from jsonschema import Draft202012Validator
from numpy.typing import NDArray

HERE = Path(__file__).resolve().parent
REFERENCE = HERE / "tests" / "reference" / "all-MiniLM-L6-v2.json"
ENTRIES: dict[str, dict[str, Any]] = {
    entry["name"]: entry
    for entry in json.loads(REFERENCE.read_text(encoding="utf-8"))["texts"]
    if entry["text"].strip()
}
BUNDLED = "sentence-transformers/all-MiniLM-L6-v2"
HUB_MODEL = "BAAI/bge-small-en-v1.5"
DIM, MAX_TOKENS = 384, 256
MAX_TEXT_LENGTH, MAX_BATCH_SIZE, MAX_REQUEST_SIZE = 8192, 32, 10_000_000
TOLERANCE = 1e-5
MIN_COSINE = 0.9999
ARROW = "application/vnd.apache.arrow.stream"

GET_PATHS = ["/health", "/health/live", "/health/ready", "/models", f"/models/{BUNDLED}", "/metrics"]
Json = dict[str, Any]


def embed(client: httpx.Client, text: str, **more: object) -> Json:
    response = client.post("/embed", json={"text": text, **more})
    assert response.status_code == 200, response.text
    return dict(response.json())


def embed_batch(client: httpx.Client, texts: list[str], **more: object) -> Json:
    response = client.post("/embed/batch", json={"texts": texts, **more})
    assert response.status_code == 200, response.text
    return dict(response.json())


def get(client: httpx.Client, path: str) -> Json:
    response = client.get(path)
    assert response.status_code == 200, response.text
    return dict(response.json())


def problem(response: httpx.Response, status: int, code: str) -> Json:
    """Return the problem details of *response*, after checking what all of them must have."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: Json = response.json()
    assert body["status"] == body["status_code"] == status
    assert body["code"] == code
    assert body["request_id"] == response.headers["x-request-id"]
    assert body["type"].endswith(f":{code}")
    assert body["title"]
    assert body["detail"].strip()
    assert not re.search(r"Traceback|File \"|/site-packages|/home/|/tmp/", response.text)
    return body


def array(vector: object) -> NDArray[np.float32]:
    return np.asarray(vector, dtype=np.float32)


# --- POST /embed, POST /embed/batch -------------------------------------------------------------------------------


def test_embed_returns_the_vector_and_what_was_done_to_the_text(client: httpx.Client) -> None:
    text = "How do I reset my password? 🙂"
    answer = embed(client, text)
    assert set(answer) == {
        "embedding",
        "model_name",
        "dimension",
        "text_length",
        "tokens",
        "truncated",
        "processing_time_ms",
    }
    assert array(answer["embedding"]).shape == (DIM,)
    assert np.linalg.norm(array(answer["embedding"])) == pytest.approx(1, abs=TOLERANCE)
    assert (answer["model_name"], answer["dimension"], answer["text_length"]) == (BUNDLED, DIM, len(text))
    assert answer["truncated"] is False
    assert answer["processing_time_ms"] > 0


def test_batch_returns_one_vector_per_text(client: httpx.Client) -> None:
    answer = embed_batch(client, ["one text", "and another one"])
    assert set(answer) == {
        "embeddings",
        "model_name",
        "dimension",
        "count",
        "tokens",
        "truncated",
        "processing_time_ms",
    }
    assert array(answer["embeddings"]).shape == (2, DIM)
    assert (answer["model_name"], answer["dimension"], answer["count"]) == (BUNDLED, DIM, 2)
    assert answer["tokens"] == [4, 5]
    assert answer["truncated"] == [False, False]
    assert answer["processing_time_ms"] > 0


def test_vectors_and_token_counts_are_those_of_sentence_transformers(client: httpx.Client) -> None:
    entries = list(ENTRIES.values())
    for start in range(0, len(entries), MAX_BATCH_SIZE):
        part = entries[start : start + MAX_BATCH_SIZE]
        answer = embed_batch(client, [entry["text"] for entry in part])
        cosines = np.einsum("ij,ij->i", array(answer["embeddings"]), array([entry["vector"] for entry in part]))
        assert min(cosines) >= MIN_COSINE
        assert answer["tokens"] == [entry["tokens"] for entry in part]


def test_batch_keeps_the_order_and_equals_single_requests(client: httpx.Client) -> None:
    texts = [entry["text"] for entry in list(ENTRIES.values())[::2]]
    forwards = embed_batch(client, texts)
    backwards = embed_batch(client, texts[::-1])
    alone = [embed(client, text) for text in texts]
    wanted = array([answer["embedding"] for answer in alone])
    np.testing.assert_allclose(array(forwards["embeddings"]), wanted, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(array(backwards["embeddings"])[::-1], wanted, rtol=0, atol=TOLERANCE)
    assert forwards["tokens"] == backwards["tokens"][::-1] == [answer["tokens"] for answer in alone]
    assert forwards["truncated"] == backwards["truncated"][::-1] == [answer["truncated"] for answer in alone]


def test_same_text_in_a_batch_has_the_same_vector(client: httpx.Client) -> None:
    first, _, third = embed_batch(client, ["again", "something else", "again"])["embeddings"]
    np.testing.assert_allclose(array(third), array(first), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("name", "tokens", "is_truncated"),
    [
        pytest.param("tokens-255", 255, False, id="one-under-the-limit"),
        pytest.param("tokens-256", 256, False, id="exactly-the-limit"),
        pytest.param("tokens-257", 257, True, id="one-over-the-limit"),
        pytest.param("far-too-long", 708, True, id="far-over-the-limit"),
    ],
)
def test_tokens_are_counted_before_truncation_and_truncation_is_reported(
    client: httpx.Client, name: str, tokens: int, *, is_truncated: bool
) -> None:
    answer = embed(client, ENTRIES[name]["text"])
    assert (answer["tokens"], answer["truncated"]) == (tokens, is_truncated)
    batch = embed_batch(client, ["short", ENTRIES[name]["text"]])
    assert (batch["tokens"], batch["truncated"]) == ([3, tokens], [False, is_truncated])


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({}, id="no-name"),
        pytest.param({"model_name": None}, id="null"),
        pytest.param({"model_name": BUNDLED}, id="its-name"),
        pytest.param({"model_name": BUNDLED.upper()}, id="capitals"),
        pytest.param({"model_name": BUNDLED.lower()}, id="small-letters"),
    ],
)
def test_model_name_is_optional_and_case_insensitive(client: httpx.Client, body: Json) -> None:
    assert embed(client, "warm", **body)["model_name"] == BUNDLED
    assert embed_batch(client, ["warm"], **body)["model_name"] == BUNDLED


@pytest.mark.parametrize(
    ("path", "body"),
    [
        pytest.param("/embed", {"text": "x" * MAX_TEXT_LENGTH}, id="longest-text"),
        pytest.param("/embed", {"text": "🙂" * MAX_TEXT_LENGTH}, id="longest-text-in-characters-not-bytes"),
        pytest.param("/embed", {"text": "a\x00\u200b"}, id="control-characters"),
        pytest.param("/embed/batch", {"texts": ["text"] * MAX_BATCH_SIZE}, id="most-texts"),
        pytest.param("/embed/batch", {"texts": ["text"]}, id="fewest-texts"),
    ],
)
def test_input_at_the_limits_is_accepted(client: httpx.Client, path: str, body: Json) -> None:
    assert client.post(path, json=body).status_code == 200


def test_escaped_surrogate_pair_is_one_character(client: httpx.Client) -> None:
    body = rb'{"text": "\ud83d\ude42"}'
    response = client.post("/embed", content=body, headers={"Content-Type": "application/json"})
    assert response.json()["text_length"] == 1


def test_floats_have_no_more_digits_than_float32_needs(client: httpx.Client) -> None:
    written = client.post("/embed", json={"text": "How long is a number?"})
    numbers: list[str] = json.loads(written.text, parse_float=str)["embedding"]
    needed = [np.format_float_scientific(np.float32(number), unique=True) for number in numbers]
    assert [digits(number) for number in numbers] == [digits(number) for number in needed]
    assert len(written.content) < 14 * DIM


def digits(number: str) -> int:
    """Return the significant digits of a number as it is written."""
    mantissa = re.split("[eE]", number.lstrip("-"))[0].replace(".", "")
    return len(mantissa.lstrip("0").rstrip("0"))


def test_concurrent_mixed_requests_get_the_vectors_of_single_ones(client: httpx.Client) -> None:
    texts = [f"{entry['text']} {number}" for number, entry in enumerate(list(ENTRIES.values())[:32])]
    wanted = array([embed(client, text)["embedding"] for text in texts])

    def ask(number: int) -> tuple[list[int], NDArray[np.float32]]:
        if number % 4:
            return [number % 32], array([embed(client, texts[number % 32])["embedding"]])
        indexes = [(number + step) % 32 for step in range(0, 32, 5)]
        return indexes, array(embed_batch(client, [texts[index] for index in indexes])["embeddings"])

    with ThreadPoolExecutor(32) as threads:
        for indexes, vectors in threads.map(ask, range(96)):
            np.testing.assert_allclose(vectors, wanted[indexes], rtol=0, atol=TOLERANCE)


# --- Options of a request -----------------------------------------------------------------------------------------

LONG = ENTRIES["far-too-long"]["text"]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"input_type": "query"}, id="query"),
        pytest.param({"input_type": "document"}, id="document"),
        pytest.param({"truncate": "end"}, id="end"),
        pytest.param({"normalize": True}, id="normalize"),
        pytest.param({"normalize": False}, id="as-it-is"),
        pytest.param({"dimensions": DIM}, id="all-dimensions"),
        pytest.param({"dtype": "float32", "encoding": "list", "long_text": "truncate"}, id="defaults-spelt-out"),
        pytest.param(
            {"input_type": None, "truncate": None, "dimensions": None, "normalize": None}, id="nulls-for-nothing"
        ),
    ],
)
def test_option_without_effect_on_this_model_gives_the_same_vector(client: httpx.Client, options: Json) -> None:
    plain, with_options = embed(client, LONG), embed(client, LONG, **options)
    np.testing.assert_allclose(array(with_options["embedding"]), array(plain["embedding"]), rtol=0, atol=TOLERANCE)
    assert {**with_options, "embedding": 0, "processing_time_ms": 0} == {
        **plain,
        "embedding": 0,
        "processing_time_ms": 0,
    }


def test_truncate_start_and_end_keep_the_other_side(client: httpx.Client) -> None:
    words = [f"w{number % 7}" for number in range(400)]  # two tokens each
    end, start = (embed(client, " ".join(words), truncate=side) for side in ("end", "start"))
    assert (end["tokens"], end["truncated"]) == (start["tokens"], start["truncated"]) == (802, True)
    kept = (MAX_TOKENS - 2) // 2
    for answer, left in ((end, words[:kept]), (start, words[-kept:])):
        by_hand = embed(client, " ".join(left))
        assert by_hand["truncated"] is False
        np.testing.assert_allclose(array(answer["embedding"]), array(by_hand["embedding"]), rtol=0, atol=TOLERANCE)


def test_truncate_none_rejects_a_text_that_is_too_long(client: httpx.Client) -> None:
    response = client.post("/embed/batch", json={"texts": ["short", LONG], "truncate": "none"})
    body = problem(response, 400, "invalid-input")
    assert (body["index"], body["tokens"], body["limit"]) == (1, 708, MAX_TOKENS)
    for fact in ("1", "708", "256"):
        assert fact in body["detail"]
    whole = ENTRIES["tokens-256"]["text"]
    assert embed_batch(client, ["short", whole], truncate="none")["truncated"] == [False, False]


def windows_by_hand(client: httpx.Client, text: str) -> tuple[list[str], list[int]]:
    """Return the text of each of the model's windows over *text*, and the number of its tokens."""
    [counted] = client.post("/tokenize", json={"texts": [text], "return_tokens": True}).json()["texts"]
    spans = [(token["start"], token["end"]) for token in counted["token_list"] if token["start"] is not None]
    window = MAX_TOKENS - 2
    parts = [spans[start : start + window] for start in range(0, len(spans), window)]
    return [text[part[0][0] : part[-1][1]] for part in parts], [len(part) for part in parts]


def test_mean_of_a_long_text_is_the_mean_of_its_windows_weighted_by_tokens(client: httpx.Client) -> None:
    words = " ".join(f"w{number % 11}" for number in range(300))  # two tokens each, so windows end between words
    texts, weights = windows_by_hand(client, words)
    assert len(texts) == 3
    vectors = array(embed_batch(client, texts)["embeddings"])
    mean = np.average(vectors, axis=0, weights=weights)
    answer = embed_batch(client, ["short", words], long_text="mean")
    np.testing.assert_allclose(array(answer["embeddings"][1]), mean / np.linalg.norm(mean), rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(
        array(answer["embeddings"][0]), array(embed(client, "short")["embedding"]), rtol=0, atol=TOLERANCE
    )
    assert (answer["tokens"], answer["truncated"], answer["count"]) == ([3, 602], [False, False], 2)


def test_chunks_of_a_long_text_have_a_vector_each_and_their_character_range(client: httpx.Client) -> None:
    words = " ".join(f"w{number % 11}" for number in range(300))
    answer = embed_batch(client, [words, "short"], long_text="chunks")
    assert [chunk["index"] for chunk in answer["chunks"]] == [0, 0, 0, 1]
    assert len(answer["embeddings"]) == 4
    assert (answer["tokens"], answer["truncated"], answer["count"]) == ([602, 3], [False, False], 2)
    texts = [[words, "short"][chunk["index"]][chunk["start"] : chunk["end"]] for chunk in answer["chunks"]]
    by_hand = embed_batch(client, texts)
    np.testing.assert_allclose(array(answer["embeddings"]), array(by_hand["embeddings"]), rtol=0, atol=TOLERANCE)
    assert [chunk["tokens"] for chunk in answer["chunks"]] == by_hand["tokens"]
    single = embed(client, words, long_text="chunks")
    assert single["chunks"] == answer["chunks"][:3]
    assert single["tokens"] == [602]


def test_shortened_vector_is_normalized_again(client: httpx.Client) -> None:
    whole = array(embed(client, "a text")["embedding"])[:100]
    answer = embed(client, "a text", dimensions=100, allow_untrained_dimensions=True)
    assert answer["dimension"] == 100
    np.testing.assert_allclose(array(answer["embedding"]), whole / np.linalg.norm(whole), rtol=0, atol=TOLERANCE)
    raw = embed(client, "a text", dimensions=100, allow_untrained_dimensions=True, normalize=False)
    np.testing.assert_allclose(array(raw["embedding"]), whole, rtol=0, atol=TOLERANCE)


WIDTHS = {"float32": DIM, "float16": DIM, "int8": DIM, "uint8": DIM, "binary": DIM // 8, "ubinary": DIM // 8}
STORED = {"float32": "<f4", "float16": "<f2", "int8": "i1", "uint8": "u1", "binary": "i1", "ubinary": "u1"}


def restored(stored: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return the values that *stored* encodes; for bits, their signs."""
    match dtype:
        case "int8":
            return stored / 127
        case "uint8":
            return (stored.astype(np.float64) - 128) / 127
        case "binary":
            return np.unpackbits((stored.astype(np.int16) + 128).astype(np.uint8), axis=1) * 2.0 - 1
        case "ubinary":
            return np.unpackbits(stored, axis=1) * 2.0 - 1
    return stored.astype(np.float64)


@pytest.mark.parametrize("dtype", WIDTHS)
def test_each_dtype_is_exact_within_its_error_in_each_format(client: httpx.Client, dtype: str) -> None:
    texts = [entry["text"] for entry in list(ENTRIES.values())[:5]]
    exact = array(embed_batch(client, texts)["embeddings"]).astype(np.float64)
    listed = embed_batch(client, texts, dtype=dtype)
    coded = embed_batch(client, texts, dtype=dtype, encoding="base64")
    raw = client.post(
        "/embed/batch", json={"texts": texts, "dtype": dtype}, headers={"Accept": "application/octet-stream"}
    )
    shape = (5, WIDTHS[dtype])
    assert raw.headers["x-embedding-shape"] == f"{shape[0]},{shape[1]}"
    assert np.dtype(raw.headers["x-embedding-dtype"]) == np.dtype(STORED[dtype])
    stored = np.frombuffer(raw.content, STORED[dtype]).reshape(shape)
    decoded = np.stack([np.frombuffer(b64decode(row), STORED[dtype]) for row in coded["embeddings"]])
    np.testing.assert_array_equal(decoded, stored)
    np.testing.assert_array_equal(np.array(listed["embeddings"], STORED[dtype]), stored)
    assert listed["dimension"] == coded["dimension"] == DIM
    values = restored(stored, dtype)
    if dtype.endswith("binary"):
        np.testing.assert_array_equal(values > 0, exact > 0)
    else:
        bound = {"float32": TOLERANCE, "float16": 2**-11, "int8": 1 / 254, "uint8": 1 / 254}[dtype]
        assert np.abs(values - exact).max() <= bound + TOLERANCE


def test_binary_answer_has_tokens_and_truncation_in_headers(client: httpx.Client) -> None:
    response = client.post(
        "/embed/batch", json={"texts": ["short", LONG, LONG]}, headers={"Accept": "application/octet-stream"}
    )
    assert response.headers["content-type"] == "application/octet-stream"
    assert (response.headers["x-embedding-tokens"], response.headers["x-embedding-truncated"]) == ("1419", "2")


def test_binary_answer_to_one_text_has_one_row(client: httpx.Client) -> None:
    response = client.post("/embed", json={"text": "a"}, headers={"Accept": "application/octet-stream"})
    assert response.headers["x-embedding-shape"] == f"1,{DIM}"
    vector = np.frombuffer(response.content, "<f4")
    np.testing.assert_allclose(vector, array(embed(client, "a")["embedding"]), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        pytest.param("*/*", "application/json", id="anything"),
        pytest.param("text/html", "application/json", id="unknown"),
        pytest.param("", "application/json", id="empty"),
        pytest.param("application/octet-stream;q=1e999", "application/json", id="odd-quality"),
        pytest.param("application/octet-stream, application/json;q=0.5", "application/octet-stream", id="by-quality"),
        pytest.param("application/json, application/octet-stream;q=0.5", "application/json", id="json-preferred"),
        pytest.param("application/octet-stream, */*;q=0.1", "application/octet-stream", id="bytes-preferred"),
    ],
)
def test_format_is_the_one_preferred_by_accept(client: httpx.Client, accept: str, kind: str) -> None:
    response = client.post("/embed", json={"text": "a"}, headers={"Accept": accept})
    assert (response.status_code, response.headers["content-type"]) == (200, kind)


def test_arrow_table_has_vectors_tokens_and_truncation(client: httpx.Client) -> None:
    ipc = pytest.importorskip("pyarrow.ipc")
    texts = ["short", LONG]
    wanted = embed_batch(client, texts)
    response = client.post("/embed/batch", json={"texts": texts}, headers={"Accept": ARROW})
    if response.status_code == 406:
        pytest.skip("that server has no pyarrow")
    table = ipc.open_stream(response.content).read_all()
    assert response.headers["content-type"] == ARROW
    assert str(table.schema.field("embedding").type) == f"fixed_size_list<item: float>[{DIM}]"
    np.testing.assert_allclose(array(table["embedding"].to_pylist()), array(wanted["embeddings"]), atol=TOLERANCE)
    assert table["tokens"].to_pylist() == wanted["tokens"]
    assert table["truncated"].to_pylist() == wanted["truncated"]
    assert table.schema.metadata[b"fingerprint"].decode() == response.headers["x-model-fingerprint"]


def test_arrow_table_of_chunks_has_their_character_ranges(client: httpx.Client) -> None:
    ipc = pytest.importorskip("pyarrow.ipc")
    body = {"texts": [LONG], "long_text": "chunks", "dtype": "float16"}
    response = client.post("/embed/batch", json=body, headers={"Accept": ARROW})
    if response.status_code == 406:
        pytest.skip("that server has no pyarrow")
    rows = ipc.open_stream(response.content).read_all().drop_columns("embedding").to_pylist()
    assert rows == embed_batch(client, [LONG], long_text="chunks")["chunks"]


def test_tokenize_counts_without_running_the_model(client: httpx.Client) -> None:
    before = get(client, "/metrics")["micro_batches"]["runs"]
    response = client.post("/tokenize", json={"texts": ["How do I reset my password?", LONG]})
    answer = response.json()
    assert set(answer) == {"model_name", "max_tokens", "count", "texts", "estimate", "processing_time_ms"}
    assert answer["texts"] == [
        {"tokens": 9, "truncated": False, "token_list": None},
        {"tokens": 708, "truncated": True, "token_list": None},
    ]
    assert (answer["model_name"], answer["max_tokens"], answer["count"]) == (BUNDLED, MAX_TOKENS, 2)
    assert answer["estimate"]["micro_batches"] == 2
    assert answer["estimate"]["milliseconds"] > 0
    assert get(client, "/metrics")["micro_batches"]["runs"] == before


def test_tokenize_returns_each_token_and_its_character_range(client: httpx.Client) -> None:
    text = "Größe: 3 🙂 embeddings"
    [counted] = client.post("/tokenize", json={"texts": [text], "return_tokens": True}).json()["texts"]
    assert len(counted["token_list"]) == counted["tokens"]
    first, *inner, last = counted["token_list"]
    assert (first["token"], first["start"], last["token"], last["end"]) == ("[CLS]", None, "[SEP]", None)
    pieces = [text[token["start"] : token["end"]] for token in inner]
    assert "".join(pieces) == text.replace(" ", "")
    assert pieces[-4:] == ["em", "bed", "ding", "s"]


BAD_OPTIONS = [
    pytest.param({"input_type": "passage"}, "input_type", ["query", "document"], id="input-type"),
    pytest.param({"truncate": "middle"}, "truncate", ["end", "start", "none"], id="truncate"),
    pytest.param({"truncate": True}, "truncate", ["end", "start", "none"], id="truncate-as-boolean"),
    pytest.param({"long_text": "split"}, "long_text", ["truncate", "mean", "chunks"], id="long-text"),
    pytest.param({"long_text": None}, "long_text", ["truncate", "mean", "chunks"], id="long-text-null"),
    pytest.param({"dtype": "float64"}, "dtype", list(WIDTHS), id="dtype"),
    pytest.param({"encoding": "hex"}, "encoding", ["list", "base64"], id="encoding"),
    pytest.param({"dimensions": 0}, "dimensions", [], id="no-dimensions"),
    pytest.param({"dimensions": -5}, "dimensions", [], id="negative-dimensions"),
    pytest.param({"dimensions": DIM + 1}, "dimensions", [], id="too-many-dimensions"),
    pytest.param({"dimensions": 1.5}, "dimensions", [], id="fractional-dimensions"),
    pytest.param({"dimensions": "384"}, "dimensions", [], id="dimensions-as-text"),
    pytest.param({"dimensions": 10**30}, "dimensions", [], id="huge-dimensions"),
    pytest.param({"dimensions": 128}, "dimensions", [], id="untrained-dimensions"),
    pytest.param({"normalize": "true"}, "normalize", [], id="normalize-as-text"),
    pytest.param({"truncate": "null"}, "truncate", ["end", "start", "none"], id="null-as-text"),
    pytest.param({"allow_untrained_dimensions": 1}, "allow_untrained_dimensions", [], id="allow-untrained"),
    pytest.param({"truncate": "end", "long_text": "mean"}, "truncate", [], id="truncate-and-mean"),
    pytest.param({"truncate": "none", "long_text": "chunks"}, "truncate", [], id="truncate-none-and-chunks"),
    pytest.param({"dtype": "int8", "normalize": False}, "normalize", [], id="int8-not-normalized"),
    pytest.param({"dtype": "uint8", "normalize": False}, "normalize", [], id="uint8-not-normalized"),
]


@pytest.mark.parametrize(("options", "field", "choices"), BAD_OPTIONS)
def test_wrong_option_is_a_400_that_names_field_and_choices(
    client: httpx.Client, *, options: Json, field: str, choices: list[str]
) -> None:
    for path, texts in (("/embed", {"text": "a"}), ("/embed/batch", {"texts": ["a", "b"]})):
        body = problem(client.post(path, json={**texts, **options}), 400, "invalid-input")
        assert body["field"] == field
        assert field in body["detail"]
        assert sorted(body.get("choices", [])) == sorted(choices)
        assert all(choice in body["detail"] for choice in choices)


@pytest.mark.parametrize("accept", ["application/octet-stream", ARROW])
def test_base64_is_rejected_in_binary_answers(client: httpx.Client, accept: str) -> None:
    response = client.post("/embed", json={"text": "a", "encoding": "base64"}, headers={"Accept": accept})
    assert problem(response, 400, "invalid-input")["field"] == "encoding"


def test_chunks_are_rejected_in_binary_answers(client: httpx.Client) -> None:
    response = client.post(
        "/embed", json={"text": "a", "long_text": "chunks"}, headers={"Accept": "application/octet-stream"}
    )
    assert problem(response, 400, "invalid-input")["field"] == "long_text"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        pytest.param({"texts": []}, "texts", id="no-texts"),
        pytest.param({"texts": [" "]}, "texts", id="blank"),
        pytest.param({"texts": ["a"], "input_type": "passage"}, "input_type", id="input-type"),
        pytest.param({"texts": ["a"], "return_tokens": "yes"}, "return_tokens", id="return-tokens"),
        pytest.param({"texts": ["a"], "dtype": "int8"}, "dtype", id="option-of-another-route"),
        pytest.param({"text": "a"}, "text", id="text-for-texts"),
    ],
)
def test_wrong_tokenize_body_is_a_400_that_names_the_field(client: httpx.Client, body: Json, field: str) -> None:
    assert problem(client.post("/tokenize", json=body), 400, "invalid-input")["field"] == field


# --- GET ----------------------------------------------------------------------------------------------------------


def test_health_reports_the_state_and_the_cache(client: httpx.Client) -> None:
    answer = get(client, "/health")
    assert set(answer) == {"status", "cache_info", "uptime_seconds"}
    assert answer["status"] == "healthy"
    assert answer["uptime_seconds"] > 0
    assert answer["cache_info"] == {
        "cached_models": [BUNDLED],
        "num_cached": 1,
        "max_cached": 5,
        "cache_ttl": 3600,
        "cleanup_interval": 60,
    }
    assert get(client, "/health/live") == {"status": "live"}
    assert get(client, "/health/ready") == {"status": "ready"}


def test_models_lists_the_models_that_may_be_used(client: httpx.Client) -> None:
    answer = get(client, "/models")
    assert set(answer) == {"required_models", "cached_models", "allowed_models", "available_models"}
    assert answer["required_models"] == answer["cached_models"] == [BUNDLED]
    assert answer["allowed_models"] is None
    entries = {entry["name"]: entry for entry in answer["available_models"]}
    assert len(entries) == len(answer["available_models"])
    bundled = entries[BUNDLED]
    assert (bundled["dimension"], bundled["max_tokens"], bundled["source"]) == (DIM, MAX_TOKENS, "bundled")
    assert (bundled["license"], bundled["is_cached"]) == ("apache-2.0", True)
    assert bundled["size"] > 1_000_000
    assert bundled["description"]
    hub = entries[HUB_MODEL]
    assert (hub["dimension"], hub["source"], hub["is_cached"]) == (384, "hub", False)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(BUNDLED, id="plain"),
        pytest.param(quote(BUNDLED, safe=""), id="percent-encoded"),
        pytest.param(BUNDLED.upper(), id="capitals"),
    ],
)
def test_model_in_memory_is_described_in_full(client: httpx.Client, name: str) -> None:
    embed(client, "warm")
    answer = get(client, f"/models/{name}")
    assert set(answer) == {
        "model_name",
        "is_cached",
        "load_time",
        "loaded_at",
        "last_used",
        "memory_bytes",
        "memory_measured",
        "optimised_copy",
        "dimension",
        "max_tokens",
        "size",
        "description",
        "license",
        "source",
        "needs_prompt",
        "prompts",
        "uses_tasks",
        "normalized",
        "matryoshka",
        "self_check",
        "stamp",
        "runtime",
        "usage",
    }
    assert (answer["model_name"], answer["is_cached"], answer["source"]) == (BUNDLED, True, "bundled")
    assert answer["load_time"] > 0
    loaded_at, last_used = (datetime.fromisoformat(answer[name]) for name in ("loaded_at", "last_used"))
    assert loaded_at.tzinfo is not None
    assert loaded_at <= last_used


def test_model_in_memory_reports_its_self_check_and_fingerprint(client: httpx.Client) -> None:
    answer = get(client, f"/models/{BUNDLED}")
    assert (answer["needs_prompt"], answer["prompts"]) == (False, {"query": "", "document": ""})
    assert (answer["normalized"], answer["matryoshka"], answer["uses_tasks"]) == (True, None, False)
    check = answer["self_check"]
    assert (check["batch_invariant"], check["batching"], check["batching_cost"]) == (True, "mixed", 1)
    assert 0 <= check["batch_drift"] <= TOLERANCE
    assert check["canary_cosine"] >= MIN_COSINE
    stamp = answer["stamp"]
    assert re.fullmatch(r"[0-9a-f]{16}", stamp["fingerprint"])
    assert re.fullmatch(r"[0-9a-f]{64}", stamp["onnx_sha256"])
    assert stamp["revision"]
    assert stamp["onnxruntime"] == answer["runtime"]["onnxruntime"]
    assert stamp["fastembed"] == answer["runtime"]["fastembed"]
    assert re.fullmatch(r"[0-9a-f]{16}", answer["runtime"]["id"])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        pytest.param("/embed", {"text": "a"}, id="embed"),
        pytest.param("/embed/batch", {"texts": ["a"], "dtype": "int8"}, id="batch"),
    ],
)
@pytest.mark.parametrize("accept", ["application/json", "application/octet-stream"])
def test_answer_has_the_fingerprint_of_its_model(client: httpx.Client, path: str, body: Json, accept: str) -> None:
    response = client.post(path, json=body, headers={"Accept": accept})
    fingerprint = get(client, f"/models/{BUNDLED}")["stamp"]["fingerprint"]
    assert response.headers["x-model-fingerprint"] == fingerprint


@pytest.mark.parametrize(
    "name", [pytest.param(HUB_MODEL, id="plain"), pytest.param(quote(HUB_MODEL, ""), id="encoded")]
)
def test_model_is_described_without_being_loaded(client: httpx.Client, name: str) -> None:
    answer = get(client, f"/models/{name}")
    assert (answer["model_name"], answer["is_cached"], answer["source"]) == (HUB_MODEL, False, "hub")
    assert answer["load_time"] is answer["loaded_at"] is answer["last_used"] is None
    assert answer["self_check"] is answer["stamp"] is answer["runtime"] is None
    query = "Represent this sentence for searching relevant passages: "
    assert (answer["needs_prompt"], answer["prompts"]) == (False, {"query": query, "document": ""})
    assert (answer["normalized"], answer["matryoshka"]) == (True, None)
    assert answer["usage"] == {"requests": 0, "texts": 0, "tokens": 0}


def test_usage_of_a_model_counts_its_work(client: httpx.Client) -> None:
    before = get(client, f"/models/{BUNDLED}")["usage"]
    embed(client, "one text")
    embed_batch(client, ["one text", "and another one"])
    after = get(client, f"/models/{BUNDLED}")["usage"]
    assert {name: after[name] - before[name] for name in after} == {"requests": 2, "texts": 3, "tokens": 13}


def test_metrics_count_what_was_sent(client: httpx.Client) -> None:
    before = get(client, "/metrics")
    embed(client, "one text")
    embed_batch(client, ["one text", "and another one"])
    problem(client.post("/embed", json={"text": ""}), 400, "invalid-input")
    problem(client.get("/nothing"), 404, "not-found")
    after = get(client, "/metrics")

    def grown(*keys: str) -> float:
        return number(after, *keys) - number(before, *keys)

    assert grown("total_requests") == 5  # the first request for the metrics is one of them
    assert grown("total_embeddings") == 3
    assert grown("errors", "invalid-input") == 1
    assert grown("errors", "not-found") == 1
    assert grown("endpoints", "POST /embed", "requests") == 2
    assert grown("endpoints", "POST /embed/batch", "requests") == 1
    assert grown("models", BUNDLED, "requests") == 2
    assert grown("models", BUNDLED, "texts") == 3
    assert grown("models", BUNDLED, "tokens") == 13
    assert sum(grown("result_cache", source) for source in ("hits", "misses", "coalesced")) == 3
    assert grown("result_cache", "hits") >= 1, "one text comes twice"
    assert grown("micro_batches", "texts") == grown("result_cache", "misses")
    assert grown("uptime_seconds") > 0


def number(content: Json, *keys: str) -> float:
    """Return the number under these keys; 0 if it does not exist yet."""
    for key in keys[:-1]:
        content = content.get(key, {})
    return float(content.get(keys[-1], 0))


def test_metrics_report_latencies_queue_and_cache(client: httpx.Client) -> None:
    embed(client, "warm")
    answer = get(client, "/metrics")
    latency = answer["endpoints"]["POST /embed"]["latency_ms"]
    assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"]
    assert (answer["queue"]["waiting_requests"], answer["queue"]["waiting_texts"]) == (0, 0)
    assert answer["queue"]["lanes"] >= 1
    assert answer["cache_info"] == get(client, "/health")["cache_info"]


def test_metrics_name_endpoints_by_method_and_route(client: httpx.Client) -> None:
    for path in ("/models/a", "/models/b/c", "/nothing", "/nothing/else"):
        client.get(path)
    client.head("/health")
    client.request("PUT", "/embed")
    endpoints = set(get(client, "/metrics")["endpoints"])
    assert "GET /models/{name}" in {re.sub(r"\{name:path\}", "{name}", name) for name in endpoints}
    odd = {name for name in endpoints if not re.fullmatch(r"\(no route\)|[A-Z]+ /[a-z./{}:]*", name)}
    assert not odd


def test_metrics_as_text_have_the_same_counts(client: httpx.Client) -> None:
    embed(client, "counted")
    text = client.get("/metrics", headers={"Accept": "text/plain"}).text
    counts = get(client, "/metrics")["models"][BUNDLED]
    for kind in ("requests", "texts", "tokens"):
        assert f'fast_embedding_model_{kind}_total{{model="{BUNDLED}"}} {float(counts[kind])}\n' in text


@pytest.mark.parametrize("path", GET_PATHS)
def test_head_is_get_without_the_body(client: httpx.Client, path: str) -> None:
    response = client.head(path)
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-type"] == "application/json"
    assert int(response.headers["content-length"]) > 0


# --- Errors -------------------------------------------------------------------------------------------------------

BAD_BODIES = [
    pytest.param("/embed", b"", None, None, None, id="no-body"),
    pytest.param("/embed", b'{"text": "a",}', None, None, None, id="broken-json"),
    pytest.param("/embed", b'{"text": "a"', None, None, None, id="half-a-json"),
    pytest.param("/embed", b"[" * 100_000, None, None, None, id="deeply-nested-json"),
    pytest.param("/embed", b'{"text": "\xff\xfe"}', None, None, None, id="not-utf-8"),
    pytest.param("/embed", b'{"text": NaN}', None, None, None, id="nan"),
    pytest.param("/embed", [], None, None, None, id="list-for-object"),
    pytest.param("/embed", None, None, None, None, id="null-for-object"),
    pytest.param("/embed", {}, "text", None, None, id="no-text"),
    pytest.param("/embed", {"texts": ["a"]}, None, None, None, id="texts-for-text"),
    pytest.param("/embed", {"text": None}, "text", None, None, id="null-text"),
    pytest.param("/embed", {"text": 5}, "text", None, None, id="number-for-text"),
    pytest.param("/embed", {"text": ["a"]}, "text", None, None, id="list-for-text"),
    pytest.param("/embed", {"text": ""}, "text", None, None, id="empty-text"),
    pytest.param("/embed", {"text": " \t\n\u3000"}, "text", None, None, id="blank-text"),
    pytest.param("/embed", {"text": "a" * 8193}, "text", None, 8192, id="long-text"),
    pytest.param("/embed", b'{"text": "a \\ud800 b"}', "text", None, None, id="lone-surrogate"),
    pytest.param("/embed", {"text": "a", "model": "x"}, "model", None, None, id="unknown-field"),
    pytest.param("/embed", {"text": "a", "model_name": 5}, "model_name", None, None, id="number-for-model"),
    pytest.param("/embed", b'{"text": "a", "model_name": "\\udfff"}', "model_name", None, None, id="surrogate-model"),
    pytest.param("/embed/batch", {}, "texts", None, None, id="no-texts"),
    pytest.param("/embed/batch", {"texts": "a"}, "texts", None, None, id="text-for-texts"),
    pytest.param("/embed/batch", {"texts": []}, "texts", None, 1, id="empty-texts"),
    pytest.param("/embed/batch", {"texts": ["a"] * 33}, "texts", None, 32, id="too-many-texts"),
    pytest.param("/embed/batch", {"texts": ["a", 5]}, "texts", 1, None, id="number-among-texts"),
    pytest.param("/embed/batch", {"texts": ["a", "b", " "]}, "texts", 2, None, id="blank-among-texts"),
    pytest.param("/embed/batch", {"texts": ["a" * 8193, "b"]}, "texts", 0, 8192, id="long-among-texts"),
    pytest.param("/embed/batch", b'{"texts": ["a", "\\udc00"]}', "texts", 1, None, id="surrogate-among-texts"),
    pytest.param("/embed/batch", {"texts": ["a"], "text": "a"}, "text", None, None, id="unknown-field-in-batch"),
]


@pytest.mark.parametrize("options", [{}, {"input_type": "query"}, {"truncate": "none"}, {"long_text": "mean"}])
def test_text_of_which_the_model_sees_nothing_is_a_400_that_names_it(
    client: httpx.Client, options: dict[str, str]
) -> None:
    for text in (
        "\u200b",
        "\ufeff",
        "\u00ad",
        "\ufe0f",
        "\x00",
        "\x07",
        "\ue000",
        "\u0301",
        "\u200b \x7f",
        "[SEP][PAD]",
    ):
        details = problem(client.post("/embed", json={"text": text, **options}), 400, "invalid-input")
        assert (details["index"], "blank" in details["detail"]) == (0, True)
        body = {"texts": ["a", f"a{text}", text, text], **options}
        assert problem(client.post("/embed/batch", json=body), 400, "invalid-input")["index"] == 2


@pytest.mark.parametrize("options", [{}, {"truncate": "none"}, {"long_text": "mean"}])
def test_text_of_which_the_model_sees_nothing_is_named_by_its_place_in_a_large_request(
    client: httpx.Client, options: dict[str, str]
) -> None:
    """The texts are tokenised in several slices."""
    body = {"texts": [*["one two " * 100] * 30, "\u200b"], **options}
    assert problem(client.post("/embed/batch", json=body), 400, "invalid-input")["index"] == 30


def test_tokens_of_a_text_of_which_the_model_sees_nothing_are_counted(client: httpx.Client) -> None:
    counted = client.post("/tokenize", json={"texts": ["\u200b", "a"]}).json()["texts"]
    assert [text["tokens"] for text in counted] == [2, 3]


@pytest.mark.parametrize(("path", "body", "field", "index", "limit"), BAD_BODIES)
def test_bad_body_is_a_400_that_names_field_index_and_limit(
    client: httpx.Client, *, path: str, body: object, field: str | None, index: int | None, limit: int | None
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = client.post(path, content=content, headers={"Content-Type": "application/json"})
    details = problem(response, 400, "invalid-input")
    if field is not None:
        assert details["field"] == field
        assert field in details["detail"]
    assert (details.get("index"), details.get("limit")) == (index, limit)
    for value in (index, limit):
        assert value is None or str(value) in details["detail"]
    assert not re.search(r"\bstr\b|\bNoneType\b|\bdict\b| \| null", details["detail"])


def test_rejected_text_is_not_repeated(client: httpx.Client) -> None:
    words = "squeamish ossifrage "
    for body in ({"text": words * 500}, {"text": [words]}, {"texts": [words]}):
        assert words not in client.post("/embed", json=body).text


@pytest.mark.parametrize("value", ["0", "-1", "soon", "nan", "1e999"])
def test_bad_request_timeout_is_a_400_that_names_the_header(client: httpx.Client, value: str) -> None:
    response = client.post("/embed", json={"text": "a"}, headers={"X-Request-Timeout": value})
    details = problem(response, 400, "invalid-input")
    assert details["field"] == "X-Request-Timeout"
    assert "X-Request-Timeout" in details["detail"]


@pytest.mark.parametrize(
    ("name", "closest"),
    [
        pytest.param("bge-small-en-v1.5", "BAAI/bge-small-en-v1.5", id="without-owner"),
        pytest.param("sentence-transformers/all-MiniLM-L6", BUNDLED, id="cut-short"),
        pytest.param("qqqqqqqq", None, id="similar-to-none"),
        pytest.param("", None, id="empty"),
        pytest.param("../../etc/passwd", None, id="path-of-a-file"),
        pytest.param("x" * 10_000, None, id="very-long"),
    ],
)
def test_unknown_model_is_a_400_with_the_closest_names(client: httpx.Client, name: str, closest: str | None) -> None:
    for path, body in (("/embed", {"text": "a"}), ("/embed/batch", {"texts": ["a"]})):
        response = client.post(path, json={**body, "model_name": name})
        details = problem(response, 400, "unknown-model")
        assert closest is None or closest in details["closest"]
        assert closest is None or closest in details["detail"]
        assert len(response.content) < 2_000


def test_unknown_model_in_the_path_is_a_404(client: httpx.Client) -> None:
    details = problem(client.get("/models/bge-small-en-v1.5"), 404, "unknown-model")
    assert HUB_MODEL in details["closest"]
    problem(client.get(f"/models/{quote('no/such/model', safe='')}"), 404, "unknown-model")
    problem(client.get("/models/%ff%00"), 404, "unknown-model")


@pytest.mark.parametrize("path", ["/nothing", "/embed/nothing", "/v3", "/favicon.ico"])
def test_unknown_path_is_a_404(client: httpx.Client, path: str) -> None:
    problem(client.get(path), 404, "not-found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        pytest.param("GET", "/embed", "POST", id="get-embed"),
        pytest.param("PUT", "/embed/batch", "POST", id="put-batch"),
        pytest.param("POST", "/health", "GET", id="post-health"),
        pytest.param("DELETE", f"/models/{BUNDLED}", "GET", id="delete-model"),
    ],
)
def test_wrong_method_is_a_405_that_names_the_right_ones(
    client: httpx.Client, method: str, path: str, allowed: str
) -> None:
    response = client.request(method, path)
    problem(response, 405, "method-not-allowed")
    assert allowed in response.headers["allow"].split(", ")


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"Content-Type": "text/plain"}, id="text"),
        pytest.param({"Content-Type": "application/x-www-form-urlencoded"}, id="form"),
        pytest.param({"Content-Type": "multipart/form-data; boundary=x"}, id="multipart"),
    ],
)
def test_body_that_is_not_json_is_a_415(client: httpx.Client, headers: dict[str, str]) -> None:
    problem(client.post("/embed", content=b'{"text": "a"}', headers=headers), 415, "not-json")


@pytest.mark.parametrize("media_type", ["application/json; charset=utf-8", "APPLICATION/JSON", "application/a+json"])
def test_each_media_type_of_json_is_accepted(client: httpx.Client, media_type: str) -> None:
    response = client.post("/embed", content=b'{"text": "a"}', headers={"Content-Type": media_type})
    assert response.status_code == 200


@pytest.fixture
def connection(base_url: str) -> Iterator[http.client.HTTPConnection]:
    """A connection on which the test decides what is sent and when."""
    parts = urlsplit(base_url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=10)
    yield connection
    connection.close()


def begin_post(connection: http.client.HTTPConnection, path: str, **headers: str) -> None:
    connection.putrequest("POST", path)
    for name, value in {"Content-Type": "application/json", **headers}.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()


def response_on(connection: http.client.HTTPConnection) -> httpx.Response:
    raw = connection.getresponse()
    return httpx.Response(raw.status, headers=raw.getheaders(), content=raw.read())


@pytest.mark.parametrize("path", ["/embed", "/embed/batch"])
def test_content_length_over_the_limit_is_rejected_before_the_body_is_sent(
    connection: http.client.HTTPConnection, path: str
) -> None:
    begin_post(connection, path, Content_Length=str(MAX_REQUEST_SIZE + 1))
    details = problem(response_on(connection), 413, "content-too-large")
    assert details["limit"] == MAX_REQUEST_SIZE


@pytest.mark.parametrize("path", ["/embed", "/embed/batch"])
def test_chunked_body_is_rejected_as_soon_as_it_exceeds_the_limit(
    connection: http.client.HTTPConnection, path: str
) -> None:
    begin_post(connection, path, Transfer_Encoding="chunked")
    chunk = b" " * (MAX_REQUEST_SIZE // 10)
    for part in (*[chunk] * 10, b" "):
        connection.send(b"%x\r\n%s\r\n" % (len(part), part))
    details = problem(response_on(connection), 413, "content-too-large")  # the last chunk has not been sent
    assert details["limit"] == MAX_REQUEST_SIZE


def test_chunked_body_within_the_limit_is_accepted(client: httpx.Client) -> None:
    pieces = iter([b'{"text": ', b'"warm"}'])
    response = client.post("/embed", content=pieces, headers={"Content-Type": "application/json"})
    assert response.status_code == 200


def test_body_at_exactly_the_limit_is_accepted(client: httpx.Client) -> None:
    body = b'{"text": "warm"}'.ljust(MAX_REQUEST_SIZE)
    response = client.post("/embed", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 200


def test_hub_model_without_a_hub_is_a_503_and_other_models_still_work(
    client: httpx.Client, request: pytest.FixtureRequest
) -> None:
    if request.config.getoption("--base-url"):
        pytest.skip("that server may have a hub")
    for _ in range(2):
        response = client.post("/embed", json={"text": "a", "model_name": HUB_MODEL})
        details = problem(response, 503, "model-unavailable")
        assert "hub" in details["detail"]
        assert int(response.headers["retry-after"]) >= 1
        embed(client, "the bundled model still answers")
    assert get(client, "/models")["cached_models"] == [BUNDLED]


def test_request_timeout_header_is_respected(client: httpx.Client) -> None:
    texts = [f"{number} {ENTRIES['far-too-long']['text']}" for number in range(MAX_BATCH_SIZE)]
    headers = {"X-Request-Timeout": "0.001", "Cache-Control": "no-cache"}
    response = client.post("/embed/batch", json={"texts": texts}, headers=headers)
    problem(response, 504, "deadline-exceeded")
    assert client.post("/embed", json={"text": "a"}, headers={"X-Request-Timeout": "30"}).status_code == 200


# --- Headers ------------------------------------------------------------------------------------------------------

Send = Callable[[httpx.Client, dict[str, str]], httpx.Response]
SEND: dict[str, Send] = {
    "answer": lambda client, headers: client.post("/embed", json={"text": "a"}, headers=headers),
    "get": lambda client, headers: client.get("/health", headers=headers),
    "head": lambda client, headers: client.head("/models", headers=headers),
    "bad-body": lambda client, headers: client.post("/embed", json={}, headers=headers),
    "no-route": lambda client, headers: client.get("/nothing", headers=headers),
    "wrong-method": lambda client, headers: client.get("/embed", headers=headers),
    "no-model": lambda client, headers: client.get("/models/none", headers=headers),
}
each_answer = pytest.mark.parametrize("send", [pytest.param(send, id=name) for name, send in SEND.items()])


@each_answer
def test_valid_request_id_of_the_caller_is_kept(client: httpx.Client, send: Send) -> None:
    response = send(client, {"X-Request-ID": "order-66:a_b.C"})
    assert response.headers.get_list("x-request-id") == ["order-66:a_b.C"]


@each_answer
def test_invalid_request_id_is_replaced(client: httpx.Client, send: Send) -> None:
    for sent in ("a b", "x" * 129, '{"a":1}'):
        [received] = send(client, {"X-Request-ID": sent}).headers.get_list("x-request-id")
        assert received != sent
        assert re.fullmatch(r"[\w.:-]{8,128}", received)


@each_answer
def test_each_request_without_an_id_gets_a_new_one(client: httpx.Client, send: Send) -> None:
    assert len({send(client, {}).headers["x-request-id"] for _ in range(2)}) == 2


@each_answer
def test_every_answer_has_the_security_headers_of_data(client: httpx.Client, send: Send) -> None:
    headers = send(client, {}).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["cache-control"] == "no-store"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert "server" not in headers


def test_page_of_the_api_loads_nothing_from_elsewhere_and_cannot_be_framed(client: httpx.Client) -> None:
    headers = client.get("/docs", follow_redirects=True).headers
    assert headers["content-type"].startswith("text/html")
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "http" not in policy


def test_pages_of_other_origins_may_call(client: httpx.Client) -> None:
    preflight_headers = {
        "Origin": "https://app.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type, x-request-id, x-request-timeout",
    }
    preflight = client.options("/embed", headers=preflight_headers)
    assert preflight.is_success
    assert preflight.headers["access-control-allow-origin"] == "*"
    assert "POST" in preflight.headers["access-control-allow-methods"]
    allowed = preflight.headers["access-control-allow-headers"].lower()
    assert "*" in allowed or {"content-type", "x-request-id", "x-request-timeout"} <= set(allowed.split(", "))
    for response in (
        client.post("/embed", json={"text": "a"}, headers={"Origin": "https://app.example"}),
        client.post("/embed", json={"text": ""}, headers={"Origin": "https://app.example"}),
        client.get("/nothing", headers={"Origin": "https://app.example"}),
    ):
        assert response.headers["access-control-allow-origin"] == "*"
        assert "x-request-id" in response.headers["access-control-expose-headers"].lower()


# --- OpenAPI, README and docs/ -------------------------------------------------------------------------------------


@pytest.fixture
def document(client: httpx.Client) -> Json:
    return get(client, "/schema/openapi.json")


DIALECT_TAGS = {"OpenAI", "Ollama", "Cohere", "TEI"}


def operations(document: Json) -> Iterator[tuple[str, str, Json]]:
    """Yield the operations of the native API; tests/api/test_openapi.py checks those of the dialects."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if not DIALECT_TAGS & set(operation["tags"]):
                yield method.upper(), path, operation


def contents(document: Json) -> Iterator[tuple[str, str, Json]]:
    """Yield each request and response body of the document: its place, media type and description."""
    for method, path, operation in operations(document):
        for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
            yield f"{method} {path} body", media_type, content
        for status, response in operation["responses"].items():
            for media_type, content in response.get("content", {}).items():
                yield f"{method} {path} {status}", media_type, content


def examples(content: Json) -> list[Any]:
    """Return the examples of a body, which OpenAPI allows beside the schema and within it."""
    named = [example["value"] for example in content.get("examples", {}).values()]
    return [*named, *([content["example"]] if "example" in content else []), *content["schema"].get("examples", [])]


def schema_errors(document: Json, schema: Json, value: object) -> list[str]:
    return [error.message for error in Draft202012Validator({**document, **schema}).iter_errors(value)]


def test_openapi_describes_every_endpoint(document: Json) -> None:
    assert {(method, path) for method, path, _ in operations(document)} == {
        ("GET", "/"),
        ("POST", "/embed"),
        ("POST", "/embed/batch"),
        ("POST", "/tokenize"),
        ("GET", "/health"),
        ("GET", "/health/live"),
        ("GET", "/health/ready"),
        ("GET", "/models"),
        ("GET", "/models/{name}"),
        ("GET", "/metrics"),
        ("GET", "/metrics/prometheus"),
        ("DELETE", "/cache"),
    }
    for _, _, operation in operations(document):
        assert operation["summary"]
        assert operation["description"]


def test_openapi_has_an_example_for_every_body(document: Json) -> None:
    assert [place for place, _, content in contents(document) if not examples(content)] == []


def test_openapi_describes_errors_as_problem_details(document: Json) -> None:
    others = [
        (place, media_type)
        for place, media_type, content in contents(document)
        if re.search(r" [45]\d\d$", place) and not place.startswith("GET /health")
        # TEI's bodies at the same address have its errors
        if media_type != "application/json" or not place.startswith(("POST /embed ", "POST /tokenize "))
        if media_type != "application/problem+json" or not content["schema"].get("$ref", "").endswith("/Problem")
    ]
    assert others == []


def test_openapi_examples_are_valid(document: Json) -> None:
    errors = [
        (place, error)
        for place, _, content in contents(document)
        for example in examples(content)
        for error in schema_errors(document, content["schema"], example)
    ]
    assert errors == []


def test_openapi_examples_of_requests_succeed(client: httpx.Client, document: Json) -> None:
    for method, path, operation in operations(document):
        for content in operation.get("requestBody", {}).get("content", {}).values():
            for example in examples(content):
                assert client.request(method, path, json=example).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "route"),
    [
        pytest.param("POST", "/embed", {"text": "a"}, "/embed", id="embed"),
        pytest.param("POST", "/embed/batch", {"texts": ["a", "b"]}, "/embed/batch", id="batch"),
        pytest.param("GET", "/health", None, "/health", id="health"),
        pytest.param("GET", "/health/live", None, "/health/live", id="live"),
        pytest.param("GET", "/health/ready", None, "/health/ready", id="ready"),
        pytest.param("GET", "/models", None, "/models", id="models"),
        pytest.param("GET", f"/models/{BUNDLED}", None, "/models/{name}", id="model-in-memory"),
        pytest.param("GET", f"/models/{HUB_MODEL}", None, "/models/{name}", id="model-out-of-memory"),
        pytest.param("GET", "/models/none", None, "/models/{name}", id="no-model"),
        pytest.param("GET", "/metrics", None, "/metrics", id="metrics"),
        pytest.param("POST", "/embed", {"text": ""}, "/embed", id="bad-text"),
        pytest.param("POST", "/embed/batch", {"texts": ["a", ""]}, "/embed/batch", id="bad-texts"),
        pytest.param("POST", "/embed", {"text": "a", "model_name": "bge"}, "/embed", id="unknown-model"),
    ],
)
def test_answer_is_as_openapi_describes_it(
    client: httpx.Client, document: Json, *, method: str, path: str, body: object, route: str
) -> None:
    response = client.request(method, path, json=body)
    content = document["paths"][route][method.lower()]["responses"][str(response.status_code)]["content"]
    schema = content[response.headers["content-type"]]["schema"]
    assert schema_errors(document, schema, response.json()) == []


def pages() -> list[Path]:
    return [HERE / "README.md", *sorted((HERE / "docs").rglob("*.md"))]


def curl_lines(page: Path) -> list[str]:
    """Return the curl commands of *page* for a service on port 8000; lines that end with a backslash are joined."""
    blocks: list[str] = re.findall(r"```(?:bash|sh|console)\n(.*?)```", page.read_text("utf-8"), flags=re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.startswith("curl ") and "http://localhost:8000" in line]


def python_blocks() -> list[str]:
    """Return the Python programs of docs/API.md."""
    return re.findall(r"```python\n(.*?)```", (HERE / "docs" / "API.md").read_text("utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("program", python_blocks())
def test_python_program_of_the_docs_works(base_url: str, program: str) -> None:
    program = program.replace("http://localhost:8000", base_url)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(2, 384) float16\n"


def test_docs_show_each_endpoint_with_curl() -> None:
    shown = "\n".join(curl_lines(HERE / "docs" / "API.md"))
    for path in ("/embed ", "/embed/batch ", "/tokenize ", "/health", "/models", f"/models/{BUNDLED}", "/metrics"):
        assert f"localhost:8000{path}" in f"{shown} \n".replace("\n", " \n")


def test_docs_show_each_option_with_curl() -> None:
    shown = "\n".join(curl_lines(HERE / "docs" / "API.md"))
    for option in ("input_type", "truncate", "long_text", "dimensions", "normalize", "dtype", "encoding"):
        assert f'"{option}"' in shown


@pytest.mark.parametrize("line", [line for page in pages() for line in curl_lines(page)])
def test_curl_command_of_the_docs_works(base_url: str, line: str) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    command = shlex.split(line.replace("http://localhost:8000", base_url))
    assert base_url in " ".join(command)
    done = subprocess.run([*command, "--fail", "--silent", "--show-error"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "status" in done.stdout or "# HELP" in done.stdout or json.loads(done.stdout)
