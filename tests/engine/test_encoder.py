"""The encoder on real models: the bundled one, and tiny ones whose vectors are known."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastembed import TextEmbedding
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from tokenizers import Tokenizer

from config import BUNDLED_MODEL, BUNDLED_MODELS_DIR
from engine.catalog import read_catalog
from engine.encoder import Encoder, load_encoder
from engine.errors import ModelUnavailableError
from engine.tokenizer import Side
from tests.support.odd_texts import WORDS, any_texts
from tests.support.tiny import MAX_TOKENS, TinyModel, mean_of, row
from tests.support.tiny_models import (
    PROBE_WORDS,
    STATIC,
    STATIC_DIM,
    TASKED,
    TASKED_DIM,
    cache_static,
    cache_tasked,
    noisy,
    padding_sensitive,
    static_tokenizer,
    task_shift,
)

TEXTS = ["one two three", "four", "one one five", "two"]


def load(folder: Path, name: str) -> Encoder:
    return load_encoder(read_catalog([folder], bundled="").get(name), hub_cache_dir=folder / "cache")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    folder = tmp_path_factory.mktemp("models")
    TinyModel("acme/tiny").write(folder)
    return load(folder, "acme/tiny")


@pytest.fixture(scope="module")
def bundled() -> Encoder:
    return load(BUNDLED_MODELS_DIR, BUNDLED_MODEL)


@pytest.fixture(scope="module")
def tasked(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    cache_dir = tmp_path_factory.mktemp("hub")
    cache_tasked(cache_dir)
    return load_encoder(read_catalog([], bundled="").get(TASKED), hub_cache_dir=cache_dir)


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    cache_dir = tmp_path_factory.mktemp("hub")
    cache_static(cache_dir)
    return load_encoder(read_catalog([], bundled="").get(STATIC), hub_cache_dir=cache_dir)


@pytest.fixture(scope="module")
def fastembed() -> TextEmbedding:
    """FastEmbed on the bundled model's folder, used directly."""
    return TextEmbedding(BUNDLED_MODEL, specific_model_path=str(BUNDLED_MODELS_DIR / "all-MiniLM-L6-v2"), threads=1)


def vectors_of(encoder: Encoder, texts: Sequence[str], side: Side | None = None) -> Any:
    return encoder.encode(encoder.tokenizer.tokenize(texts, side=side))


def test_vectors_are_what_the_model_computes(tiny: Encoder) -> None:
    vectors = tiny.encode(tiny.tokenizer.tokenize(TEXTS))
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, [mean_of(text.split()) for text in TEXTS], rtol=1e-6)


def test_normalised_model_returns_unit_vectors(tmp_path: Path) -> None:
    TinyModel("acme/unit", normalized=True).write(tmp_path)
    unit = load(tmp_path, "acme/unit")
    expected = mean_of(["one", "two"])
    [vector] = unit.encode(unit.tokenizer.tokenize(["one two"]))
    np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), rtol=1e-6)


def test_tokens_count_the_whole_text_and_a_truncated_text_is_marked(tiny: Encoder) -> None:
    expected = {
        1: (3, 3, False),
        MAX_TOKENS - 2: (MAX_TOKENS, MAX_TOKENS, False),
        MAX_TOKENS - 1: (MAX_TOKENS + 1, MAX_TOKENS, True),
        100: (102, MAX_TOKENS, True),
    }
    items = {words: tiny.tokenizer.tokenize(["one " * words])[0] for words in expected}
    assert {words: (item.tokens, item.length, item.is_truncated) for words, item in items.items()} == expected


def test_truncated_text_has_the_vector_of_what_is_left(tiny: Encoder) -> None:
    long = ["one"] * (MAX_TOKENS - 2) + ["five"] * 40
    [vector] = tiny.encode(tiny.tokenizer.tokenize([" ".join(long)]))
    np.testing.assert_allclose(vector, mean_of(long[: MAX_TOKENS - 2]), rtol=1e-6)


