"""Measure how throughput grows with lanes and workers, on the cores that this machine has.

Run `python benchmarks/scale.py` on a machine that does nothing else. It measures each combination of WORKERS and lanes
per worker that fits into the usable cores, prints a table and writes scale.json. `--tiny` takes a model that costs next
to nothing; with `--pretend-cores N`, each worker gets a small share of a core, to show how far N workers would scale.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

if not __package__:  # run as a script: let `benchmarks` be found
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import orjson

from benchmarks.arguments import duration, whole
from benchmarks.load import Job, RowError, run_load, texts_done
from benchmarks.machine import ROOT, cpu_s_of_tree, describe_run, memory_of_tree, this_machine, tree_of
from benchmarks.pretended_cores import limited, share_of_a_core, write_pretence
from benchmarks.processes import BenchError, Server, end_children_on_sigterm, healthy_server
from benchmarks.samples import number, replace_section
from benchmarks.tables import markdown, percentile
from benchmarks.texts import Stream
from benchmarks.tiny_model import NAME as TINY
from benchmarks.tiny_model import write_tiny_model
from benchmarks.workloads import MODEL
from benchmarks.wrk import is_installed, run_wrk
from host.cores import usable_cores

START_S = 4.0
"""How long a start and the end of a server take, for the estimate of the whole duration."""


@dataclass(frozen=True, slots=True)
class Row:
    """A load, by the load generator of all benchmarks (*stream*) or by wrk (*path*, with a *body* if it is a POST)."""

    title: str
    stream: Stream | None = None
    path: str = ""
    body: str | None = None


@dataclass(frozen=True, slots=True)
class Combination:
    """How the service runs: *workers* processes with *lanes* lanes each."""

    workers: int
    lanes: int


@dataclass(frozen=True, slots=True)
class Measured:
    """One row on one combination. *shares*: CPU of each worker, as a share of all workers' CPU, least first."""

    per_s: float
    cpu_ms: float
    p50_ms: float
    p99_ms: float
    shares: list[float]


@dataclass(slots=True)
class Result:
    """All rounds of a combination, by row; and the service's memory at the end."""

    combination: Combination
    rounds: dict[str, list[Measured]]
    failed: dict[str, str]
    pss_mb: float = float("nan")


def rows_for(cores: int, *, is_tiny: bool) -> dict[str, Row]:
    """Return all rows by name. The number of clients grows with the cores."""
    tokenize = '{"texts": ["%s"]}'
    by_wrk = {
        "tokenize": Row("`/tokenize`, requests/s", path="/tokenize", body=tokenize),
        "health": Row("`/health`, requests/s", path="/health"),
    }
    if is_tiny:
        return {"single": Row("single texts, requests/s", path="/embed", body='{"text": "%s"}'), **by_wrk}
    return {
        "single-short": Row("single short, texts/s", Stream("short", 1, 8 * cores)),
        "batch-short": Row("batches of 32 short, texts/s", Stream("short", 32, max(2, cores))),
        "single-mixed": Row("single mixed, texts/s", Stream("mixed", 1, 8 * cores)),
        **by_wrk,
    }


def combinations(cores: int, *, lanes_too: bool = True) -> list[Combination]:
    """Return the combinations of powers of two, and of all cores, with workers x lanes <= cores."""
    steps = sorted({*(2**n for n in range(cores.bit_length()) if 2**n <= cores), cores})
    return [
        Combination(workers, lanes)
        for workers in steps
        for lanes in (steps if lanes_too else [1])
        if workers * lanes <= cores
    ]


