"""What all programs here share: they read texts from standard input, and print vectors or an error as one JSON object.

A program is run as `python PROGRAM.py SCENARIO`; the server's address, the model and the key come from the environment.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

SCENARIO = sys.argv[1]
"""Why the program runs: few, many, odd, bad_model, bad_key or refused; most programs do the same in all cases."""
BASE_URL = os.environ["BASE_URL"]
"""The server's address, such as http://localhost:8000, without a slash at the end."""
MODEL = os.environ["MODEL"]
API_KEY = os.environ["API_KEY"]


def run(embed: Callable[[list[str]], Sequence[Any]]) -> None:
    """Print what *embed* returns for the texts, or the message of its error, as a user sees it."""
    texts = json.load(sys.stdin)
    try:
        answer: dict[str, Any] = {"vectors": [[float(number) for number in vector] for vector in embed(texts)]}
    except Exception as error:  # noqa: BLE001 - whatever the library raises is shown
        answer = {"error": str(error), "type": type(error).__name__}
    print(json.dumps(answer))  # noqa: T201 - the program's result
