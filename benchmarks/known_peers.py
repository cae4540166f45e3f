"""Start and measure the other servers of docs/BENCHMARKS.md, one after the other, each alternately with this service.

`python benchmarks/known_peers.py FOLDER` measures those of `peers.toml` that `install_peers.sh FOLDER` has installed:
about 90 s for each with the default options. `--write` puts the result into docs/BENCHMARKS.md. The logs of the servers
are in FOLDER.
"""

import argparse
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

if not __package__:  # run as a script: let `benchmarks` be found
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import orjson

from benchmarks.arguments import duration, whole
from benchmarks.load import RowError
from benchmarks.machine import ROOT
from benchmarks.peer_sides import DirectSide, HttpSide, Side, log, started, target_of, this_service, wait_for_vectors
from benchmarks.peers import DEFAULT_ROWS, Comparison, Row, compare, read_rows, rows_for, table
from benchmarks.processes import BenchError, child, end_children_on_sigterm, free_port
from benchmarks.samples import Meter, facts, replace_section
from benchmarks.tables import markdown
from benchmarks.tokens import MODEL_FOLDER
from benchmarks.workloads import MODEL
from host.cores import usable_cores

VERSIONS = "import importlib.metadata as m, sys; print(', '.join(f'{n} {m.version(n)}' for n in sys.argv[1:]))"
PREPARE_TIMEOUT_S = 120
PAUSE_S = 1.0


@dataclass(frozen=True, slots=True)
class Peer:
    """One entry of peers.toml."""

    name: str
    url: str
    details: str
    dialect: str = "openai"
    model: str = MODEL
    python: str = ""
    needs: str = ""
    cwd: str = "."
    command: Sequence[str] = ()
    prepare: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    packages: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Skipped:
    """A peer that was not measured, and why."""

    name: str
    reason: str


def read_peers(folder: Path, port: int, cores: int) -> list[Peer]:
    """Read peers.toml and fill in what is in braces."""
    values = {
        "folder": folder,
        "port": port,
        "cores": cores,
        "benchmarks": Path(__file__).parent,
        "model": MODEL_FOLDER,
    }

    def fill(value: Any) -> Any:
        if isinstance(value, str):
            return value.format(**values)
        if isinstance(value, list):
            return [fill(one) for one in value]
        return {name: fill(one) for name, one in value.items()}

    entries = tomllib.loads(Path(__file__).with_name("peers.toml").read_text("utf-8"))["peer"]
    return [Peer(**fill(entry)) for entry in entries]


@contextmanager
def running(peer: Peer, folder: Path) -> Iterator[Side]:
    """Start a peer and wait until it embeds a text.

    Raises:
        BenchError: it did not start.
    """
    if peer.url == "fastembed":
        with child("baseline", MODEL_FOLDER) as process:
            yield DirectSide(peer.name, process)
        return
    environment = {"HF_HUB_OFFLINE": "1", **peer.env}
    log_file = folder / f"{_file_name(peer.name)}.server.log"
    with started(peer.command, environment, peer.url, log_file, cwd=peer.cwd) as pid:
        if peer.prepare:
            done = subprocess.run(
                peer.prepare,
                env={**os.environ, **environment},
                capture_output=True,
                text=True,
                check=False,
                timeout=PREPARE_TIMEOUT_S,
            )
            if done.returncode:
                raise BenchError(f"`{peer.prepare[1]}` failed: {done.stderr.strip()[-150:]}")
        side = HttpSide(peer.name, target_of(peer.url, peer.dialect, peer.model), pid)
        wait_for_vectors(side, lambda: Path(f"/proc/{pid}").exists())
        yield side


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower())


def details_of(peer: Peer) -> str:
    """Return how the peer runs, and the versions of its packages."""
    if not (peer.packages and peer.python):
        return peer.details
    command = [peer.python, "-c", VERSIONS, *peer.packages]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PREPARE_TIMEOUT_S)
    return f"{peer.details}; {found.stdout.strip() or 'versions unknown'}"


