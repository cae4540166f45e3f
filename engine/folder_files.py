"""Reads the files of a model folder as exporters and editors really write them, and says why one cannot be used."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HEAD_BYTES = 512
"""What is read of a file to see whether something else is in its place. A git-lfs pointer has about 130 bytes."""
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
WEB_PAGES = (b"<!doctype html", b"<html")
SLOW_TOKENIZERS = ("vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model")
"""Files of a tokenizer that only Python code can read."""
OTHER_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Files of a model that was not exported to ONNX."""


class UnusableModelError(Exception):
    """A model's files cannot be used as they are.

    The message says why and what to change, without a capital letter and a full stop. Callers get it as the cause of a
    503, so it contains no path outside the model's folder.
    """


def decode_text(content: bytes) -> str:
    """Decode the text of a JSON file: UTF-8 with or without a byte order mark, or UTF-16 from a Windows shell.

    Raises:
        UnicodeDecodeError: it is not valid in the encoding that its first bytes suggest.
    """
    return content.decode(json.detect_encoding(content)).removeprefix("\ufeff")


def read_text(folder: Path, name: str) -> str:
    """Return the text of the JSON file *name* in *folder*.

    Raises:
        UnusableModelError: it cannot be read, or is not text.
    """
    try:
        return decode_text((folder / name).read_bytes())
    except OSError as error:
        raise UnusableModelError(unreadable(f"its file {name!r}", error)) from error
    except UnicodeDecodeError as error:
        raise UnusableModelError(f"its file {name!r} is not text (byte {error.start}): copy it again") from error


def read_object(folder: Path, name: str) -> dict[str, Any]:
    """Return the JSON object in the file *name* in *folder*.

    Raises:
        UnusableModelError: it cannot be read, or contains no JSON object.
    """
    try:
        value = json.loads(read_text(folder, name))
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, json.JSONDecodeError) else "it cannot be parsed"
        raise UnusableModelError(f"its file {name!r} is not valid JSON ({reason}): copy it again") from error
    if not isinstance(value, dict):
        raise UnusableModelError(f"its file {name!r} contains no JSON object: copy it again")
    return value


def read_object_if_any(folder: Path, name: str) -> dict[str, Any] | None:
    """Return the JSON object in the file *name*; None if there is no such file.

    Raises:
        UnusableModelError: as `read_object`.
    """
    return read_object(folder, name) if (folder / name).exists() else None


def check_contents(folder: Path, names: Iterable[str]) -> None:
    """Check the first bytes of each file: a clone or a download often leaves something else in its place.

    Raises:
        UnusableModelError: a file is empty, a git-lfs pointer or a web page, or cannot be read.
    """
    for name in names:
        try:
            with (folder / name).open("rb") as file:
                head = file.read(HEAD_BYTES)
        except OSError as error:
            raise UnusableModelError(unreadable(f"its file {name!r}", error)) from error
        if head.startswith(LFS_POINTER):
            raise UnusableModelError(
                f"its file {name!r} is a git-lfs pointer instead of the file itself; run 'git lfs pull' where it was "
                "cloned, and copy it again"
            )
        if head.lstrip().lower().startswith(WEB_PAGES):
            raise UnusableModelError(
                f"its file {name!r} is a web page, not the file: download it by its link to the raw file"
            )
        if not head:
            raise UnusableModelError(f"its file {name!r} is empty: copy it again")


def unreadable(what: str, error: OSError) -> str:
    """Return that *what* cannot be read, and what to change about its permissions."""
    advice = ": let the service's user read it" if isinstance(error, PermissionError) else ""
    return f"{what} cannot be read ({error.strerror}){advice}"


def why_missing(folder: Path, name: str) -> str:
    """Return that the file *name* is missing, and what the folder suggests to do."""
    if (folder / name).is_dir():
        return f"its file {name!r} is a folder"
    reason = f"its file {name!r} is missing"
    if name == "tokenizer.json":
        slow = [other for other in SLOW_TOKENIZERS if (folder / other).is_file()]
        has = f" (the folder has {slow[0]!r})" if slow else ""
        return f"{reason}{has}: save it with `AutoTokenizer.from_pretrained(...).save_pretrained(...)` of transformers"
    if not name.endswith(".onnx"):
        return reason
    if graphs := sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.onnx")):
        return f"{reason}; the folder has {', '.join(map(repr, graphs[:3]))}: set model_file in model.json"
    if others := [other for other in OTHER_WEIGHTS if (folder / other).is_file()]:
        export = "`optimum-cli export onnx --task feature-extraction`"
        return f"{reason}; the folder has {others[0]!r}, which must be exported to ONNX with {export}"
    return reason
