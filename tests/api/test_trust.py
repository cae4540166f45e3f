"""A real server with models that use prompts, have trained sizes, depend on the batch, or fail verification."""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.servers import ROOT, ServerProcess, running_server
from tests.support.tiny import MAX_TOKENS, TinyModel, mean_of
from tests.support.tiny_models import (
    PROBE_WORDS,
    nan_for_unknown,
    one_at_a_time,
    write_padding_sensitive,
    write_quantised,
)

pytestmark = pytest.mark.timeout(60)  # starts a process, perhaps on a busy machine

Json = dict[str, Any]
PROMPTS = {"query": "one two ", "document": "three "}
CORRECT = {"text": "four five", "vector": [float(number) for number in mean_of(["four", "five"])]}
WRONG = {"text": "four five", "vector": [1.0, 0.0, 0.0, 0.0]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    TinyModel("acme/prompted", prompts=PROMPTS).write(folder)
    TinyModel("acme/optional", prompts=PROMPTS, needs_prompt=False).write(folder)
    TinyModel("acme/nested", dim=8, matryoshka=(2, 4)).write(folder)
    TinyModel("acme/unit", normalized=True).write(folder)
    TinyModel("acme/verified", canary=[CORRECT], is_hashed=True).write(folder)
    TinyModel("acme/impostor", canary=[CORRECT, WRONG]).write(folder)
    TinyModel("acme/nan", graph=nan_for_unknown).write(folder)
    TinyModel("acme/chatty", prompts={"query": "one " * MAX_TOKENS}).write(folder)
    flipped = TinyModel("acme/flipped", is_hashed=True).write(folder) / "model.onnx"
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    os.truncate(TinyModel("acme/short", is_hashed=True).write(folder) / "tokenizer.json", 100)
    (TinyModel("acme/gone").write(folder) / "model.onnx").unlink()
    write_quantised(folder, "acme/int8")
    write_padding_sensitive(folder, "acme/padded")
    TinyModel("acme/single", graph=one_at_a_time).write(folder)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerProcess]:
    with running_server(MODELS_DIR=str(folder), MAX_CACHED_MODELS="30") as server:
        yield server


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


def embed(client: httpx.Client, name: str, text: str, **options: object) -> Json:
    response = client.post("/embed", json={"text": text, "model_name": name, **options})
    assert response.status_code == 200, response.text
    return dict(response.json())


def vector(client: httpx.Client, name: str, text: str, **options: object) -> NDArray[np.float32]:
    return np.asarray(embed(client, name, text, **options)["embedding"], np.float32)


def problem(client: httpx.Client, name: str, status: int, *, text: str = "one", **options: object) -> Json:
    response = client.post("/embed", json={"text": text, "model_name": name, **options})
    assert response.status_code == status, response.text
    return dict(response.json())


def details(client: httpx.Client, name: str) -> Json:
    return dict(client.get(f"/models/{name}").json())


# --- Prompts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("input_type", PROMPTS)
def test_input_type_puts_the_prompt_before_the_text(client: httpx.Client, input_type: str) -> None:
    prompted = embed(client, "acme/prompted", "four five", input_type=input_type)
    manual = embed(client, "acme/prompted", f"{PROMPTS[input_type]}four five")
    np.testing.assert_array_equal(prompted["embedding"], manual["embedding"])
    assert prompted["tokens"] == manual["tokens"]
    assert prompted["text_length"] == len("four five")


def test_text_without_an_input_type_gets_no_prompt(client: httpx.Client) -> None:
    np.testing.assert_allclose(vector(client, "acme/prompted", "four"), mean_of(["four"]), rtol=1e-6)


@pytest.mark.parametrize(("name", "is_needed"), [("acme/prompted", True), ("acme/optional", False)])
def test_model_details_contain_the_prompts_and_whether_they_are_needed(
    client: httpx.Client, name: str, *, is_needed: bool
) -> None:
    model = details(client, name)
    assert (model["needs_prompt"], model["prompts"]) == (is_needed, PROMPTS)


@pytest.mark.parametrize(
    ("truncate", "kept"),
    [
        pytest.param("end", ["one", "two"] + ["four"] * 12, id="end"),
        pytest.param("start", ["one", "two"] + ["five"] * 12, id="start"),
    ],
)
def test_truncation_keeps_the_prompt(client: httpx.Client, truncate: str, kept: list[str]) -> None:
    answer = embed(client, "acme/prompted", "four " * 20 + "five " * 20, input_type="query", truncate=truncate)
    np.testing.assert_allclose(answer["embedding"], mean_of(kept), rtol=1e-5)
    assert (answer["tokens"], answer["truncated"]) == (44, True)


