"""The only module that uses FastEmbed, including names that it and ONNX Runtime keep private.

`tests/engine/test_fastembed_adapter.py` checks that the installed versions still have each private name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tokenizers import Tokenizer

from engine.fastembed_imports import CorruptedCacheError as CorruptedCacheError  # noqa: PLC0414 - re-exported
from engine.fastembed_imports import (
    CustomTextEmbedding,
    ModelSource,
    OnnxTextModel,
    PoolingType,
    StaticTextEmbedding,
    TextEmbedding,
    hub_name,
    import_hub,
)
from engine.graph_check import GraphInput, Signature
from engine.manifest import TOKENIZER_FILES, Folder
from engine.model_inputs import INPUT_TYPES, concatenate_ids, fit_inputs, pad
from engine.onnx_sessions import open_session as open_onnx
from engine.tokenizer import TokenizedText
from engine.vectors import Matrix

Method = Literal["embed", "query_embed", "passage_embed"]

BYTES_PER_GB = 1_000_000_000
POOLINGS = {
    "mean": PoolingType.MEAN,
    "cls": PoolingType.CLS,
    "last_token": PoolingType.LAST_TOKEN,
    "none": PoolingType.DISABLED,
}
NO_CACHE_DIR = str(Path(__file__).parent)
"""A cache folder for FastEmbed, which creates the one it is given even if it stores nothing there.

It must exist, and must not be the model's: a model folder that an operator moved away would come back empty.
"""
OUT_OF_MEMORY_TEXTS = ("Failed to allocate memory", "bad_alloc")
"""Parts of ONNX Runtime's messages when memory runs out; it has no exception class for that."""


@dataclass(frozen=True, slots=True)
class RegistryModel:
    """A model of FastEmbed's own registry.

    Attributes:
        kind: name of the FastEmbed class that runs it.
        size_bytes: of its files, as FastEmbed states it.
        repository: the repository on the hub that FastEmbed downloads.
        model_file: the ONNX file (or that of a static model) in the repository.
        additional_files: other files that the model needs, besides those of the tokenizer.
    """

    name: str
    kind: str
    dim: int
    description: str
    license: str
    size_bytes: int
    repository: str
    model_file: str
    additional_files: tuple[str, ...]

    @property
    def files(self) -> tuple[str, ...]:
        return (self.model_file, *self.additional_files)

    @property
    def cache_folder(self) -> str:
        """Name of the repository's folder in a hub cache, without the hub's client, which takes 0.3 s to import."""
        return "--".join(["models", *self.repository.split("/")])


def registry_models() -> list[RegistryModel]:
    """List FastEmbed's own models, without the folders that `register_folder` has added."""
    return [
        RegistryModel(
            name=listed.model,
            kind=kind.__name__,
            dim=listed.dim or 0,
            description=listed.description,
            license=listed.license,
            size_bytes=round(listed.size_in_GB * BYTES_PER_GB),
            repository=str(listed.sources.hf),
            model_file=listed.model_file,
            additional_files=tuple(listed.additional_files),
        )
        for kind in TextEmbedding.EMBEDDINGS_REGISTRY
        for listed in kind._list_supported_models()  # noqa: SLF001 - the public list does not contain the class
        if "@" not in listed.model
    ]


def registry_model(name: str) -> RegistryModel:
    """Find a model of FastEmbed's registry by its exact name."""
    return next(model for model in registry_models() if model.name == name)


def register_folder(folder: Folder) -> str:
    """Add the model in *folder* to FastEmbed's registry, once per process, and return its name there."""
    name, manifest = folder.registry_name, folder.manifest
    if all(listed["model"] != name for listed in TextEmbedding.list_supported_models()):
        TextEmbedding.add_custom_model(
            model=name,
            pooling=POOLINGS[manifest.pooling],
            normalization=manifest.normalized,
            sources=ModelSource(hf=manifest.name),
            dim=manifest.dim,
            model_file=manifest.model_file,
            additional_files=manifest.additional_files,
            output_name=manifest.output_name,
        )
    return name


