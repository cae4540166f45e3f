"""A hub model's files: from the cache, or downloaded by FastEmbed, or one clear reason why neither."""

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import structlog
from fastembed import TextEmbedding
from fastembed.common.model_description import DenseModelDescription
from fastembed.common.model_management import CorruptedCacheError
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

from engine.catalog import Model, folder_of
from engine.errors import ModelUnavailableError
from engine.fingerprint import HASH_DIGITS, CorruptFileError, ExpectedFile, ModelFiles, files_of_folder, hash_same_kind

HUB_ANSWER_S = 5.0
"""How long the hub may take to say that it has a model; a download that has begun may take as long as it needs."""
PUT_ASIDE = ".spoilt"
"""Ends the names of files that are not what the hub gave: nothing loads them, and a good download removes them."""
DISK_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
"""What writing to a disk fails with; unlike opening a file, it does not tell which file it was."""


Used = TypeVar("Used")

log = structlog.get_logger()


def fetch(model: Model, cache_dir: Path, *, progress: type[Any] | None = None) -> ModelFiles:
    """The files of *model*. Blocks while they are downloaded.

    FastEmbed's own download tries three times, with 39 seconds of sleep when the hub cannot be reached, and then tells
    only that it failed. So the cache is asked first, then whether the hub answers, and only then it downloads.

    A model that lies in a folder of ours needs none of this, nor does one that was preloaded.

    Args:
        model: a model of the catalogue.
        cache_dir: where files of the hub are kept.
        progress: a class like `tqdm.tqdm` that shows how far a download is; None: nothing is shown.

    Raises:
        ModelUnavailableError: not in the cache, and the hub cannot be reached, does not have it or does not give it;
            or a file of a folder of ours is missing.
    """
    if model.folder:
        if missing := [name for name in model.folder.files if not (model.folder.path / name).is_file()]:
            raise ModelUnavailableError(model.name, f"its file {missing[0]!r} is missing")
        return files_of_folder(model.folder)
    if files := _preloaded(model):
        return files
    try:
        if files := _cached(model, cache_dir):
            return files
    except CorruptedCacheError:
        put_spoilt_files_aside(model, cache_dir)
    aside = sorted(_cache_folder(model, cache_dir).rglob(f"*{PUT_ASIDE}"))
    try:
        HfApi().model_info(repository_of(model), timeout=HUB_ANSWER_S)
    except Exception as error:
        raise ModelUnavailableError(model.name, f"{_lack(aside)}, and {_reason(error)}") from error
    try:
        folder = _get(model, cache_dir, **({"tqdm_class": progress} if progress else {}))
    except Exception as error:
        raise ModelUnavailableError(model.name, f"its download failed: {_reason(error)}") from error
    for path in aside:
        path.unlink(missing_ok=True)
    return _files_in(folder, model)


def use_files(
    model: Model, cache_dir: Path, use: Callable[[ModelFiles], Used], *, progress: type[Any] | None = None
) -> Used:
    """What *use* makes of the files of *model*; where it finds one spoilt, the hub is asked for it once more. Blocks.

    Args:
        model: a model of the catalogue.
        cache_dir: where files of the hub are kept; a spoilt one is put aside there.
        use: reads the files; raises `CorruptFileError`.
        progress: see `fetch`.

    Raises:
        ModelUnavailableError: as `fetch`; or a file is spoilt that cannot be had anew, or is spoilt again.
    """
    try:
        return use(fetch(model, cache_dir, progress=progress))
    except CorruptFileError as error:
        if model.folder:
            raise ModelUnavailableError(model.name, str(error)) from error
        log.warning("model_files_put_aside", model=model.name, files=put_spoilt_files_aside(model, cache_dir))
        model = replace(model, preloaded=None)  # there nothing can be put aside
    try:
        return use(fetch(model, cache_dir, progress=progress))
    except CorruptFileError as error:
        put_spoilt_files_aside(model, cache_dir)
        raise ModelUnavailableError(model.name, f"its download was spoilt: {error}") from error


