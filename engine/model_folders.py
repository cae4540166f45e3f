"""Finds the model folders in MODELS_DIR, and folders that were probably meant to be one."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from engine.folder_files import UnusableModelError, check_contents, unreadable, why_missing
from engine.manifest import MANIFEST, Folder

SIMILAR_NAMES = ("model.json.txt", "model.jsonc", "model.json5", "manifest.json")
"""Names under which editors and people save a manifest, in lower case."""


@dataclass(frozen=True, slots=True)
class IgnoredFolder:
    """A folder that is not offered as a model, and the reason.

    Attributes:
        path: of the folder, for comparisons; messages show its name only.
    """

    name: str
    reason: str
    path: Path = field(default=Path(), compare=False)


def find_folders(parent: Path) -> Iterator[Path | IgnoredFolder]:
    """Yield each folder in *parent* with a manifest, and each that probably lacks one. Sorted by name."""
    try:
        paths = sorted(parent.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        yield IgnoredFolder(parent.name, unreadable("it", error), parent)
        return
    if (parent / MANIFEST).is_file():
        yield IgnoredFolder(
            parent.name, f"it has a {MANIFEST}, but MODELS_DIR must be the folder that contains it", parent / MANIFEST
        )
    for path in paths:
        try:
            if not path.is_dir():
                continue
            manifest = path / MANIFEST
            if manifest.is_file() or manifest.is_dir():  # not a pipe, whose reader would wait for ever
                yield path
            elif reason := _why_no_manifest(path):
                yield IgnoredFolder(path.name, reason, path)
        except OSError as error:
            yield IgnoredFolder(path.name, unreadable("it", error), path)


def why_unusable(folder: Folder) -> str | None:
    """Return why the model in *folder* cannot be loaded; None: nothing is known yet. Reads little of each file.

    The graph and the tokenizer are not opened.
    """
    names = folder.loaded_files
    try:
        if missing := [name for name in names if not (folder.path / name).is_file()]:
            return why_missing(folder.path, missing[0])
        pattern = f"{folder.manifest.model_file}*data*"  # weights beside the graph need not be listed
        weights = [path.relative_to(folder.path).as_posix() for path in folder.path.glob(pattern) if path.is_file()]
        check_contents(folder.path, dict.fromkeys([*names, *weights]))
    except UnusableModelError as error:
        return str(error)
    except OSError as error:
        return unreadable("it", error)
    return None


def _why_no_manifest(path: Path) -> str | None:
    """Return what to change if the folder *path* looks like a model without a manifest; None: it does not."""
    if path.name.startswith("."):
        return None
    for other in sorted(path.iterdir()):
        name = other.name
        if other.is_file() and name != MANIFEST and name.lower() in (MANIFEST, *SIMILAR_NAMES):
            return f"it has {name!r}: rename it to {MANIFEST}"
    if deeper := sorted(path.glob(f"*/{MANIFEST}")):
        name = deeper[0].parent.name
        return f"its subfolder {name!r} has a {MANIFEST}: move {name!r} into MODELS_DIR itself"
    if any(path.glob("*.onnx")) or any(path.glob("onnx/*.onnx")):
        return f"it has an ONNX file, but no {MANIFEST}: add one with name, dim, max_tokens, pooling and normalized"
    return None