def download(model: RegistryModel, cache_dir: Path, *, revision: str = "", progress: type[Any] | None = None) -> Path:
    """Download a model's files into a hub cache. Blocks.

    FastEmbed compares the sizes of the files with those that the hub states for the newest commit, so it cannot
    download another one.

    Args:
        model: what to download.
        cache_dir: the hub cache.
        revision: the hub's commit; empty: the newest.
        progress: a class like `tqdm.tqdm` that shows the progress; None: nothing is shown.

    Returns:
        The folder of the snapshot.

    Raises:
        Exception: whatever the hub's client raises.
    """
    if not revision:
        return _snapshot(model, cache_dir, **({"tqdm_class": progress} if progress else {}))
    files = [*TOKENIZER_FILES, *model.files]
    options = {"revision": revision, "cache_dir": cache_dir, "allow_patterns": files, "tqdm_class": progress}
    return Path(hub_name("snapshot_download")(model.repository, **options))


def find_snapshot(model: RegistryModel, cache_dir: Path, *, revision: str = "") -> Path | None:
    """Return the folder of a model's snapshot in a hub cache, or None; some of its files may be missing.

    With *revision*, only the snapshot of that commit counts.

    Raises:
        CorruptedCacheError: the size of a file differs from the size that the hub has stated.
    """
    try:
        return _snapshot(model, cache_dir, local_files_only=True, **({"revision": revision} if revision else {}))
    except CorruptedCacheError:  # a ValueError, but not an absent file
        raise
    except (OSError, ValueError):
        return None


def _snapshot(model: RegistryModel, cache_dir: Path, **options: Any) -> Path:
    import_hub()
    find = TextEmbedding.download_files_from_huggingface
    return Path(find(model.repository, str(cache_dir), list(model.files), **options))


class Session:
    """A model that FastEmbed has loaded. It runs tokens instead of texts.

    Attributes:
        tokenizer: the model's, with truncation and padding as FastEmbed has set them.
        is_static: a static model looks tokens up in a table; it has no ONNX session.
        is_copy: an optimised copy runs, not the model's own file.
    """

    def __init__(
        self,
        embedding: TextEmbedding,
        *,
        reopen: Callable[..., TextEmbedding],
        tokenizer: Tokenizer,
        padding: Mapping[str, Any],
        is_copy: bool = False,
    ) -> None:
        """Replace the method of *embedding* that tokenises; use `open_session`.

        Args:
            embedding: a loaded model.
            reopen: creates the same FastEmbed object again; passes options on to it.
            tokenizer: the model's.
            padding: its padding options.
            is_copy: *embedding* runs an optimised copy.
        """
        self.tokenizer = tokenizer
        self.is_copy = is_copy
        self.is_static = isinstance(embedding.model, StaticTextEmbedding)
        self._embedding = embedding
        self._model = embedding.model
        self._reopen = reopen
        self._padding = padding
        if self.is_static:
            self._model._token_ids = concatenate_ids  # type: ignore[attr-defined]  # noqa: SLF001
            return
        self._model.tokenize = partial(pad, padding)  # type: ignore[attr-defined]
        if isinstance(self._model, CustomTextEmbedding):
            types = {entry.name: INPUT_TYPES.get(entry.type, np.int64) for entry in self.signature.inputs}
            self._model._preprocess_onnx_input = partial(fit_inputs, types)  # type: ignore[method-assign]  # noqa: SLF001

    @property
    def signature(self) -> Signature:
        """The inputs and outputs of the graph. Not for static models."""
        graph = self._model.model  # type: ignore[attr-defined]
        return Signature(tuple(map(_described, graph.get_inputs())), tuple(map(_described, graph.get_outputs())))

    def output_shape(self, item: TokenizedText) -> tuple[int, ...]:
        """Run the graph on one text, and return the shape of its output before pooling. Not for static models."""
        output = self._model.onnx_embed([item]).model_output  # type: ignore[attr-defined]
        return tuple(output.shape)

    def run(self, method: Method, items: Sequence[TokenizedText]) -> Matrix:
        """Run the model once with one of FastEmbed's methods; the last two set the task of a model that has tasks.

        Returns:
            Float32 vectors of shape ``(len(items), dim)``, in the order of *items*.
        """
        vectors = getattr(self._embedding, method)(list(items), batch_size=len(items))
        return np.stack([np.asarray(vector, dtype=np.float32) for vector in vectors])

    @property
    def graph(self) -> Path:
        """The ONNX file that runs. Not for static models."""
        return Path(self._model.model._model_path)  # type: ignore[attr-defined]  # noqa: SLF001

    def open_lone_text_session(self, threads: int) -> "Session":
        """Load the model's ONNX file a second time, for runs of *threads* threads. Not for static models."""
        return self._with(open_onnx(self.graph, threads=threads, is_copy=self.is_copy, spins=False), self.is_copy)

    def open_copy(self, graph: Path) -> "Session":
        """Open the same model by its optimised copy *graph*, with one thread. Not for static models."""
        return self._with(open_onnx(graph, threads=1, is_copy=True), is_copy=True)

    def _with(self, graph: Any, is_copy: bool) -> "Session":  # noqa: FBT001 - private
        embedding = self._reopen(lazy_load=True)
        inner: Any = embedding.model
        inner.model = graph
        return Session(embedding, reopen=self._reopen, tokenizer=self.tokenizer, padding=self._padding, is_copy=is_copy)


