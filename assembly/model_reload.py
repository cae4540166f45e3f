"""Reads the model folders again while the service runs, and replaces the models that have changed."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import structlog

from assembly.catalog import open_catalog
from assembly.model_aliases import why_unusable_aliases
from assembly.start_checks import log_unusable_folders
from config import Settings
from engine.catalog import Catalog, Model
from engine.errors import ModelUnavailableError
from engine.model_folders import why_unusable
from host.memory import available_bytes
from model_manager import ModelManager

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class CatalogChange:
    """A new catalogue, and how it differs from the old one. All names are those of models.

    Attributes:
        rejected: folders that cannot be used, each with the reason.
        kept: models whose old entry stays, because the new one cannot be used, or because they are required.
        outdated: models whose loaded copies, failed loads and running loads must be forgotten.
    """

    catalog: Catalog
    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    outdated: list[str] = field(default_factory=list)


class ModelReload:
    """Replaces the entries of a catalogue by what the model folders contain now."""

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        *,
        load: Callable[[Model], object],
        on_adopted: Callable[[], None] = lambda: None,
    ) -> None:
        """Change nothing before `run`.

        Args:
            settings: those of the app.
            catalog: the models that exist; the service finds models there.
            load: loads a model, to find out whether that is possible; blocks; raises `ModelUnavailableError`.
            on_adopted: called when names may mean other models, before these are loaded.
        """
        self._settings = settings
        self._catalog = catalog
        self._load = load
        self._on_adopted = on_adopted
        self._running = asyncio.Lock()

    async def run(self, models: ModelManager) -> None:
        """Read the folders and adopt what has changed; what was in memory or is required is loaded again at once.

        If the folders cannot be read, nothing changes. Two reloads run one after the other.
        """
        async with self._running:
            try:
                change = await asyncio.to_thread(self._read, models.loaded)
            except Exception as error:
                log.error("models_not_reloaded", reason=_reason(error), exc_info=error)  # noqa: TRY400 - with fields
                return
            if isinstance(change, str):
                log.error("models_not_reloaded", reason=change)
                return
            again = self._to_load_again(change, models.loaded)
            self._catalog.adopt(change.catalog)
            self._on_adopted()
            await asyncio.gather(*map(models.forget, change.outdated))
            log.info(
                "models_reloaded",
                added=change.added,
                changed=change.changed,
                removed=change.removed,
                rejected=change.rejected,
                kept=change.kept,
            )
            for reason in why_unusable_aliases(self._settings, self._catalog):
                log.warning("model_alias_unusable", reason=reason)
            await asyncio.to_thread(log_unusable_folders, map(change.catalog.get, change.added))
            await asyncio.gather(*map(partial(_load, models), again))

    def _read(self, loaded: Sequence[str]) -> CatalogChange | str:
        """Return what has changed, or why the folders cannot be read. Blocks.

        Args:
            loaded: models in memory. If one of them, or a required one, has changed but cannot be loaded, it stays.
        """
        found, folder = open_catalog(self._settings), self._settings.models_dir
        if any(ignored.path.resolve() == folder.resolve() for ignored in found.ignored):
            return "MODELS_DIR cannot be read, so the models stay as they were"
        if not folder.is_dir() and any(_is_in(model, folder) for model in self._catalog.models):
            return "MODELS_DIR does not exist, so the models stay as they were"
        required = [model.name for model in self._required()]
        change = compare(self._catalog, found, required=required)
        failures = self._try_to_load(self._to_load_again(change, loaded))
        return compare(self._catalog, found, required=required, failures=failures) if failures else change

    def _try_to_load(self, models: Iterable[Model]) -> dict[str, str]:
        """Load each model for a moment; return the reason for each that cannot be loaded. Blocks.

        It takes the model's memory a second time, so a model for which there is not enough is not tried.
        """
        failures = {}
        for model in models:
            available = available_bytes()
            if model.folder is None or (available is not None and model.memory_bytes > available):
                continue
            try:
                self._load(model)
            except ModelUnavailableError as error:
                failures[model.name.lower()] = error.cause
        return failures

    def _to_load_again(self, change: CatalogChange, loaded: Sequence[str]) -> list[Model]:
        """Return the changed models that are in memory or required, as they are from now on."""
        warm = {*loaded, *(model.name for model in self._required())} & set(change.outdated)
        return [model for name in sorted(warm) if (model := change.catalog.find(name)) is not None]

    def _required(self) -> list[Model]:
        return [model for name in self._settings.required_models if (model := self._catalog.find(name)) is not None]


def compare(
    old: Catalog, new: Catalog, *, required: Sequence[str], failures: Mapping[str, str] | None = None
) -> CatalogChange:
    """Return the catalogue to use from now on: *new*, with the entries of *old* that must stay. Blocks.

    An entry stays if its folder is there but cannot be used now, for example because a copy is not complete, if the
    folder that would replace it cannot be used, and if the model is required.

    Args:
        old: the catalogue in use.
        new: what the folders contain.
        required: names of models that must not vanish.
        failures: why models of *new* that were tried cannot be loaded, by name in lower case.
    """
    before = {model.name.lower(): model for model in old.models}
    after = {model.name.lower(): _spelled_as(before.get(model.name.lower()), model) for model in new.models}
    broken = {ignored.path for ignored in new.ignored}
    rejected = [f"{ignored.name}: {ignored.reason}" for ignored in new.ignored]
    must_stay, kept = {name.lower() for name in required}, []
    for key, model in before.items():
        if (found := after.get(key)) == model:
            after[key] = model  # the same object as that of the encoder in memory is compared quickly
            continue
        new_folder = found.folder if found else None
        reason = ((failures or {}).get(key) or why_unusable(new_folder)) if new_folder else None
        if new_folder and reason:
            rejected.append(f"{new_folder.path.name}: {reason}")
        is_broken = model.folder is not None and model.folder.path in broken
        if reason or is_broken or (new_folder is None and key in must_stay):
            after[key] = model
            kept.append(model.name)
    both = before.keys() & after.keys()
    changed = sorted(key for key in both if before[key] != after[key])
    gone = sorted(before.keys() - after.keys())
    return CatalogChange(
        Catalog(after.values(), ignored=new.ignored, replaced=new.replaced),
        added=[after[key].name for key in sorted(after.keys() - before.keys())],
        changed=[after[key].name for key in changed],
        removed=[before[key].name for key in gone],
        rejected=rejected,
        kept=sorted(kept),
        outdated=[*(before[key].name for key in [*changed, *gone])],
    )


async def _load(models: ModelManager, model: Model) -> None:
    """Load *model*; the manager logs why it cannot be loaded."""
    try:
        await models.load_all([model])
    except ModelUnavailableError:
        return


def _spelled_as(old: Model | None, new: Model) -> Model:
    """Return *new* with the name of *old*, if there is one: required and allowed models are known by that spelling."""
    return new if old is None or old.name == new.name else replace(new, name=old.name)


def _is_in(model: Model, folder: Path) -> bool:
    return model.folder is not None and model.folder.path.parent.resolve() == folder.resolve()


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"the folders cannot be read ({error.strerror}), so the models stay as they were"
    return "an unexpected error, so the models stay as they were"
