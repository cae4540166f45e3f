"""Which models exist: FastEmbed's registry, and the folders that hold a `model.json`."""

import difflib
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import msgspec
import structlog
from fastembed import TextEmbedding
from msgspec import Meta

from engine.errors import UnknownModelError

MANIFEST = "model.json"
BYTES_PER_GB = 1_000_000_000

log = structlog.get_logger()

Source = Literal["bundled", "local", "hub"]
Pooling = Literal["mean", "cls", "last_token", "none"]


class FileFacts(msgspec.Struct, frozen=True):
    """What the manifest promises of one file."""

    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    size_bytes: Annotated[int, Meta(ge=0)]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model folder's `model.json`."""

    name: Annotated[str, Meta(min_length=1, max_length=200, pattern=r"^[\w.-]+(/[\w.-]+)*\Z")]
    dim: Annotated[int, Meta(ge=1)]
    max_tokens: Annotated[int, Meta(ge=3)]
    pooling: Pooling
    normalized: bool
    model_file: Annotated[str, Meta(min_length=1)] = "model.onnx"
    output_name: str | None = None
    description: str = ""
    source: str = ""
    revision: str = ""
    license: str = ""
    memory_bytes: Annotated[int, Meta(ge=1)] | None = None
    additional_files: list[str] = msgspec.field(default_factory=list)
    files: dict[str, FileFacts] = msgspec.field(default_factory=dict)


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


@dataclass(frozen=True, slots=True)
class Model:
    """One model of the catalogue.

    Attributes:
        max_tokens: longest input in tokens, special tokens included; None: not stated, known once it is loaded.
        size_bytes: of its files; for a hub model as FastEmbed states it.
        memory_bytes: estimated growth of the process when it is loaded.
        folder: where a bundled or local model lies; None for the hub's.
    """

    name: str
    dim: int
    max_tokens: int | None
    size_bytes: int
    memory_bytes: int
    description: str
    license: str
    source: Source
    folder: Folder | None = None


class Catalog:
    """The models that exist, by name; immutable."""

    def __init__(self, models: Iterable[Model]) -> None:
        """Keep *models*; of two with one name the later one counts."""
        self._models: Mapping[str, Model] = {model.name.lower(): model for model in models}

    @cached_property
    def models(self) -> tuple[Model, ...]:
        """All models: those that need no download first, then by name."""
        return tuple(sorted(self._models.values(), key=lambda model: (model.source == "hub", model.name.lower())))

    def find(self, name: str) -> Model | None:
        """The model of this name, whatever its case, or None."""
        return self._models.get(name.lower())

    def get(self, name: str, *, error: type[UnknownModelError] = UnknownModelError) -> Model:
        """The model of this name, whatever its case.

        Raises:
            UnknownModelError: no such model (or the subclass given as *error*); it holds the closest names.
        """
        if (model := self.find(name)) is None:
            raise error(name, self.closest(name))
        return model

    def closest(self, name: str, *, most: int = 3) -> list[str]:
        """Names like *name*, the most similar first; what stands before the last slash counts little."""
        wanted = name.lower()[:200]
        full = difflib.get_close_matches(wanted, self._models, n=most, cutoff=0.6)
        by_tail = {key.rpartition("/")[2]: key for key in self._models}
        tails = difflib.get_close_matches(wanted.rpartition("/")[2], by_tail, n=most, cutoff=0.6)
        keys = dict.fromkeys([*full, *(by_tail[tail] for tail in tails)])
        return [self._models[key].name for key in keys][:most]


def read_catalog(folders: Iterable[Path], *, bundled: str) -> Catalog:
    """FastEmbed's registry and the model folders below *folders*, which win where a name is in both.

    Args:
        folders: folders whose subfolders may hold a model; one that does not exist counts as empty.
        bundled: the name of the model that comes with the service, in the first of *folders*.
    """
    parents = list(dict.fromkeys(folders))
    models = [_of_registry(facts) for facts in TextEmbedding.list_supported_models() if "@" not in facts["model"]]
    for parent in parents:
        for path in sorted(parent.glob(f"*/{MANIFEST}")):
            try:
                models.append(_of_folder(path.parent, bundled=bundled if parent == parents[0] else ""))
            except (msgspec.MsgspecError, OSError, ValueError) as error:
                log.warning("model_folder_ignored", folder=path.parent.name, reason=_reason(error))
    return Catalog(models)


def _of_registry(facts: Mapping[str, Any]) -> Model:
    size_bytes = round(facts["size_in_GB"] * BYTES_PER_GB)
    # The registry tells the longest input only in words: "..., 512 input tokens truncation, ..."
    limit = re.search(r"(\d+) input tokens", facts["description"])
    return Model(
        name=facts["model"],
        dim=facts["dim"],
        max_tokens=int(limit[1]) if limit else None,
        size_bytes=size_bytes,
        memory_bytes=size_bytes,
        description=facts["description"],
        license=facts["license"],
        source="hub",
    )


def _of_folder(path: Path, *, bundled: str) -> Model:
    content = (path / MANIFEST).read_bytes()
    manifest = msgspec.json.decode(content, type=Manifest)
    named = [manifest.model_file, *manifest.additional_files, *manifest.files]
    for file in named:
        if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
            message = f"the file {file!r} lies outside the folder"
            raise ValueError(message)
    if missing := [file for file in named if not (path / file).is_file()]:
        message = f"the file {missing[0]!r} is missing"
        raise ValueError(message)
    sizes = {file: (path / file).stat().st_size for file in dict.fromkeys(named)}
    return Model(
        name=manifest.name,
        dim=manifest.dim,
        max_tokens=manifest.max_tokens,
        size_bytes=sum(sizes.values()),
        memory_bytes=manifest.memory_bytes or sum(sizes.values()),
        description=manifest.description,
        license=manifest.license,
        source="bundled" if manifest.name == bundled else "local",
        folder=Folder(path, manifest, hashlib.sha256(content + bytes(path.resolve())).hexdigest()[:12]),
    )


def _reason(error: Exception) -> str:
    """Why a folder cannot be used, without the address of anything."""
    return f"{error.strerror}: {Path(error.filename or '').name}" if isinstance(error, OSError) else str(error)