def open_session(name: str, folder: Path, *, copy: Path | None = None) -> Session:
    """Load a model with one thread, so that several lanes can work beside each other.

    Args:
        name: a name of FastEmbed's registry.
        folder: contains the model's files.
        copy: the graph of an optimised copy, to run instead of the model's own; None: there is none.

    Raises:
        TypeError: FastEmbed has no tokenizer for it, so its tokens cannot be counted.
        Exception: whatever FastEmbed and ONNX Runtime raise for missing or broken files.
    """
    is_static = any(listed.model == name for listed in StaticTextEmbedding._list_supported_models())  # noqa: SLF001
    reopen = partial(
        TextEmbedding,
        name,
        threads=None if is_static else 1,  # FastEmbed warns if threads have no effect
        cache_dir=NO_CACHE_DIR,
        specific_model_path=str(folder),
    )
    embedding = reopen(lazy_load=copy is not None)
    inner: Any = embedding.model
    if copy:
        inner.model = open_onnx(copy, threads=1, is_copy=True)
        inner._ensure_tokenizer()  # noqa: SLF001 - what FastEmbed does after it has opened the graph
    tokenizer = getattr(embedding.model, "tokenizer", None)
    if not isinstance(tokenizer, Tokenizer) or not isinstance(embedding.model, OnnxTextModel | StaticTextEmbedding):
        message = "it has no tokenizer, so its tokens cannot be counted"
        raise TypeError(message)
    padding = tokenizer.padding or {}
    return Session(embedding, reopen=reopen, tokenizer=tokenizer, padding=padding, is_copy=copy is not None)


def open_folder_session(folder: Folder, tokenizer: Tokenizer, *, copy: Path | None = None) -> Session:
    """Load a folder's graph with one thread. FastEmbed does not read the folder's tokenizer files.

    Args:
        folder: contains the graph.
        tokenizer: the folder's, with truncation and padding set up.
        copy: the graph of an optimised copy, to run instead of the model's own; None: there is none.

    Raises:
        Exception: whatever FastEmbed and ONNX Runtime raise for missing or broken files.
    """
    reopen = partial(
        TextEmbedding,
        register_folder(folder),
        threads=1,
        cache_dir=NO_CACHE_DIR,
        specific_model_path=str(folder.path),
    )
    embedding = reopen(lazy_load=True)
    inner: Any = embedding.model
    inner.tokenizer = tokenizer  # FastEmbed loads its own only if there is none
    if copy:
        inner.model = open_onnx(copy, threads=1, is_copy=True)
    else:
        inner.load_onnx_model()
    padding = tokenizer.padding or {}
    return Session(embedding, reopen=reopen, tokenizer=tokenizer, padding=padding, is_copy=copy is not None)


def is_out_of_memory(error: Exception) -> bool:
    """Whether *error* means that there is not enough memory."""
    return isinstance(error, MemoryError) or any(text in str(error) for text in OUT_OF_MEMORY_TEXTS)


def _described(entry: Any) -> GraphInput:
    return GraphInput(entry.name, entry.type.removeprefix("tensor(").removesuffix(")"), tuple(entry.shape or ()))
