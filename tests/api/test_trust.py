"""What a real server does with models that want prompts, may be cut, drift, or are not what they should be."""

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

from tests.support.servers import ROOT, ServerProcess, running_server, started_server
from tests.support.tiny import MAX_TOKENS, TinyModel, mean_of
from tests.support.tiny_models import (
    PROBE_WORDS,
    nan_for_unknown,
    one_at_a_time,
    write_padding_sensitive,
    write_quantised,
)

pytestmark = pytest.mark.timeout(60)  # it starts processes, on a machine that may be busy

Json = dict[str, Any]
PROMPTS = {"query": "one two ", "document": "three "}
FITTING = {"text": "four five", "vector": [float(number) for number in mean_of(["four", "five"])]}
WRONG = {"text": "four five", "vector": [1.0, 0.0, 0.0, 0.0]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    TinyModel("acme/prompted", prompts=PROMPTS).write(folder)
    TinyModel("acme/optional", prompts=PROMPTS, needs_prompt=False).write(folder)
    TinyModel("acme/nested", dim=8, matryoshka=(2, 4)).write(folder)
    TinyModel("acme/unit", normalized=True).write(folder)
    TinyModel("acme/proven", canary=[FITTING], is_hashed=True).write(folder)
    TinyModel("acme/impostor", canary=[FITTING, WRONG]).write(folder)
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
    TinyModel("acme/lonely", graph=one_at_a_time).write(folder)
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


def refused(client: httpx.Client, name: str, status: int, **options: object) -> Json:
    response = client.post("/embed", json={"text": "one", "model_name": name, **options})
    assert response.status_code == status, response.text
    return dict(response.json())


def details(client: httpx.Client, name: str) -> Json:
    return dict(client.get(f"/models/{name}").json())


# --- Prompts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("input_type", PROMPTS)
def test_prompt_stands_before_the_text(client: httpx.Client, input_type: str) -> None:
    asked = embed(client, "acme/prompted", "four five", input_type=input_type)
    by_hand = embed(client, "acme/prompted", f"{PROMPTS[input_type]}four five")
    np.testing.assert_array_equal(asked["embedding"], by_hand["embedding"])
    assert asked["tokens"] == by_hand["tokens"]
    assert asked["text_length"] == len("four five")


def test_without_an_input_type_no_prompt_is_put(client: httpx.Client) -> None:
    np.testing.assert_allclose(vector(client, "acme/prompted", "four"), mean_of(["four"]), rtol=1e-6)


@pytest.mark.parametrize(("name", "is_needed"), [("acme/prompted", True), ("acme/optional", False)])
def test_model_tells_its_prompts_and_whether_it_needs_them(client: httpx.Client, name: str, *, is_needed: bool) -> None:
    told = details(client, name)
    assert (told["needs_prompt"], told["prompts"]) == (is_needed, PROMPTS)


@pytest.mark.parametrize(
    ("truncate", "kept"),
    [
        pytest.param("end", ["one", "two"] + ["four"] * 12, id="end"),
        pytest.param("start", ["one", "two"] + ["five"] * 12, id="start"),
    ],
)
def test_cut_leaves_the_prompt_alone(client: httpx.Client, truncate: str, kept: list[str]) -> None:
    answer = embed(client, "acme/prompted", "four " * 20 + "five " * 20, input_type="query", truncate=truncate)
    np.testing.assert_allclose(answer["embedding"], mean_of(kept), rtol=1e-5)
    assert (answer["tokens"], answer["truncated"]) == (44, True)


def test_prompt_counts_where_nothing_may_be_cut(client: httpx.Client) -> None:
    text = "four " * (MAX_TOKENS - 4)
    assert embed(client, "acme/prompted", text, input_type="query", truncate="none")["tokens"] == MAX_TOKENS
    response = client.post(
        "/embed",
        json={"text": f"{text} four", "model_name": "acme/prompted", "input_type": "query", "truncate": "none"},
    )
    assert (response.status_code, response.json()["tokens"], response.json()["limit"]) == (400, 17, MAX_TOKENS)


def test_each_window_has_the_prompt(client: httpx.Client) -> None:
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


def test_tokens_of_a_prompt_have_no_characters_of_the_text(client: httpx.Client) -> None:
    body = {"texts": ["five"], "model_name": "acme/prompted", "input_type": "query", "return_tokens": True}
    [told] = client.post("/tokenize", json=body).json()["texts"]
    spans = [(token["token"], token["start"], token["end"]) for token in told["token_list"]]
    assert spans == [
        ("[CLS]", None, None),
        ("one", None, None),
        ("two", None, None),
        ("five", 0, 4),
        ("[SEP]", None, None),
    ]


# --- Lengths and sizes --------------------------------------------------------------------------------------------


def test_vectors_keep_their_length_unless_asked(client: httpx.Client) -> None:
    expected = mean_of(["one", "two"])
    np.testing.assert_allclose(vector(client, "acme/prompted", "one two"), expected, rtol=1e-6)
    np.testing.assert_allclose(vector(client, "acme/prompted", "one two", normalize=False), expected, rtol=1e-6)
    unit = vector(client, "acme/prompted", "one two", normalize=True)
    np.testing.assert_allclose(unit, expected / np.linalg.norm(expected), rtol=1e-6)
    assert details(client, "acme/prompted")["normalized"] is False


def test_normalised_model_says_so_and_gives_length_1(client: httpx.Client) -> None:
    assert np.linalg.norm(vector(client, "acme/unit", "one two")) == pytest.approx(1)
    assert details(client, "acme/unit")["normalized"] is True


def test_mean_of_windows_is_at_length_1(client: httpx.Client) -> None:
    words = ["one"] * 14 + ["two"] * 6
    mean = (14 * mean_of(words[:14]) + 6 * mean_of(words[14:])) / 20
    got = vector(client, "acme/prompted", " ".join(words), long_text="mean")
    np.testing.assert_allclose(got, mean / np.linalg.norm(mean), rtol=1e-5)
    raw = vector(client, "acme/prompted", " ".join(words), long_text="mean", normalize=False)
    np.testing.assert_allclose(raw, mean, rtol=1e-5)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_trained_size_is_given_at_length_1(client: httpx.Client, size: int) -> None:
    whole = mean_of(["one", "two"], 8)
    answer = embed(client, "acme/nested", "one two", dimensions=size)
    np.testing.assert_allclose(answer["embedding"], whole[:size] / np.linalg.norm(whole[:size]), rtol=1e-5)
    assert answer["dimension"] == size


def test_untrained_size_is_refused_with_the_trained_ones(client: httpx.Client) -> None:
    told = refused(client, "acme/nested", 400, dimensions=3)
    assert told["field"] == "dimensions"
    assert "2, 4" in told["detail"]
    assert "allow_untrained_dimensions" in told["detail"]
    assert embed(client, "acme/nested", "one", dimensions=3, allow_untrained_dimensions=True)["dimension"] == 3
    assert details(client, "acme/nested")["matryoshka"] == {"sizes": [2, 4], "any_from": None}


def test_options_are_checked_before_a_model_is_loaded(client: httpx.Client) -> None:
    name = "intfloat/multilingual-e5-large"  # of the hub, which is out of reach here
    assert refused(client, name, 400, dimensions=9_999)["field"] == "dimensions"


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_whole_numbers_are_of_vectors_at_length_1(client: httpx.Client, dtype: str) -> None:
    stored = np.asarray(embed(client, "acme/prompted", "one two", dtype=dtype)["embedding"], np.float64)
    told = (stored - (128 if dtype == "uint8" else 0)) / 127
    expected = mean_of(["one", "two"]) / np.linalg.norm(mean_of(["one", "two"]))
    assert np.abs(told - expected).max() <= 1 / 254 + 1e-6


# --- Models that are not what they should be ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        pytest.param("acme/impostor", "canary", id="wrong-canary"),
        pytest.param("acme/flipped", "'model.onnx' is not the expected one", id="flipped-bit"),
        pytest.param("acme/short", "'tokenizer.json' has 100 bytes", id="cut-short"),
        pytest.param("acme/gone", "'model.onnx' is missing", id="missing"),
        pytest.param("acme/nan", "NaN", id="nan"),
        pytest.param("acme/chatty", "no space", id="prompt-too-long"),
    ],
)
def test_model_that_does_not_prove_itself_never_serves(
    client: httpx.Client, folder: Path, name: str, cause: str
) -> None:
    told = refused(client, name, 503)
    assert told["code"] == "model-unavailable"
    assert cause in told["detail"]
    assert str(folder) not in told["detail"]
    assert details(client, name)["is_cached"] is False


