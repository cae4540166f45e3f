"""Compare another embedding server with this service: the same texts, the same cores, alternately.

    python benchmarks/peers.py http://127.0.0.1:7997/v1 --dialect openai --model NAME --pid PID

measures a server that runs already. `--start` starts the server itself, and `fastembed` instead of a base URL measures
FastEmbed called directly. `known_peers.py` starts and measures all servers of docs/BENCHMARKS.md.

The vectors are compared first. Both servers run on the cores of this process; the one that is not measured is idle.
No text is longer than the bundled model's limit, because servers differ in what they do with longer ones.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from math import isnan
from pathlib import Path
from statistics import median

if not __package__:  # run as a script: let `benchmarks` be found
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import orjson
from numpy.typing import NDArray

from benchmarks.arguments import duration, whole
from benchmarks.formats import FORMATS
from benchmarks.load import RowError
from benchmarks.peer_sides import DirectSide, HttpSide, Side, log, started, target_of, this_service, wait_for_vectors
from benchmarks.processes import BenchError, child, end_children_on_sigterm
from benchmarks.samples import COLUMNS, Meter, Sample, cells, facts, number
from benchmarks.tables import markdown
from benchmarks.texts import Stream, distinct_texts
from benchmarks.tokens import MODEL_FOLDER
from benchmarks.workloads import MODEL
from host.cores import usable_cores

DIRECT = "fastembed"
CHECKED_TEXTS = 8
MIN_COSINE = 0.99
"""Below this, the servers do not run the same model. 8-bit weights reach about 0.99, float16 0.99999."""


@dataclass(frozen=True, slots=True)
class Row:
    """A load. Latencies are of whole requests."""

    name: str
    stream: Stream


def rows_for(cores: int) -> dict[str, Row]:
    """Return the rows by the names that `--rows` takes."""
    singles, batches = 8 * cores, max(2, cores)
    return {
        "single-short": Row(f"1 short text, {singles} clients", Stream("short", 1, singles)),
        "single-mixed": Row(f"1 mixed text, {singles} clients", Stream("cut", 1, singles)),
        "batch-short": Row(f"32 short texts, {batches} clients", Stream("short", 32, batches)),
        "batch-mixed": Row(f"32 mixed texts, {batches} clients", Stream("cut", 32, batches)),
        "batch-full": Row(f"32 texts of 256 tokens, {batches} clients", Stream("full", 32, batches)),
    }


DEFAULT_ROWS = ("single-short", "batch-short", "batch-mixed", "batch-full")


def least_cosine(ours: Side, peer: Side) -> float:
    """Embed texts of every kind with both, alone and in one batch, and return the least cosine of two vectors.

    Raises:
        BenchError: vectors are missing or of another length.
    """
    texts = [text for kind in ("short", "cut", "full") for text in islice(distinct_texts(kind, "check"), CHECKED_TEXTS)]
    expected, batch = ours.vectors(texts), peer.vectors(texts)
    alone = np.concatenate([peer.vectors([text]) for text in texts])
    if not expected.shape == batch.shape == alone.shape:
        raise BenchError(f"{peer.name} returns vectors of shape {batch.shape}, this service {expected.shape}.")
    return float(min(np.min(_cosines(expected, found)) for found in (batch, alone)))


def _cosines(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    cosines: NDArray[np.float64] = np.sum(a * b, axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return cosines


@dataclass(slots=True)
class Comparison:
    """What was measured of one peer: pairs of this service's and the peer's samples, by row."""

    name: str
    details: str
    cosine: float
    pairs: dict[str, list[tuple[Sample, Sample]]]
    memory_mb: tuple[float, float] = (float("nan"), float("nan"))
    failed: dict[str, str] = field(default_factory=dict)


def compare(
    ours: Side, peer: Side, rows: Mapping[str, Row], meter: Meter, *, rounds: int, details: str = ""
) -> Comparison:
    """Measure both alternately; every other round begins with the peer.

    Raises:
        BenchError: the vectors differ.
    """
    cosine = least_cosine(ours, peer)
    if not cosine >= MIN_COSINE:
        raise BenchError(
            f"{peer.name} returns other vectors: least cosine {cosine:.4f}, at least {MIN_COSINE} expected."
        )
    found = Comparison(peer.name, details, cosine, {name: [] for name in rows})
    for number_of_round in range(rounds):
        for name, row in rows.items():
            if name in found.failed:
                continue
            log(f"{peer.name}: round {number_of_round + 1} of {rounds}, {row.name}")
            seed = f"peers/{name}/{number_of_round}"
            order = (ours, peer) if number_of_round % 2 == 0 else (peer, ours)
            try:
                samples = {side.name: side.sample(meter, row.stream, seed) for side in order}
            except RowError as error:
                found.failed[name] = str(error)
                continue
            found.pairs[name].append((samples[ours.name], samples[peer.name]))
    found.memory_mb = ours.memory_mb(), peer.memory_mb()
    return found


def table(found: Comparison, rows: Mapping[str, Row], cores: int) -> str:
    """Return a table of both, and the ratios of this service to the peer, each taken within a round."""
    lines = []
    for name, pairs in found.pairs.items():
        if name in found.failed:
            lines.append([rows[name].name, found.name, f"failed: {found.failed[name][:120]}", "", "", "", "", ""])
            continue
        ours, theirs = zip(*pairs, strict=True)
        ratios = [a.texts_per_s / b.texts_per_s if b.texts_per_s else float("inf") for a, b in pairs]
        lines.append([rows[name].name, "this service", *cells(ours, cores), f"{median(ratios):.2f} x"])
        lines.append(["", found.name, *cells(theirs, cores), ""])
    mine, other = found.memory_mb
    memory = "not measured" if isnan(other) else f"this service {number(mine)} MB, {found.name} {number(other)} MB"
    heading = f"**{found.name}**{': ' + found.details if found.details else ''}."
    note = f"{heading} Least cosine of the vectors {found.cosine:.6f}. Memory (Pss) at the end: {memory}."
    return note + "\n\n" + markdown(["requests", "server", *COLUMNS, "texts/s, ours to theirs"], lines)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    end_children_on_sigterm()
    cores = usable_cores()
    rows = {name: row for name, row in rows_for(cores).items() if name in options.rows}
    try:
        with ExitStack() as stack:
            ours = stack.enter_context(this_service("native" if options.base_url == DIRECT else options.dialect, cores))
            peer = stack.enter_context(_peer(options))
            found = compare(ours, peer, rows, Meter(options.seconds, options.seconds / 5), rounds=options.rounds)
    except (BenchError, RowError) as error:
        print(f"peers.py: {error}", file=sys.stderr)
        return 1
    samples = [one for pairs in found.pairs.values() for one, _ in pairs]
    print(facts("python benchmarks/peers.py", samples), table(found, rows, cores), sep="\n\n")
    if options.json:
        options.json.write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2))
    return 0


@contextmanager
def _peer(options: argparse.Namespace) -> Iterator[Side]:
    if options.base_url == DIRECT:
        with child("baseline", MODEL_FOLDER) as process:
            yield DirectSide(options.name or "FastEmbed, called directly", process)
        return
    target = target_of(options.base_url, options.dialect, options.model)
    name = options.name or options.base_url
    if not options.start:
        _warn_about_cores(options.pid)
        yield HttpSide(name, target, options.pid)
        return
    with started(shlex.split(options.start), {}, options.base_url, Path("peer.log")) as pid:
        side = HttpSide(name, target, pid)
        wait_for_vectors(side, lambda: Path(f"/proc/{pid}").exists())
        yield side


def _warn_about_cores(pid: int | None) -> None:
    if pid is None:
        log("Without --pid, the CPU and the memory of the peer are not measured.")
    elif os.sched_getaffinity(pid) != os.sched_getaffinity(0):
        log(f"Process {pid} runs on other cores than this service: start both with the same `taskset`.")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="peers.py", description="Compare another embedding server with this service.")
    parser.add_argument("base_url", help="such as http://127.0.0.1:7997/v1; or `fastembed`")
    parser.add_argument("--dialect", choices=FORMATS, default="openai", help="(default: %(default)s)")
    parser.add_argument("--model", default=MODEL, help="the peer's name of the model (default: %(default)s)")
    parser.add_argument("--name", help="the peer's name in the table (default: its URL)")
    parser.add_argument("--pid", type=_pid, help="the peer's process here; its children count, too")
    parser.add_argument("--start", metavar="COMMAND", help="start the peer with this command; its output: peer.log")
    parser.add_argument("--rows", type=read_rows, default=DEFAULT_ROWS, help=f"of {', '.join(rows_for(1))}")
    parser.add_argument("--rounds", type=whole(), default=3, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=duration(), default=3.0, help="per row and round (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every number of every round to FILE")
    return parser.parse_args(arguments)


def _pid(text: str) -> int:
    if not Path(f"/proc/{int(text)}").exists():
        raise argparse.ArgumentTypeError(f"there is no process {text}")
    return int(text)


def read_rows(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := [name for name in names if name not in rows_for(1)]:
        raise argparse.ArgumentTypeError(f"{unknown[0]} is not one of {', '.join(rows_for(1))}")
    return names


if __name__ == "__main__":
    sys.exit(main())
