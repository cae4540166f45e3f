"""The manifest of a model folder, `model.json`: its format, and the rules it must follow."""

import difflib
import hashlib
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta

from engine.folder_files import decode_text

MANIFEST = "model.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "config.json", "special_tokens_map.json")
"""Files that are read besides the graph; all but the first may be absent."""
MODEL_FILES = ("model.onnx", "onnx/model.onnx")
"""Where exporters put the graph; the first that exists is used if the manifest does not state `model_file`."""
FLOAT32_MAX = 3.4028234e38

Pooling = Literal["mean", "cls", "last_token", "none"]
Size = Annotated[int, Meta(ge=1)]


class StatedFile(msgspec.Struct, frozen=True):
    """Hash and size of one file, as the manifest states them."""

    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    size_bytes: Annotated[int, Meta(ge=0)]


class Prompts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Prefixes that the model needs before a query and before a document; empty: none."""

    query: str = ""
    document: str = ""

    def __bool__(self) -> bool:
        return bool(self.query or self.document)


class Reference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A text, and the vector that the model must return for it, without a prompt."""

    text: Annotated[str, Meta(min_length=1)]
    vector: list[float]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of `model.json`; docs/MODELS.md describes each key."""

    name: Annotated[str, Meta(min_length=1, max_length=200, pattern=r"^[\w.-]+(/[\w.-]+)*\Z")]
    dim: Size
    max_tokens: Annotated[int, Meta(ge=3)]
    pooling: Pooling
    normalized: bool
    model_file: Annotated[str, Meta(min_length=1)] = MODEL_FILES[0]
    output_name: str | None = None
    description: str = ""
    source: str = ""
    revision: str = ""
    license: str = ""
    memory_bytes: Size | None = None
    additional_files: list[str] = msgspec.field(default_factory=list)
    files: dict[str, StatedFile] = msgspec.field(default_factory=dict)
    prompts: Prompts = Prompts()
    needs_prompt: bool | None = None
    matryoshka: list[Size] = msgspec.field(default_factory=list)
    canary: list[Reference] = msgspec.field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Folder:
    """A model in a folder, by its manifest.

    Attributes:
        digest: hash of the manifest and of the folder's path, so that a changed folder counts as another model.
        state: name, size and time of change of each file, so that folders with changed files are not equal.
    """

    path: Path
    manifest: Manifest
    digest: str
    state: tuple[tuple[str, int, int], ...] = ()

    @property
    def registry_name(self) -> str:
        """The folder's name in FastEmbed's registry; the `@` separates it from FastEmbed's own models."""
        return f"{self.manifest.name}@{self.digest}"

    @property
    def files(self) -> list[str]:
        """All files that the manifest lists."""
        manifest = self.manifest
        return list(dict.fromkeys([manifest.model_file, *manifest.additional_files, *manifest.files]))

    @property
    def loaded_files(self) -> list[str]:
        """The files that a load reads: all that the manifest lists, and those of the tokenizer that exist."""
        first, *others = TOKENIZER_FILES
        return list(dict.fromkeys([*self.files, first, *(name for name in others if (self.path / name).exists())]))

    @property
    def size_bytes(self) -> int:
        """Total size of the files that exist."""
        return sum((self.path / file).stat().st_size for file in self.files if (self.path / file).is_file())


def read_folder(path: Path) -> Folder:
    """Read the manifest in *path*. Missing other files are found only when the model is loaded.

    Raises:
        ValueError: the manifest does not have the right format, lists a file outside the folder, or contradicts itself;
            the message names the key, what is wrong and what is allowed.
        OSError: it cannot be read.
    """
    content = (path / MANIFEST).read_bytes()
    manifest = _decode(content)
    if manifest.model_file == MODEL_FILES[0]:
        found = next((name for name in MODEL_FILES if (path / name).is_file()), MODEL_FILES[0])
        manifest = msgspec.structs.replace(manifest, model_file=found)
    digest = hashlib.sha256(content + bytes(path.resolve()) + manifest.model_file.encode()).hexdigest()[:12]
    folder = Folder(path, manifest, digest)
    for file in folder.files:
        if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
            message = f"the file {file!r} is outside the folder"
            raise ValueError(message)
    if wrong := [size for size in manifest.matryoshka if size > manifest.dim]:
        message = f"matryoshka contains {wrong[0]}, but dim is {manifest.dim}"
        raise ValueError(message)
    for number, reference in enumerate(manifest.canary):
        peak = max(map(abs, reference.vector), default=0.0)
        if len(reference.vector) != manifest.dim or not 0.0 < peak <= FLOAT32_MAX:
            message = f"the vector of canary[{number}] must have {manifest.dim} float32 numbers that are not all zero"
            raise ValueError(message)
    return replace(folder, state=_state_of(path))


def _state_of(path: Path) -> tuple[tuple[str, int, int], ...]:
    """Return name, size and time of change of all files in the folder and below, except hidden ones and *.md.

    A graph may take weights from folders below its own.
    """
    found = []
    for parent, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for file in (Path(parent, name) for name in names):
            if not file.name.startswith(".") and file.suffix != ".md" and file.is_file():
                status = file.stat()
                found.append((file.relative_to(path).as_posix(), status.st_size, status.st_mtime_ns))
    return tuple(sorted(found))


def _decode(content: bytes) -> Manifest:
    """Decode a manifest, in any encoding of Unicode, with or without a byte order mark.

    Raises:
        ValueError: the message says what to change.
    """
    try:
        return msgspec.json.decode(decode_text(content), type=Manifest)
    except UnicodeDecodeError as error:
        message = f"{MANIFEST} is not UTF-8 text (byte {error.start}); save it as UTF-8"
        raise ValueError(message) from None
    except msgspec.ValidationError as error:
        raise ValueError(_explain(str(error))) from None
    except msgspec.DecodeError as error:
        message = f"{MANIFEST} is not valid JSON: {str(error).removeprefix('JSON is malformed: ')}"
        raise ValueError(message) from None


def _explain(reason: str) -> str:
    """Add to msgspec's *reason* what is allowed: the keys, or the values of a key."""
    if (unknown := re.search(r"unknown field `(.*?)`(?! - at)", reason, re.DOTALL)) is not None:
        keys = Manifest.__struct_fields__
        closest = difflib.get_close_matches(unknown[1], keys, n=1, cutoff=0.5)
        hint = f"did you mean {closest[0]!r}?" if closest else f"the keys are {', '.join(keys)}"
        return f"the key {unknown[1]!r} is unknown; {hint}"
    if (missing := re.search(r"missing required field `(\w+)`(?! - at)", reason)) is not None:
        return f"the key {missing[1]!r} is missing; required are name, dim, max_tokens, pooling and normalized"
    if reason.endswith("`$.pooling`"):
        return f"{reason}; use one of {', '.join(get_args(Pooling))}"
    if reason.endswith("`$.name`") and "regex" in reason:
        return f"{reason}: use letters, digits, '.', '-' and '_', with '/' between parts"
    return reason
