"""A model in a process of its own, driven from this one."""

import multiprocessing
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from cli.model_process import ModelProcess, ModelProcessError, Order, resident_bytes, running, runs_of
from engine.catalog import read_catalog
from engine.jobs import Batching
from engine.model_cards import InputType
from engine.tokenizer import TokenizedText
from tests.support.commands import change
from tests.support.tiny import TinyModel, mean_of

pytestmark = pytest.mark.timeout(60)


def order_for(parent: Path, input_type: InputType | None = None) -> Order:
    [model] = [model for model in read_catalog([parent], bundled="").models if model.source == "local"]
    return Order(model, parent / "cache", input_type, 256)


@contextmanager
def loaded(parent: Path, input_type: InputType | None = None) -> Iterator[ModelProcess]:
    with running(order_for(parent, input_type)) as process:
        process.load()
        yield process


def test_vectors_come_in_the_order_of_the_texts(tmp_path: Path) -> None:
    TinyModel("acme/tiny").write(tmp_path)
    texts = ["one two three", "four", "one one five", "two", "zero " * 20]
    with loaded(tmp_path) as process:
        turn = process.embed(texts)
    expected = [mean_of(text.split()[:14]) for text in texts]
    np.testing.assert_allclose(turn.vectors, expected, rtol=1e-5)
    assert turn.truncated == 1
    assert turn.wall_s > 0


def test_each_input_type_has_the_models_prompt(tmp_path: Path) -> None:
    change(TinyModel("acme/tiny").write(tmp_path), prompts={"query": "five "})
    with loaded(tmp_path, "query") as process:
        turn = process.embed(["one two"])
    np.testing.assert_allclose(turn.vectors, [mean_of(["five", "one", "two"])], rtol=1e-5)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process its memory in /proc")
def test_memory_is_measured(tmp_path: Path) -> None:
    TinyModel("acme/tiny").write(tmp_path)
    with running(order_for(tmp_path)) as process:
        assert process.load().memory_bytes
        assert process.embed(["one"]).memory_bytes
    assert (resident_bytes() or 0) > 1_000_000


@pytest.mark.parametrize(
    ("text", "reason"),
    [pytest.param("one poison", "failed", id="run fails"), pytest.param("null", "norm of zero", id="zero vector")],
)
def test_failure_names_the_text(text: str, reason: str, tmp_path: Path) -> None:
    TinyModel("acme/tiny").write(tmp_path)
    with loaded(tmp_path) as process, pytest.raises(ModelProcessError, match=reason) as failure:
        process.embed(["one", "two three four five one two three four five one two three four", text])
    assert list(failure.value.texts) == [2]


def test_model_that_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    folder = TinyModel("acme/tiny").write(tmp_path)
    (folder / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ModelProcessError, match="missing or broken"), loaded(tmp_path):
        pass


def test_crash_is_told_as_such_and_leaves_no_process(tmp_path: Path) -> None:
    TinyModel("acme/tiny").write(tmp_path)
    with loaded(tmp_path) as process:
        [child] = multiprocessing.active_children()
        child.kill()
        child.join()
        with pytest.raises(ModelProcessError, match="SIGKILL"):
            process.embed(["one"])
    assert multiprocessing.active_children() == []


def test_process_ends_when_the_block_fails(tmp_path: Path) -> None:
    TinyModel("acme/tiny").write(tmp_path)
    with pytest.raises(KeyError), running(order_for(tmp_path)):
        raise KeyError
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("batching", "expected"),
    [
        pytest.param("mixed", [[3], [0, 4, 2], [1]], id="mixed"),
        pytest.param("equal", [[3], [0, 4], [2], [1]], id="equal"),
        pytest.param("single", [[3], [0], [4], [2], [1]], id="single"),
    ],
)
def test_texts_share_runs_as_in_the_service(batching: Batching, expected: list[list[int]]) -> None:
    items = [TokenizedText(length, range(length)) for length in (30, 3, 29, 200, 30)]
    assert runs_of(items, batching, budget_tokens=256) == expected
