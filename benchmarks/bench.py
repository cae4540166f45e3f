"""Compare the service with FastEmbed called directly, and write the results into `docs/BENCHMARKS.md`.

Run `python benchmarks/bench.py`; see `--help` for options and README.md for how to read the results.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

if not __package__:  # run as a script: let `benchmarks` be found
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import orjson

from benchmarks import cache_rows, report, result_cache
from benchmarks.load import RowError
from benchmarks.machine import ROOT, this_machine
from benchmarks.processes import BenchError, end_children_on_sigterm
from benchmarks.session import Findings, Plan, Session
from benchmarks.verdicts import Verdict, verdicts
from benchmarks.workloads import ALL_ROWS, CACHE_ROW, CPU_ROW, IDLE_ROW, LOADS, SHARED_ROW

QUICK_ROUNDS, QUICK_SECONDS = 1, 1.5
QUICK_SIZE = 0.2
"""Of the rows of the result cache."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench.py", description="Compare the service with FastEmbed called directly.")
    parser.add_argument("--rounds", type=_count, help="how often each row is measured (default: 5)")
    parser.add_argument("--seconds", type=_duration, help="measured seconds per row and round (default: 6)")
    parser.add_argument("--rows", type=_rows, default=ALL_ROWS, help="rows to measure, like 1,3,5 (default: 1 to 9)")
    parser.add_argument("--quick", action="store_true", help="a rough look: 1 round of 1.5 s by default")
    parser.add_argument("--seed", default="2025", help="seed of the texts (default: %(default)s)")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "docs/BENCHMARKS.md", help="(default: docs/BENCHMARKS.md)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every number of every round to FILE")
    parser.add_argument(
        "--model-folder",
        type=Path,
        default=ROOT / "models/all-MiniLM-L6-v2",
        help="the model that FastEmbed loads (default: the bundled one)",
    )
    return parser


def _count(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _duration(text: str) -> float:
    if not 0 < (number := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError("more than 0 seconds")
    return number


def _rows(text: str) -> tuple[int, ...]:
    """Read `1,3,5`. Row 6 is compared with row 5, and row 7 needs a load: such rows are added."""
    chosen = {int(number) for number in text.split(",")}
    if not chosen <= set(ALL_ROWS):
        raise argparse.ArgumentTypeError(f"rows go from {ALL_ROWS[0]} to {ALL_ROWS[-1]}")
    if SHARED_ROW in chosen:
        chosen.add(IDLE_ROW)
    if CPU_ROW in chosen and not chosen & set(LOADS):
        chosen |= set(LOADS)
    return tuple(sorted(chosen))


def _plan_of(options: argparse.Namespace) -> Plan:
    seconds = options.seconds or (QUICK_SECONDS if options.quick else 6.0)
    return Plan(
        rows=options.rows,
        rounds=options.rounds or (QUICK_ROUNDS if options.quick else 5),
        seconds=seconds,
        warm_s=min(1.0, seconds / 3),
        start_repeats=max(options.rounds or 0, QUICK_ROUNDS if options.quick else 5),
        seed=options.seed,
        model_folder=options.model_folder.resolve(),
    )


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _write(
    options: argparse.Namespace, plan: Plan, findings: Findings, cache: cache_rows.Found, found: list[Verdict]
) -> None:
    machine = this_machine()
    command = " ".join(["python benchmarks/bench.py", *_given_options(options)])
    options.output.parent.mkdir(parents=True, exist_ok=True)
    before = options.output.read_text("utf-8") if options.output.exists() else ""
    head = before.partition(report.GENERATED)[0] if report.GENERATED in before else "# Benchmarks\n\n"
    options.output.write_text(
        head + report.GENERATED + report.page(plan, findings, cache, found, machine=machine, command=command), "utf-8"
    )
    if options.json:
        plain = {
            "machine": asdict(machine),
            "command": command,
            "verdicts": found,
            "findings": findings,
            "cache": cache,
        }
        options.json.write_bytes(orjson.dumps(plain, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_INDENT_2))


def _given_options(options: argparse.Namespace) -> list[str]:
    """Return the given options that change what is measured; no paths."""
    given = ["--quick"] if options.quick else []
    given += [f"--rounds {options.rounds}"] if options.rounds else []
    given += [f"--seconds {options.seconds:g}"] if options.seconds else []
    given += [f"--rows {','.join(map(str, options.rows))}"] if options.rows != ALL_ROWS else []
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 when everything was measured, whether targets are met or missed; 1 when not; 130 when interrupted."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    plan = _plan_of(options)
    if not plan.model_folder.is_dir():
        parser.error(f"--model-folder: there is no folder {options.model_folder}")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for commands in the background
    end_children_on_sigterm()
    cache = cache_rows.Found()
    try:
        findings = Session(plan, _log).run()
        if CACHE_ROW in plan.rows:
            cache = result_cache.measure(plan.rounds, QUICK_SIZE if options.quick else 1.0, plan.seed, _log)
    except (BenchError, RowError) as error:
        _log(f"bench.py: {error}")
        return 1
    except KeyboardInterrupt:
        _log("bench.py: interrupted. All processes that it started have ended; nothing was written.")
        return 130
    found = [*verdicts(findings, plan.rows), *cache_rows.verdicts(cache)]
    _write(options, plan, findings, cache, found)
    for one in found:
        print(f"{one.row}  {one.result.strip('*'):<12}  {one.measured:<28}  {one.target:<44}  {one.work}")
    return 1 if any(one.is_met is None for one in found) else 0


if __name__ == "__main__":
    sys.exit(main())
