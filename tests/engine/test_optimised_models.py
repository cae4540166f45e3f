"""Optimised copies: the same vectors, and the plain way whenever anything about a copy is not as it must be."""

import json
import os
import shutil
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from config import BUNDLED_MODEL, BUNDLED_MODELS_DIR
from engine.catalog import read_catalog
from engine.encoder import load_encoder
from engine.onnx_sessions import COPY_GRAPH, COPY_WEIGHTS
from engine.optimised_record import FORMAT, RECORD
from engine.optimised_space import copies_in
from tests.support.optimised import WIDE, Place, tending, vectors_of, write_wide_model

OTHER_CPU = ("x86_64", "sse2")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A model whose copy has been written; tests change a clone of it."""
    parent = tmp_path_factory.mktemp("written")
    write_wide_model(parent / "models", is_hashed=True)
    place = Place(parent / "copies", parent / "models")
    assert place.load_and_tend().copy_state.is_used
    return place


@pytest.fixture(scope="module")
def expected(written: Place) -> Any:
    """The vectors of the model, without a copy."""
    return vectors_of(written.load(max_bytes=0))


@pytest.fixture
def place(written: Place, tmp_path: Path) -> Place:
    """A copy that a test may change, of the same model."""
    shutil.copytree(written.folder, tmp_path / "copies")
    return Place(tmp_path / "copies", written.models)


@pytest.fixture
def new_place(written: Place, tmp_path: Path) -> Place:
    """The same model, without any copy."""
    return Place(tmp_path / "copies", written.models)


def events(logs: list[Any]) -> list[str]:
    return [entry["event"] for entry in logs if entry["event"].startswith("optimised")]


def reasons(logs: list[Any]) -> list[str]:
    return [entry["reason"] for entry in logs if entry["event"] == "optimised_copy_not_used"]


def test_a_first_load_writes_a_copy_that_only_this_user_can_enter_and_adopts_it(
    new_place: Place, expected: Any
) -> None:
    with capture_logs() as logs:
        encoder = new_place.load_and_tend()
    assert events(logs) == ["optimised_copy_written", "optimised_copy_adopted"]
    assert encoder.copy_state.is_used
    assert encoder.copy_state.size_bytes == sum(
        (new_place.copy / name).stat().st_size for name in (COPY_GRAPH, COPY_WEIGHTS)
    )
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (new_place.folder, new_place.copy)}
    assert modes == {0o700}
    assert {path.name for path in new_place.copy.iterdir()} == {COPY_GRAPH, COPY_WEIGHTS, RECORD}
    assert [path.name for path in new_place.folder.glob(".*")] == []
    np.testing.assert_array_equal(vectors_of(encoder), expected)


def test_the_next_load_runs_the_copy_with_the_same_vectors_and_fingerprint(place: Place, expected: Any) -> None:
    with capture_logs() as logs:
        encoder = place.load_and_tend()
    assert events(logs) == []
    assert encoder.graph == place.copy / COPY_GRAPH
    assert encoder.fingerprint == place.load(max_bytes=0).fingerprint
    assert place.reloads == []
    np.testing.assert_array_equal(vectors_of(encoder), expected)


def test_the_session_for_lone_texts_runs_the_copy_too(place: Place) -> None:
    encoder = place.load()
    encoder.open_lone_text_session(2)
    lone_text = encoder._sessions.lone_text  # noqa: SLF001 - what a run with is_lone uses
    assert lone_text
    assert lone_text.graph == place.copy / COPY_GRAPH
    items = encoder.tokenizer.tokenize(["one two"])
    np.testing.assert_allclose(encoder.encode(items, is_lone=True), encoder.encode(items), atol=1e-5)


def test_bundled_model_has_the_same_vectors_to_the_last_bit(tmp_path: Path) -> None:
    place = Place(tmp_path / "copies", BUNDLED_MODELS_DIR)
    plain = place.load(BUNDLED_MODEL, max_bytes=0)
    texts = ["a", "How do I reset my password?", "Zwölf Äpfel. 今日。", "word " * 60, "many words " * 200, ""]
    adopting = place.load_and_tend(BUNDLED_MODEL)
    assert adopting.copy_state.is_used
    again = place.load(BUNDLED_MODEL)
    assert again.copy_state.is_used
    for encoder in (adopting, again):
        np.testing.assert_array_equal(vectors_of(encoder, texts), vectors_of(plain, texts))
        assert encoder.fingerprint == plain.fingerprint
        assert encoder.self_check
        assert encoder.self_check.canary_cosine


def change_byte(path: Path, position: int) -> None:
    """Replace the file by one with another byte: a mapped file must not be changed in place."""
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    replace(path, bytes(content))


def replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def cut_file(name: str, share: float, copy: Path) -> None:
    content = (copy / name).read_bytes()
    replace(copy / name, content[: int(len(content) * share)])


def change_record(path: Path, **facts: object) -> None:
    record = json.loads((path / RECORD).read_text())
    replace(path / RECORD, json.dumps({**record, **facts}).encode())


def swap_for_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def swap_for_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("")


def swap_for_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


BROKEN: dict[str, Callable[[Path], object]] = {
    **{
        f"{name} cut to {share}": partial(cut_file, name, share)
        for name in (COPY_GRAPH, COPY_WEIGHTS, RECORD)
        for share in (0, 0.001, 0.25, 0.5, 0.9, 0.9999)
    },
    "weights longer": lambda copy: replace(copy / COPY_WEIGHTS, (copy / COPY_WEIGHTS).read_bytes() + b"\0"),
    "no graph": lambda copy: (copy / COPY_GRAPH).unlink(),
    "no weights": lambda copy: (copy / COPY_WEIGHTS).unlink(),
    "no record": lambda copy: (copy / RECORD).unlink(),
    "graph is no ONNX": lambda copy: replace(copy / COPY_GRAPH, b"\xff" * (copy / COPY_GRAPH).stat().st_size),
    "a bit of the graph": lambda copy: change_byte(copy / COPY_GRAPH, -1),
    "record is a list": lambda copy: replace(copy / RECORD, b"[]"),
    "record of another model": lambda copy: change_record(copy, key={**key_of(copy), "graph": "0" * 64}),
    "record of another format": lambda copy: change_record(copy, key={**key_of(copy), "format": FORMAT + 1}),
    "record without files": lambda copy: change_record(copy, files={}),
}
"""Damage that is found before the copy serves anyone. The copy is ours, so it is replaced."""


def key_of(copy: Path) -> dict[str, object]:
    key: dict[str, object] = json.loads((copy / RECORD).read_text())["key"]
    return key


@pytest.mark.parametrize("damage", BROKEN.values(), ids=BROKEN.keys())
def test_damaged_copy_is_not_used_but_removed(damage: Callable[[Path], object], place: Place, expected: Any) -> None:
    damage(place.copy)
    with capture_logs() as logs:
        encoder = place.load()
    assert not encoder.copy_state.is_used
    assert reasons(logs) == [encoder.copy_state.reason]
    assert place.copies == []
    np.testing.assert_array_equal(vectors_of(encoder), expected)


UNTRUSTED: dict[str, Callable[[Place], object]] = {
    "folder of copies: group may write": lambda place: place.folder.chmod(0o770),
    "folder of copies: all may write": lambda place: place.folder.chmod(0o707),
    "folder of copies is a link": lambda place: swap_for_link(place.folder),
    "folder of copies is a file": lambda place: swap_for_file(place.folder),
    "copy: group may write": lambda place: place.copy.chmod(0o720),
    "copy is a link": lambda place: swap_for_link(place.copy),
    "weights: all may write": lambda place: (place.copy / COPY_WEIGHTS).chmod(0o602),
    "weights are a link": lambda place: swap_for_link(place.copy / COPY_WEIGHTS),
    "graph is a link": lambda place: swap_for_link(place.copy / COPY_GRAPH),
    "record is a link": lambda place: swap_for_link(place.copy / RECORD),
    "record is a pipe": lambda place: swap_for_pipe(place.copy / RECORD),
    "record: group may write": lambda place: (place.copy / RECORD).chmod(0o660),
}
"""What other users could have written. It may be evidence, so it stays."""


@pytest.mark.parametrize("expose", UNTRUSTED.values(), ids=UNTRUSTED.keys())
def test_copy_that_others_could_have_written_is_neither_used_nor_removed(
    expose: Callable[[Place], object], place: Place, expected: Any
) -> None:
    expose(place)
    before = sorted(map(str, place.folder.rglob("*")))
    with capture_logs() as logs:
        encoder = place.load_and_tend()
    assert not encoder.copy_state.is_used
    assert reasons(logs) == [encoder.copy_state.reason]
    assert sorted(map(str, place.folder.rglob("*"))) == before
    np.testing.assert_array_equal(vectors_of(encoder), expected)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("name", ["", COPY_GRAPH, COPY_WEIGHTS, RECORD])
def test_copy_of_another_user_is_not_used(name: str, place: Place) -> None:
    os.chown(place.copy / name, 12345, 12345)
    with capture_logs() as logs:
        assert not place.load_and_tend().copy_state.is_used
    [reason] = reasons(logs)
    assert reason == f"{(place.copy / name).name} belongs to user 12345"


def test_copy_for_another_cpu_is_kept_and_a_second_one_is_written(place: Place, expected: Any) -> None:
    encoder = place.load_and_tend(cpu=lambda: OTHER_CPU)
    assert encoder.copy_state.is_used
    assert len(place.copies) == 2
    assert place.load().copy_state.is_used
    np.testing.assert_array_equal(vectors_of(encoder), expected)


def test_without_known_instruction_sets_there_are_no_copies(place: Place) -> None:
    assert place.load_and_tend(cpu=lambda: None).copy_state.reason == "the instruction sets of this CPU are unknown"


def test_copy_of_another_version_of_onnx_runtime_is_not_used(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.optimised_record.runtime_build", lambda: "1.0")
    assert not place.load().copy_state.is_used
    assert len(place.copies) == 1


def test_copy_in_an_image_is_used_where_nothing_can_be_written(written: Place, tmp_path: Path) -> None:
    place = Place(tmp_path / "file" / "copies", written.models)
    (tmp_path / "file").write_text("")
    encoder = place.load(baked=written.folder)
    assert encoder.graph == written.copy / COPY_GRAPH


def test_with_a_copy_in_an_image_only_the_first_start_reads_the_files_before_it_serves(
    written: Place, tmp_path: Path
) -> None:
    place = Place(tmp_path / "copies", written.models)
    assert not place.load(baked=written.folder).is_trusted
    assert place.load(baked=written.folder).is_trusted
    assert place.copies == []


def test_a_damaged_copy_in_a_read_only_image_is_used_only_once(written: Place, tmp_path: Path, expected: Any) -> None:
    """Without an end, the model would be dropped and loaded again and again."""
    shutil.copytree(written.folder, image := tmp_path / "image")
    place, in_image = Place(tmp_path / "copies", written.models), Place(image, written.models).copy
    change_byte(in_image / COPY_WEIGHTS, 0)
    taken = image / f".{in_image.name}.{os.getpid()}.gone" / "file"  # so the copy cannot be removed
    taken.parent.mkdir()
    taken.touch()
    copies, model = place.open(baked=image), read_catalog([place.models], bundled="").get(WIDE)
    used = []
    with tending(copies, place.reloads.append) as upkeep:
        for _ in range(2):
            encoder = load_encoder(model, hub_cache_dir=tmp_path / "none", copies=copies)
            used.append(encoder.copy and encoder.copy.folder)
            upkeep.tend(encoder)
            upkeep.wait()
    assert used == [in_image, None]
    assert place.reloads == [WIDE]
    assert encoder.graph == place.copy / COPY_GRAPH
    np.testing.assert_array_equal(vectors_of(encoder), expected)


def test_a_note_that_cannot_be_removed_is_not_believed_again(place: Place) -> None:
    copies, files = place.open(), place.load().files
    assert files
    assert copies.known_sources(files)
    [note] = place.folder.glob("*.json")
    content = note.read_bytes()
    copies.forget(files)
    note.write_bytes(content)
    assert copies.known_sources(files) is None
    copies.remember(files, copies.states_of(files))
    assert copies.known_sources(files)


def test_wrong_bits_are_found_after_the_start_and_the_model_is_loaded_anew(place: Place, expected: Any) -> None:
    """They are found by the copy's hash, wherever they are: here in a weight's last bits, which no check can see."""
    change_byte(place.copy / COPY_WEIGHTS, 0)
    encoder = place.load_and_tend()
    assert place.reloads == [WIDE]
    assert place.copies == []
    del encoder
    again = place.load_and_tend()
    assert again.copy_state.is_used
    np.testing.assert_array_equal(vectors_of(again), expected)
    assert place.reloads == [WIDE]


def test_a_copy_whose_vectors_are_no_numbers_is_rejected_at_the_load(place: Place, expected: Any) -> None:
    weights = place.copy / COPY_WEIGHTS
    weights.write_bytes(b"\xff" * weights.stat().st_size)
    with capture_logs() as logs:
        encoder = place.load()
    assert not encoder.copy_state.is_used
    assert "NaN" in encoder.copy_state.reason
    assert reasons(logs) == [encoder.copy_state.reason]
    assert place.copies == []
    np.testing.assert_array_equal(vectors_of(encoder), expected)


def test_a_folder_that_cannot_be_read_contains_no_copies(tmp_path: Path) -> None:
    assert copies_in(tmp_path / "absent") == []