def test_prompt_counts_for_the_models_limit(client: httpx.Client) -> None:
    text, options = "four " * (MAX_TOKENS - 4), {"input_type": "query", "truncate": "none"}
    assert embed(client, "acme/prompted", text, **options)["tokens"] == MAX_TOKENS
    error = problem(client, "acme/prompted", 400, text=f"{text} four", **options)
    assert (error["tokens"], error["limit"]) == (MAX_TOKENS + 1, MAX_TOKENS)


def test_each_chunk_gets_the_prompt(client: httpx.Client) -> None:
    words = [("four", "five", "one")[number % 3] for number in range(30)]
    response = client.post(
        "/embed",
        json={"text": " ".join(words), "model_name": "acme/prompted", "input_type": "query", "long_text": "chunks"},
    ).json()
    parts = [words[start : start + 12] for start in range(0, 30, 12)]
    np.testing.assert_allclose(
        response["embeddings"], [mean_of(["one", "two", *part]) for part in parts], rtol=1e-5, atol=1e-6
    )
    assert [chunk["tokens"] for chunk in response["chunks"]] == [16, 16, 10]
    text = " ".join(words)
    assert [text[chunk["start"] : chunk["end"]].split() for chunk in response["chunks"]] == parts


def test_tokens_of_a_prompt_have_no_place_in_the_text(client: httpx.Client) -> None:
    body = {"texts": ["five"], "model_name": "acme/prompted", "input_type": "query", "return_tokens": True}
    [text] = client.post("/tokenize", json=body).json()["texts"]
    spans = [(token["token"], token["start"], token["end"]) for token in text["token_list"]]
    assert spans == [
        ("[CLS]", None, None),
        ("one", None, None),
        ("two", None, None),
        ("five", 0, 4),
        ("[SEP]", None, None),
    ]


# --- Normalization, dimensions, dtypes --------------------------------------------------------------------------------


def test_vectors_are_normalized_only_on_request_or_by_the_model(client: httpx.Client) -> None:
    expected = mean_of(["one", "two"])
    np.testing.assert_allclose(vector(client, "acme/prompted", "one two"), expected, rtol=1e-6)
    np.testing.assert_allclose(vector(client, "acme/prompted", "one two", normalize=False), expected, rtol=1e-6)
    normalized = vector(client, "acme/prompted", "one two", normalize=True)
    np.testing.assert_allclose(normalized, expected / np.linalg.norm(expected), rtol=1e-6)
    assert np.linalg.norm(vector(client, "acme/unit", "one two")) == pytest.approx(1)
    assert [details(client, name)["normalized"] for name in ("acme/prompted", "acme/unit")] == [False, True]


def test_mean_of_windows_is_normalized_unless_that_is_disabled(client: httpx.Client) -> None:
    words = ["one"] * 14 + ["two"] * 6
    mean = (14 * mean_of(words[:14]) + 6 * mean_of(words[14:])) / 20
    result = vector(client, "acme/prompted", " ".join(words), long_text="mean")
    np.testing.assert_allclose(result, mean / np.linalg.norm(mean), rtol=1e-5)
    raw = vector(client, "acme/prompted", " ".join(words), long_text="mean", normalize=False)
    np.testing.assert_allclose(raw, mean, rtol=1e-5)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_trained_dimensions_are_normalized(client: httpx.Client, size: int) -> None:
    whole = mean_of(["one", "two"], 8)
    answer = embed(client, "acme/nested", "one two", dimensions=size)
    np.testing.assert_allclose(answer["embedding"], whole[:size] / np.linalg.norm(whole[:size]), rtol=1e-5)
    assert answer["dimension"] == size


def test_untrained_dimensions_are_rejected_with_the_trained_ones(client: httpx.Client) -> None:
    error = problem(client, "acme/nested", 400, dimensions=3)
    assert error["field"] == "dimensions"
    assert "2, 4" in error["detail"]
    assert "allow_untrained_dimensions" in error["detail"]
    assert embed(client, "acme/nested", "one", dimensions=3, allow_untrained_dimensions=True)["dimension"] == 3
    assert details(client, "acme/nested")["matryoshka"] == {"sizes": [2, 4], "any_from": None}


