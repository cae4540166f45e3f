"""The fingerprint of a model: a hash over the files and facts that make its vectors, and over nothing else.

Versions of libraries are not part of it: an upgrade that keeps the vectors must not make anybody embed an index again.
`tests/engine/test_bundled_model.py` proves that for the pinned versions, and `engine.runtime` names them.
"""

import hashlib
import json
import posixpath
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from engine.fastembed_adapter import RegistryModel
from engine.file_hashes import CorruptFileError, ExpectedFile, verified_hash
from engine.manifest import Folder, Prompts
from engine.model_cards import NO_PROMPTS, ModelCard, card_of_folder
from engine.onnx_graph import GraphFacts, UnreadableGraphError, read_graph
from engine.runtime import Runtime, read_runtime
from engine.tokenizer_files import TOKENIZER, TOKENIZER_FILES, tokenizer_facts

FINGERPRINT_DIGITS = 16
"""Hexadecimal digits of a fingerprint. 64 bits are enough to tell all models apart that one index will ever see."""
RECIPE = 1
"""Part of each fingerprint. Raise it when the service or FastEmbed computes other vectors from the same files."""
STATIC = "static"
POSTPROCESSING: Mapping[str, tuple[str, bool, int | str]] = {
    "OnnxTextEmbedding": ("cls", True, 0),
    "CLIPOnnxEmbedding": ("none", False, 0),
    "SiglipOnnxTextEmbedding": ("none, padded to max_tokens", True, "pooler_output"),
    "PooledNormalizedEmbedding": ("mean", True, 0),
    "PooledEmbedding": ("mean", False, 0),
    "JinaEmbeddingV3": ("mean", True, 0),
    "LastTokenNormalizedEmbedding": ("last_token", True, 0),
    "BuiltinSentenceEmbedding": ("none", False, 1),
    "StaticTextEmbedding": (STATIC, True, 0),
}
"""What a class of FastEmbed 0.9.1 does with the graph's output: pooling, whether it scales the vector to length 1, and
which output it takes (by position or name). In the words of `model.json`: the same model in a folder has the same
fingerprint."""


@dataclass(frozen=True, slots=True)
class VectorFacts:
    """What vectors depend on besides the files.

    Attributes:
        pooling: as in `model.json`, or `static`.
        normalized: whether FastEmbed scales a vector to length 1.
        output: the output of the graph that is used, by position or name.
        dim: numbers per vector.
        max_tokens: the longest input that the manifest states; None: the tokenizer's files state it.
        prompts: prefixes of queries and documents.
        uses_tasks: queries and documents have a task id.
        layer_norm: applied before a vector is shortened.
    """

    pooling: str
    normalized: bool
    output: int | str
    dim: int
    max_tokens: int | None = None
    prompts: Prompts = NO_PROMPTS
    uses_tasks: bool = False
    layer_norm: bool = False


@dataclass(frozen=True, slots=True)
class VerifiedFiles:
    """What was read of a model's files when they were verified.

    Attributes:
        graph_hash: sha256 of the ONNX file (or that of a static model).
        hashes: sha256 of each file, by name.
        weights: files with the graph's weights, by the name that the graph gives them.
        output: the output of the graph that is used, by name if the graph states it, else by position.
    """

    graph_hash: str
    hashes: Mapping[str, str]
    weights: Mapping[str, str]
    output: int | str


