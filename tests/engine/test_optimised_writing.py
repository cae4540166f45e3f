"""Writing optimised copies: who writes, what prevents it, what is removed for it, and what is known without reading."""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import QuantType, quantize_dynamic
from structlog.testing import capture_logs

from engine.catalog import read_catalog
from engine.encoder import load_encoder
from engine.errors import ModelUnavailableError
from engine.onnx_sessions import COPY_WEIGHTS
from engine.optimised_copy import BUSY, SMALL, STATIC
from engine.optimised_models import OptimisedModels
from engine.optimised_record import RECORD
from engine.optimised_space import make_room, make_room_for
from host.trusted_folder import try_lock
from tests.support.optimised import MAX_BYTES, TEXTS, WIDE, WIDE_DIM, Place, tending, vectors_of, write_wide_model
from tests.support.processes import killed_at_the_end
from tests.support.servers import ROOT, environment
from tests.support.tiny import TinyModel, row
from tests.support.tiny_models import PROBE_WORDS, TASKED, cache_static, cache_tasked, matmul, noisy
from tests.support.tiny_models import STATIC as STATIC_MODEL

OTHER_CPU = ("x86_64", "sse2")
COPY_BYTES = 4_000_000
"""More than the copy of the wide model has, and less than two."""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    write_wide_model(tmp_path / "models", is_hashed=True)
    return Place(tmp_path / "copies", tmp_path / "models")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A model with its copy; tests do not change it."""
    parent = tmp_path_factory.mktemp("written")
    write_wide_model(parent / "models", is_hashed=True)
    place = Place(parent / "copies", parent / "models")
    assert place.load_and_tend().copy_state.is_used
    return place


def leftovers(place: Place) -> list[str]:
    """Return what is neither a copy nor a note."""
    return sorted(path.name for path in place.folder.glob(".*"))


def test_while_another_process_writes_the_copy_the_model_is_served_without_it(written: Place, place: Place) -> None:
    place.folder.mkdir(mode=0o700)
    with capture_logs() as logs, try_lock(place.folder / f".{written.copy.name}.lock") as is_held:
        assert is_held
        state = place.load_and_tend().copy_state
    assert (state.is_used, state.reason) == (False, BUSY)
    assert [entry for entry in logs if entry["event"].startswith("optimised")] == []
    assert (place.copies, leftovers(place)) == ([], [])


def test_the_copy_is_adopted_once_another_process_has_written_it(written: Place, place: Place) -> None:
    shutil.copytree(written.folder, place.folder)
    place.copy.rename(hidden := place.folder.parent / "hidden")
    encoder, copies = place.load(), place.open()
    with tending(copies, print, max_tries=1_000_000, pause_s=0.001) as upkeep:
        with try_lock(place.folder / f".{written.copy.name}.lock"):
            upkeep.tend(encoder)
            while encoder.copy_state.reason != BUSY:
                pass
            hidden.rename(place.folder / written.copy.name)
        upkeep.wait()
    assert encoder.copy_state.is_used


def test_what_a_killed_writer_has_left_is_replaced(written: Place, place: Place) -> None:
    left = place.folder / f".{written.copy.name}.new"
    left.mkdir(parents=True, mode=0o700)
    place.folder.chmod(0o700)
    (left / COPY_WEIGHTS).write_bytes(b"part")
    (place.folder / f".{written.copy.name}.lock").touch(0o600)
    assert place.load_and_tend().copy_state.is_used
    assert leftovers(place) == []


def test_what_killed_writers_of_other_models_have_left_is_removed(place: Place) -> None:
    for name in (f".{'0' * 32}.new", f".{'1' * 32}.gone"):
        (place.folder / name).mkdir(parents=True)
    place.folder.chmod(0o700)
    place.load_and_tend()
    assert leftovers(place) == []


@pytest.mark.processes
@pytest.mark.slow  # two processes, each of which starts another
def test_of_two_processes_one_writes_the_copy(place: Place) -> None:
    settings = {
        "MODELS_DIR": place.models,
        "OPTIMISED_MODELS_DIR": place.folder,
        "OPTIMISED_MODELS_MAX_SIZE": MAX_BYTES,
    }
    command = [sys.executable, "main.py", "optimise", WIDE]
    variables = environment({name: str(value) for name, value in settings.items()})
    with ExitStack() as stack:
        both = [
            stack.enter_context(
                killed_at_the_end(subprocess.Popen(command, cwd=ROOT, env=variables, stdout=subprocess.PIPE))
            )
            for _ in range(2)
        ]
        outputs = [process.communicate()[0].decode() for process in both]
    assert len(place.copies) == 1
    assert leftovers(place) == []
    assert any("copy written" in output for output in outputs)
    assert place.load().copy_state.is_used


@contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    """Let this process, and those that it starts, write no larger file. The kernel says that as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size_bytes", [0, 4096, 1_000_000, 3_000_000])
def test_disk_that_fills_up_while_a_copy_is_written_changes_nothing(size_bytes: int, place: Place) -> None:
    with capture_logs() as logs, largest_file(size_bytes):
        encoder = place.load_and_tend()
    [line] = [entry for entry in logs if entry["event"] == "optimised_copy_not_used"]
    assert line["reason"] == encoder.copy_state.reason
    assert str(place.folder.parent) not in line["reason"]
    assert (place.copies, leftovers(place)) == ([], [])
    np.testing.assert_array_equal(vectors_of(encoder), vectors_of(place.load(max_bytes=0)))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param({"max_bytes": 1000}, "OPTIMISED_MODELS_MAX_SIZE allows", id="too large"),
        pytest.param({"disk_usage": lambda _: (10**9, 10**9, 5000)}, "the disk has 0 MB left", id="disk is full"),
        pytest.param({"disk_usage": lambda _: (10**9, 0, 10**8)}, "100 MB stay free", id="last tenth of the disk"),
        pytest.param({"max_bytes": 0}, "OPTIMISED_MODELS_MAX_SIZE is 0", id="off"),
    ],
)
def test_without_room_no_copy_is_written(options: dict[str, Any], expected: str, place: Place) -> None:
    with capture_logs() as logs:
        state = place.load_and_tend(**options).copy_state
    assert expected in state.reason
    assert place.copies == []
    lines = [entry["event"] for entry in logs if entry["event"].startswith("optimised")]
    assert lines == ([] if options == {"max_bytes": 0} else ["optimised_copy_not_used"])


