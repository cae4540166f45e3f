"""A hub model's files: from the cache, or downloaded by FastEmbed, or one clear reason why neither."""

import contextlib
import hashlib
from functools import partial
from pathlib import Path

from fastembed import TextEmbedding
from fastembed.common.model_management import CorruptedCacheError
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

from engine.catalog import Model
from engine.errors import ModelUnavailableError

HUB_ANSWER_S = 5.0
"""How long the hub may take to say that it has a model; a download that has begun may take as long as it needs."""


def fetch(model: Model, cache_dir: Path) -> Path:
    """The folder with the files of *model*. Blocks while it downloads.

    FastEmbed's own download tries three times, with 39 seconds of sleep when the hub cannot be reached, and then tells
    only that it failed. So the cache is asked first, then whether the hub answers, and only then it downloads.

    A model that lies in a folder of ours needs none of this.

    Raises:
        ModelUnavailableError: not in the cache, and the hub cannot be reached, does not have it or does not give it.
    """
    if model.folder:
        return model.folder.path
    description = TextEmbedding._get_model_description(model.name)  # noqa: SLF001 - the registry has no public look-up
    repository = str(description.sources.hf)
    files = [description.model_file, *description.additional_files]
    get = partial(TextEmbedding.download_files_from_huggingface, repository, str(cache_dir), files)
    is_spoilt = False
    try:
        folder = Path(get(local_files_only=True))
        if all((folder / file).exists() for file in files):
            return folder
    except CorruptedCacheError:
        is_spoilt = True
    except (OSError, ValueError):
        pass  # not in the cache
    try:
        HfApi().model_info(repository, timeout=HUB_ANSWER_S)
    except Exception as error:
        raise ModelUnavailableError(model.name, f"it is not in the cache, and {_reason(error)}") from error
    try:
        return Path(get(force_download=True) if is_spoilt else get())
    except Exception as error:
        raise ModelUnavailableError(model.name, f"its download failed: {_reason(error)}") from error


def remove_spoilt_files(folder: Path) -> int:
    """Remove the files of a downloaded model that are not what the hub gave, so that the next try gets them again.

    The hub's cache names a file's content by its hash: sha256 of large files, git's blob id (sha1) of small ones.

    Returns:
        How many files were removed.
    """
    removed = 0
    for link in [path for path in folder.rglob("*") if path.is_file()]:
        blob = link.resolve()
        if _hash_like(blob.name, blob.read_bytes()) not in (blob.name, None):
            with contextlib.suppress(OSError):  # a cache that cannot be written keeps it
                for path in (link, blob):
                    path.unlink(missing_ok=True)
                removed += 1
    return removed


def _hash_like(name: str, content: bytes) -> str | None:
    """The hash of *content* of the kind that *name* is; None if it is no hash."""
    if len(name) == hashlib.sha256().digest_size * 2:
        return hashlib.sha256(content).hexdigest()
    if len(name) == hashlib.sha1().digest_size * 2:  # noqa: S324 - git's own choice
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # noqa: S324
    return None


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
        case OSError(strerror=str(strerror)) if error.filename:
            return f"the cache cannot be written ({strerror})"
    return f"the hub cannot be reached ({type(error).__name__})"