@dataclass(frozen=True)
class ModelFiles:
    """The files that one model is loaded from.

    Attributes:
        folder: contains the files.
        model_file: the ONNX file (or that of a static model), relative to *folder*.
        revision: the hub's commit, or what the manifest states; empty: unknown.
        listed: files that must exist and be the expected ones, relative to *folder*.
        expected: the known hashes and sizes, by file name.
        facts: what vectors depend on besides the files.
    """

    folder: Path
    model_file: str
    revision: str
    listed: tuple[str, ...]
    expected: Mapping[str, ExpectedFile]
    facts: VectorFacts

    @property
    def known_names(self) -> tuple[str, ...]:
        """The files that are read, or listed, without those that only the ONNX file names."""
        return tuple(dict.fromkeys([*self.listed, self.model_file, *self._tokenizer_files]))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """All files of the model that are read, or listed, relative to *folder*.

        Raises:
            CorruptFileError: the ONNX file is missing or incomplete, or names a file outside its folder.
        """
        return tuple(dict.fromkeys([*self.known_names, *self._weights.values()]))

    @cached_property
    def verified(self) -> VerifiedFiles:
        """Read and verify all files. Blocks: one or two seconds per gigabyte.

        Raises:
            CorruptFileError: a file is missing or is not the expected one.
        """
        # The known files first: if the ONNX file is corrupt, its hash says so better than its content.
        hashes = {name: self._hash(name) for name in self.known_names}
        hashes |= {name: self._hash(name) for name in self._weights.values() if name not in hashes}
        return VerifiedFiles(hashes[self.model_file], hashes, self._weights, self._output)

    @cached_property
    def fingerprint(self) -> "ModelFingerprint":
        """Read and verify all files. Blocks: one or two seconds per gigabyte.

        Raises:
            CorruptFileError: a file is missing or is not the expected one.
        """
        return self.fingerprint_of(self.verified)

    def fingerprint_of(self, sources: VerifiedFiles) -> "ModelFingerprint":
        """Return the fingerprint of files with these hashes. Reads the tokenizer files."""
        facts = {
            "recipe": RECIPE,
            "model": sources.graph_hash,
            "weights": {location: sources.hashes[name] for location, name in sorted(sources.weights.items())},
            "tokens": tokenizer_facts(self.folder, max_tokens=self.facts.max_tokens, is_static=self.is_static),
            "vectors": {**_as_json(self.facts), "max_tokens": None, "output": sources.output},
        }
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        return ModelFingerprint(self.revision, sources.graph_hash, digest[:FINGERPRINT_DIGITS], read_runtime())

    @property
    def is_static(self) -> bool:
        """Whether the model is a static one, which has no graph."""
        return self.facts.pooling == STATIC

    @property
    def _tokenizer_files(self) -> list[str]:
        read = (TOKENIZER,) if self.is_static else TOKENIZER_FILES
        return [name for name in read if (self.folder / name).is_file()]

    @cached_property
    def _graph(self) -> GraphFacts:
        if self.is_static:
            return GraphFacts()
        try:
            return read_graph(self.folder / self.model_file)
        except FileNotFoundError:
            raise CorruptFileError(f"its file {self.model_file!r} is missing") from None
        except OSError as error:
            raise CorruptFileError(f"its file {self.model_file!r} cannot be read ({error.strerror})") from error
        except UnreadableGraphError as error:
            raise CorruptFileError(f"its file {self.model_file!r} is not a complete ONNX file: {error}") from error

    @cached_property
    def _weights(self) -> dict[str, str]:
        """Files with the graph's weights, by the name that the graph gives them."""
        return {location: self._resolve(location) for location in self._graph.locations}

    @property
    def _output(self) -> int | str:
        """Name of the output that is used; its position if the graph does not tell."""
        output, names = self.facts.output, self._graph.outputs
        return names[output] if isinstance(output, int) and output < len(names) else output

    def _resolve(self, location: str) -> str:
        """Return the name of a file with weights, relative to *folder*. The graph names it relative to its own."""
        inside = posixpath.normpath(location)
        if not location or "\0" in location or posixpath.isabs(inside) or inside.split("/")[0] in ("..", "."):
            raise CorruptFileError(
                f"its file {self.model_file!r} takes weights from {location[:100]!r}, "
                "which is not a file in its own folder or below; export it again with the weights beside it"
            )
        return posixpath.normpath(posixpath.join(posixpath.dirname(self.model_file), inside))

    def _hash(self, name: str) -> str:
        return verified_hash(self.folder, name, self.expected.get(name))


@dataclass(frozen=True)
class ModelFingerprint:
    """What makes a model's vectors. Models with equal digests return the same vectors for the same texts.

    Attributes:
        revision: the hub's commit, or what the manifest states; not part of the digest.
        onnx_sha256: hash of the file with the model's graph.
        digest: 16 hexadecimal digits of a hash over the files and facts that make the vectors.
        runtime: what runs the model; not part of the digest.
    """

    revision: str
    onnx_sha256: str
    digest: str
    runtime: Runtime

    @cached_property
    def namespace(self) -> str:
        """What is common to the keys of results of the model as this machine runs it (`engine.result_keys`)."""
        return f"{self.digest}:{self.runtime.id}"


def files_of_folder(folder: Folder) -> ModelFiles:
    """Return the files of a bundled or local model, with the hashes that its manifest states."""
    manifest = folder.manifest
    facts = (manifest.pooling, manifest.normalized, manifest.output_name or 0, manifest.dim, manifest.max_tokens)
    return ModelFiles(
        folder=folder.path,
        model_file=manifest.model_file,
        revision=manifest.revision,
        listed=tuple(folder.files),
        expected={name: ExpectedFile(stated.sha256, stated.size_bytes) for name, stated in manifest.files.items()},
        facts=_with_card(facts, card_of_folder(manifest)),
    )


def facts_of_registry(listed: RegistryModel, card: ModelCard) -> VectorFacts:
    """Return the facts of a model of FastEmbed's registry."""
    pooling, normalized, output = POSTPROCESSING.get(listed.kind, (listed.kind, False, 0))
    return _with_card((pooling, normalized, output, listed.dim, None), card)


def _with_card(facts: tuple[str, bool, int | str, int, int | None], card: ModelCard) -> VectorFacts:
    layer_norm = bool(card.matryoshka and card.matryoshka.layer_norm)
    return VectorFacts(*facts, prompts=card.prompts, uses_tasks=card.uses_tasks, layer_norm=layer_norm)


def _as_json(facts: VectorFacts) -> dict[str, object]:
    return {**asdict(facts), "prompts": {"query": facts.prompts.query, "document": facts.prompts.document}}
