"""Verifies a model's files by their hashes and identifies what its vectors depend on."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

from engine.manifest import Folder

FINGERPRINT_DIGITS = 16
"""Hexadecimal digits of a fingerprint. 64 bits are enough to tell all models apart that one index will ever see."""
SHA256_DIGITS, SHA1_DIGITS = HASH_DIGITS = (64, 40)
BLOCK_BYTES = 1 << 20
READ_BY_FASTEMBED = ("tokenizer.json", "tokenizer_config.json", "config.json", "special_tokens_map.json")
"""Files that FastEmbed reads if they exist, whether or not the manifest lists them."""


class CorruptFileError(Exception):
    """A file is missing or is not the expected one. Callers get the message as the cause of a 503."""


@dataclass(frozen=True, slots=True)
class ExpectedFile:
    """The expected sha256 of a file, or its git blob id (sha1), and its size in bytes; None: any size."""

    digest: str
    size_bytes: int | None = None


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
        hashes = {name: self._readable_hash(name) for name in sorted(self.names)}
        parts = (self.revision, hashes[self.model_file], version("onnxruntime"), version("fastembed"))
        digest = hashlib.sha256(json.dumps([*parts, hashes, self.settings]).encode()).hexdigest()
        return ModelFingerprint(*parts, digest[:FINGERPRINT_DIGITS])

    def _readable_hash(self, name: str) -> str:
        try:
            return self._verified_hash(name)
        except OSError as error:
            raise CorruptFileError(f"its file {name!r} cannot be read ({error.strerror})") from error

    def _verified_hash(self, name: str) -> str:
        path, expected = self.folder / name, self.expected.get(name)
        if not path.is_file():
            raise CorruptFileError(f"its file {name!r} is missing")
        if expected and expected.size_bytes not in (None, size := path.stat().st_size):
            raise CorruptFileError(f"its file {name!r} has {size} bytes instead of {expected.size_bytes}")
        sha256 = hash_same_kind("0" * SHA256_DIGITS, path) or ""
        if expected:
            found = sha256 if len(expected.digest) == SHA256_DIGITS else hash_same_kind(expected.digest, path)
            if found != expected.digest:
                raise CorruptFileError(
                    f"its file {name!r} is not the expected one: "
                    f"its hash is {str(found)[:12]}... instead of {expected.digest[:12]}..."
                )
        return sha256


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


def hash_same_kind(digest: str, path: Path) -> str | None:
    """Hash a file with the algorithm that *digest* comes from: sha256 or git's blob id. None if it is neither."""
    if len(digest) == SHA256_DIGITS:
        state = hashlib.sha256()
    elif len(digest) == SHA1_DIGITS:
        state = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)  # what git uses
    else:
        return None
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            state.update(block)
    return state.hexdigest()
