"""Measure the service beside FastEmbed called directly, and write `docs/BENCHMARKS.md`.

`python benchmarks/bench.py --help` tells the options; README.md tells how to read the result.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType

if not __package__:  # run as a script: let `benchmarks` be found
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import orjson

from benchmarks import report
from benchmarks.processes import ROOT, BenchError
from benchmarks.rows import ALL_ROWS, BESIDE_ROW, CPU_ROW, IDLE_ROW, LOADS
from benchmarks.session import Findings, Plan, Session
from benchmarks.verdicts import Verdict, verdicts

QUICK_ROUNDS, QUICK_SECONDS = 1, 1.5


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="bench.py", description="Measure the service beside FastEmbed called directly.")
    made.add_argument("--rounds", type=whole, help="turns each row takes (default: 5)")
    made.add_argument("--seconds", type=duration, help="measured seconds per row and round (default: 6)")
    made.add_argument("--rows", type=rows, default=ALL_ROWS, help="rows to measure, like 1,3,5 (default: all, 1 to 8)")
    made.add_argument("--quick", action="store_true", help="a rough look: 1 round of 1.5 s unless told otherwise")
    made.add_argument("--seed", default="2025", help="what the texts grow from (default: %(default)s)")
    made.add_argument("--output", type=Path, default=ROOT / "docs/BENCHMARKS.md", help="(default: docs/BENCHMARKS.md)")
    made.add_argument("--json", type=Path, metavar="FILE", help="also write every number of every round to FILE")
    made.add_argument(
        "--model-folder",
        type=Path,
        default=ROOT / "models/all-MiniLM-L6-v2",
        help="what FastEmbed loads (default: the bundled model)",
    )
    return made


def whole(written: str) -> int:
    if (number := int(written)) < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def duration(written: str) -> float:
    if not 0 < (number := float(written)) < float("inf"):
        raise argparse.ArgumentTypeError("more than 0 seconds")
    return number


def rows(written: str) -> tuple[int, ...]:
    """Read `1,3,5`; row 6 is held against row 5, row 7 needs a load: what is missing is added."""
    chosen = {int(number) for number in written.split(",")}
    if not chosen <= set(ALL_ROWS):
        raise argparse.ArgumentTypeError(f"rows go from {ALL_ROWS[0]} to {ALL_ROWS[-1]}")
    if BESIDE_ROW in chosen:
        chosen.add(IDLE_ROW)
    if CPU_ROW in chosen and not chosen & set(LOADS):
        chosen |= set(LOADS)
    return tuple(sorted(chosen))


def plan_of(options: argparse.Namespace) -> Plan:
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


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def print_table(found: Sequence[Verdict]) -> None:
    for one in found:
        print(f"{one.row}  {one.result.strip('*'):<12}  {one.measured:<28}  {one.target:<44}  {one.work}")


def write(options: argparse.Namespace, plan: Plan, findings: Findings, found: list[Verdict]) -> None:
    machine = report.this_machine()
    command = " ".join(["python benchmarks/bench.py", *given_options(options)])
    options.output.parent.mkdir(parents=True, exist_ok=True)
    written = options.output.read_text("utf-8") if options.output.exists() else ""
    head = written.partition(report.GENERATED)[0] if report.GENERATED in written else "# Benchmarks\n\n"
    options.output.write_text(head + report.GENERATED + report.page(plan, findings, found, machine, command), "utf-8")
    if options.json:
        plain = {"machine": asdict(machine), "command": command, "verdicts": found, "findings": findings}
        options.json.write_bytes(orjson.dumps(plain, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_INDENT_2))


def given_options(options: argparse.Namespace) -> list[str]:
    """Write the options that change what is measured, and no paths."""
    given = ["--quick"] if options.quick else []
    given += [f"--rounds {options.rounds}"] if options.rounds else []
    given += [f"--seconds {options.seconds:g}"] if options.seconds else []
    given += [f"--rows {','.join(map(str, options.rows))}"] if options.rows != ALL_ROWS else []
    return given


def end_on_signal(number: int, frame: FrameType | None) -> None:
    del frame
    raise KeyboardInterrupt(signal.Signals(number).name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Give 0 when everything asked for was measured, whether met or missed; 1 when not; 130 when interrupted."""
    options = parser().parse_args(arguments)
    plan = plan_of(options)
    if not plan.model_folder.is_dir():
        parser().error(f"--model-folder: there is no folder {options.model_folder}")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end_on_signal)
    try:
        findings = Session(plan, tell).run()
    except BenchError as error:
        tell(f"bench.py: {error}")
        return 1
    except KeyboardInterrupt:
        tell("bench.py: interrupted; every process it started has ended, nothing was written.")
        return 130
    found = verdicts(findings, plan.rows)
    write(options, plan, findings, found)
    print_table(found)
    return 1 if any(one.is_met is None for one in found) else 0


if __name__ == "__main__":
    sys.exit(main())
