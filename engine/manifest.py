"""A model folder's `model.json`: what its owner states of the model, and what is read of it."""

import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

MANIFEST = "model.json"
FLOAT32_MAX = 3.4028234e38

Pooling = Literal["mean", "cls", "last_token", "none"]
Size = Annotated[int, Meta(ge=1)]


class FileFacts(msgspec.Struct, frozen=True):
    """What the manifest promises of one file."""

    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    size_bytes: Annotated[int, Meta(ge=0)]


class Prompts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the model wants before a query and before a document; empty: nothing."""

    query: str = ""
    document: str = ""

    def __bool__(self) -> bool:
        return bool(self.query or self.document)


class Reference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A text, and the vector that the model must give for it (as it is, without a prompt)."""

    text: Annotated[str, Meta(min_length=1)]
    vector: list[float]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model folder's `model.json`."""

    name: Annotated[str, Meta(min_length=1, max_length=200, pattern=r"^[\w.-]+(/[\w.-]+)*\Z")]
    dim: Size
    max_tokens: Annotated[int, Meta(ge=3)]
    pooling: Pooling
    normalized: bool
    model_file: Annotated[str, Meta(min_length=1)] = "model.onnx"
    output_name: str | None = None
    description: str = ""
    source: str = ""
    revision: str = ""
    license: str = ""
    memory_bytes: Size | None = None
    additional_files: list[str] = msgspec.field(default_factory=list)
    files: dict[str, FileFacts] = msgspec.field(default_factory=dict)
    prompts: Prompts = Prompts()
    needs_prompt: bool | None = None
    matryoshka: list[Size] = msgspec.field(default_factory=list)
    canary: list[Reference] = msgspec.field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Folder:
    """A model that lies in a folder of ours."""

    path: Path
    manifest: Manifest
    digest: str  # of the manifest's bytes and the folder's address: another content is another model

    @property
    def registry_name(self) -> str:
        """The name under which FastEmbed knows this folder, apart from those of its own registry."""
        return f"{self.manifest.name}@{self.digest}"

    @property
    def files(self) -> list[str]:
        """All files that the manifest names."""
        manifest = self.manifest
        return list(dict.fromkeys([manifest.model_file, *manifest.additional_files, *manifest.files]))

    @property
    def size_bytes(self) -> int:
        """Of the files that are there."""
        return sum((self.path / file).stat().st_size for file in self.files if (self.path / file).is_file())


def read_folder(path: Path) -> Folder:
    """The folder at *path*, by its manifest; whether the other files are there is seen when the model is loaded.

    Raises:
        msgspec.MsgspecError: the manifest breaks a rule.
        ValueError: it names a file outside of the folder, or contradicts itself.
        OSError: it cannot be read.
    """
    content = (path / MANIFEST).read_bytes()
    manifest = msgspec.json.decode(content, type=Manifest)
    digest = hashlib.sha256(content + bytes(path.resolve())).hexdigest()[:12]
    folder = Folder(path, manifest, digest)
    for file in folder.files:
        if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
            message = f"the file {file!r} lies outside the folder"
            raise ValueError(message)
    if wrong := [size for size in manifest.matryoshka if size > manifest.dim]:
        message = f"matryoshka names {wrong[0]}, more than the {manifest.dim} of dim"
        raise ValueError(message)
    for number, reference in enumerate(manifest.canary):
        peak = max(map(abs, reference.vector), default=0.0)
        if len(reference.vector) != manifest.dim or not 0.0 < peak <= FLOAT32_MAX:
            message = f"the vector of canary[{number}] must have {manifest.dim} float32 numbers, not all of them zero"
            raise ValueError(message)
    return folder
