"""The output folder of a bulk job: its lock, its manifest, and files that appear only when they are complete."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from deploy.ray.bulk_inputs import InputError, Unit

MANIFEST, REPORT, LOCK, SKIPPED = "_manifest.json", "_report.json", "_lock", "_skipped-*.jsonl"
"""Files of the job itself; the last list the skipped rows of each unit.

Data set readers skip names that begin with an underscore or a dot.
"""
UNFINISHED = ".unfinished"
"""Suffix of temporary files."""
MAX_REPORTED_DIFFERENCES = 5
ON_BAD_ROW, ROWS_PER_FILE = "on bad row", "rows per file"
"""Keys of the manifest."""


@contextmanager
def lock_folder(output: Path) -> Iterator[None]:
    """Create the folder and lock it for one job. The operating system releases the lock when the process ends.

    Raises:
        InputError: another job holds the lock, or the folder cannot be written.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock = (output / LOCK).open("w")
    except OSError as error:
        raise InputError(f"the output folder {output} cannot be written ({error.strerror})") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another job is writing to {output}; wait until it ends, or use another folder") from None
        yield


def begin_or_resume(output: Path, manifest: Mapping[str, Any]) -> bool:
    """Write the manifest, or check that the existing one describes the same job.

    Returns:
        Whether a job is resumed. A job that failed because of a bad row may be resumed with bad rows skipped.

    Raises:
        InputError: the folder contains other data, or a job with other inputs, another model or other options.
    """
    path = output / MANIFEST
    if not path.exists():
        if others := sorted(file.name for file in output.iterdir() if not file.name.startswith((".", "_"))):
            raise InputError(f"{output} contains other files, such as {others[0]}; use an empty folder")
        write_json(path, manifest)
        return False
    before = _read_manifest(path)
    now, is_changed = json.loads(json.dumps(manifest)), False
    if (before.get(ON_BAD_ROW), now.get(ON_BAD_ROW)) == ("fail", "skip"):
        before[ON_BAD_ROW] = "skip"  # the finished units had no bad rows
        is_changed = True
    if differences := list(_differences(before, now)):
        raise InputError(
            f"{output} contains the output of a different job: {'; '.join(differences[:MAX_REPORTED_DIFFERENCES])}. "
            "Use the same options to resume that job, or another folder"
        )
    if is_changed:
        write_json(path, now)
    return True


def unit_rows_of(output: Path) -> int | None:
    """Return the rows per unit of the job in *output*; None if there is none.

    Raises:
        InputError: its manifest cannot be read.
    """
    path = output / MANIFEST
    found = _read_manifest(path).get(ROWS_PER_FILE) if path.exists() else None
    return found if isinstance(found, int) and found > 0 else None


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(manifest, dict):
            return manifest
        reason = type(manifest).__name__
    except (OSError, ValueError) as error:
        reason = type(error).__name__
    raise InputError(f"{path} cannot be read ({reason}); use another folder")


def write_skipped(output: Path, unit: Unit, skipped: Sequence[tuple[int, str]]) -> None:
    """List the skipped rows of *unit*, each a line (or row) number with the reason, unless there are none.

    Raises:
        InputError: the file cannot be written.
    """
    if skipped:
        kind = "row" if unit.format == "parquet" else "line"
        lines = [{"file": unit.path, kind: number, "reason": reason} for number, reason in skipped]
        with atomic_file(output / SKIPPED.replace("*", f"{unit.number:06d}")) as file:
            file.writelines(f"{json.dumps(line)}\n".encode() for line in lines)


def split_finished(output: Path, units: list[Unit]) -> tuple[list[Unit], list[Unit]]:
    """Return the remaining and the finished units; delete temporary files of a killed run."""
    for unfinished in output.glob(f".*{UNFINISHED}"):
        unfinished.unlink(missing_ok=True)
    existing = {file.name for file in output.glob("part-*.parquet")}
    return (
        [unit for unit in units if unit.output_name not in existing],
        [unit for unit in units if unit.output_name in existing],
    )


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that becomes *path* when the block ends without an error.

    Readers never see an incomplete file, even after a power failure.

    Raises:
        InputError: the file cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.{uuid4().hex}{UNFINISHED}")
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # otherwise the new name can reach the disk before the content
        unfinished.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror})") from None
    finally:
        unfinished.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write *content* atomically.

    Raises:
        InputError: the file cannot be written.
    """
    with atomic_file(path) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())


def _differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*before, *now]):
            yield from _differences(before.get(key), now.get(key), f"{name} {key}".strip())
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for index, (one, other) in enumerate(zip(before, now, strict=True)):
            yield from _differences(one, other, f"{name}[{index}]")
    elif before != now:
        yield f"{name} was {_summary(before)} and is {_summary(now)}"


def _summary(value: Any) -> str:
    return f"a list of {len(value)}" if isinstance(value, list) else json.dumps(value)