def test_tokens_of_the_bundled_model_are_those_of_its_own_tokenizer(bundled: Encoder) -> None:
    tokenizer = Tokenizer.from_file(str(BUNDLED_MODELS_DIR / "all-MiniLM-L6-v2" / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    texts = ["embedding " * words for words in (254, 255, 600)]
    items = bundled.tokenizer.tokenize(texts)
    assert [item.tokens for item in items] == [len(tokenizer.encode(text)) for text in texts]
    assert [item.length for item in items] == [256, 256, 256]


def test_text_in_a_batch_has_the_vector_that_it_has_alone(bundled: Encoder) -> None:
    texts = ["a", "How do I reset my password?", "Ein Satz mit Umlauten: äöü. " * 12, "x " * 300, "42"]
    together = bundled.encode(bundled.tokenizer.tokenize(texts))
    alone = np.concatenate([bundled.encode(bundled.tokenizer.tokenize([text])) for text in texts])
    assert np.abs(together - alone).max() <= 1e-5


def test_several_threads_may_use_an_encoder_at_once(bundled: Encoder) -> None:
    texts = [f"text number {number} " * (1 + number % 7) for number in range(24)]
    expected = np.concatenate([bundled.encode(bundled.tokenizer.tokenize([text])) for text in texts])

    def encode(start: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        return bundled.encode(bundled.tokenizer.tokenize(texts[start : start + 6]))

    with ThreadPoolExecutor(4) as pool:
        vectors = np.concatenate(list(pool.map(encode, range(0, 24, 6))))
    assert np.abs(vectors - expected).max() <= 1e-5


def test_same_items_may_be_run_twice(tiny: Encoder) -> None:
    items = tiny.tokenizer.tokenize(TEXTS)
    first = tiny.encode(items)
    np.testing.assert_allclose(tiny.encode(items[1:2]), first[1:2], rtol=1e-6)


def test_lone_text_session_returns_the_same_vectors() -> None:
    encoder = load(BUNDLED_MODELS_DIR, BUNDLED_MODEL)
    texts = ["How do I reset my password?", "x " * 300]
    expected = [encoder.encode(encoder.tokenizer.tokenize([text]), is_lone=True) for text in texts]
    with capture_logs() as events:
        encoder.open_lone_text_session(2)
    assert events == []
    for text, vector in zip(texts, expected, strict=True):
        assert np.abs(encoder.encode(encoder.tokenizer.tokenize([text]), is_lone=True) - vector).max() <= 1e-5


def test_lone_text_session_with_other_vectors_is_dropped_and_logged(tmp_path: Path) -> None:
    TinyModel("acme/noisy", words=PROBE_WORDS, graph=noisy).write(tmp_path)
    with capture_logs():
        encoder = load(tmp_path, "acme/noisy")
    with capture_logs() as events:
        encoder.open_lone_text_session(2)
    [event] = events
    assert (event["event"], event["model"]) == ("lone_text_session_dropped", "acme/noisy")
    assert event["drift"] > 1e-3
    assert encoder.encode(encoder.tokenizer.tokenize(["one"]), is_lone=True).shape == (1, 4)


def test_model_folder_that_was_moved_away_does_not_come_back_empty(tmp_path: Path) -> None:
    """An operator who moves it back would move it into the empty one."""
    folder = TinyModel("acme/tiny").write(tmp_path / "models")
    encoder = load(tmp_path / "models", "acme/tiny")
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(Exception, match=r"model\.onnx"):
        encoder.open_lone_text_session(2)
    assert not folder.exists()
    assert encoder.encode(encoder.tokenizer.tokenize(["one"]), is_lone=True).shape == (1, 4)


def test_warm_up_measures_the_speed(tiny: Encoder) -> None:
    assert tiny.seconds_per_token > 0


def test_folder_with_a_name_of_the_registry_has_its_own_pooling(tmp_path: Path) -> None:
    TinyModel("BAAI/bge-small-en-v1.5").write(tmp_path)  # the registry uses CLS pooling for this name
    encoder = load(tmp_path, "BAAI/bge-small-en-v1.5")
    np.testing.assert_allclose(
        encoder.encode(encoder.tokenizer.tokenize(["one two"])), [mean_of(["one", "two"])], rtol=1e-6
    )


def test_changed_folder_is_another_model(tmp_path: Path) -> None:
    folder = TinyModel("acme/changing").write(tmp_path)
    load(tmp_path, "acme/changing")
    manifest = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**manifest, "normalized": True}))
    changed = load(tmp_path, "acme/changing")
    [vector] = changed.encode(changed.tokenizer.tokenize(["one two"]))
    assert np.linalg.norm(vector) == pytest.approx(1.0)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(texts=st.lists(any_texts, min_size=1, max_size=4))
