"""Embed a whole data set on a Ray cluster: `python deploy/ray/bulk_embed.py --help` tells how.

Ray Data gives the units of work to a pool of actors that grows with the cluster, and gives a unit to another actor
where one is lost with its process or its node. Reading and writing are done within the unit, not by Ray Data: only so
do a unit's rows and its output file stay the same from one run to the next, and a killed job knows what is left.
"""

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any, get_args
from uuid import uuid4

if not __package__:  # run as a script: let `engine` and `deploy` be found, and not what lies beside this file
    sys.path[0] = str(Path(__file__).resolve().parent.parent.parent)

import structlog

from assembly.catalog import open_catalog
from config import Settings, SettingsError, load_settings
from engine.catalog import Model
from engine.encoder import Encoder, load_encoder
from engine.errors import ServiceError
from engine.hub import fetch
from engine.model_cards import InputType
from engine.options import EmbedOptions
from engine.vectors import Dtype
from host.cores import usable_cores

try:
    from deploy.ray.bulk_embedder import NEW_COLUMNS, Done, Work, embed_unit
    from deploy.ray.bulk_inputs import InputError, Unit, choose_columns, cut, describe, find_files, first_line
    from deploy.ray.bulk_manifest import REPORT, begin_or_resume, sole_use, what_is_left, write_json
    from deploy.ray.bulk_progress import Progress, Totals
except ModuleNotFoundError as missing:
    sys.exit(f"bulk_embed.py needs {missing.name}: pip install -c requirements/lock.txt -r requirements/ray.txt")

ROOT = Path(__file__).resolve().parent.parent.parent
STORE_BYTES = 200_000_000
"""Ray's object store where this starts Ray itself: only descriptions of units go through it."""
MAX_COUNT = 10_000_000
IN_FLIGHT = 2
"""Units that an actor has: the one that it works on, and the next."""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="bulk_embed.py",
        description="Embed the texts of a Parquet or JSON Lines data set into Parquet, on a Ray cluster. "
        "A job that was stopped goes on where it was, if it is started again with the same options.",
        epilog="Exit code 0: all is done; 1: it could not be done, and the last line says why; 2: wrong options; "
        "130: interrupted. Models and their folders are those of the service's settings.",
    )
    made.add_argument("input", help="a .parquet or .jsonl file, a folder of them, or a pattern in quotes")
    made.add_argument("output", type=Path, help="a folder; every node must see it, and the input, at this address")
    made.add_argument("--text-column", default="text", metavar="NAME", help="whose texts to embed (default: text)")
    made.add_argument("--keep", type=names, metavar="A,B", help="columns that go into the output (default: all)")
    made.add_argument("--model", help="default: the first of REQUIRED_MODELS")
    made.add_argument("--input-type", choices=get_args(InputType), help="the model's prompt that is put before texts")
    made.add_argument("--long-text", choices=("truncate", "mean"), default="truncate", help="(default: truncate)")
    made.add_argument("--dimensions", type=whole, help="numbers that are left of each vector (default: all)")
    made.add_argument("--normalize", action="store_true", default=None, help="vectors of length 1, of any model")
    made.add_argument("--dtype", choices=get_args(Dtype), default="float32", help="of the vectors (default: float32)")
    made.add_argument(
        "--on-bad-row", choices=("fail", "skip"), default="fail", help="no text, or a broken line (default: fail)"
    )
    made.add_argument("--rows-per-file", type=whole, default=5000, help="the unit of work (default: %(default)s)")
    made.add_argument("--actors", type=actors, metavar="MIN:MAX", help="a core each (default: 1:cores of the cluster)")
    made.add_argument("--address", help="of a Ray cluster (default: RAY_ADDRESS; else this machine alone)")
    return made


def whole(given: str) -> int:
    if not given.isdecimal() or not 0 < int(given) <= MAX_COUNT:
        message = f"{given!r} is no whole number from 1 to {MAX_COUNT}"
        raise argparse.ArgumentTypeError(message)
    return int(given)


def names(given: str) -> list[str]:
    return [name.strip() for name in given.split(",") if name.strip()]


