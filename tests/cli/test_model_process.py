"""A model that is loaded and run for a command, in this process and in a process of its own."""

import multiprocessing
import sys
from pathlib import Path

import numpy as np
import pytest

from cli.model_process import ModelProcessError, ModelWorker, WorkerConfig, resident_bytes, start_worker
from engine.catalog import read_catalog
from engine.model_cards import InputType
from tests.support.commands import change
from tests.support.tiny import TinyModel, mean_of

pytestmark = pytest.mark.timeout(60)  # starts processes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of the model."""
    return TinyModel("acme/tiny").write(tmp_path)


def config_of(folder: Path, input_type: InputType | None = None) -> WorkerConfig:
    model = read_catalog([folder.parent], bundled="").get("acme/tiny")
    return WorkerConfig(model, folder.parent / "cache", input_type, micro_batch_tokens=256)


def loaded(folder: Path, input_type: InputType | None = None) -> ModelWorker:
    worker = ModelWorker(config_of(folder, input_type))
    worker.load()
    return worker


def test_vectors_are_in_the_order_of_the_texts(folder: Path) -> None:
    texts = ["one two three", "four", "one one five", "two", "zero " * 20]
    result = loaded(folder).embed(texts)
    np.testing.assert_allclose(result.vectors, [mean_of(text.split()[:14]) for text in texts], rtol=1e-5)
    assert result.truncated == 1
    assert result.wall_s > 0


def test_input_type_selects_the_models_prompt(folder: Path) -> None:
    change(folder, prompts={"query": "five "})
    result = loaded(folder, "query").embed(["one two"])
    np.testing.assert_allclose(result.vectors, [mean_of(["five", "one", "two"])], rtol=1e-5)


@pytest.mark.parametrize(
    ("text", "reason"),
    [pytest.param("one poison", "failed", id="run fails"), pytest.param("null", "norm of zero", id="zero vector")],
)
def test_failure_names_the_text(text: str, reason: str, folder: Path) -> None:
    with pytest.raises(ModelProcessError, match=reason) as failure:
        loaded(folder).embed(["one", "two three four five one two three four five one two three four", text])
    assert list(failure.value.texts) == [2]


def test_model_that_cannot_be_loaded_is_a_failure_with_the_reason(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ModelProcessError, match="not a complete ONNX file"):
        loaded(folder)


def test_process_returns_vectors_and_failures(folder: Path) -> None:
    with start_worker(config_of(folder)) as worker:
        report = worker.load()
        result = worker.embed(["one", "two three"])
        with pytest.raises(ModelProcessError, match="failed") as failure:
            worker.embed(["one", "poison"])
    np.testing.assert_allclose(result.vectors, [mean_of(["one"]), mean_of(["two", "three"])], rtol=1e-5)
    assert list(failure.value.texts) == [1]
    if sys.platform == "linux":  # other systems have no /proc
        assert report.memory_bytes
        assert result.memory_bytes
        assert (resident_bytes() or 0) > 1_000_000


def test_crash_of_the_process_is_a_failure_and_leaves_no_process(folder: Path) -> None:
    with start_worker(config_of(folder)) as worker:
        worker.load()
        [child] = multiprocessing.active_children()
        child.kill()
        child.join()
        with pytest.raises(ModelProcessError, match="SIGKILL"):
            worker.embed(["one"])
    assert multiprocessing.active_children() == []


def test_process_ends_if_the_block_fails(folder: Path) -> None:
    with pytest.raises(KeyError), start_worker(config_of(folder)):
        raise KeyError
    assert multiprocessing.active_children() == []
