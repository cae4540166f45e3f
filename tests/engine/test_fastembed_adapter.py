"""The adapter uses names that FastEmbed and ONNX Runtime keep private. An upgrade that changes one fails here."""

import inspect
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from operator import attrgetter
from pathlib import Path
from typing import Any

from fastembed import TextEmbedding
from huggingface_hub.file_download import repo_folder_name
from onnxruntime import InferenceSession
from tokenizers import Tokenizer

from engine.fastembed_adapter import registry_models
from tests.support.servers import ROOT
from tests.support.tiny import TinyModel

NAME, MODEL_FILE = "BAAI/bge-small-en-v1.5", "model_optimized.onnx"
"""A model of FastEmbed's registry, and its file there."""

LISTED = ("model", "dim", "description", "license", "size_in_GB", "sources.hf", "model_file", "additional_files")
"""Attributes that are read of each entry of the registry."""


def takes(*parameters: str) -> Callable[[Callable[..., object]], bool]:
    return lambda function: tuple(inspect.signature(function).parameters)[: len(parameters)] == parameters


def lists_models(classes: Any) -> bool:
    """Whether each class lists its models, and each entry has the attributes that are read."""
    return all(attrgetter(*LISTED)(entry) for kind in classes for entry in kind._list_supported_models())  # noqa: SLF001


NAMES_OF_MODULES: dict[str, Callable[[Any], object]] = {
    "fastembed:TextEmbedding.EMBEDDINGS_REGISTRY": lists_models,
    "fastembed:TextEmbedding.download_files_from_huggingface": takes(
        "hf_source_repo", "cache_dir", "extra_patterns", "local_files_only", "kwargs"
    ),
    "fastembed.common.model_management:CorruptedCacheError": lambda kind: issubclass(kind, Exception),
    "fastembed.common.model_description:ModelSource": takes("hf"),
    "fastembed.common.model_description:PoolingType": attrgetter("MEAN", "CLS", "LAST_TOKEN", "DISABLED"),
    "fastembed.text.onnx_text_model:OnnxTextModel.tokenize": takes("self", "documents", "kwargs"),
    "fastembed.text.onnx_text_model:OnnxTextModel.onnx_embed": takes("self", "documents", "kwargs"),
    "fastembed.text.onnx_text_model:OnnxTextModel._preprocess_onnx_input": takes("self", "onnx_input", "kwargs"),
    "fastembed.text.custom_text_embedding:CustomTextEmbedding.load_onnx_model": takes("self"),
    "fastembed.text.static_embedding:StaticTextEmbedding._list_supported_models": lambda models: models(),
    "fastembed.text.static_embedding:StaticTextEmbedding._token_ids": takes("self", "documents"),
}
NAMES_OF_A_LOADED_MODEL: dict[str, Callable[[Any], object]] = {
    "model.tokenizer": lambda tokenizer: isinstance(tokenizer, Tokenizer),
    "model.model": lambda session: isinstance(session, InferenceSession),
    "model.model._model_path": lambda path: Path(path).name == MODEL_FILE,
}


def problems(names: dict[str, Callable[[Any], object]], resolve: Callable[[str], Any]) -> list[str]:
    """Return the names that do not exist, or are not what the adapter expects."""
    found = []
    for name, is_as_expected in names.items():
        try:
            if not is_as_expected(resolve(name)):
                found.append(f"{name} is not as expected")
        except (ImportError, AttributeError) as error:
            found.append(f"{name}: {error}")
    return found


def test_installed_versions_have_every_private_name_that_the_adapter_uses(tmp_path: Path) -> None:
    TinyModel(NAME).write_files(tmp_path, MODEL_FILE)
    embedding = TextEmbedding(NAME, specific_model_path=str(tmp_path))
    versions = ", ".join(f"{package} {version(package)}" for package in ("fastembed", "onnxruntime", "huggingface_hub"))
    assert [
        *problems(NAMES_OF_MODULES, pkgutil.resolve_name),
        *problems(NAMES_OF_A_LOADED_MODEL, lambda name: attrgetter(name)(embedding)),
    ] == [], f"engine/fastembed_adapter.py relies on names that {versions} do not have"


IMPORT_AFTER_THE_ENGINE = """
import sys
from engine.fastembed_adapter import CorruptedCacheError, TextEmbedding as used
from engine.fastembed_imports import import_hub, model_management
import fastembed
from fastembed import ImageEmbedding, TextEmbedding
from fastembed.common.model_management import CorruptedCacheError as raised
assert used is TextEmbedding and raised is CorruptedCacheError
assert fastembed.text.TextEmbedding is used
import_hub()
import huggingface_hub, requests
assert model_management.snapshot_download is huggingface_hub.snapshot_download
assert model_management.requests is requests
assert all(isinstance(kind, type) and issubclass(kind, Exception) for kind in model_management._HF_DOWNLOAD_ERRORS)
left = [name for name, value in vars(model_management).items() if type(value).__name__ == "Deferred"]
assert left == [], left
print("complete")
"""


def test_fastembed_is_complete_for_whoever_imports_it_after_the_engine() -> None:
    """In a process of its own: here, other tests have imported FastEmbed as a whole."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_AFTER_THE_ENGINE], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("complete\n", "")


def test_folder_in_a_hub_cache_has_the_name_that_the_hub_gives_it() -> None:
    assert all(
        model.cache_folder == repo_folder_name(repo_id=model.repository, repo_type="model")
        for model in registry_models()
    )