class Bench:
    """Measures combinations one after the other."""

    def __init__(self, options: argparse.Namespace, rows: dict[str, Row], cores: int, folder: Path) -> None:
        self._options = options
        self._rows = rows
        self._cores = cores
        self._settings: dict[str, str] = {}
        if options.tiny:
            (folder / "models").mkdir()
            write_tiny_model(folder / "models")
            self._settings = {"MODELS_DIR": str(folder / "models"), "REQUIRED_MODELS": TINY}
        if options.pretend_cores:
            self._settings |= write_pretence(folder, options.pretend_cores)

    def measure(self, combination: Combination) -> Result:
        workers, lanes = combination.workers, combination.lanes
        result = Result(combination, {name: [] for name in self._rows}, {})
        settings = {**self._settings, "WORKERS": str(workers)}
        with healthy_server(settings, lanes=workers * lanes, log_level="WARNING") as server:
            server.wait_for(lambda: server.get("/health/ready").status == 200)
            pids = worker_pids(server, workers)
            share = share_of_a_core(self._cores) if self._options.pretend_cores else None
            with limited(pids, share) if share else nullcontext():
                for _ in range(self._options.rounds):
                    self._round(server, pids, result)
            result.pss_mb = memory_of_tree(server.process.pid).pss
        return result

    def _round(self, server: Server, pids: list[int], result: Result) -> None:
        for name, row in self._rows.items():
            if name in result.failed:
                continue
            log(f"{result.combination.workers} workers, {result.combination.lanes} lanes each: {row.title}")
            seed = f"{name} {len(result.rounds[name])}"
            try:
                result.rounds[name].append(self._row(server, pids, row, seed))
            except RowError as error:
                server.raise_if_ended()
                result.failed[name] = str(error)

    def _row(self, server: Server, pids: list[int], row: Row, seed: str) -> Measured:
        if row.stream:
            return self._generated(server, pids, row.stream, seed)
        seconds, connections = self._options.seconds, max(16, 8 * self._cores)
        url = f"http://127.0.0.1:{server.port}{row.path}"
        run_wrk(url, body=row.body, connections=connections, seconds=1, seed=f"warm {seed}")
        all_s, before = cpu_s_of_tree(server.process.pid), [cpu_s_of_tree(pid) for pid in pids]
        found = run_wrk(url, body=row.body, connections=connections, seconds=seconds, seed=seed)
        all_s = cpu_s_of_tree(server.process.pid) - all_s
        requests = found.requests_per_s * max(1, round(seconds))
        return Measured(found.requests_per_s, all_s * 1e3 / requests, found.p50_ms, found.p99_ms, _shares(pids, before))

    def _generated(self, server: Server, pids: list[int], stream: Stream, seed: str) -> Measured:
        """Divide the clients of *stream* among several load generators: one in Python sends about 3,000 texts/s."""
        generators = min(max(1, self._cores // 4), stream.clients)
        streams = [
            Stream(stream.kind, stream.texts_per_request, (stream.clients + n) // generators) for n in range(generators)
        ]
        jobs = [
            Job(server.port, server.process.pid, [one], f"scale/{seed}/{n}", 1.0, self._options.seconds)
            for n, one in enumerate(streams)
        ]
        before = [cpu_s_of_tree(pid) for pid in pids]
        with ThreadPoolExecutor(generators) as threads:
            reports = list(threads.map(run_load, jobs))
        pairs = list(zip(reports, streams, strict=True))
        per_s = sum(texts_done(report, [one]) / report.window_s for report, one in pairs)
        latencies = [ms for report in reports for ms in report.streams[0].latencies_ms] or [float("nan")]
        cpu_ms = median(report.server_cpu_s / report.window_s for report in reports) * 1e3 / per_s
        p50_ms, p99_ms = percentile(latencies, 0.5), percentile(latencies, 0.99)
        return Measured(per_s, cpu_ms, p50_ms, p99_ms, _shares(pids, before))


def worker_pids(server: Server, workers: int) -> list[int]:
    """Return the processes that serve: the server's children, or itself.

    Raises:
        BenchError: there are fewer than *workers*.
    """
    if workers == 1:
        return [server.process.pid]
    pids = [pid for pid in tree_of(server.process.pid)[1:] if b"main.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    if len(pids) != workers:
        raise BenchError(f"WORKERS={workers}, but {len(pids)} worker processes run.")
    return pids


def _shares(pids: Sequence[int], before: Sequence[float]) -> list[float]:
    used = [cpu_s_of_tree(pid) - then for pid, then in zip(pids, before, strict=True)]
    return sorted(one / sum(used) for one in used) if sum(used) else []


def tables(results: Sequence[Result], rows: dict[str, Row]) -> str:
    """Return three tables: throughput, CPU per text or request, and how evenly the workers are used."""
    head = ["workers", "lanes each", *(row.title for row in rows.values())]
    first = results[0]
    lines = [[*_names(one), *(_rate(one, first, name) for name in rows), f"{one.pss_mb:.0f}"] for one in results]
    costs = [[*_names(one), *(_cell(one, name, "cpu_ms") for name in rows)] for one in results]
    even = [[*_names(one), *(_evenness(one, name) for name in rows)] for one in results if one.combination.workers > 1]
    parts = [
        "In brackets: as a multiple of the first line.",
        markdown([*head, "Pss MB"], lines),
        "CPU of all processes of the service, ms per text or request:",
        markdown(head, costs),
    ]
    if even:
        parts += ["CPU of the least and the most used worker, as a multiple of an equal share:", markdown(head, even)]
    return "\n\n".join(parts)


def _names(result: Result) -> list[str]:
    return [str(result.combination.workers), str(result.combination.lanes)]


def _rate(result: Result, first: Result, name: str) -> str:
    if name in result.failed or not first.rounds[name]:
        return _cell(result, name, "per_s")
    base = median(one.per_s for one in first.rounds[name])
    return f"{_cell(result, name, 'per_s')} ({median(one.per_s for one in result.rounds[name]) / base:.2f} x)"


def _cell(result: Result, name: str, field: str) -> str:
    if name in result.failed or not result.rounds[name]:
        return f"failed: {result.failed.get(name, 'not measured')[:80]}"
    return number(median(getattr(one, field) for one in result.rounds[name]))


def _evenness(result: Result, name: str) -> str:
    shares = [one.shares for one in result.rounds[name] if one.shares]
    if not shares:
        return ""
    workers = result.combination.workers
    least, most = (median(one[place] for one in shares) * workers for place in (0, -1))
    return f"{least:.2f} to {most:.2f}"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    end_children_on_sigterm()
    cores = options.pretend_cores or usable_cores()
    rows = {name: row for name, row in rows_for(cores, is_tiny=options.tiny).items() if _is_chosen(name, row, options)}
    chosen = combinations(cores, lanes_too=not options.tiny)
    if options.max_workers:
        chosen = [one for one in chosen if one.workers <= options.max_workers]
    command = f"python benchmarks/scale.py{_given(options)}"
    try:
        _check(options, rows, chosen)
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            bench = Bench(options, rows, cores, folder)
            results = [bench.measure(one) for one in chosen]
    except BenchError as error:
        print(f"scale.py: {error}", file=sys.stderr)
        return 1
    model = "a model that costs next to nothing" if options.tiny else MODEL
    pretence = _pretence(options.pretend_cores)
    text = f"{describe_run(command)}\n\nModel: {model}.{pretence} {tables(results, rows)}"
    print(text)
    plain = {"machine": asdict(this_machine()), "command": command, "results": results}
    options.json.write_bytes(orjson.dumps(plain, option=orjson.OPT_INDENT_2))
    if options.write:
        section = "scale-pretended" if options.pretend_cores else "scale"
        replace_section(ROOT / "docs/BENCHMARKS.md", section, text)
    return 0


def _pretence(cores: int | None) -> str:
    if not cores:
        return ""
    return f" Each worker may use {share_of_a_core(cores):.3f} of a real core, as one of {cores} slower cores."


def _is_chosen(name: str, row: Row, options: argparse.Namespace) -> bool:
    if options.rows and name not in options.rows:
        return False
    if row.stream is None and not is_installed():
        log(f"{row.title}: left out, wrk is not installed")
        return False
    return True


def _check(options: argparse.Namespace, rows: dict[str, Row], chosen: Sequence[Combination]) -> None:
    """Refuse what cannot be measured.

    Raises:
        BenchError: with the reason.
    """
    if not Path("/proc/stat").exists():
        raise BenchError("This needs Linux: CPU and memory are read from /proc.")
    if not rows:
        raise BenchError("No rows are left to measure.")
    if options.pretend_cores and os.geteuid():
        raise BenchError("--pretend-cores needs root, for control groups.")
    minutes = len(chosen) * (START_S + len(rows) * options.rounds * (options.seconds + 2.0)) / 60
    log(f"{len(chosen)} combinations, about {minutes:.0f} minutes")
    if minutes > options.max_minutes:
        raise BenchError(
            f"This takes about {minutes:.0f} minutes, more than --max-minutes {options.max_minutes:g}: "
            "measure fewer --rows, --rounds or --seconds, or allow more."
        )


def _given(options: argparse.Namespace) -> str:
    given = [" --tiny"] if options.tiny else []
    given += [f" --pretend-cores {options.pretend_cores}"] if options.pretend_cores else []
    given += [f" --max-workers {options.max_workers}"] if options.max_workers else []
    given += [f" --rows {','.join(options.rows)}"] if options.rows else []
    return "".join([*given, f" --rounds {options.rounds} --seconds {options.seconds:g}"])


def log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scale.py", description="Measure throughput by lanes and workers.")
    parser.add_argument("--rounds", type=whole(most=50), default=2, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=duration(60), default=4.0, help="per row and round (default: %(default)s)")
    parser.add_argument("--rows", type=lambda text: text.split(","), help="rows to measure, like single-short,health")
    parser.add_argument("--max-workers", type=whole(most=64), help="leave out combinations of more workers")
    parser.add_argument("--max-minutes", type=duration(600), default=30.0, help="refuse more (default: %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="a model that costs next to nothing, one lane per worker")
    parser.add_argument("--pretend-cores", type=whole(2, 64), metavar="N", help="with --tiny: workers up to N")
    parser.add_argument("--json", type=Path, default=Path("scale.json"), help="(default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="write into docs/BENCHMARKS.md")
    options = parser.parse_args(arguments)
    known = rows_for(1, is_tiny=options.tiny)
    if options.rows and (unknown := [name for name in options.rows if name not in known]):
        parser.error(f"--rows: {unknown[0]} is not one of {', '.join(known)}")
    if options.pretend_cores and not options.tiny:
        parser.error("--pretend-cores needs --tiny: a real model would need the real cores")
    return options


if __name__ == "__main__":
    sys.exit(main())