def is_cached(model: Model, cache_dir: Path) -> bool:
    """Whether *model* can be had without the hub, as far as can be told without reading its files."""
    try:
        return bool(model.folder or _preloaded(model) or _cached(model, cache_dir))
    except CorruptedCacheError:
        return False


def repository_of(model: Model) -> str:
    """The hub's name of what FastEmbed downloads for *model*."""
    return str(_description(model).sources.hf)


def put_spoilt_files_aside(model: Model, cache_dir: Path) -> list[str]:
    """Rename the cached files of *model* that are not what the hub gave, so that the next try gets them again.

    Returns:
        The names of these files.
    """
    names = []
    for link in _files_below(_cache_folder(model, cache_dir) / "snapshots"):
        blob = link.resolve()
        if hash_same_kind(blob.name, blob) not in (blob.name, None):
            try:
                blob.replace(link.with_name(link.name + PUT_ASIDE))
                link.unlink(missing_ok=True)
            except OSError:  # a cache that cannot be written keeps it
                continue
            names.append(link.name)
    return names


def _description(model: Model) -> DenseModelDescription:
    return TextEmbedding._get_model_description(model.name)  # noqa: SLF001 - the registry has no public look-up


def _cache_folder(model: Model, cache_dir: Path) -> Path:
    return cache_dir / folder_of(_description(model))


def _wanted(model: Model) -> list[str]:
    description = _description(model)
    return [description.model_file, *description.additional_files]


def _get(model: Model, cache_dir: Path, **options: Any) -> Path:
    get = TextEmbedding.download_files_from_huggingface
    return Path(get(repository_of(model), str(cache_dir), _wanted(model), **options))


def _preloaded(model: Model) -> ModelFiles | None:
    """The files that were there from the beginning, if they are all there."""
    try:
        return _cached(model, model.preloaded) if model.preloaded else None
    except CorruptedCacheError:
        return None


def _cached(model: Model, cache_dir: Path) -> ModelFiles | None:
    """The files in the cache; None where they are not all there.

    Raises:
        CorruptedCacheError: one has another size than the hub has stated.
    """
    try:
        folder = _get(model, cache_dir, local_files_only=True)
    except CorruptedCacheError:
        raise
    except (OSError, ValueError):
        return None
    return _files_in(folder, model) if all((folder / file).exists() for file in _wanted(model)) else None


def _files_in(folder: Path, model: Model) -> ModelFiles:
    """The files of a snapshot. The hub's cache names a file's content by its hash, so it can be compared."""
    paths = _files_below(folder)
    names = [path.relative_to(folder).as_posix() for path in paths]
    blobs = {name: path.resolve().name for name, path in zip(names, paths, strict=True)}
    return ModelFiles(
        folder=folder,
        model_file=_description(model).model_file,
        revision=folder.name,
        names=tuple(dict.fromkeys([*_wanted(model), *names])),
        promised={name: ExpectedFile(blob) for name, blob in blobs.items() if len(blob) in HASH_DIGITS},
        settings=repr(model.card.prompts),
    )


def _files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(PUT_ASIDE)]


def _lack(aside: list[Path]) -> str:
    if not aside:
        return "it is not in the cache"
    names = sorted({path.name.removesuffix(PUT_ASIDE) for path in aside})
    return f"its files in the cache were spoilt and are put aside ({', '.join(names)})"


def _reason(error: Exception) -> str:
    """Why the hub or the disk did not do it, without addresses."""
    match error:
        case OfflineModeIsEnabled():
            return "the hub is switched off by HF_HUB_OFFLINE"
        case GatedRepoError():
            return "the hub gives it only to those who accepted its terms (set HF_TOKEN)"
        case RepositoryNotFoundError():
            return "the hub does not have it"
        case HfHubHTTPError():
            return f"the hub answered with status {error.response.status_code}"
        case OSError(strerror=str(strerror)) if error.filename or error.errno in DISK_FAULTS:
            return f"the cache cannot be written ({strerror})"
    return f"the hub cannot be reached ({type(error).__name__})"
