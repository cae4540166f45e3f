"""A hub model's files: from the cache, or downloaded by FastEmbed, or one clear reason why neither."""

import contextlib
from pathlib import Path

from fastembed import TextEmbedding
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
    with contextlib.suppress(ValueError):  # FastEmbed's way to say that it is not in the cache
        return TextEmbedding.download_model(description, str(cache_dir), local_files_only=True)
    if (reason := _refusal(description.sources.hf or "")) is not None:
        raise ModelUnavailableError(model.name, f"it is not in the cache, and {reason}")
    try:
        return TextEmbedding.download_model(description, str(cache_dir), retries=1)
    except OSError as error:
        raise ModelUnavailableError(model.name, f"its download failed ({error.strerror or 'network'})") from error
    except Exception as error:
        raise ModelUnavailableError(model.name, "its download from the hub failed") from error


def _refusal(repository: str) -> str | None:
    """Why the hub does not give *repository*; None if it does."""
    try:
        HfApi().model_info(repository, timeout=HUB_ANSWER_S)
    except OfflineModeIsEnabled:
        return "the hub is switched off by HF_HUB_OFFLINE"
    except GatedRepoError:
        return "the hub gives it only to those who accepted its terms (set HF_TOKEN)"
    except RepositoryNotFoundError:
        return "the hub does not have it"
    except HfHubHTTPError as error:
        return f"the hub answered with status {error.response.status_code}"
    except Exception as error:  # noqa: BLE001 - whatever the network raises, the model is out of reach
        return f"the hub cannot be reached ({type(error).__name__})"
    return None
