"""`python main.py top`: what a running service does, live in a terminal."""

import os
import select
import sys
import termios
import time
import tty
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.live import Live

from cli.console import (
    DONE,
    CommandError,
    open_settings,
    paragraphs,
    print_json,
    print_line_of_json,
    print_message,
    print_view,
)
from cli.health import address
from cli.top_figures import figures_of
from cli.top_reading import KEY_VARIABLE, Reading, ReadingError, ServiceReader
from cli.top_view import failure_of, view_of

MIN_INTERVAL_S, MAX_INTERVAL_S = 0.5, 3600.0


def describe(parser: ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = paragraphs(
        "Show what a running service does: rates, queue, lanes, latencies, cache, models, errors. Press q to quit."
    )
    parser.epilog = paragraphs(
        f"If the service requires a key for its metrics (CLOSED_ROUTES), set {KEY_VARIABLE} to it.",
        "Rates need two readings, so --once takes one interval. Where the output is no terminal, the figures are "
        "printed once per interval.",
    )
    parser.add_argument("--url", help="address of the service; default: this machine, with HOST and PORT as `serve`")
    parser.add_argument("--interval", type=_seconds, default=2.0, metavar="SECONDS", help="default: %(default)s")
    parser.add_argument("--once", action="store_true", help="print the figures of one interval, and exit")
    parser.add_argument("--json", action="store_true", help="print one JSON object per interval")


def run(arguments: Namespace) -> int:
    """Show the figures until the person quits.

    Raises:
        CommandError: the service cannot be read, and trying again does not help, or `--once` was given.
    """
    try:
        with ServiceReader(arguments.url or _url_here(), key=os.environ.get(KEY_VARIABLE)) as reader:
            if arguments.once or arguments.json or not sys.stdout.isatty():
                return _print(reader, arguments)
            return _watch(reader, arguments.interval)
    except ReadingError as error:
        raise CommandError(str(error)) from None


def _print(reader: ServiceReader, arguments: Namespace) -> int:
    """Print the figures of one interval after the other, or of one only."""
    for figures, failure in _intervals(reader, arguments.interval, _sleep, retries=not arguments.once):
        if figures is None:
            print_message(failure)
        elif not arguments.json:
            print_view(view_of(figures, url=reader.url))
        elif arguments.once:
            print_json(figures)
        else:
            print_line_of_json(figures)
        if arguments.once:
            break
    return DONE


def _watch(reader: ServiceReader, interval_s: float) -> int:
    """Show the figures on the whole terminal, and replace them after each interval."""
    around = {"url": reader.url, "hint": "Press q to quit." if sys.stdin.isatty() else "Press Ctrl-C to quit."}
    with _keys() as wait, Live(failure_of("Reading ...", **around), screen=True, auto_refresh=False) as live:
        for figures, failure in _intervals(reader, interval_s, wait, retries=True):
            shown = failure_of(failure, **around) if figures is None else view_of(figures, **around)
            live.update(shown, refresh=True)
    return DONE


def _intervals(
    reader: ServiceReader, interval_s: float, wait: Callable[[float], bool], *, retries: bool
) -> Iterator[tuple[dict[str, Any] | None, str]]:
    """Yield the figures of each interval, or None and why there are none; end when *wait* returns False.

    Raises:
        ReadingError: the service cannot be read, and trying again does not help, or not *retries*.
    """
    before: Reading | None = None
    while True:
        try:
            now = reader.read()
        except ReadingError as error:
            if error.is_final or not retries:
                raise
            yield None, f"{error} Trying again."
        else:
            if before is not None:
                yield figures_of(before, now), ""
            before = now
        if not wait(interval_s):
            return


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return True


@contextmanager
def _keys() -> Iterator[Callable[[float], bool]]:
    """Read single keys from the terminal; yield a function that waits, and returns False once `q` was pressed."""
    if not sys.stdin.isatty():
        yield _sleep
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    tty.setcbreak(terminal)

    def wait(seconds: float) -> bool:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if select.select([terminal], [], [], left)[0] and os.read(terminal, 1) in {b"q", b"Q", b""}:
                return False
        return True

    try:
        yield wait
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _url_here() -> str:
    """Return the address of the service that the settings of this folder start."""
    open_settings()  # a bad `.env` gets its usual message
    host, port = address(os.environ)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not MIN_INTERVAL_S <= seconds <= MAX_INTERVAL_S:
        raise ArgumentTypeError(f"{text!r} is not a number of seconds from {MIN_INTERVAL_S} to {MAX_INTERVAL_S:.0f}")
    return seconds
