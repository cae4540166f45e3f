"""The models that exist: FastEmbed's registry, and the folders that contain a `model.json`."""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import structlog

from engine.errors import UnknownModelError
from engine.fastembed_adapter import RegistryModel, registry_models
from engine.folder_files import unreadable
from engine.manifest import MANIFEST, Folder, read_folder
from engine.model_cards import EMPTY_CARD, ModelCard, card_of, card_of_folder
from engine.model_folders import IgnoredFolder, find_folders

MAX_COMPARED_CHARACTERS = 200
"""Characters of an unknown name that are compared with known names; longer ones would cost time for nothing."""
MIN_SIMILARITY = 0.6
"""How similar a suggested name must be, from 0 to 1; the default of `difflib.get_close_matches`."""

log = structlog.get_logger()

Source = Literal["bundled", "local", "hub"]


@dataclass(frozen=True, slots=True)
class Model:
    """One model of the catalogue.

    Attributes:
        max_tokens: longest input in tokens, special tokens included; None: not stated, known once it is loaded.
        size_bytes: size of its files; for a hub model as FastEmbed states it.
        memory_bytes: estimated growth of the process when it is loaded.
        card: how to use its vectors.
        folder: the folder of a bundled or local model; None for a hub model.
        preloaded: a read-only hub cache that already contains this hub model; None: there is none.
    """

    name: str
    dim: int
    max_tokens: int | None
    size_bytes: int
    memory_bytes: int
    description: str
    license: str
    source: Source
    card: ModelCard = EMPTY_CARD
    folder: Folder | None = None
    preloaded: Path | None = None


@dataclass(frozen=True, slots=True)
class ReplacedModel:
    """A model that is not offered, because a folder has the same name.

    Attributes:
        name: the model's.
        folder: name of the folder that is offered.
        replaces: what is not offered, in words.
    """

    name: str
    folder: str
    replaces: str

    def __str__(self) -> str:
        return f"the folder {self.folder!r} replaces {self.replaces} of the same name, {self.name!r}"


class Catalog:
    """The models that exist, by name. They change only as a whole, by `adopt`."""

    def __init__(
        self, models: Iterable[Model], *, ignored: Iterable[IgnoredFolder] = (), replaced: Iterable[ReplacedModel] = ()
    ) -> None:
        """Index *models* by name; if two have the same name, the later one wins."""
        by_name = {model.name.lower(): model for model in models}
        ordered = sorted(by_name.values(), key=lambda model: (model.source == "hub", model.name.lower()))
        self._entries = _Entries(by_name, tuple(ordered), tuple(ignored), tuple(replaced))

    @property
    def models(self) -> tuple[Model, ...]:
        """All models: first those that need no download, then the others, each by name."""
        return self._entries.models

    @property
    def ignored(self) -> tuple[IgnoredFolder, ...]:
        """Folders that are not offered as models."""
        return self._entries.ignored

    @property
    def replaced(self) -> tuple[ReplacedModel, ...]:
        """Models that are not offered, because a folder has the same name."""
        return self._entries.replaced

    def adopt(self, other: "Catalog") -> None:
        """Take over all entries of *other* at once; other threads see the old ones or the new ones."""
        self._entries = other._entries  # noqa: SLF001 - of the same class

    def find(self, name: str) -> Model | None:
        """Return the model with this name, ignoring case, or None."""
        return self._entries.by_name.get(name.lower())

    def get(self, name: str) -> Model:
        """Return the model with this name, ignoring case.

        Raises:
            UnknownModelError: there is none; the error lists the closest names.
        """
        if (model := self.find(name)) is None:
            raise UnknownModelError(name, self.closest(name))
        return model

    def closest(self, name: str) -> list[str]:
        """Return the names most similar to *name*; see `closest_names`."""
        return closest_names(name, {key: model.name for key, model in self._entries.by_name.items()})