def test_a_copy_that_turns_out_larger_than_all_may_be_is_not_kept(place: Place) -> None:
    size_bytes = place.load_and_tend().copy_state.size_bytes
    weights = sum(path.stat().st_size for path in place.models.glob("*/model.onnx*"))
    assert weights < size_bytes - 1
    elsewhere = Place(place.folder.with_name("elsewhere"), place.models)
    state = elsewhere.load_and_tend(max_bytes=size_bytes - 1).copy_state
    assert "OPTIMISED_MODELS_MAX_SIZE allows" in state.reason
    assert elsewhere.copies == []


def test_a_copy_that_fails_while_it_is_adopted_is_removed_and_the_model_serves_on(place: Place) -> None:
    @contextmanager
    def failing(_: str) -> Iterator[None]:
        yield
        raise MemoryError

    copies = place.open()
    encoder = load_encoder(place.model, hub_cache_dir=place.models / "none", copies=copies)
    with tending(copies, place.reloads.append, adopting=failing) as upkeep:
        upkeep.tend(encoder)
        upkeep.wait()
    assert encoder.copy_state.reason == "the model cannot run it (MemoryError)"
    assert place.copies == []
    assert len(vectors_of(encoder)) == 2 * len(TEXTS)


def test_a_reload_that_fails_is_logged_and_later_models_are_tended(place: Place) -> None:
    place.load_and_tend()
    weights = place.copy / COPY_WEIGHTS
    content = bytearray(weights.read_bytes())
    content[0] ^= 1
    weights.write_bytes(content)
    copies = place.open()
    encoder = load_encoder(place.model, hub_cache_dir=place.models / "none", copies=copies)

    def fail(_: str) -> None:
        raise RuntimeError

    with capture_logs() as logs, tending(copies, fail) as upkeep:
        upkeep.tend(encoder)
        upkeep.wait()
    assert [line["event"] for line in logs] == ["optimised_copy_not_used", "optimised_copy_failed"]


