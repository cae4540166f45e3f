"""Embed a whole data set on a Ray cluster. Usage: `python deploy/ray/bulk_embed.py --help`."""

import argparse
import logging
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args
from uuid import uuid4

if not __package__:  # run as a script: import from the repository's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent.parent)

import structlog

from assembly.catalog import open_catalog
from config import Settings, SettingsError, load_settings
from engine.catalog import Model
from engine.errors import ServiceError
from engine.model_cards import InputType
from engine.options import EmbedOptions
from engine.vectors import Dtype
from host.cores import usable_cores

try:
    from deploy.ray.bulk_cluster import embed_units, fingerprint_of, load_model
    from deploy.ray.bulk_inputs import (
        MAX_UNIT_ROWS,
        MIN_UNIT_ROWS,
        InputError,
        Unit,
        choose_columns,
        choose_unit_rows,
        describe,
        find_files,
        split_into_units,
    )
    from deploy.ray.bulk_output import (
        ON_BAD_ROW,
        REPORT,
        ROWS_PER_FILE,
        SKIPPED,
        begin_or_resume,
        lock_folder,
        split_finished,
        unit_rows_of,
        write_json,
    )
    from deploy.ray.bulk_progress import Progress, Totals
    from deploy.ray.bulk_units import NEW_COLUMNS, JobSpec, read_result
except ModuleNotFoundError as missing:
    sys.exit(f"bulk_embed.py needs {missing.name}: pip install --require-hashes -r requirements/lock-ray.txt")

