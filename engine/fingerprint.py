"""What a model's files are: hashed, compared with what was promised of them, and folded into a stamp."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

from engine.manifest import Folder

FINGERPRINT_DIGITS = 16
"""Hexadecimal digits of a fingerprint: 64 bits tell any number of models apart that one index will ever see."""
SHA256_DIGITS, SHA1_DIGITS = HASH_DIGITS = (64, 40)
BLOCK_BYTES = 1 << 20
READ_BY_FASTEMBED = ("tokenizer.json", "tokenizer_config.json", "config.json", "special_tokens_map.json")
"""Where they are there; a manifest need not name them."""


class CorruptFileError(Exception):
    """A file is not the one that was promised; the message is the cause that callers are told."""


@dataclass(frozen=True, slots=True)
class ExpectedFile:
    """What is known of a file: its sha256, or git's id of it (sha1), and its size, if that is known, too."""

    digest: str
    size_bytes: int | None = None


@dataclass(frozen=True)
class ModelFiles:
    """The files that one model is loaded from.

    Attributes:
        folder: where they lie.
        model_file: the ONNX file (or that of a static model), relative to *folder*.
        revision: the hub's commit, or what the manifest states; empty: nothing is known.
        names: every file that has a part in the vectors, relative to *folder*.
        promised: what is known of their contents, by name.
        settings: what else decides on the vectors, such as the pooling.
    """

    folder: Path
    model_file: str
    revision: str
    names: tuple[str, ...]
    promised: Mapping[str, ExpectedFile]
    settings: str = ""

    @cached_property
    def fingerprint(self) -> "ModelFingerprint":
        """Read and check all files. Blocks: one or two seconds per gigabyte.

        Raises:
            SpoiltFileError: one is missing, or not what was promised.
        """
        hashes = {name: self._readable_hash(name) for name in sorted(self.names)}
        facts = (self.revision, hashes[self.model_file], version("onnxruntime"), version("fastembed"))
        folded = hashlib.sha256(json.dumps([*facts, hashes, self.settings]).encode()).hexdigest()
        return ModelFingerprint(*facts, folded[:FINGERPRINT_DIGITS])

    def _readable_hash(self, name: str) -> str:
        try:
            return self._checked_hash(name)
        except OSError as error:
            raise CorruptFileError(f"its file {name!r} cannot be read ({error.strerror})") from error

    def _checked_hash(self, name: str) -> str:
        path, promised = self.folder / name, self.promised.get(name)
        if not path.is_file():
            raise CorruptFileError(f"its file {name!r} is missing")
        if promised and promised.size_bytes not in (None, size := path.stat().st_size):
            raise CorruptFileError(f"its file {name!r} has {size} bytes where {promised.size_bytes} are due")
        found = hash_same_kind("0" * SHA256_DIGITS, path) or ""
        if promised:
            alike = found if len(promised.digest) == SHA256_DIGITS else hash_same_kind(promised.digest, path)
            if alike != promised.digest:
                raise CorruptFileError(
                    f"its file {name!r} is not the one that it should be: "
                    f"its hash is {str(alike)[:12]}..., where {promised.digest[:12]}... is due"
                )
        return found


@dataclass(frozen=True, slots=True)
class ModelFingerprint:
    """What vectors depend on. Where two stamps have one fingerprint, the same texts get the same vectors.

    Attributes:
        revision: the hub's commit, or what the manifest states.
        onnx_sha256: of the file with the model's graph.
        onnxruntime: its version.
        fastembed: its version.
        digest: all of these, the hashes of the other files and the model's settings, folded into 16 digits.
    """

    revision: str
    onnx_sha256: str
    onnxruntime: str
    fastembed: str
    digest: str


def files_of_folder(folder: Folder) -> ModelFiles:
    """The files of a bundled or local model, with what its manifest promises of them."""
    manifest = folder.manifest
    read = [name for name in READ_BY_FASTEMBED if (folder.path / name).is_file()]
    # The graph's weights may lie beside it, in `model.onnx_data` or `model.onnx.data`.
    beside = [path.relative_to(folder.path).as_posix() for path in folder.path.glob(f"{manifest.model_file}*")]
    settings = (manifest.pooling, manifest.normalized, manifest.output_name, manifest.max_tokens, manifest.prompts)
    return ModelFiles(
        folder=folder.path,
        model_file=manifest.model_file,
        revision=manifest.revision,
        names=tuple(dict.fromkeys([*folder.files, *read, *beside])),
        promised={name: ExpectedFile(facts.sha256, facts.size_bytes) for name, facts in manifest.files.items()},
        settings=repr(settings),
    )


def hash_same_kind(digest: str, path: Path) -> str | None:
    """The hash of a file, of the kind that *digest* is: sha256, or git's blob id; None if it is neither."""
    if len(digest) == SHA256_DIGITS:
        state = hashlib.sha256()
    elif len(digest) == SHA1_DIGITS:
        state = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)  # git's own choice
    else:
        return None
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            state.update(block)
    return state.hexdigest()
