"""Measure tokens per second and core, and CPU per 1,000 tokens: numbers to compare with other servers and machines.

Run `python benchmarks/throughput.py` on a machine that does nothing else, about 3 minutes. It needs no network.
`--write` puts the result into docs/BENCHMARKS.md and its three main numbers into README.md.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

if not __package__:  # run as a script: let `benchmarks` be found
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import orjson

from benchmarks.arguments import duration, whole
from benchmarks.formats import Target
from benchmarks.load import RowError
from benchmarks.machine import ROOT, TreeMemory, memory_of_tree, this_machine
from benchmarks.processes import BenchError, Server, end_children_on_sigterm, healthy_server
from benchmarks.samples import COLUMNS, Meter, Sample, cells, facts, number, replace_section
from benchmarks.tables import markdown
from benchmarks.texts import Kind, Stream
from host.cores import usable_cores

SINGLES_PER_CORE = 8
"""Clients with one text per request, for each core. On 2 cores: the 16 clients of bench.py."""
BATCH_TEXTS = 32
KINDS: dict[Kind, str] = {
    "short": "short (4-9 words)",
    "mixed": "mixed (4-300 words, log-normal around 45)",
    "full": "full-length (exactly 256 tokens)",
}
IDLE, BUSY = "one short text at a time, idle service", "the same beside clients with batches of mixed texts"


@dataclass(frozen=True, slots=True)
class Row:
    """A load: the clients of all *streams* at once. Latencies are the first stream's."""

    texts: str
    requests: str
    streams: tuple[Stream, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """All rounds of each row, and the memory after the last one."""

    rows: list[tuple[Row, list[Sample]]]
    memory: TreeMemory
    workers: int


def rows_for(cores: int) -> list[Row]:
    """Return the rows of the table. The number of clients grows with the cores."""
    singles, batches = SINGLES_PER_CORE * cores, max(2, cores)
    rows = []
    for kind, name in KINDS.items():
        rows.append(Row(name, f"1 text, {singles} clients", (Stream(kind, 1, singles),)))
        rows.append(Row(name, f"{BATCH_TEXTS} texts, {batches} clients", (Stream(kind, BATCH_TEXTS, batches),)))
    lone = Stream("short", 1, 1)
    return [
        *rows,
        Row(IDLE, "1 text, 1 client", (lone,)),
        Row(
            BUSY,
            f"1 text, 1 client; {BATCH_TEXTS} texts, {batches} clients",
            (lone, Stream("mixed", BATCH_TEXTS, batches)),
        ),
    ]


def measure(server: Server, rows: Sequence[Row], meter: Meter, rounds: int) -> list[list[Sample]]:
    """Return the samples of each row. Every round has texts of its own, so that a cache of vectors cannot help."""
    found: list[list[Sample]] = [[] for _ in rows]
    for number_of_round in range(1, rounds + 1):
        for row, samples in zip(rows, found, strict=True):
            print(f"round {number_of_round} of {rounds}: {row.texts}, {row.requests}", file=sys.stderr, flush=True)
            seed = f"throughput/{row.texts}/{row.requests}/{number_of_round}"
            samples.append(meter.sample(Target(server.port), server.process.pid, row.streams, seed))
    return found


def section(found: Found, command: str, seconds: float) -> str:
    """Return the section of docs/BENCHMARKS.md."""
    cores = usable_cores()
    lines = [[row.texts, row.requests, *cells(samples, cores)] for row, samples in found.rows]
    everything = [sample for _, samples in found.rows for sample in samples]
    rounds = len(found.rows[0][1])
    generator = max(sample.load_core_share for sample in everything)
    memory = found.memory
    method = (
        f"Median of {rounds} rounds of {seconds:g} s, in brackets the lowest and the highest round. The bundled "
        f"all-MiniLM-L6-v2 in float32; WORKERS={found.workers}, otherwise default settings. The load generator shares "
        f"the cores and takes at most {generator:.0%} of one."
    )
    memory_line = (
        f"Memory after all rows: {memory.pss:.0f} MB Pss, {memory.rss:.0f} MB RSS; {memory.private_dirty:.0f} MB are "
        "private and written to."
    )
    summary = [[f"**{name}**", cell] for name, cell in readme_cells(found).items()]
    parts = [
        markdown(["", f"Measured on {cores} cores"], summary),
        method,
        markdown(["texts", "requests", *COLUMNS], lines),
        memory_line,
        facts(command, everything),
    ]
    return "\n\n".join(parts)


def readme_cells(found: Found) -> dict[str, str]:
    """Return the cells of the README's table by the first words of its lines."""
    by_name = {(row.texts, len(row.streams), row.streams[0].texts_per_request): samples for row, samples in found.rows}
    mixed = by_name[KINDS["mixed"], 1, BATCH_TEXTS]
    idle, busy = by_name[IDLE, 1, 1], by_name[BUSY, 2, 1]
    texts = number(median(one.texts_per_s for one in mixed))
    tokens = number(median(one.tokens_per_s for one in mixed) / usable_cores())
    return {
        "Batches are fast.": f"{tokens} tokens/s per core: {texts} texts/s in batches of {BATCH_TEXTS} mixed texts",
        "Queries stay fast during bulk jobs.": (
            f"{number(median(one.p50_ms for one in busy))} ms median for a query while batches run "
            f"({number(median(one.p50_ms for one in idle))} ms on an idle service)"
        ),
        "Small.": f"{found.memory.pss:.0f} MB of memory (Pss) after the whole benchmark",
    }


def write_readme(readme: Path, new: dict[str, str], cores: int) -> None:
    """Replace the last cell of the lines whose first cell begins with `**NAME**`, and the number of cores above.

    Raises:
        BenchError: such a line is missing.
    """
    text = re.sub(r"(?m)^\| \| Measured on .* \|$", f"| | Measured on {cores} cores |", readme.read_text("utf-8"))
    for name, cell in new.items():
        text, count = re.subn(rf"(?m)^(\| \*\*{re.escape(name)}\*\* .*\| ).*( \|)$", rf"\g<1>{cell}\g<2>", text)
        if count != 1:
            raise BenchError(f"The README has no line of a table that begins with **{name}**.")
    readme.write_text(text, "utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    end_children_on_sigterm()
    rows = rows_for(usable_cores())
    settings = {"WORKERS": str(options.workers)} if options.workers > 1 else {}
    try:
        with healthy_server(settings, lanes=usable_cores()) as server:
            samples = measure(server, rows, Meter(options.seconds, min(1.0, options.seconds / 4)), options.rounds)
            memory = memory_of_tree(server.process.pid)
    except (BenchError, RowError) as error:
        print(f"throughput.py: {error}", file=sys.stderr)
        return 1
    found = Found(list(zip(rows, samples, strict=True)), memory, options.workers)
    command = f"python benchmarks/throughput.py --rounds {options.rounds} --seconds {options.seconds:g}" + (
        f" --workers {options.workers}" if options.workers > 1 else ""
    )
    text = section(found, command, options.seconds)
    print(text)
    if options.json:
        plain = {"machine": asdict(this_machine()), "command": command, "found": found}
        options.json.write_bytes(orjson.dumps(plain, option=orjson.OPT_INDENT_2))
    if options.write:
        replace_section(ROOT / "docs/BENCHMARKS.md", "throughput", text)
        write_readme(ROOT / "README.md", readme_cells(found), usable_cores())
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="throughput.py", description="Measure tokens/s/core and CPU per 1,000 tokens."
    )
    parser.add_argument("--rounds", type=whole(), default=3, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=duration(), default=5.0, help="per row and round (default: %(default)s)")
    parser.add_argument("--workers", type=whole(), default=1, help="WORKERS of the service (default: 1)")
    parser.add_argument("--write", action="store_true", help="write into docs/BENCHMARKS.md and README.md")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every number of every round to FILE")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
