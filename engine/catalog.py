"""Which models exist: FastEmbed's registry, and the folders that hold a `model.json`."""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import msgspec
import structlog
from fastembed import TextEmbedding
from fastembed.common.model_description import DenseModelDescription
from huggingface_hub.file_download import repo_folder_name

from engine.errors import UnknownModelError
from engine.manifest import MANIFEST, Folder, read_folder
from engine.model_cards import BLANK, ModelCard, card_of, card_of_folder

BYTES_PER_GB = 1_000_000_000

log = structlog.get_logger()

Source = Literal["bundled", "local", "hub"]


@dataclass(frozen=True, slots=True)
class Model:
    """One model of the catalogue.

    Attributes:
        max_tokens: longest input in tokens, special tokens included; None: not stated, known once it is loaded.
        size_bytes: of its files; for a hub model as FastEmbed states it.
        memory_bytes: estimated growth of the process when it is loaded.
        card: how its vectors want to be used.
        folder: where a bundled or local model lies; None for the hub's.
        preloaded: a cache of the hub that has the hub's model from the beginning, and is never written to.
    """

    name: str
    dim: int
    max_tokens: int | None
    size_bytes: int
    memory_bytes: int
    description: str
    license: str
    source: Source
    card: ModelCard = BLANK
    folder: Folder | None = None
    preloaded: Path | None = None


@dataclass(frozen=True, slots=True)
class IgnoredFolder:
    """A folder whose `model.json` cannot be used, and why."""

    name: str
    reason: str


class Catalog:
    """The models that exist, by name; immutable.

    Attributes:
        ignored: folders that should have been models.
    """

    def __init__(self, models: Iterable[Model], *, ignored: Iterable[IgnoredFolder] = ()) -> None:
        """Keep *models*; of two with one name the later one counts."""
        self._models: Mapping[str, Model] = {model.name.lower(): model for model in models}
        self.ignored = tuple(ignored)

    @cached_property
    def models(self) -> tuple[Model, ...]:
        """All models: those that need no download first, then by name."""
        return tuple(sorted(self._models.values(), key=lambda model: (model.source == "hub", model.name.lower())))

    def find(self, name: str) -> Model | None:
        """The model of this name, whatever its case, or None."""
        return self._models.get(name.lower())

    def get(self, name: str) -> Model:
        """The model of this name, whatever its case.

        Raises:
            UnknownModelError: no such model; it holds the closest names.
        """
        if (model := self.find(name)) is None:
            raise UnknownModelError(name, self.closest(name))
        return model

    def closest(self, name: str, *, most: int = 3) -> list[str]:
        """Names like *name*, the most similar first; what stands before the last slash counts little."""
        wanted = name.lower()[:200]
        full = difflib.get_close_matches(wanted, self._models, n=most, cutoff=0.6)
        by_tail = {key.rpartition("/")[2]: key for key in self._models}
        tails = difflib.get_close_matches(wanted.rpartition("/")[2], by_tail, n=most, cutoff=0.6)
        keys = dict.fromkeys([*full, *(by_tail[tail] for tail in tails)])
        return [self._models[key].name for key in keys][:most]


def read_catalog(folders: Iterable[Path], *, bundled: str, preloaded: Path | None = None) -> Catalog:
    """FastEmbed's registry and the model folders below *folders*, which win where a name is in both.

    Args:
        folders: folders whose subfolders may hold a model; one that does not exist counts as empty.
        bundled: the name of the model that comes with the service, in the first of *folders*.
        preloaded: a cache of the hub that comes with the service; one that does not exist counts as empty.
    """
    parents = list(dict.fromkeys(folders))
    models, ignored = _registry(preloaded), []
    for parent in parents:
        for path in sorted(parent.glob(f"*/{MANIFEST}")):
            try:
                models.append(_of_folder(path.parent, bundled=bundled if parent == parents[0] else ""))
            except (msgspec.MsgspecError, OSError, ValueError) as error:
                ignored.append(IgnoredFolder(path.parent.name, _reason(error)))
                log.warning("model_folder_ignored", folder=path.parent.name, reason=_reason(error))
    return Catalog(models, ignored=ignored)


def _registry(preloaded: Path | None) -> list[Model]:
    """FastEmbed's own models, without the folders that it was made to know."""
    present = {path.name for path in preloaded.iterdir()} if preloaded and preloaded.is_dir() else set()
    return [
        _of_registry(kind.__name__, facts, preloaded if folder_of(facts) in present else None)
        for kind in TextEmbedding.EMBEDDINGS_REGISTRY
        for facts in kind._list_supported_models()  # noqa: SLF001 - the public list does not tell the kinds apart
        if "@" not in facts.model
    ]


def folder_of(facts: DenseModelDescription) -> str:
    """The folder of a model in a cache of the hub."""
    return repo_folder_name(repo_id=str(facts.sources.hf), repo_type="model")


def _of_registry(kind: str, facts: DenseModelDescription, preloaded: Path | None) -> Model:
    size_bytes = round(facts.size_in_GB * BYTES_PER_GB)
    # The registry tells the longest input only in words: "..., 512 input tokens truncation, ..."
    limit = re.search(r"(\d+) input tokens", facts.description)
    return Model(
        name=facts.model,
        dim=facts.dim or 0,
        max_tokens=int(limit[1]) if limit else None,
        size_bytes=size_bytes,
        memory_bytes=size_bytes,
        description=facts.description,
        license=facts.license,
        source="hub",
        card=card_of(facts.model, kind),
        preloaded=preloaded,
    )


def _of_folder(path: Path, *, bundled: str) -> Model:
    folder = read_folder(path)
    manifest, size_bytes = folder.manifest, folder.size_bytes
    return Model(
        name=manifest.name,
        dim=manifest.dim,
        max_tokens=manifest.max_tokens,
        size_bytes=size_bytes,
        memory_bytes=manifest.memory_bytes or size_bytes,
        description=manifest.description,
        license=manifest.license,
        source="bundled" if manifest.name == bundled else "local",
        card=card_of_folder(manifest),
        folder=folder,
    )


def _reason(error: Exception) -> str:
    """Why a folder cannot be used, without the address of anything."""
    return f"{error.strerror}: {Path(error.filename or '').name}" if isinstance(error, OSError) else str(error)