def test_files_of_a_model_have_no_states_if_there_can_be_no_copy_or_one_is_missing(place: Place) -> None:
    files = place.load(max_bytes=0).files
    assert files is not None
    assert place.open().states_of(files)
    assert place.open(max_bytes=0).states_of(files) == {}
    assert place.open(max_bytes=0).find(WIDE, files.verified) == "OPTIMISED_MODELS_MAX_SIZE is 0"
    (files.folder / "model.onnx").unlink()
    assert place.open().states_of(files) == {}


@pytest.mark.parametrize("folder", ["file/copies", "/proc/copies", "/sys/copies"])
def test_where_no_folder_can_be_created_the_model_is_served_without_a_copy(folder: str, place: Place) -> None:
    (place.models / "file").write_text("")
    elsewhere = Place(place.models / folder, place.models)
    with capture_logs() as logs:
        state = elsewhere.load_and_tend().copy_state
    [line] = [entry for entry in logs if entry["event"] == "optimised_copy_not_used"]
    assert line["reason"] == state.reason
    assert state.reason.startswith("its folder cannot be used (")


def test_the_copy_that_was_not_used_for_longest_gives_way_to_a_new_one(place: Place) -> None:
    for number, name in enumerate(["acme/a", "acme/b"]):
        write_wide_model(place.models, name=name, dim=WIDE_DIM + 8 + 8 * number)
    limit = 2 * COPY_BYTES + COPY_BYTES // 2
    for name in ("acme/a", "acme/b"):
        place.load_and_tend(name, max_bytes=10 * limit)
    first, second = place.copies
    os.utime(first / RECORD, (1000, 1000))
    os.utime(second / RECORD, (2000, 2000))
    assert place.load_and_tend(WIDE, max_bytes=limit).copy_state.is_used
    assert first not in place.copies
    assert second in place.copies


def test_no_copy_gives_way_to_one_for_which_there_is_too_little_memory(place: Place) -> None:
    place.load_and_tend()
    reason = make_room_for(
        place.folder,
        COPY_BYTES // 3,
        max_bytes=COPY_BYTES,
        disk_usage=lambda _: (10**9, 0, 10**9),
        available_memory=lambda: 100_000_000,
    )
    assert reason == "writing it takes 105 MB of memory, and 100 MB are available"
    assert len(place.copies) == 1


def test_a_copy_in_use_does_not_give_way(place: Place) -> None:
    encoder = place.load_and_tend()
    make_room(place.folder, max_bytes=0)
    assert len(place.copies) == 1
    del encoder
    make_room(place.folder, max_bytes=0)
    assert (place.copies, leftovers(place)) == ([], [])


def test_a_copy_of_another_version_does_not_give_way_while_there_is_room(place: Place) -> None:
    place.load_and_tend(cpu=lambda: OTHER_CPU)
    [other] = place.copies
    os.utime(other / RECORD, (1, 1))
    place.load_and_tend()
    assert other in place.copies
    assert len(place.copies) == 2


def test_a_model_whose_runs_differ_gets_no_copy(place: Place) -> None:
    def graph(table: Any) -> onnx.ModelProto:
        model = noisy(table)
        weights = onnx.numpy_helper.from_array(np.ones((600, 600), np.float32), "more")
        model.graph.initializer.append(weights)
        model.graph.node.insert(0, onnx.helper.make_node("ReduceMax", ["more"], ["most"], keepdims=0))
        model.graph.node[-1].input[1] = "louder"
        model.graph.node.insert(2, onnx.helper.make_node("Mul", ["noise", "most"], ["louder"]))
        return model

    write_wide_model(place.models, name="acme/noisy", graph=graph)
    state = place.load_and_tend("acme/noisy").copy_state
    assert not state.is_used
    assert place.copies == []