def test_vectors_of_any_text_are_those_of_fastembed_itself(
    bundled: Encoder, fastembed: TextEmbedding, texts: list[str]
) -> None:
    expected = np.stack(list(fastembed.embed(texts)))
    assert np.abs(vectors_of(bundled, texts) - expected).max() <= 1e-5


@pytest.mark.parametrize("side", ["start", "end"])
def test_truncated_text_of_the_bundled_model_has_the_vector_of_the_text_truncated_by_hand(
    bundled: Encoder, fastembed: TextEmbedding, side: Side
) -> None:
    words = [WORDS[number * number % len(WORDS)] for number in range(400)]
    by_hand = " ".join(words[-254:] if side == "start" else words[:254])
    [expected] = fastembed.embed([by_hand])
    assert np.abs(vectors_of(bundled, [" ".join(words)], side) - expected).max() <= 1e-6


def test_without_a_side_texts_are_truncated_as_the_tokenizer_is_set_up(tmp_path: Path) -> None:
    TinyModel("acme/left", tokenizer_config={"truncation_side": "left"}).write(tmp_path)
    encoder = load(tmp_path, "acme/left")
    words = ["one"] * 10 + ["five"] * 10
    beginning, end = words[: MAX_TOKENS - 2], words[-(MAX_TOKENS - 2) :]
    sides: list[tuple[Side | None, list[str]]] = [("start", end), ("end", beginning), (None, end)]
    for side, kept in sides:
        np.testing.assert_allclose(vectors_of(encoder, [" ".join(words)], side), [mean_of(kept)], rtol=1e-5)


def test_texts_are_padded_on_the_tokenizers_side(tmp_path: Path) -> None:
    TinyModel("acme/left-padded", tokenizer_config={"padding_side": "left"}).write(tmp_path)
    encoder = load(tmp_path, "acme/left-padded")
    expected = [mean_of(text.split()) for text in TEXTS]
    np.testing.assert_allclose(vectors_of(encoder, TEXTS), expected, rtol=1e-5)


def test_texts_are_padded_to_the_tokenizers_multiple(tmp_path: Path) -> None:
    folder = TinyModel("acme/eight", dim=4, words=PROBE_WORDS, graph=padding_sensitive).write(tmp_path)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding(pad_token="[PAD]", pad_to_multiple_of=8)  # noqa: S106 - not a password
    tokenizer.save(str(folder / "tokenizer.json"))
    with capture_logs():
        encoder = load(tmp_path, "acme/eight")
    fastembed = TextEmbedding(
        next(entry["model"] for entry in TextEmbedding.list_supported_models() if "acme/eight@" in entry["model"]),
        specific_model_path=str(folder),
    )
    texts = ["one", "one two three four", "one two three four five one two"]
    np.testing.assert_allclose(vectors_of(encoder, texts), np.stack(list(fastembed.embed(texts))), rtol=1e-6)


def test_model_with_a_corrupt_file_is_rejected_with_the_file_as_the_cause(tmp_path: Path) -> None:
    for name in ("model.onnx", "tokenizer.json", "config.json"):
        folder = TinyModel(f"acme/flipped-{name}", dim=64, is_hashed=True).write(tmp_path)
        load(tmp_path, f"acme/flipped-{name}")
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)
        with pytest.raises(ModelUnavailableError) as unavailable:
            load(tmp_path, f"acme/flipped-{name}")
        assert f"its file {name!r} is not the expected one" in unavailable.value.cause