def actors(given: str) -> tuple[int, int]:
    least, _, most = given.partition(":")
    pair = whole(least), whole(most or least)
    if pair[0] > pair[1]:
        message = f"{given!r} has a least number above its most"
        raise argparse.ArgumentTypeError(message)
    return pair


class UnitEmbedder:
    """An actor of the pool: it loads the model when its first unit comes, and fails by telling, not by raising.

    What is raised in an actor comes to its caller as a page of Ray's own; a failure that is told ends the job with
    one line.
    """

    def __init__(self, model: Model, work: Work, hub_cache_dir: Path) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a core for each actor
        self._model = model
        self._work = work
        self._hub_cache_dir = hub_cache_dir
        self._encoder: Encoder | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Embed the units of *batch*, each given as JSON; the answers are `Done` as JSON."""
        return {"done": [json.dumps(asdict(self._done(Unit(**json.loads(unit))))) for unit in batch["unit"]]}

    def _done(self, unit: Unit) -> Done:
        try:
            if self._encoder is None:
                self._encoder = self._loaded()
            return embed_unit(self._encoder, unit, self._work)
        except InputError as error:
            return Done(unit.number, self._work.run, failure=str(error))
        except ServiceError as error:
            return Done(unit.number, self._work.run, failure=error.detail)

    def _loaded(self) -> Encoder:
        encoder = opened(self._model, self._hub_cache_dir)
        if (found := fingerprint_of(encoder)) != self._work.fingerprint:
            raise InputError(
                f"the model on node {os.uname().nodename} has the fingerprint {found}, and where the job was started "
                f"{self._work.fingerprint}; install the same versions and the same model on all nodes"
            )
        return encoder


def opened(model: Model, hub_cache_dir: Path) -> Encoder:
    fetch(model, hub_cache_dir)
    return load_encoder(model, hub_cache_dir=hub_cache_dir)


def fingerprint_of(encoder: Encoder) -> str:
    return encoder.fingerprint.digest if encoder.fingerprint else ""


@dataclass(frozen=True, slots=True)
class Job:
    """A job that has been checked: it can begin."""

    model: Model
    settings: Settings
    work: Work
    units: list[Unit]
    manifest: dict[str, Any]


def plan(args: argparse.Namespace, settings: Settings) -> Job:
    """Check all that can be checked before any work is done.

    Raises:
        InputError: the input or the options cannot be used.
        ServiceError: the model cannot be used, or not with these options.
    """
    output = args.output.resolve()
    files = find_files(args.input, own=output)
    if any(file.is_relative_to(output) for file in files):
        raise InputError(f"the output folder {output} has the input in it; name another one")
    described = describe(files)
    columns = choose_columns(described, args.text_column, args.keep)
    if clash := [name for name in columns.kept.names if name in NEW_COLUMNS]:
        raise InputError(f"the input has a column {clash[0]!r}, as the output will; leave it out by --keep")
    catalog = open_catalog(settings)
    model = catalog.get(args.model or settings.required_models[0])
    options = EmbedOptions(
        input_type=args.input_type,
        long_text=args.long_text,
        dimensions=args.dimensions,
        normalize=args.normalize,
        dtype=args.dtype,
    )
    options.check(model)
    fingerprint = fingerprint_of(opened(model, settings.hub_cache_dir))
    skips = args.on_bad_row == "skip"
    work = Work(
        str(output), columns, model.name, fingerprint, options, uuid4().hex, skips, int(settings.micro_batch_tokens)
    )
    manifest = {
        "model": model.name,
        "fingerprint": fingerprint,
        "options": asdict(options),
        "text column": args.text_column,
        "columns": {field.name: str(field.type) for field in columns.kept},
        "on bad row": args.on_bad_row,
        "rows per file": args.rows_per_file,
        "input": [asdict(file) for file in described],
    }
    return Job(model, settings, work, cut(described, args.rows_per_file), manifest)


def run(job: Job, *, address: str | None, pool: tuple[int, int] | None) -> Totals:
    """Do what is left of *job*.

    Raises:
        InputError: it cannot be done, or not be gone on with.
    """
    output = Path(job.work.output)
    with sole_use(output):
        is_resumed = begin_or_resume(output, job.manifest)
        left, there = what_is_left(output, job.units)
        say(f"{len(job.units):,} files to write" + (f", {len(there):,} are there." if is_resumed else "."))
        progress = Progress(job.units, there, tell=say, run=job.work.run)
        for done in embedded(job, left, address, pool):
            if done.failure:
                raise InputError(done.failure)
            progress.note(job.units[done.number], done)
            for bad in done.bad_rows:
                say(f"left out: {bad}")
        write_json(output / REPORT, {"units": len(job.units), **asdict(progress.totals)})
        return progress.totals


def embedded(job: Job, left: Sequence[Unit], address: str | None, pool: tuple[int, int] | None) -> Iterator[Done]:
    """Give the units to the cluster, and what became of each as it comes."""
    if not left:
        return
    import ray  # noqa: PLC0415 - takes seconds, and what can fail has been checked before

    with cluster(ray, address):
        least, most = pool or (1, max(1, int(ray.cluster_resources().get("CPU", 1))))
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        units = ray.data.from_items(
            [{"unit": json.dumps(asdict(unit))} for unit in left], override_num_blocks=len(left)
        )
        answers = units.map_batches(
            UnitEmbedder,
            fn_constructor_args=(job.model, job.work, job.settings.hub_cache_dir),
            batch_size=1,
            num_cpus=1,
            compute=ray.data.ActorPoolStrategy(
                min_size=min(least, len(left)),
                max_size=min(most, len(left)),
                max_tasks_in_flight_per_actor=IN_FLIGHT,
            ),
        )
        try:
            for row in answers.iter_rows():
                found = json.loads(row["done"])
                yield Done(**{**found, "bad_rows": tuple(found["bad_rows"])})
        except ray.exceptions.RayError as error:
            raise InputError(f"Ray has given up: {first_line(error)}") from error


@contextmanager
def cluster(ray: Any, address: str | None) -> Iterator[None]:
    """Ray: the cluster at *address*, or this machine alone, which then ends with the job.

    Raises:
        InputError: there is no cluster at *address*.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else Ray warns of what it will change one day
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what matters is raised
    found_in = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    options: dict[str, Any] = {
        "address": address or os.environ.get("RAY_ADDRESS"),
        "runtime_env": {"env_vars": {"PYTHONPATH": found_in}},
    }
    if options["address"] is None:
        os.environ.setdefault("RAY_AUTH_TOKEN", token_hex())  # else Ray makes one, and leaves it in the home folder
        options |= {"num_cpus": usable_cores(), "object_store_memory": STORE_BYTES, "include_dashboard": False}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(logging_level=logging.ERROR, log_to_driver=False, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(f"no Ray cluster at {options['address']}: {str(error).splitlines()[0]}") from None
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray has put its own in the place, which ends without a word
    try:
        yield
    finally:
        ray.shutdown()


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - how the job tells people how far it is


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray ends what it has started then, as for Ctrl-C
    try:
        totals = run(plan(args, load_settings()), address=args.address, pool=args.actors)
    except SettingsError as error:
        say(f"Bad settings: {error}")
        return 1
    except (InputError, ServiceError) as error:
        say(f"bulk_embed.py: {getattr(error, 'detail', error)}")
        return 1
    except KeyboardInterrupt:
        say("Interrupted. Start it again with the same options, and it goes on.")
        return 130
    say(
        f"Done: {totals.texts:,} texts ({totals.truncated:,} truncated), {totals.tokens:,} tokens, "
        f"{totals.skipped:,} rows left out, in {totals.seconds:,.1f} s; "
        f"{totals.units_embedded:,} files written, {totals.units_done_before:,} were there before."
    )
    return 0


if __name__ == "__main__":
    # As a module of its own name, so that actors on other nodes find what they are sent by that name.
    from deploy.ray.bulk_embed import main as embed

    sys.exit(embed())
