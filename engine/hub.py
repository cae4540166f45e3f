"""Finds a model's files in the cache or downloads them from the hub, and explains clearly if neither works."""

from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import structlog

from engine.catalog import Model
from engine.errors import ModelUnavailableError
from engine.fastembed_adapter import CorruptedCacheError, RegistryModel, download, find_snapshot, registry_model
from engine.file_hashes import HASH_DIGITS, CorruptFileError, ExpectedFile, hash_same_kind
from engine.fingerprint import ModelFiles, facts_of_registry, files_of_folder
from engine.folder_files import why_missing
from engine.hub_locks import is_held, locked
from engine.hub_space import HubSpace

QUARANTINE_SUFFIX = ".spoilt"
"""Added to the name of a corrupt file: nothing loads it, and the next complete download deletes it.

It stays the same in all versions, or the files that an earlier version renamed would be loaded.
"""

Used = TypeVar("Used")

log = structlog.get_logger()


class NotCachedError(ModelUnavailableError):
    """Files of a model are missing in the cache, or were corrupt and have been put aside. `fetch` gets them.

    Attributes:
        model: what to fetch. It has no preloaded cache if that one is corrupt, because it is read-only.
    """

    def __init__(self, model: Model, cause: str) -> None:
        super().__init__(model.name, cause)
        self.model = model


def fetch(
    model: Model,
    cache_dir: Path,
    *,
    progress: type[Any] | None = None,
    space: HubSpace | None = None,
    may_fill_disk: bool = False,
) -> ModelFiles:
    """Return the files of *model*. Blocks while they are downloaded.

    A bundled or local model, or one in a preloaded cache, needs no download. For the others, the cache is checked
    first, then whether the hub answers; only then the download begins. FastEmbed's `download_model` does less: if the
    hub cannot be reached it tries three times, sleeps 39 seconds in all, and reports only that it failed.

    Args:
        model: a model of the catalogue.
        cache_dir: the hub cache.
        progress: a class like `tqdm.tqdm` that shows the progress of a download; None: nothing is shown.
        space: reserves space in the cache for a download; None: no limit.
        may_fill_disk: see `HubSpace.reserve`.

    Raises:
        ModelUnavailableError: the model is not in the cache, and the hub cannot be reached or does not give it, or
            there is no space; or a file is missing in the model's folder.
    """
    if model.folder:
        if missing := [name for name in model.folder.files if not (model.folder.path / name).is_file()]:
            raise ModelUnavailableError(model.name, why_missing(model.folder.path, missing[0]))
        return files_of_folder(model.folder)
    if files := _find_preloaded(model):
        return files
    try:
        if files := _find_complete(model, cache_dir):
            return files
    except CorruptedCacheError:
        quarantine_corrupt_files(model, cache_dir)
    return _download(model, cache_dir, progress=progress, space=space, may_fill_disk=may_fill_disk)


def _download(
    model: Model, cache_dir: Path, *, progress: type[Any] | None, space: HubSpace | None, may_fill_disk: bool
) -> ModelFiles:
    """Download *model*, unless another process downloads it: then wait for its files, and use them."""
    from engine import hub_client  # noqa: PLC0415 - 0.3 s of import, needed for downloads only

    listed, folder = registry_model(model.name), _cache_folder(model, cache_dir)
    with suppress(OSError):
        cache_dir.mkdir(parents=True, exist_ok=True)  # the lock needs it
    with locked(cache_dir, folder.name, on_wait=lambda: log.info("download_elsewhere", model=model.name)) as lock:
        with suppress(CorruptedCacheError):  # of a file that yet another process has begun to replace
            if files := _find_cached(model, cache_dir):
                return files
        quarantined = sorted(folder.rglob(f"*{QUARANTINE_SUFFIX}"))
        try:
            hub_client.confirm(listed.repository, model.card.revision)
        except Exception as error:
            cause = f"{_cache_state(quarantined)}, and {hub_client.reason_of(error)}"
            raise ModelUnavailableError(model.name, cause) from error
        try:
            with space.reserve(model, folder, may_fill_disk=may_fill_disk, lock=lock) if space else nullcontext():
                snapshot = download(listed, cache_dir, revision=model.card.revision, progress=progress)
        except ModelUnavailableError:
            raise
        except Exception as error:
            raise ModelUnavailableError(model.name, f"its download failed: {hub_client.reason_of(error)}") from error
        for path in quarantined:
            path.unlink(missing_ok=True)
        return _files_in(snapshot, model, listed)


def use_files(
    model: Model,
    cache_dir: Path,
    use: Callable[[ModelFiles], Used],
    *,
    progress: type[Any] | None = None,
    space: HubSpace | None = None,
) -> Used:
    """Call *use* with the files of *model*. If one is corrupt, download it again and call *use* once more. Blocks.

    Args:
        model: a model of the catalogue.
        cache_dir: the hub cache; corrupt files are renamed there.
        use: reads the files; raises `CorruptFileError`.
        progress: see `fetch`.
        space: see `fetch`; commands of the operator pass none, so their downloads may fill the disk.

    Raises:
        ModelUnavailableError: as `fetch`; or a corrupt file cannot be downloaded again, or is corrupt again.
    """
    try:
        return use(fetch(model, cache_dir, progress=progress, space=space, may_fill_disk=True))
    except CorruptFileError as error:
        model = _without_corrupt_files(model, cache_dir, error)
    try:
        return use(fetch(model, cache_dir, progress=progress, space=space, may_fill_disk=True))
    except CorruptFileError as error:
        quarantine_corrupt_files(model, cache_dir)
        raise ModelUnavailableError(model.name, f"its download is corrupt: {error}") from error


