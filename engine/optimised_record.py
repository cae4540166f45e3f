"""What is stored beside an optimised copy of a model: what it was made from, and what its files must be."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import msgspec

from engine.fingerprint import ModelFiles, VerifiedFiles
from engine.onnx_sessions import COPY_OPTIONS, runtime_build
from engine.optimised_writer import CopiedFile, Hash
from host.small_files import read_small_file
from host.trusted_folder import check_file, write_file

FORMAT = 1
"""Part of each key. Raise it when a copy of an older version must not be used, for whatever reason."""
RECORD = "copy.json"
MAX_RECORD_BYTES = 1 << 20
NOTE_SUFFIX = ".sources.json"
KEY_DIGITS = 32

Stored = TypeVar("Stored")


class CopyKey(msgspec.Struct, frozen=True):
    """What the content of a copy depends on. Copies with different keys never replace each other.

    Attributes:
        format: of copies, see `FORMAT`.
        graph: sha256 of the model's ONNX file.
        weights: sha256 of each other file with its weights, by the name that the graph gives it.
        onnxruntime: version and build.
        cpu: architecture and instruction sets, see `host.cpu.instruction_sets`.
        options: with which it was written.
    """

    format: int
    graph: Hash
    weights: dict[str, Hash]
    onnxruntime: str
    cpu: tuple[str, ...]
    options: dict[str, str]

    @classmethod
    def of(cls, sources: VerifiedFiles, cpu: tuple[str, ...]) -> Self:
        """Return the key of the copy that this process would write of these files on this CPU."""
        weights = {location: sources.hashes[name] for location, name in sorted(sources.weights.items())}
        return cls(FORMAT, sources.graph_hash, weights, runtime_build(), cpu, dict(COPY_OPTIONS))

    @property
    def digest(self) -> str:
        """Name of the copy's folder."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()[:KEY_DIGITS]


class CopyRecord(msgspec.Struct, frozen=True):
    """The content of `copy.json`."""

    key: CopyKey
    files: dict[str, CopiedFile]

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files.values())


class SourceState(msgspec.Struct, frozen=True, array_like=True):
    """What the file system says about a file. A change of the file changes one of these."""

    size_bytes: int
    modified_ns: int
    changed_ns: int
    inode: int


class SourcesNote(msgspec.Struct, frozen=True):
    """The last verification of a model's files: as long as they are in this state, their hashes need not be known anew.

    Attributes:
        format: of copies, see `FORMAT`.
        states: of each file, by name.
        expected: the hashes and sizes with which they were compared.
        sources: the result.
    """

    format: int
    states: dict[str, SourceState]
    expected: dict[str, tuple[str, int | None]]
    sources: VerifiedFiles


def read_record(path: Path) -> CopyRecord:
    """Read the record in the folder of a copy.

    Raises:
        UntrustedError: another user can write it.
        ValueError: it is not a record.
        OSError: it cannot be read.
    """
    return _read(path / RECORD, CopyRecord)


def note_path(folder: Path, files: ModelFiles) -> Path:
    """Return where the note about *files* is: it depends on their place."""
    place = f"{files.folder.resolve()}\n{files.model_file}"
    return folder / f"{hashlib.sha256(place.encode(errors='surrogateescape')).hexdigest()[:KEY_DIGITS]}{NOTE_SUFFIX}"


def read_note(path: Path, files: ModelFiles) -> VerifiedFiles | None:
    """Return what is known about *files*, if the note at *path* is about them and they are as they were.

    Raises:
        UntrustedError: another user can write the note.
        ValueError: it is not a note.
        OSError: it cannot be read.
    """
    note = _read(path, SourcesNote)
    names = {*files.known_names, *note.sources.weights.values()}
    is_same = note.format == FORMAT and note.expected == _expected(files) and note.states.keys() == names
    return note.sources if is_same and note.states == states_of(files.folder, note.states) else None


def write_note(path: Path, files: ModelFiles, states: Mapping[str, SourceState]) -> None:
    """Write a note about *files*, which have been verified.

    Args:
        path: where to.
        files: the files.
        states: their states before they were verified.

    Raises:
        OSError: it cannot be written.
    """
    note = SourcesNote(FORMAT, dict(states), _expected(files), files.verified)
    write_file(path, msgspec.json.encode(note))


def states_of(folder: Path, names: Mapping[str, Any] | tuple[str, ...]) -> dict[str, SourceState]:
    """Return the states of files in *folder*.

    Raises:
        OSError: one does not exist.
    """
    found = {name: (folder / name).stat() for name in names}
    return {
        name: SourceState(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        for name, status in found.items()
    }


def _expected(files: ModelFiles) -> dict[str, tuple[str, int | None]]:
    return {name: (file.digest, file.size_bytes) for name, file in files.expected.items()}


def _read(path: Path, kind: type[Stored]) -> Stored:
    check_file(path)
    try:
        return msgspec.json.decode(read_small_file(path, max_bytes=MAX_RECORD_BYTES), type=kind)
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from error
