"""`python main.py compare A B --texts FILE`: can model B replace model A, and what does it save?"""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np

from assembly.catalog import open_catalog
from cli.comparison_report import COST_HELP, VERDICT_HELP, Comparison, ModelResult, Skipped, as_json, print_report
from cli.console import (
    DONE,
    WRONG_USE,
    CommandError,
    find_models,
    open_settings,
    paragraphs,
    print_json,
    print_message,
)
from cli.model_process import LoadReport, ModelProcessError, TimedVectors, Worker, WorkerConfig, start_worker
from cli.progress import ProgressBar, fetch_with_progress
from config import Settings
from engine.catalog import Model
from engine.comparison import cosines, overlaps
from engine.errors import ModelUnavailableError
from engine.model_cards import InputType
from engine.planner import MAX_PLANNED_TEXTS

DEFAULT_LIMIT = 1000
MIN_SLICES = 5
"""With few texts, all are embedded several times: the median needs some measurements."""


def describe(parser: ArgumentParser) -> None:
    """Add the command's arguments, and what its verdict means."""
    parser.description = paragraphs(
        "Embed your own texts with two models, and show how far they agree and what each costs. The models alternate "
        "on one core, each in a process of its own."
    )
    parser.epilog = paragraphs(VERDICT_HELP, COST_HELP)
    parser.add_argument("a", metavar="A", help="name of the model that you use")
    parser.add_argument("b", metavar="B", help="name of the model that might replace it")
    parser.add_argument(
        "--texts", metavar="FILE", required=True, help="UTF-8, one text per line, the more the better; - reads stdin"
    )
    parser.add_argument(
        "--input-type", choices=("query", "document"), help="what the texts are; selects each model's prompt"
    )
    parser.add_argument(
        "--limit", metavar="N", type=int, default=DEFAULT_LIMIT, help="maximum number of texts (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")


def run(arguments: Namespace) -> int:
    """Compare the models, and print the result.

    Raises:
        CommandError: a model is unknown or cannot be used, or the texts cannot be read.
    """
    settings = open_settings()
    found = find_models(open_catalog(settings), [arguments.a, arguments.b])
    models = (found[0], found[-1])  # a model compared with itself shows the noise of the measurement
    texts = read_texts(arguments.texts, limit=arguments.limit)
    if texts.skipped.beyond_limit:
        print_message(f"Using the first {len(texts)} texts; --limit excludes {texts.skipped.beyond_limit} more.")
    file_bytes = [_fetch(model, settings) for model in models]
    results = _embed(models, file_bytes, texts, settings, arguments.input_type)
    print_message("Comparing ...")
    comparison = _compare(results, texts, arguments.input_type)
    if arguments.json:
        print_json(as_json(comparison))
    else:
        print_report(comparison)
    return DONE


@dataclass(frozen=True, slots=True)
class Texts:
    """The texts to compare on, and the line number of each in the file."""

    texts: list[str]
    lines: list[int]
    skipped: Skipped

    def __len__(self) -> int:
        return len(self.texts)


def read_texts(source: str, *, limit: int) -> Texts:
    """Read one text per line from the file *source*, or from standard input for `-`.

    A repeated line is used once: otherwise each copy would be the other's nearest neighbour.

    Raises:
        CommandError: *source* cannot be read, or has fewer than two different texts.
    """
    if limit < 2:  # noqa: PLR2004 - a single text has no neighbours
        raise CommandError("--limit must be 2 or more.", exit_code=WRONG_USE)
    try:
        content = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        lines = content.decode("utf-8-sig").split("\n")
    except OSError as error:
        raise CommandError(f"{source}: {error.strerror}.", exit_code=WRONG_USE) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise CommandError(f"{source}: line {line} is not UTF-8.", exit_code=WRONG_USE) from None
    filled = [(number, text) for number, line in enumerate(lines, start=1) if (text := line.strip())]
    first_line: dict[str, int] = {}
    for number, text in filled:
        first_line.setdefault(text, number)
    if len(first_line) < 2:  # noqa: PLR2004 - as above
        raise CommandError(f"{source}: a comparison needs at least 2 different texts.", exit_code=WRONG_USE)
    used = list(first_line)[:limit]
    blank = len(lines) - len(filled) - (not lines[-1])  # nothing follows the last line break
    skipped = Skipped(blank, len(filled) - len(first_line), len(first_line) - len(used))
    return Texts(used, [first_line[text] for text in used], skipped)


