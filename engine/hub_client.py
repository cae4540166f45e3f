"""What the hub's client answers, and why it fails. Imported for downloads only: the client takes 0.3 s to import."""

import errno

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

HUB_TIMEOUT_S = 5.0
"""How long the hub may take to confirm that it has a model. A download that has begun has no time limit."""
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
"""Errors of writing to a disk. Unlike errors of opening a file, these do not contain the file's name."""


def confirm(repository: str, revision: str) -> None:
    """Ask the hub whether it has *repository*; with *revision*, whether it has that commit of it. Blocks.

    Raises:
        Exception: whatever the hub's client raises if it has not, or cannot be reached; see `reason_of`.
    """
    HfApi().model_info(repository, revision=revision or None, timeout=HUB_TIMEOUT_S)


def reason_of(error: Exception) -> str:
    """Say why the hub or the disk failed, without paths and URLs."""
    match error:
        case OfflineModeIsEnabled():
            return "HF_HUB_OFFLINE disables the hub"
        case GatedRepoError():
            return "the hub requires that you accept the model's terms (set HF_TOKEN)"
        case RepositoryNotFoundError() | RevisionNotFoundError():
            is_unknown = isinstance(error, RepositoryNotFoundError)
            return f"the hub does not have {'it' if is_unknown else 'the revision that its card states'}"
        case HfHubHTTPError():
            return f"the hub answered with status {error.response.status_code}"
        case OSError(strerror=str(strerror)) if error.filename or error.errno in DISK_ERRORS:
            return f"the cache cannot be written ({strerror})"
    return f"the hub cannot be reached ({type(error).__name__})"
