"""`python main.py compare A B --texts FILE`: may I use the other model, and what do I gain?"""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np

from assembly.catalog import open_catalog
from cli.comparison_report import COSTS, VERDICTS, Comparison, Side, Skipped, as_json, as_lines
from cli.console import (
    DONE,
    WRONG_USE,
    Bar,
    CommandError,
    fetch_visibly,
    find_models,
    open_settings,
    paragraphs,
    say,
    say_json,
    tell,
)
from cli.model_process import Loaded, ModelProcess, ModelProcessError, Order, Turn, running
from config import Settings
from engine.catalog import Model
from engine.comparison import cosines, overlaps
from engine.errors import ModelUnavailableError
from engine.jobs import WINDOW_TEXTS
from engine.model_cards import InputType

MAX_TEXTS = 1000
MIN_TURNS = 5
"""Few texts are embedded several times, so that the median is one of several turns."""


def describe(parser: ArgumentParser) -> None:
    """Add the command's arguments and what its verdict means."""
    parser.description = paragraphs(
        "Embed your own texts with two models and show how far they agree, and what each costs. The models take turns "
        "on one core, each in a process of its own."
    )
    parser.epilog = paragraphs(VERDICTS, COSTS)
    parser.add_argument("a", metavar="A", help="the model that you have, by name")
    parser.add_argument("b", metavar="B", help="the model that you think of")
    parser.add_argument(
        "--texts", metavar="FILE", required=True, help="UTF-8, one text per line, the more the better; - reads stdin"
    )
    parser.add_argument(
        "--input-type", choices=("query", "document"), help="what the texts are; each model's prompt for it is used"
    )
    parser.add_argument(
        "--limit", metavar="N", type=int, default=MAX_TEXTS, help=f"texts taken at most (default: {MAX_TEXTS})"
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")


def run(arguments: Namespace) -> int:
    """Compare, and print the result.

    Raises:
        CommandError: a model is unknown or cannot be used, or the texts cannot be read.
    """
    settings = open_settings()
    found = find_models(open_catalog(settings), [arguments.a, arguments.b])
    models = [found[0], found[-1]]  # whoever compares a model with itself sees the noise
    texts = prepare_texts(arguments.texts, limit=arguments.limit)
    if texts.skipped.beyond_limit:
        tell(f"Taking the first {len(texts)} texts; {texts.skipped.beyond_limit} more are left out (see --limit).")
    file_bytes = [_file_bytes(model, settings) for model in models]
    sides = _embed(models, file_bytes, texts, settings, arguments.input_type)
    tell("Comparing ...")
    result = _compare(sides, texts, arguments.input_type)
    if arguments.json:
        say_json(as_json(result))
    else:
        for line in as_lines(result):
            say(line)
    return DONE


@dataclass(frozen=True, slots=True)
class Texts:
    """The texts to compare on, and the line of the file on which each stands."""

    texts: list[str]
    lines: list[int]
    skipped: Skipped

    def __len__(self) -> int:
        return len(self.texts)


def prepare_texts(source: str, *, limit: int) -> Texts:
    """Read one text per line from the file *source*, or from standard input for `-`.

    A line that stands there twice is taken once: each of the two would be the other's nearest neighbour.

    Raises:
        CommandError: it cannot be read, or has fewer than two texts.
    """
    if limit < 2:  # noqa: PLR2004 - a lone text has no neighbours
        raise CommandError("--limit must be 2 or more.", exit_code=WRONG_USE)
    try:
        content = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        lines = content.decode("utf-8-sig").split("\n")
    except OSError as error:
        raise CommandError(f"{source}: {error.strerror}.", exit_code=WRONG_USE) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise CommandError(f"{source}: line {line} is not UTF-8.", exit_code=WRONG_USE) from None
    first_line: dict[str, int] = {}
    filled = [(number, text) for number, line in enumerate(lines, start=1) if (text := line.strip())]
    for number, text in filled:
        first_line.setdefault(text, number)
    if len(first_line) < 2:  # noqa: PLR2004 - as above
        raise CommandError(f"{source}: it takes at least 2 different texts to compare.", exit_code=WRONG_USE)
    taken = list(first_line)[:limit]
    blank = len(lines) - len(filled) - (not lines[-1])  # what follows the last line break is no line
    skipped = Skipped(blank, len(filled) - len(first_line), len(first_line) - len(taken))
    return Texts(taken, [first_line[text] for text in taken], skipped)


def _file_bytes(model: Model, settings: Settings) -> int:
    """Get the model's files, and tell their size."""
    try:
        files = fetch_visibly(model, settings.hub_cache_dir)
        return sum((files.folder / name).stat().st_size for name in files.names)
    except (ModelUnavailableError, OSError) as error:
        raise CommandError(getattr(error, "detail", f"A file of {model.name!r} cannot be read.")) from None


@dataclass(slots=True)
class _Meter:
    """Collects what one model gives and costs, turn by turn."""

    model: Model
    file_bytes: int
    process: ModelProcess
    loaded: Loaded
    turns: list[Turn] = field(default_factory=list)

    def side(self, texts: int) -> Side:
        """All turns together; only the first round, of so many texts, counts for the vectors."""
        first_round: list[Turn] = []
        taken = 0
        while taken < texts:
            first_round.append(self.turns[len(first_round)])
            taken += len(first_round[-1].vectors)
        return Side(
            model=self.model,
            file_bytes=self.file_bytes,
            loaded=self.loaded,
            vectors=np.concatenate([turn.vectors for turn in first_round]),
            wall_ms=median(1000 * turn.wall_s / len(turn.vectors) for turn in self.turns),
            cpu_ms=median(1000 * turn.cpu_s / len(turn.vectors) for turn in self.turns),
            memory_bytes=self.turns[-1].memory_bytes,
            truncated=sum(turn.truncated for turn in first_round),
        )


def _embed(
    models: Sequence[Model], file_bytes: Sequence[int], texts: Texts, settings: Settings, input_type: InputType | None
) -> tuple[Side, Side]:
    """Load one model after the other, then let them take turns, so that what else the machine does hits both."""
    with ExitStack() as stack:
        orders = [Order(model, settings.hub_cache_dir, input_type, settings.micro_batch_tokens) for model in models]
        processes = [stack.enter_context(running(order)) for order in orders]
        meters = []
        for model, size, process in zip(models, file_bytes, processes, strict=True):
            tell(f"Loading {model.name} ...")
            with _told(model, []):
                meters.append(_Meter(model, size, process, process.load()))
        turns = _turns(len(texts))
        bar = stack.enter_context(Bar(total=2 * sum(map(len, turns)), unit=" texts", desc="  embedded"))
        for number, turn in enumerate(turns):
            for meter in meters if number % 2 == 0 else reversed(meters):
                with _told(meter.model, texts.lines[turn.start : turn.stop]):
                    meter.turns.append(meter.process.embed(texts.texts[turn.start : turn.stop]))
                bar.update(len(turn))
    first, second = (meter.side(len(texts)) for meter in meters)
    return first, second


def _turns(texts: int) -> list[range]:
    """All texts in turns, and again until there are enough turns."""
    once = [range(start, min(texts, start + WINDOW_TEXTS)) for start in range(0, texts, WINDOW_TEXTS)]
    return once * -(-MIN_TURNS // len(once))


@contextmanager
def _told(model: Model, lines: Sequence[int]) -> Iterator[None]:
    """Tell a model's failure with its name and, of the texts of the turn, the *lines* that it is about."""
    try:
        yield
    except ModelProcessError as error:
        about = ", ".join(str(lines[index]) for index in error.texts)
        place = f" (line{'s' if len(error.texts) > 1 else ''} {about})" if about else ""
        message = f"The model {model.name!r} cannot be compared: {error.message}{place}."
        raise CommandError(message) from None


def _compare(sides: tuple[Side, Side], texts: Texts, input_type: InputType | None) -> Comparison:
    first, second = (side.vectors for side in sides)
    return Comparison(
        sides=sides,
        lines=texts.lines,
        skipped=texts.skipped,
        input_type=input_type,
        cosines=cosines(first, second) if first.shape == second.shape else None,
        overlaps=overlaps(first, second),
    )