def measure(
    peers: Sequence[Peer], folder: Path, rows: dict[str, Row], meter: Meter, rounds: int
) -> tuple[list[Comparison], list[Skipped]]:
    """Measure one peer after the other. A peer that fails is skipped, with its reason."""
    found, skipped = [], []
    for peer in peers:
        missing = next((path for path in (peer.python, peer.needs) if path and not Path(path).exists()), None)
        if missing:
            skipped.append(Skipped(peer.name, "not installed"))
            continue
        try:
            with this_service(peer.dialect, usable_cores()) as ours, running(peer, folder) as side:
                found.append(compare(ours, side, rows, meter, rounds=rounds, details=details_of(peer)))
        except (BenchError, RowError) as error:
            log(f"{peer.name}: {error}")
            skipped.append(Skipped(peer.name, str(error).splitlines()[0][:200]))
        time.sleep(PAUSE_S)  # the port of an ended server, and its memory, become free
    return found, skipped


def section(found: Sequence[Comparison], skipped: Sequence[Skipped], rows: dict[str, Row], command: str) -> str:
    """Return the section of docs/BENCHMARKS.md: one line per peer, then a table of each."""
    samples = [one for comparison in found for pairs in comparison.pairs.values() for one, _ in pairs]
    lines = []
    for comparison in found:
        cells = [_ratio(comparison, name) for name in rows]
        ours, theirs = comparison.memory_mb
        lines.append([comparison.name, *cells, f"{ours:.0f} / {theirs:.0f}", f"{comparison.cosine:.6f}"])
    head = ["peer", *(row.name for row in rows.values()), "memory, MB Pss: ours / theirs", "least cosine"]
    explanation = (
        "Texts/s of this service, as a multiple of the peer's: medians of the ratios within a round. Above 1, this "
        "service is faster."
    )
    details = [table(comparison, rows, usable_cores()) for comparison in found]
    parts = [facts(command, samples), explanation, markdown(head, lines), *details]
    if skipped:
        parts.append("Not measured here: " + "; ".join(f"{one.name} ({one.reason})" for one in skipped) + ".")
    return "\n\n".join(parts)


def _ratio(comparison: Comparison, name: str) -> str:
    if name in comparison.failed:
        return "failed"
    return f"{median(a.texts_per_s / b.texts_per_s for a, b in comparison.pairs[name]):.2f} x"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    end_children_on_sigterm()
    cores = usable_cores()
    peers = read_peers(options.folder.resolve(), free_port(), cores)
    if options.only:
        peers = [peer for peer in peers if any(word in peer.name.lower() for word in options.only)]
    rows = {name: row for name, row in rows_for(cores).items() if name in options.rows}
    meter = Meter(options.seconds, options.seconds / 5)
    try:
        found, skipped = measure(peers, options.folder, rows, meter, options.rounds)
    except KeyboardInterrupt:
        return 130
    if not found:
        print(f"known_peers.py: no peer could be measured: {skipped}", file=sys.stderr)
        return 1
    command = f"python benchmarks/known_peers.py FOLDER --rounds {options.rounds} --seconds {options.seconds:g}"
    text = section(found, skipped, rows, command)
    print(text)
    if options.json:
        options.json.write_bytes(orjson.dumps({"found": found, "skipped": skipped}, option=orjson.OPT_INDENT_2))
    if options.write:
        replace_section(ROOT / "docs/BENCHMARKS.md", "peers", text)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="known_peers.py", description="Measure the other servers of the page.")
    parser.add_argument("folder", type=_folder, help="where install_peers.sh has put them")
    parser.add_argument("--only", type=lambda text: text.lower().split(","), help="words of names, like infinity,llama")
    parser.add_argument("--rows", type=read_rows, default=DEFAULT_ROWS, help=f"of {', '.join(rows_for(1))}")
    parser.add_argument("--rounds", type=whole(), default=3, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=duration(), default=3.0, help="per row and round (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="write into docs/BENCHMARKS.md")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every number of every round to FILE")
    return parser.parse_args(arguments)


def _folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {text}")
    return Path(text)


if __name__ == "__main__":
    sys.exit(main())