def use_cached_files(model: Model, cache_dir: Path, use: Callable[[ModelFiles], Used]) -> Used:
    """Call *use* with the files of *model*, which `fetch` has got, and download nothing. Blocks.

    Args:
        model: a model of the catalogue.
        cache_dir: the hub cache; corrupt files are renamed there.
        use: reads the files; raises `CorruptFileError`.

    Raises:
        NotCachedError: the files must be fetched again: some are gone, or were corrupt.
        ModelUnavailableError: a file of a model's own folder is missing or corrupt.
    """
    if not is_cached(model, cache_dir):
        raise NotCachedError(model, "its files have been removed from the cache")
    try:
        return use(fetch(model, cache_dir))
    except CorruptFileError as error:
        again = _without_corrupt_files(model, cache_dir, error)
        raise NotCachedError(again, f"its download is corrupt: {error}") from error


def is_cached(model: Model, cache_dir: Path) -> bool:
    """Whether *model* can be loaded without the hub, judged without reading its files."""
    try:
        return bool(model.folder or _find_preloaded(model) or _find_complete(model, cache_dir))
    except CorruptedCacheError:
        return False


def quarantine_corrupt_files(model: Model, cache_dir: Path) -> list[str]:
    """Rename the cached files of *model* whose hash is wrong, so that the next attempt downloads them again.

    Returns:
        The names of these files.
    """
    names = []
    for link in _files_below(_cache_folder(model, cache_dir) / "snapshots"):
        blob = link.resolve()
        if hash_same_kind(blob.name, blob) not in (blob.name, None):
            try:
                blob.replace(link.with_name(link.name + QUARANTINE_SUFFIX))
                link.unlink(missing_ok=True)
            except OSError:  # the cache is read-only
                continue
            names.append(link.name)
    return names


def _without_corrupt_files(model: Model, cache_dir: Path, error: CorruptFileError) -> Model:
    """Put the corrupt files of *model* aside, and return what to fetch instead.

    Raises:
        ModelUnavailableError: the model has a folder of its own, so nothing can be fetched.
    """
    if model.folder:
        raise ModelUnavailableError(model.name, str(error)) from error
    log.warning("model_files_put_aside", model=model.name, files=quarantine_corrupt_files(model, cache_dir))
    return replace(model, preloaded=None)  # a preloaded cache is read-only, so use the writable one instead


def _cache_folder(model: Model, cache_dir: Path) -> Path:
    return cache_dir / registry_model(model.name).cache_folder


def _find_preloaded(model: Model) -> ModelFiles | None:
    """Return the files in the preloaded cache if they are complete."""
    try:
        return _find_cached(model, model.preloaded) if model.preloaded else None
    except CorruptedCacheError:
        return None


def _find_complete(model: Model, cache_dir: Path) -> ModelFiles | None:
    """Return the files in the cache as `_find_cached` does; None as long as a process downloads them, too."""
    files = _find_cached(model, cache_dir)
    return None if is_held(cache_dir, _cache_folder(model, cache_dir).name) else files


def _find_cached(model: Model, cache_dir: Path) -> ModelFiles | None:
    """Return the files in the cache; None if they are not complete.

    Raises:
        CorruptedCacheError: the size of one differs from the size that the hub has stated.
    """
    listed = registry_model(model.name)
    snapshot = find_snapshot(listed, cache_dir, revision=model.card.revision)
    if snapshot is None or not all((snapshot / file).exists() for file in listed.files):
        return None
    return _files_in(snapshot, model, listed)


def _files_in(snapshot: Path, model: Model, listed: RegistryModel) -> ModelFiles:
    """Return the files of a snapshot. The hub cache names each blob by its hash, so the hashes are known."""
    paths = _files_below(snapshot)
    names = [path.relative_to(snapshot).as_posix() for path in paths]
    blobs = {name: path.resolve().name for name, path in zip(names, paths, strict=True)}
    return ModelFiles(
        folder=snapshot,
        model_file=listed.model_file,
        revision=snapshot.name,
        listed=listed.files,
        expected={name: ExpectedFile(blob) for name, blob in blobs.items() if len(blob) in HASH_DIGITS},
        facts=facts_of_registry(listed, model.card),
    )


def _files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(QUARANTINE_SUFFIX)]


def _cache_state(quarantined: list[Path]) -> str:
    """Say why the cache could not be used."""
    if not quarantined:
        return "it is not in the cache"
    names = sorted({path.name.removesuffix(QUARANTINE_SUFFIX) for path in quarantined})
    return f"its cached files were corrupt and have been put aside ({', '.join(names)})"