MAX_COUNT = 10_000_000
MAX_SHOWN_BAD_ROWS = 20
"""Skipped rows that are shown while the job runs; files in the output folder list all."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bulk_embed.py",
        description="Embed the texts of a Parquet or JSON Lines data set into Parquet files, on a Ray cluster. "
        "To resume a stopped job, run it again with the same options.",
        epilog="Exit codes: 0: all files are written, even if rows were skipped; 1: the job failed, and the last line "
        "gives the reason; 2: usage error; 130: interrupted (Ctrl-C or SIGTERM). Models and their folders come from "
        "the settings of the service.",
    )
    parser.add_argument("input", help="a .parquet or .jsonl file, a folder of them, or a quoted pattern")
    parser.add_argument("output", type=Path, help="a folder; every node needs input and output at the same path")
    parser.add_argument("--text-column", default="text", metavar="NAME", help="the column to embed (default: text)")
    parser.add_argument("--keep", type=parse_names, metavar="A,B", help="columns of the output (default: all)")
    parser.add_argument("--model", help="default: the first of REQUIRED_MODELS")
    parser.add_argument("--input-type", choices=get_args(InputType), help="selects the prompt of the model")
    parser.add_argument("--long-text", choices=("truncate", "mean"), default="truncate", help="(default: truncate)")
    parser.add_argument("--dimensions", type=parse_count, help="shorten vectors to this length (default: all)")
    parser.add_argument("--normalize", action="store_true", default=None, help="scale vectors to length 1")
    parser.add_argument("--dtype", choices=get_args(Dtype), default="float32", help="of the vectors (default: float32)")
    parser.add_argument(
        "--on-bad-row",
        choices=("fail", "skip"),
        default="fail",
        help="a row without text, a text that the model cannot embed, or a broken line (default: fail)",
    )
    parser.add_argument(
        "--rows-per-file",
        type=parse_count,
        metavar="N",
        help=f"unit of work (default: by the size of the input, {MIN_UNIT_ROWS} to {MAX_UNIT_ROWS:,})",
    )
    parser.add_argument(
        "--actors", type=parse_range, metavar="MIN:MAX", help="one core each (default: all cores of the cluster)"
    )
    parser.add_argument("--address", help="address of a Ray cluster (default: RAY_ADDRESS, else this machine alone)")
    return parser


def parse_count(given: str) -> int:
    if not given.isdecimal() or not 0 < int(given) <= MAX_COUNT:
        message = f"{given!r} is not a whole number from 1 to {MAX_COUNT}"
        raise argparse.ArgumentTypeError(message)
    return int(given)


def parse_names(given: str) -> list[str]:
    return [name.strip() for name in given.split(",") if name.strip()]


def parse_range(given: str) -> tuple[int, int]:
    minimum, _, maximum = given.partition(":")
    pair = parse_count(minimum), parse_count(maximum or minimum)
    if pair[0] > pair[1]:
        message = f"the minimum of {given!r} is above its maximum"
        raise argparse.ArgumentTypeError(message)
    return pair


@dataclass(frozen=True, slots=True)
class Job:
    """A job whose inputs and options have been checked."""

    model: Model
    settings: Settings
    spec: JobSpec
    units: list[Unit]
    manifest: dict[str, Any]


def plan(args: argparse.Namespace, settings: Settings) -> Job:
    """Check everything that can be checked before the work begins.

    Raises:
        InputError: the input or the options cannot be used.
        ServiceError: the model is unavailable, or does not support the options.
    """
    output = args.output.resolve()
    files = find_files(args.input, output=output)
    if any(file.is_relative_to(output) for file in files):
        raise InputError(f"the output folder {output} contains the input; use another folder")
    described = describe(files)
    skip_bad_rows = args.on_bad_row == "skip"
    columns = choose_columns(described, args.text_column, args.keep, skip_bad_rows=skip_bad_rows)
    if clash := [name for name in columns.kept.names if name in NEW_COLUMNS]:
        raise InputError(f"the input has a column {clash[0]!r}, which the output adds; exclude it with --keep")
    model = open_catalog(settings).get(args.model or settings.required_models[0])
    options = EmbedOptions(
        input_type=args.input_type,
        long_text=args.long_text,
        dimensions=args.dimensions,
        normalize=args.normalize,
        dtype=args.dtype,
    )
    options.check(model)
    fingerprint = fingerprint_of(load_model(model, settings.hub_cache_dir))
    spec = JobSpec(
        output=str(output),
        columns=columns,
        model=model.name,
        fingerprint=fingerprint,
        options=options,
        run=uuid4().hex,
        skip_bad_rows=skip_bad_rows,
        budget_tokens=int(settings.micro_batch_tokens),
    )
    # A resumed job must have the same units, whatever the number of cores is now.
    cores = args.actors[1] if args.actors else usable_cores()
    unit_rows = args.rows_per_file or unit_rows_of(output) or choose_unit_rows(described, cores)
    manifest = {
        "model": model.name,
        "fingerprint": fingerprint,
        "options": asdict(options),
        "text column": args.text_column,
        "columns": {field.name: str(field.type) for field in columns.kept},
        ON_BAD_ROW: args.on_bad_row,
        ROWS_PER_FILE: unit_rows,
        "input": [asdict(file) for file in described],
    }
    return Job(model, settings, spec, split_into_units(described, unit_rows), manifest)


def run(job: Job, *, address: str | None, pool: tuple[int, int] | None) -> Totals:
    """Embed the remaining units of *job*.

    Raises:
        InputError: the job fails, or cannot be resumed.
    """
    output = Path(job.spec.output)
    with lock_folder(output):
        is_resumed = begin_or_resume(output, job.manifest)
        remaining, finished = split_finished(output, job.units)
        say(f"{len(job.units):,} files to write" + (f", {len(finished):,} exist already." if is_resumed else "."))
        with ThreadPoolExecutor() as readers:
            before = list(readers.map(read_result, [output / unit.output_name for unit in finished]))
        progress = Progress(job.units, list(zip(finished, before, strict=True)), report=say, run=job.spec.run)
        shown = 0
        results = embed_units(
            remaining, job.model, job.spec, hub_cache_dir=job.settings.hub_cache_dir, address=address, pool=pool
        )
        for result in results:
            if result.failure:
                raise InputError(result.failure)
            progress.add(job.units[result.number], result)
            for bad_row in result.bad_rows[: MAX_SHOWN_BAD_ROWS - shown]:
                say(f"skipped: {bad_row}")
                shown += 1
        write_json(output / REPORT, {"units": len(job.units), **asdict(progress.totals)})
        return progress.totals


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - the output of this command


def main(arguments: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(arguments)
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as for Ctrl-C: Ray stops what it has started
    try:
        totals = run(plan(args, load_settings()), address=args.address, pool=args.actors)
    except SettingsError as error:
        say(f"Bad settings: {error}")
        return 1
    except (InputError, ServiceError) as error:
        say(f"bulk_embed.py: {getattr(error, 'detail', error)}")
        return 1
    except KeyboardInterrupt:
        say("Interrupted. To resume, run the same command again.")
        return 130
    say(totals.summary(str(args.output / SKIPPED)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