def with_external_weights(folder: Path) -> None:
    """Move the weights of a model into a file of their own."""
    model = onnx.load(folder / "model.onnx")
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="weights.data", size_threshold=100)


def test_a_model_with_weights_in_another_file_has_a_copy_with_its_vectors(place: Place) -> None:
    with_external_weights(write_wide_model(place.models, name="acme/external"))
    encoder = place.load_and_tend("acme/external")
    assert encoder.copy_state.is_used
    expected = vectors_of(place.load("acme/external", max_bytes=0))
    np.testing.assert_array_equal(vectors_of(encoder), expected)
    np.testing.assert_array_equal(vectors_of(place.load("acme/external")), expected)


def quantised(table: Any) -> onnx.ModelProto:
    """Return the model with a matrix of 8-bit integers."""
    with TemporaryDirectory() as folder:
        target = Path(folder) / "quantised.onnx"
        quantize_dynamic(matmul(table), target, weight_type=QuantType.QUInt8, op_types_to_quantize=["MatMul"])
        return onnx.load(target)


def test_a_quantised_model_has_the_same_vectors_with_and_without_a_copy(place: Place) -> None:
    write_wide_model(place.models, name="acme/int8", graph=quantised, dim=1200)
    expected = vectors_of(place.load("acme/int8", max_bytes=0))
    encoder = place.load_and_tend("acme/int8")
    assert encoder.copy_state.is_used
    np.testing.assert_array_equal(vectors_of(encoder), expected)
    np.testing.assert_array_equal(vectors_of(place.load("acme/int8")), expected)


def test_a_hub_model_with_tasks_has_a_copy_with_the_vectors_of_each_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.optimised_models.MIN_SOURCE_BYTES", 0)
    cache_tasked(tmp_path / "hub")
    model, copies = read_catalog([], bundled="").get(TASKED), OptimisedModels(tmp_path / "copies", max_bytes=MAX_BYTES)
    plain = load_encoder(model, hub_cache_dir=tmp_path / "hub")
    first = load_encoder(model, hub_cache_dir=tmp_path / "hub", copies=copies)
    with tending(copies, print) as upkeep:
        upkeep.tend(first)
        upkeep.wait()
    again = load_encoder(model, hub_cache_dir=tmp_path / "hub", copies=copies)
    assert first.copy_state.is_used
    assert again.copy_state.is_used
    items = plain.tokenizer.tokenize(["one two", "five"])
    for input_type in ("query", "document"):
        expected = plain.runnable(input_type).encode(items)
        for encoder in (first, again):
            np.testing.assert_array_equal(encoder.runnable(input_type).encode(items), expected)


def test_small_and_static_models_have_none(place: Place, tmp_path: Path) -> None:
    TinyModel("acme/tiny").write(place.models)
    assert place.load_and_tend("acme/tiny").copy_state.reason == SMALL
    cache_static(tmp_path / "hub")
    model = read_catalog([], bundled="").get(STATIC_MODEL)
    encoder = load_encoder(model, hub_cache_dir=tmp_path / "hub", copies=place.open())
    assert encoder.copy_state.reason == STATIC


def rewrite(place: Place, **facts: Any) -> None:
    """Replace the model by another one of the same size."""
    shutil.rmtree(place.models)
    write_wide_model(place.models, **facts)


def other_weights(table: Any) -> onnx.ModelProto:
    model = matmul(table)
    weights = np.stack([row(f"others {number}", table.shape[1]) for number in range(table.shape[1])])
    model.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(weights, "weights"))
    return model