def test_model_that_proves_itself_tells_so(client: httpx.Client) -> None:
    embed(client, "acme/proven", "one")
    check = details(client, "acme/proven")["self_check"]
    assert check["canary_cosine"] == pytest.approx(1)
    assert check["batch_invariant"] is True


def test_fingerprint_follows_the_model(client: httpx.Client) -> None:
    prints = [
        client.post("/embed", json={"text": "one", "model_name": name}).headers["x-model-fingerprint"]
        for name in ("acme/prompted", "acme/unit", "acme/nested", "acme/prompted")
    ]
    assert prints[0] == prints[3]
    assert len(set(prints)) == 3


@pytest.mark.parametrize(("name", "batching"), [("acme/int8", "single"), ("acme/padded", "equal")])
def test_text_has_one_vector_whatever_its_neighbours(client: httpx.Client, name: str, batching: str) -> None:
    words = [word for word in PROBE_WORDS if word not in {"poison", "nan", "null"}]
    texts = [" ".join(words[start : start + 1 + start % 5]) for start in range(24)]
    alone = np.stack([vector(client, name, text) for text in texts])

    def together(start: int) -> NDArray[np.float32]:
        body = {"texts": texts[start:] + texts[:start], "model_name": name}
        vectors = np.asarray(client.post("/embed/batch", json=body).json()["embeddings"], np.float32)
        return np.roll(vectors, start, axis=0)

    with ThreadPoolExecutor(6) as threads:
        for vectors in threads.map(together, range(12)):
            np.testing.assert_array_equal(vectors, alone)
    check = details(client, name)["self_check"]
    assert (check["batch_invariant"], check["batching"]) == (False, batching)
    assert check["batch_drift"] > 1e-5
    assert check["batching_cost"] > 0


