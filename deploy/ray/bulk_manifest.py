"""What a bulk job is, written down beside its output: another run goes on only with the very same job."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from deploy.ray.bulk_inputs import InputError, Unit

MANIFEST, REPORT, LOCK = "_manifest.json", "_report.json", "_lock"
"""Readers of data sets pass over names that begin with an underscore or a dot."""
MAX_DIFFERENCES = 5


@contextmanager
def sole_use(output: Path) -> Iterator[None]:
    """Make the folder, and let one job at a time write to it; the system lets go when the process ends, however.

    Raises:
        InputError: another job writes there, or the folder cannot be written to.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock = (output / LOCK).open("w")
    except OSError as error:
        raise InputError(f"the output folder {output} cannot be written to ({error.strerror})") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another job is writing to {output}; wait for its end, or name another folder") from None
        yield


def begin_or_resume(output: Path, job: Mapping[str, Any]) -> bool:
    """Write the manifest, or see that the one that is there tells of the same *job*.

    Returns:
        Whether a job is resumed.

    Raises:
        InputError: the folder has data of something else, or of this job with another input, model or options.
    """
    path = output / MANIFEST
    if not path.exists():
        if others := sorted(file.name for file in output.iterdir() if not file.name.startswith((".", "_"))):
            raise InputError(f"{output} has files of something else, such as {others[0]}; name an empty folder")
        write_json(path, job)
        return False
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({type(error).__name__}); name another folder") from None
    now = json.loads(json.dumps(job))
    if differences := list(_differences(before, now)):
        told = "; ".join(differences[:MAX_DIFFERENCES])
        raise InputError(
            f"{output} holds another job, and what is there would not fit what would come: {told}. "
            "Ask for the same to go on with it, or name another folder"
        )
    return True


def what_is_left(output: Path, units: list[Unit]) -> tuple[list[Unit], list[Unit]]:
    """The units that are still to be done, and those that are; what a killed run has left unfinished is removed."""
    for unfinished in output.glob(".*.unfinished"):
        unfinished.unlink(missing_ok=True)
    there = {file.name for file in output.glob("part-*.parquet")}
    return (
        [unit for unit in units if unit.output_name not in there],
        [unit for unit in units if unit.output_name in there],
    )


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file that is there whole or not at all, even where the machine loses its power.

    Raises:
        InputError: it cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.{uuid4().hex}.unfinished")
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())  # else the new name may outlive what it is the name of
        unfinished.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror})") from None
    finally:
        unfinished.unlink(missing_ok=True)


def _differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*before, *now]):
            yield from _differences(before.get(key), now.get(key), f"{name} {key}".strip())
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for index, (one, other) in enumerate(zip(before, now, strict=True)):
            yield from _differences(one, other, f"{name}[{index}]")
    elif before != now:
        yield f"{name} was {_shown(before)} and is {_shown(now)}"


def _shown(value: Any) -> str:
    return f"a list of {len(value)}" if isinstance(value, list) else json.dumps(value)
