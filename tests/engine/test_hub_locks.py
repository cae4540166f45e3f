"""Processes that share a hub cache: one downloads, the others wait. With real processes, locks and a hub."""

import errno
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine.fastembed_adapter import registry_model
from engine.hub_locks import held_numbers, is_held, locked
from tests.support.hubs import Hub, loading, serving
from tests.support.tiny import TinyModel

pytestmark = pytest.mark.timeout(60)  # it starts processes, on a machine that may be busy

NAME = "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2"
ONNX = "model_optimized.onnx"


class Gate:
    """Holds the hub's answers with the model file until it is opened."""

    def __init__(self) -> None:
        self.is_reached = threading.Event()
        self.opened = threading.Event()

    def hold(self, name: str, content: bytes) -> bytes:
        if name == ONNX:
            self.is_reached.set()
            self.opened.wait()
        return content


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.opened.set()


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, gate: Gate) -> Iterator[Hub]:
    folder = TinyModel("tiny", dim=384).write(tmp_path_factory.mktemp("repository"))
    names = ["config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
    files = {name: (folder / name).read_bytes() for name in names} | {ONNX: (folder / "model.onnx").read_bytes()}
    with serving(registry_model(NAME).repository, files) as hub:
        hub.corrupt = gate.hold
        yield hub
        gate.opened.set()  # the hub ends only after its answers


def downloads(hub: Hub) -> int:
    return sum(request.startswith("GET") and request.endswith(ONNX) for request in hub.requests)


def test_process_waits_for_the_download_of_another_and_uses_its_files(hub: Hub, gate: Gate, tmp_path: Path) -> None:
    with loading(NAME, HF_ENDPOINT=hub.url) as first, loading(NAME, HF_ENDPOINT=hub.url) as second:
        first.start(tmp_path)
        gate.is_reached.wait()
        second.start(tmp_path)
        second.wait_for_event("download_elsewhere")
        gate.opened.set()
        assert "vector" in first.outcome()
        assert "vector" in second.outcome()
    assert downloads(hub) == 1


def test_process_that_waits_downloads_when_the_other_is_killed(hub: Hub, gate: Gate, tmp_path: Path) -> None:
    with loading(NAME, HF_ENDPOINT=hub.url) as first, loading(NAME, HF_ENDPOINT=hub.url) as second:
        first.start(tmp_path)
        gate.is_reached.wait()
        second.start(tmp_path)
        second.wait_for_event("download_elsewhere")
        first.kill()
        gate.opened.set()
        assert "vector" in second.outcome()


def test_lock_is_held_by_one_at_a_time_and_by_nobody_after_the_block(tmp_path: Path) -> None:
    waits = threading.Event()
    order: list[str] = []

    def follow() -> None:
        with locked(tmp_path, "a", on_wait=waits.set):
            order.append("second")

    with ThreadPoolExecutor(1) as executor:
        with locked(tmp_path, "a"):
            assert is_held(tmp_path, "a")
            following = executor.submit(follow)
            waits.wait()
            order.append("first")
        following.result()
    assert order == ["first", "second"]
    assert not is_held(tmp_path, "a")


def test_number_counts_only_while_the_lock_is_held(tmp_path: Path) -> None:
    with locked(tmp_path, "a") as lock, locked(tmp_path, "b"):
        lock.write(5)
        assert held_numbers(tmp_path) == {"a": 5}
    assert held_numbers(tmp_path) == {}


def test_folder_in_which_nothing_can_be_written_has_no_locks(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with locked(tmp_path / "file", "a") as lock:
        lock.write(5)
        assert not is_held(tmp_path / "file", "a")
        assert held_numbers(tmp_path / "file") == {}


def test_on_a_file_system_without_locks_each_process_works_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(_descriptor: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", flock)
    with locked(tmp_path, "a") as lock, locked(tmp_path, "a"):
        lock.write(7)
        assert not is_held(tmp_path, "a")
        assert held_numbers(tmp_path) == {}