def test_model_that_takes_one_text_at_a_time_gets_no_more(client: httpx.Client) -> None:
    body = {"texts": ["one", "two three", "four", "one"], "model_name": "acme/lonely"}
    vectors = client.post("/embed/batch", json=body).json()["embeddings"]
    wanted = [mean_of(text.split()) for text in body["texts"]]
    np.testing.assert_allclose(vectors, wanted, rtol=1e-5)
    check = details(client, "acme/lonely")["self_check"]
    assert (check["batch_drift"], check["batch_invariant"], check["batching"]) == (None, False, "single")


def test_drift_is_told_in_the_log(client: httpx.Client, server: ServerProcess) -> None:
    embed(client, "acme/int8", "one")
    events = [event for event in server.events if event["event"] == "model_not_batch_invariant"]
    [told] = [event for event in events if event["model"] == "acme/int8"]
    assert (told["level"], told["batching"]) == ("warning", "single")
    assert told["drift"] > 1e-5


def test_required_model_with_a_missing_file_ends_the_start_with_that_reason(folder: Path) -> None:
    """Not with the hub's, where a model of the same name might be."""
    with started_server(MODELS_DIR=str(folder), REQUIRED_MODELS="acme/gone") as server:
        assert server.wait_for_end() == 1
    assert "its file 'model.onnx' is missing" in server.log


def test_arrow_without_pyarrow_is_a_406_that_says_so(tmp_path: Path) -> None:
    package = tmp_path / "pyarrow"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('not installed')")
    search_path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with running_server(PYTHONPATH=search_path) as server:
        headers = {"Accept": "application/vnd.apache.arrow.stream"}
        response = httpx.post(f"{server.url}/embed", json={"text": "a"}, headers=headers)
    assert (response.status_code, response.json()["code"]) == (406, "not-acceptable")
    assert "pyarrow" in response.json()["detail"]


def test_manifest_of_the_bundled_model_brings_a_canary_of_the_original() -> None:
    manifest = json.loads((ROOT / "models" / "all-MiniLM-L6-v2" / "model.json").read_text(encoding="utf-8"))
    reference = json.loads((ROOT / "tests" / "reference" / "all-MiniLM-L6-v2.json").read_text(encoding="utf-8"))
    original = {entry["text"]: entry["vector"] for entry in reference["texts"]}
    assert manifest["canary"]
    for canary in manifest["canary"]:
        np.testing.assert_allclose(canary["vector"], original[canary["text"]], atol=1e-6)
