"""The fingerprint of a model: a hash over everything that its vectors depend on."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

from engine.file_hashes import ExpectedFile, verified_hash
from engine.manifest import Folder

FINGERPRINT_DIGITS = 16
"""Hexadecimal digits of a fingerprint. 64 bits are enough to tell all models apart that one index will ever see."""
READ_BY_FASTEMBED = ("tokenizer.json", "tokenizer_config.json", "config.json", "special_tokens_map.json")
"""Files that FastEmbed reads if they exist, whether or not the manifest lists them."""


@dataclass(frozen=True)
class ModelFiles:
    """The files that one model is loaded from.

    Attributes:
        folder: contains the files.
        model_file: the ONNX file (or that of a static model), relative to *folder*.
        revision: the hub's commit, or what the manifest states; empty: unknown.
        names: every file that the vectors depend on, relative to *folder*.
        expected: hashes and sizes by file name, as far as they are known.
        settings: other settings that the vectors depend on, such as the pooling.
    """

    folder: Path
    model_file: str
    revision: str
    names: tuple[str, ...]
    expected: Mapping[str, ExpectedFile]
    settings: str = ""

    @cached_property
    def fingerprint(self) -> "ModelFingerprint":
        """Read and verify all files. Blocks: one or two seconds per gigabyte.

        Raises:
            CorruptFileError: a file is missing or is not the expected one.
        """
        hashes = {name: verified_hash(self.folder, name, self.expected.get(name)) for name in sorted(self.names)}
        parts = (self.revision, hashes[self.model_file], version("onnxruntime"), version("fastembed"))
        digest = hashlib.sha256(json.dumps([*parts, hashes, self.settings]).encode()).hexdigest()
        return ModelFingerprint(*parts, digest[:FINGERPRINT_DIGITS])


@dataclass(frozen=True, slots=True)
class ModelFingerprint:
    """What vectors depend on. Models with equal digests return the same vectors for the same texts.

    Attributes:
        revision: the hub's commit, or what the manifest states.
        onnx_sha256: hash of the file with the model's graph.
        onnxruntime: its version.
        fastembed: its version.
        digest: 16 hexadecimal digits of a hash over all of these, the hashes of the other files and the settings.
    """

    revision: str
    onnx_sha256: str
    onnxruntime: str
    fastembed: str
    digest: str


def files_of_folder(folder: Folder) -> ModelFiles:
    """Return the files of a bundled or local model, with the hashes that its manifest states."""
    manifest = folder.manifest
    read = [name for name in READ_BY_FASTEMBED if (folder.path / name).is_file()]
    # The graph's weights may be in a second file, `model.onnx_data` or `model.onnx.data`.
    weights = [path.relative_to(folder.path).as_posix() for path in folder.path.glob(f"{manifest.model_file}*")]
    settings = (manifest.pooling, manifest.normalized, manifest.output_name, manifest.max_tokens, manifest.prompts)
    return ModelFiles(
        folder=folder.path,
        model_file=manifest.model_file,
        revision=manifest.revision,
        names=tuple(dict.fromkeys([*folder.files, *read, *weights])),
        expected={name: ExpectedFile(stated.sha256, stated.size_bytes) for name, stated in manifest.files.items()},
        settings=repr(settings),
    )