def test_a_changed_model_gets_a_copy_of_its_own(place: Place) -> None:
    old = place.load_and_tend()
    rewrite(place, graph=other_weights)
    new = place.load_and_tend()
    assert new.copy_state.is_used
    assert len(place.copies) == 2
    assert new.fingerprint != old.fingerprint
    np.testing.assert_array_equal(vectors_of(new), vectors_of(place.load(max_bytes=0)))


def test_files_that_change_between_load_and_copy_are_not_copied(place: Place) -> None:
    rewrite(place)
    encoder, copies = place.load(), place.open()
    before = vectors_of(encoder)
    rewrite(place, graph=other_weights)
    with tending(copies, print) as upkeep:
        upkeep.tend(encoder)
        upkeep.wait()
    assert encoder.copy_state.reason == "the model's files have changed meanwhile"
    assert place.copies == []
    np.testing.assert_array_equal(vectors_of(encoder), before)


def test_files_that_did_not_change_are_not_read_before_they_serve(place: Place) -> None:
    place.load_and_tend()
    encoder = place.load()
    assert encoder.is_trusted
    assert encoder.fingerprint == place.load(max_bytes=0).fingerprint


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "tokenizer_config.json"])
def test_a_file_with_another_time_is_read_again(name: str, place: Place) -> None:
    place.load_and_tend()
    [folder] = place.models.iterdir()
    os.utime(folder / name)
    encoder = place.load()
    assert not encoder.is_trusted
    assert encoder.copy_state.is_used
    assert place.load().is_trusted


def test_a_changed_file_of_the_same_size_and_time_is_rejected_as_ever(place: Place) -> None:
    place.load_and_tend()
    [folder] = place.models.iterdir()
    status = (folder / "model.onnx").stat()
    with (folder / "model.onnx").open("r+b") as file:
        file.seek(1000)
        file.write(b"\x55")
    os.utime(folder / "model.onnx", ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(ModelUnavailableError, match="is not the expected one"):
        place.load()


def test_a_file_that_appears_beside_the_model_is_read(place: Place) -> None:
    rewrite(place)
    [folder] = place.models.iterdir()
    (folder / "config.json").unlink()
    place.load_and_tend()
    assert place.load().is_trusted
    (folder / "config.json").write_text('{"pad_token_id": 1}')
    encoder = place.load()
    assert not encoder.is_trusted
    assert encoder.fingerprint == place.load(max_bytes=0).fingerprint


def test_a_file_that_rots_on_the_disk_is_found_after_the_load(place: Place) -> None:
    """The file system notices nothing: size, times and inode are the same. Here, the note is changed instead."""
    place.load_and_tend()
    [folder] = place.models.iterdir()
    content = bytearray((folder / "model.onnx").read_bytes())
    content[-100] ^= 1
    (folder / "model.onnx").write_bytes(content)
    [note] = place.folder.glob("*.sources.json")
    status = (folder / "model.onnx").stat()
    facts = json.loads(note.read_text())
    facts["states"]["model.onnx"] = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    note.write_text(json.dumps(facts))
    manifest = folder / "model.json"
    encoder = place.load()
    assert encoder.is_trusted
    with capture_logs() as logs:
        place.load_and_tend()
    assert place.reloads == [WIDE]
    assert [entry["log_level"] for entry in logs if entry["event"] == "model_files_changed"] == ["error"]
    assert manifest.exists()
    with pytest.raises(ModelUnavailableError, match="is not the expected one"):
        place.load()


@pytest.mark.parametrize("content", ["", "[]", "{}", "\x00", '{"format": 1}'])
def test_a_damaged_note_means_that_files_are_read(content: str, place: Place) -> None:
    place.load_and_tend()
    [note] = place.folder.glob("*.sources.json")
    note.write_text(content)
    encoder = place.load()
    assert not encoder.is_trusted
    assert encoder.copy_state.is_used
    assert place.load().is_trusted


def test_words_of_the_probes_are_known_to_the_wide_model() -> None:
    """Otherwise all probes would have the same vector, and comparing them would prove nothing."""
    assert len(PROBE_WORDS) > 20
