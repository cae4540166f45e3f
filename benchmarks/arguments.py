"""Checks of command-line arguments."""

import argparse
from collections.abc import Callable


def whole(least: int = 1, most: int = 1_000) -> Callable[[str], int]:
    """Return a reader of whole numbers within bounds."""

    def read(text: str) -> int:
        if not least <= (number := int(text)) <= most:
            raise argparse.ArgumentTypeError(f"{text} is not from {least} to {most}")
        return number

    read.__name__ = "whole number"  # argparse names it in its message
    return read


def duration(most: float = 600.0) -> Callable[[str], float]:
    """Return a reader of durations above 0; NaN and infinity are refused."""

    def read(text: str) -> float:
        if not 0 < (number := float(text)) <= most:
            raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most {most:g}")
        return number

    read.__name__ = "number of seconds"
    return read