def test_corrupt_file_that_cannot_be_opened_is_reported_as_corrupt(tmp_path: Path) -> None:
    folder = TinyModel("acme/short", is_hashed=True).write(tmp_path)
    content = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(content[:-20])
    with pytest.raises(ModelUnavailableError) as unavailable:
        load(tmp_path, "acme/short")
    sizes = f"has {len(content) - 20} bytes instead of {len(content)}"
    assert unavailable.value.cause == f"its file 'model.onnx' {sizes}"


def test_same_files_have_the_same_fingerprint_and_other_files_another(tmp_path: Path) -> None:
    def fingerprint(name: str, dim: int) -> str:
        TinyModel(name, dim=dim).write(tmp_path)
        fingerprint = load(tmp_path, name).fingerprint
        assert fingerprint
        return fingerprint.digest

    assert fingerprint("acme/first", 4) == fingerprint("acme/second", 4) != fingerprint("acme/third", 5)


@pytest.mark.parametrize(
    ("input_type", "task"),
    [
        pytest.param("query", 0, id="query"),
        pytest.param("document", 1, id="document"),
        pytest.param(None, 1, id="none, as FastEmbed"),
    ],
)
def test_model_with_tasks_runs_the_task_of_the_input_type(tasked: Encoder, input_type: Any, task: int) -> None:
    runnable = tasked.runnable(input_type)
    vectors = runnable.encode(tasked.tokenizer.tokenize(["one two", "five"]), is_lone=False)
    expected = np.stack([mean_of(words, TASKED_DIM) + task * task_shift() for words in (["one", "two"], ["five"])])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    assert (runnable.name, runnable.dim, runnable.batching) == (TASKED, TASKED_DIM, "mixed")
    assert runnable.seconds_per_token > 0


def test_model_without_tasks_runs_every_input_type_itself(tiny: Encoder) -> None:
    assert tiny.runnable("query") is tiny.runnable("document") is tiny.runnable(None) is tiny


def test_static_model_has_the_vectors_of_its_words_without_special_tokens(static: Encoder) -> None:
    assert static.encode(static.tokenizer.tokenize(["one"])).shape == (1, STATIC_DIM)
    texts = [["one", "two", "two"], ["five"]]
    expected = np.stack([np.sum([row(word, STATIC_DIM) for word in words], axis=0) for words in texts])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors_of(static, [" ".join(words) for words in texts]), expected, atol=1e-6)
    assert static.self_check
    assert (static.self_check.is_unit, static.batching) == (True, "mixed")


@settings(deadline=None, max_examples=40, derandomize=True)
@given(texts=st.lists(any_texts, max_size=4))
def test_tokens_of_a_static_model_are_those_of_its_own_tokenizer(static: Encoder, texts: list[str]) -> None:
    expected = [static_tokenizer().encode(text, add_special_tokens=False).ids for text in texts]
    items = static.tokenizer.tokenize(texts)
    assert [list(item.ids) for item in items] == expected
    assert [item.tokens for item in items] == [len(ids) for ids in expected]


def test_static_model_truncates_either_end_of_a_long_text(static: Encoder) -> None:
    assert static.max_tokens == 512
    words = ["one"] * 400 + ["five"] * 400
    sides: dict[Side, list[str]] = {"start": words[-512:], "end": words[:512]}
    for side, kept in sides.items():
        [item] = static.tokenizer.tokenize([" ".join(words)], side=side)
        assert (item.tokens, item.length) == (800, 512)
        np.testing.assert_allclose(static.encode([item]), vectors_of(static, [" ".join(kept)]), atol=1e-6)


def test_static_model_encodes_a_long_text_in_windows(static: Encoder) -> None:
    [windows] = static.tokenizer.windows(["one " * 1200], with_spans=True)
    assert [item.weight for item in windows] == [item.length for item in windows] == [512, 512, 176]
    assert [item.span for item in windows] == [(0, 2047), (2048, 4095), (4096, 4799)]
    np.testing.assert_allclose(static.encode(windows), np.repeat(vectors_of(static, ["one"]), 3, axis=0), atol=1e-6)


def test_static_model_gets_no_lone_text_session(static: Encoder) -> None:
    with capture_logs() as events:
        static.open_lone_text_session(2)
    assert events == []
    assert static.encode(static.tokenizer.tokenize(["one"]), is_lone=True).shape == (1, STATIC_DIM)
