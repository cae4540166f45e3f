"""The parts of FastEmbed that the adapter uses, imported without what only downloads and image models need.

`import fastembed` takes 0.5 s of CPU, the text models 0.1 s of it. The rest are the hub's client and three HTTP
clients, image models and a log library. Here they are imported when they are first used.
"""

import threading
from pkgutil import resolve_name
from typing import Any

from host.deferred_imports import defer_package, deferred, resolve_names

UNUSED = (
    "PIL",
    "fastembed.image.transform.operators",
    "huggingface_hub",
    "huggingface_hub.file_download",
    "huggingface_hub.hf_api",
    "huggingface_hub.utils",
    "loguru",
    "requests",
    "tqdm",
)
"""Modules that FastEmbed's text models import, and do not need to run a model."""

defer_package("fastembed")
with deferred(UNUSED):
    from fastembed.common import model_management, onnx_model
    from fastembed.common.model_description import ModelSource, PoolingType
    from fastembed.common.model_management import CorruptedCacheError
    from fastembed.text import TextEmbedding
    from fastembed.text.custom_text_embedding import CustomTextEmbedding
    from fastembed.text.onnx_text_model import OnnxTextModel
    from fastembed.text.static_embedding import StaticTextEmbedding

__all__ = [
    "CorruptedCacheError",
    "CustomTextEmbedding",
    "ModelSource",
    "OnnxTextModel",
    "PoolingType",
    "StaticTextEmbedding",
    "TextEmbedding",
    "hub_name",
    "import_hub",
]


class _NoLog:
    """Drops what FastEmbed logs: we log its failures ourselves, without URLs of files."""

    def drop(self, *_args: object, **_kwargs: object) -> None:
        pass

    debug = info = success = warning = error = exception = drop


MODULES_THAT_LOG: tuple[Any, ...] = (model_management, onnx_model)
for _module in MODULES_THAT_LOG:
    _module.logger = _NoLog()
_lock = threading.Lock()
_is_hub_imported = False


def import_hub() -> None:
    """Import what FastEmbed needs to find files in a hub cache, or to download them. Blocks for 0.4 s once."""
    global _is_hub_imported  # noqa: PLW0603 - whether modules are imported is a fact of the process
    with _lock:
        if not _is_hub_imported:
            resolve_names(model_management)
            _is_hub_imported = True


def hub_name(name: str) -> Any:
    """Return a name of the hub's client, such as `snapshot_download`, which is imported now."""
    return resolve_name(f"huggingface_hub.{name}")