def _fetch(model: Model, settings: Settings) -> int:
    """Download the model's files if necessary, and return their size in bytes."""
    try:
        files = fetch_with_progress(model, settings.hub_cache_dir)
        return sum((files.folder / name).stat().st_size for name in files.names)
    except (ModelUnavailableError, OSError) as error:
        raise CommandError(getattr(error, "detail", f"A file of {model.name!r} cannot be read.")) from None


@dataclass(slots=True)
class _Measurement:
    """One model's vectors and costs, slice by slice."""

    model: Model
    file_bytes: int
    worker: Worker
    loaded: LoadReport
    slices: list[TimedVectors] = field(default_factory=list)

    def result(self, texts: int) -> ModelResult:
        """Combine the slices. Later rounds over the *texts* texts repeat the vectors of the first."""
        first_round: list[TimedVectors] = []
        while sum(len(part.vectors) for part in first_round) < texts:
            first_round.append(self.slices[len(first_round)])
        return ModelResult(
            model=self.model,
            file_bytes=self.file_bytes,
            loaded=self.loaded,
            vectors=np.concatenate([part.vectors for part in first_round]),
            wall_ms=median(1000 * part.wall_s / len(part.vectors) for part in self.slices),
            cpu_ms=median(1000 * part.cpu_s / len(part.vectors) for part in self.slices),
            memory_bytes=self.slices[-1].memory_bytes,
            truncated=sum(part.truncated for part in first_round),
        )


def _embed(
    models: Sequence[Model], file_bytes: Sequence[int], texts: Texts, settings: Settings, input_type: InputType | None
) -> tuple[ModelResult, ModelResult]:
    """Load the models one after the other, then alternate, so that other load on the machine affects both."""
    with ExitStack() as stack:
        configs = [
            WorkerConfig(model, settings.hub_cache_dir, input_type, settings.micro_batch_tokens) for model in models
        ]
        workers = [stack.enter_context(start_worker(config)) for config in configs]
        measurements = []
        for model, size, worker in zip(models, file_bytes, workers, strict=True):
            print_message(f"Loading {model.name} ...")
            with _failure_named(model, []):
                measurements.append(_Measurement(model, size, worker, worker.load()))
        slices = _slices(len(texts))
        bar = stack.enter_context(ProgressBar(total=2 * sum(map(len, slices)), unit=" texts", desc="  embedded"))
        for number, part in enumerate(slices):
            for measurement in measurements if number % 2 == 0 else reversed(measurements):
                with _failure_named(measurement.model, texts.lines[part.start : part.stop]):
                    measurement.slices.append(measurement.worker.embed(texts.texts[part.start : part.stop]))
                bar.update(len(part))
    first, second = (measurement.result(len(texts)) for measurement in measurements)
    return first, second


def _slices(texts: int) -> list[range]:
    """Cut all texts into slices, and repeat that until there are enough slices."""
    once = [range(start, min(texts, start + MAX_PLANNED_TEXTS)) for start in range(0, texts, MAX_PLANNED_TEXTS)]
    return once * -(-MIN_SLICES // len(once))


@contextmanager
def _failure_named(model: Model, lines: Sequence[int]) -> Iterator[None]:
    """Add the model's name and the line numbers of the failing texts to a failure; *lines* are those of the slice."""
    try:
        yield
    except ModelProcessError as error:
        failing = ", ".join(str(lines[index]) for index in error.texts)
        place = f" (line{'s' if len(error.texts) > 1 else ''} {failing})" if failing else ""
        message = f"The model {model.name!r} cannot be compared: {error.message}{place}."
        raise CommandError(message) from None


def _compare(models: tuple[ModelResult, ModelResult], texts: Texts, input_type: InputType | None) -> Comparison:
    first, second = (result.vectors for result in models)
    return Comparison(
        models=models,
        lines=texts.lines,
        skipped=texts.skipped,
        input_type=input_type,
        cosines=cosines(first, second) if first.shape == second.shape else None,
        overlaps=overlaps(first, second),
    )