def test_options_are_checked_before_a_model_is_loaded(client: httpx.Client) -> None:
    name = "intfloat/multilingual-e5-large"  # a model of the hub, which is not available here
    assert problem(client, name, 400, dimensions=9_999)["field"] == "dimensions"


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_numbers_of_8_bits_are_computed_from_normalized_vectors(client: httpx.Client, dtype: str) -> None:
    stored = np.asarray(embed(client, "acme/prompted", "one two", dtype=dtype)["embedding"], np.float64)
    decoded = (stored - (128 if dtype == "uint8" else 0)) / 127
    expected = mean_of(["one", "two"]) / np.linalg.norm(mean_of(["one", "two"]))
    assert np.abs(decoded - expected).max() <= 1 / 254 + 1e-6


# --- Verification -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        pytest.param("acme/impostor", "canary", id="wrong-canary"),
        pytest.param("acme/flipped", "'model.onnx' is not the expected one", id="flipped-bit"),
        pytest.param("acme/short", "'tokenizer.json' has 100 bytes", id="truncated-file"),
        pytest.param("acme/gone", "'model.onnx' is missing", id="missing"),
        pytest.param("acme/nan", "NaN", id="nan"),
        pytest.param("acme/chatty", "no space", id="prompt-too-long"),
    ],
)
def test_model_that_fails_verification_never_serves(client: httpx.Client, folder: Path, name: str, cause: str) -> None:
    error = problem(client, name, 503)
    assert error["code"] == "model-unavailable"
    assert cause in error["detail"]
    assert str(folder) not in error["detail"]
    assert details(client, name)["is_cached"] is False


def test_model_details_contain_the_result_of_the_verification(client: httpx.Client) -> None:
    embed(client, "acme/verified", "one")
    check = details(client, "acme/verified")["self_check"]
    assert check["canary_cosine"] == pytest.approx(1)
    assert check["batch_invariant"] is True


def test_fingerprint_identifies_the_model(client: httpx.Client) -> None:
    fingerprints = [
        client.post("/embed", json={"text": "one", "model_name": name}).headers["x-model-fingerprint"]
        for name in ("acme/prompted", "acme/unit", "acme/nested", "acme/prompted")
    ]
    assert fingerprints[0] == fingerprints[3]
    assert len(set(fingerprints)) == 3


@pytest.mark.parametrize(("name", "batching"), [("acme/int8", "single"), ("acme/padded", "equal")])
def test_text_has_one_vector_in_any_batch(
    client: httpx.Client, server: ServerProcess, name: str, batching: str
) -> None:
    words = [word for word in PROBE_WORDS if word not in {"poison", "nan", "null"}]
    texts = [" ".join(words[start : start + 1 + start % 5]) for start in range(24)]
    alone = np.stack([vector(client, name, text) for text in texts])

    def embed_rotated(start: int) -> NDArray[np.float32]:
        body = {"texts": texts[start:] + texts[:start], "model_name": name}
        vectors = np.asarray(client.post("/embed/batch", json=body).json()["embeddings"], np.float32)
        return np.roll(vectors, start, axis=0)

    with ThreadPoolExecutor(6) as threads:
        for vectors in threads.map(embed_rotated, range(12)):
            np.testing.assert_array_equal(vectors, alone)
    check = details(client, name)["self_check"]
    assert (check["batch_invariant"], check["batching"]) == (False, batching)
    assert check["batch_drift"] > 1e-5
    assert check["batching_cost"] > 0
    events = [event for event in server.events if event["event"] == "model_not_batch_invariant"]
    [event] = [event for event in events if event["model"] == name]
    assert (event["level"], event["batching"], event["drift"]) == ("warning", batching, check["batch_drift"])


def test_model_that_accepts_one_text_at_a_time_gets_no_more(client: httpx.Client) -> None:
    body = {"texts": ["one", "two three", "four", "one"], "model_name": "acme/single"}
    vectors = client.post("/embed/batch", json=body).json()["embeddings"]
    np.testing.assert_allclose(vectors, [mean_of(text.split()) for text in body["texts"]], rtol=1e-5)
    check = details(client, "acme/single")["self_check"]
    assert (check["batch_drift"], check["batch_invariant"], check["batching"]) == (None, False, "single")


def test_canary_of_the_bundled_model_comes_from_sentence_transformers() -> None:
    manifest = json.loads((ROOT / "models" / "all-MiniLM-L6-v2" / "model.json").read_text(encoding="utf-8"))
    reference = json.loads((ROOT / "tests" / "reference" / "all-MiniLM-L6-v2.json").read_text(encoding="utf-8"))
    original = {entry["text"]: entry["vector"] for entry in reference["texts"]}
    assert manifest["canary"]
    for canary in manifest["canary"]:
        np.testing.assert_allclose(canary["vector"], original[canary["text"]], atol=1e-6)
