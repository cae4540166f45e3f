"""The manifest of a model folder, `model.json`: its format, and the rules it must follow."""

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
    model_file: Annotated[str, Meta(min_length=1)] = "model.onnx"
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
    """

    path: Path
    manifest: Manifest
    digest: str

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
    def size_bytes(self) -> int:
        """Total size of the files that exist."""
        return sum((self.path / file).stat().st_size for file in self.files if (self.path / file).is_file())


def read_folder(path: Path) -> Folder:
    """Read the manifest in *path*. Missing other files are found only when the model is loaded.

    Raises:
        msgspec.MsgspecError: the manifest does not have the right format.
        ValueError: it lists a file outside the folder, or contradicts itself.
        OSError: it cannot be read.
    """
    content = (path / MANIFEST).read_bytes()
    manifest = msgspec.json.decode(content, type=Manifest)
    digest = hashlib.sha256(content + bytes(path.resolve())).hexdigest()[:12]
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
    return folder