def closest_names(name: str, known: Mapping[str, str], *, limit: int = 3) -> list[str]:
    """Return up to *limit* names similar to *name*, the most similar first.

    A name is compared as a whole, and then without its owner (the part before the last slash).

    Args:
        name: an unknown name.
        known: the names that exist, by the same in lower case.
        limit: the maximum number of names.
    """
    wanted = name.lower()[:MAX_COMPARED_CHARACTERS]
    full = difflib.get_close_matches(wanted, known, n=limit, cutoff=MIN_SIMILARITY)
    by_tail = {key.rpartition("/")[2]: key for key in known}
    tails = difflib.get_close_matches(wanted.rpartition("/")[2], by_tail, n=limit, cutoff=MIN_SIMILARITY)
    keys = dict.fromkeys([*full, *(by_tail[tail] for tail in tails)])
    return [known[key] for key in keys][:limit]


@dataclass(frozen=True, slots=True)
class _Entries:
    """The content of a catalogue, which `adopt` replaces at once."""

    by_name: Mapping[str, Model]
    models: tuple[Model, ...]
    ignored: tuple[IgnoredFolder, ...]
    replaced: tuple[ReplacedModel, ...]


def read_catalog(folders: Iterable[Path], *, bundled: str, preloaded: Path | None = None) -> Catalog:
    """Read FastEmbed's registry and the model folders. A folder wins over a registry model with the same name.

    Args:
        folders: folders whose subfolders may contain a model; one that does not exist counts as empty.
        bundled: name of the model that ships with the service, in the first of *folders*.
        preloaded: a hub cache that ships with the service; one that does not exist counts as empty.
    """
    by_place: dict[Path, Path] = {}
    for parent in folders:
        by_place.setdefault(parent.resolve(), parent)
    parents = list(by_place.values())
    models, ignored, replaced = {model.name.lower(): model for model in _read_registry(preloaded)}, [], []
    for parent in parents:
        for found in find_folders(parent):
            if isinstance(found, IgnoredFolder):
                ignored.append(found)
                continue
            try:
                model = _read_model(found, bundled=bundled if parent == parents[0] else "")
            except (OSError, ValueError) as error:
                ignored.append(IgnoredFolder(found.name, _reason(error), found))
                continue
            if (other := models.get(model.name.lower())) and not (model.source == "bundled" and other.source == "hub"):
                replaced.append(ReplacedModel(other.name, found.name, _describe(other)))
            models[model.name.lower()] = model
    for folder in ignored:
        log.warning("model_folder_ignored", folder=folder.name, reason=folder.reason)
    for entry in replaced:
        log.warning("model_replaced", model=entry.name, folder=entry.folder, replaces=entry.replaces)
    return Catalog(models.values(), ignored=ignored, replaced=replaced)


def _describe(model: Model) -> str:
    return (
        f"the folder {model.folder.path.name!r}"
        if model.folder and model.source == "local"
        else f"the {model.source} model"
    )


def _read_registry(preloaded: Path | None) -> list[Model]:
    present = {path.name for path in preloaded.iterdir()} if preloaded and preloaded.is_dir() else set()
    return [_hub_model(model, preloaded if model.cache_folder in present else None) for model in registry_models()]


def _hub_model(model: RegistryModel, preloaded: Path | None) -> Model:
    # The registry states the longest input only in words: "..., 512 input tokens truncation, ..."
    limit = re.search(r"(\d+) input tokens", model.description)
    return Model(
        name=model.name,
        dim=model.dim,
        max_tokens=int(limit[1]) if limit else None,
        size_bytes=model.size_bytes,
        memory_bytes=model.size_bytes,
        description=model.description,
        license=model.license,
        source="hub",
        card=card_of(model.name, model.kind),
        preloaded=preloaded,
    )


def _read_model(path: Path, *, bundled: str) -> Model:
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
    """Return why a folder cannot be used, without its path."""
    return unreadable(MANIFEST, error) if isinstance(error, OSError) else str(error)
