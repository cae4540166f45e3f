"""Writes an optimised copy of a model: `python -m engine.optimised_writer SOURCE FOLDER IDS`, a process of its own.

The process needs twice the memory of the weights, and runs code of ONNX Runtime on graphs that it may never have seen.
Neither its memory nor its end concerns the service, whose secrets it does not get. It ends with the service.
"""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from engine.file_hashes import SHA256_DIGITS, hash_same_kind
from engine.graph_check import explain
from engine.model_inputs import INPUT_TYPES
from engine.onnx_sessions import COPY_GRAPH, COPY_WEIGHTS, open_session, write_copy

MAX_WRITE_S = 1800.0
"""How long the process may take: more than a model of ten gigabytes needs on a slow disk."""
NICENESS = 10
"""Priority of the process: requests come first."""
INHERITED = re.compile("PATH|HOME|TMPDIR|TZ|LANG|LC_.*|LD_.*|DYLD_.*|PYTHON.*|MALLOC_.*|GLIBC_.*|OMP_.*|ORT_.*")
"""Environment variables that the process gets: what Python and libraries need, and no settings of the service."""
OOM_SCORE = Path("/proc/self/oom_score_adj")
FIRST_TO_END = "1000"
"""If memory runs out, the kernel ends the process, not the service."""
ROOT = Path(__file__).parents[1]
PRIVATE = 0o077
"""The permissions that the files of a copy do not have: all of other users."""

Hash = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class CopiedFile(msgspec.Struct, frozen=True):
    """Size and hash of one file of a copy."""

    size_bytes: int
    sha256: Hash


class CopyFailedError(Exception):
    """A copy could not be written. The message says why, without a capital letter and a full stop."""


def run_writer(
    source: Path, *, ids: Sequence[Sequence[int]], folder: Path, started: Callable[[subprocess.Popen[bytes]], None]
) -> dict[str, CopiedFile]:
    """Write an optimised copy of the ONNX file *source* into *folder*, in another process. Blocks.

    The process has compared the outputs of the copy with those of the model, and all is on the disk.

    Args:
        source: the model's ONNX file.
        ids: tokens of some texts.
        folder: exists and is empty.
        started: called with the process, so that it can be ended.

    Raises:
        CopyFailedError: it could not be written.
    """
    command = [
        sys.executable,
        "-m",
        "engine.optimised_writer",
        str(source.absolute()),
        str(folder.absolute()),
        json.dumps(ids),
    ]
    with _process(command) as process:
        started(process)
        try:
            output, errors = process.communicate(timeout=MAX_WRITE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise CopyFailedError("it took too long") from None
    if process.returncode:
        last = errors.decode(errors="replace").strip().rpartition("\n")[2] if process.returncode > 0 else ""
        ended = f"the process that writes it ended with code {process.returncode}"
        raise CopyFailedError(explain(RuntimeError(last)) if last else ended)
    try:
        return msgspec.json.decode(output, type=dict[str, CopiedFile])
    except msgspec.MsgspecError as error:
        raise CopyFailedError("the process that writes it has not said what it has written") from error


@contextmanager
def _process(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Start the process. Its input is a pipe that ends with this process, or with the block."""
    with ExitStack() as stack:
        try:
            ends = os.pipe()
            for end in ends:
                stack.callback(os.close, end)
            process = subprocess.Popen(  # noqa: S603 - our own code; the paths are those of the model and of the copy
                command,
                cwd=ROOT,
                env={name: value for name, value in os.environ.items() if INHERITED.fullmatch(name)},
                stdin=ends[0],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                process_group=0,  # Ctrl-C is for the service, which ends the process
            )
        except OSError as error:
            raise CopyFailedError(f"no process could be started ({error.strerror})") from error
        yield process


def main(source: Path, folder: Path, ids: Sequence[Sequence[int]]) -> None:
    """Write the copy and print sizes and hashes of its files.

    Raises:
        SystemExit: the copy cannot be used; the message says why.
        Exception: ONNX Runtime or the disk failed.
    """
    os.nice(NICENESS)
    os.umask(PRIVATE)
    with suppress(OSError):  # only Linux has it
        OOM_SCORE.write_text(FIRST_TO_END)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    written = write_copy(source, folder)
    for path in (folder / COPY_GRAPH, folder / COPY_WEIGHTS):
        if not path.is_file():
            raise SystemExit("its graph has no weights that could be mapped")
        with path.open("rb") as file:
            os.fsync(file.fileno())  # raises if the disk is full
    copied = {path.name: CopiedFile(path.stat().st_size, _sha256(path)) for path in sorted(folder.iterdir())}
    copy = open_session(folder / COPY_GRAPH, threads=1, is_copy=True)
    for row in ids:
        inputs = _inputs(written, row)
        pairs = zip(written.run(None, inputs), copy.run(None, inputs), strict=True)
        if not all(np.array_equal(one, other, equal_nan=True) for one, other in pairs):
            raise SystemExit("its outputs differ from those of the model")
    sys.stdout.buffer.write(msgspec.json.encode(copied))


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # returns when the other end of the pipe is closed
    os._exit(1)


def _sha256(path: Path) -> str:
    return hash_same_kind("0" * SHA256_DIGITS, path) or ""


def _inputs(session: Any, ids: Sequence[int]) -> dict[str, Any]:
    """Return inputs for one text. A graph that takes others was not loaded in the first place."""
    count = len(ids)
    known = {"input_ids": np.asarray(ids), "attention_mask": np.ones(count), "position_ids": np.arange(count)}
    fed = {}
    for entry in session.get_inputs():
        kind = INPUT_TYPES[entry.type.removeprefix("tensor(").removesuffix(")")]
        values = known.get(entry.name, np.zeros(count)).astype(kind)
        fed[entry.name] = values[None] if entry.shape else np.zeros((), kind)
    return fed


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
    except Exception as failure:  # noqa: BLE001 - the process that has started this one logs the last line
        sys.exit(" ".join(f"{type(failure).__name__}: {failure}".split()))
