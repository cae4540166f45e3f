"""The output folder of a bulk job: its lock, its manifest, and files that appear only when they are complete."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from deploy.ray.bulk_inputs import InputError, Unit

MANIFEST, REPORT, LOCK = "_manifest.json", "_report.json", "_lock"
"""Files of the job itself. Data set readers skip names that begin with an underscore or a dot."""
UNFINISHED = ".unfinished"
"""Suffix of temporary files."""
MAX_REPORTED_DIFFERENCES = 5


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
        Whether a job is resumed.

    Raises:
        InputError: the folder contains other data, or a job with other inputs, another model or other options.
    """
    path = output / MANIFEST
    if not path.exists():
        if others := sorted(file.name for file in output.iterdir() if not file.name.startswith((".", "_"))):
            raise InputError(f"{output} contains other files, such as {others[0]}; use an empty folder")
        write_json(path, manifest)
        return False
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({type(error).__name__}); use another folder") from None
    now = json.loads(json.dumps(manifest))
    if differences := list(_differences(before, now)):
        raise InputError(
            f"{output} contains the output of a different job: {'; '.join(differences[:MAX_REPORTED_DIFFERENCES])}. "
            "Use the same options to resume that job, or another folder"
        )
    return True


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
