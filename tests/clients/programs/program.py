"""What all programs here share: they read texts from standard input, and print vectors or an error as a JSON object.

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
    """Print what *embed* returns, or the message of its error, as a user sees it: one line for each line of input.

    A line is a list of texts, or an object with `texts` and a `job`: values for the constants above.
    """
    for line in sys.stdin:
        given = json.loads(line)
        if isinstance(given, dict):
            vars(sys.modules["__main__"]).update(given["job"])
            given = given["texts"]
        try:
            answer: dict[str, Any] = {"vectors": [[float(number) for number in vector] for vector in embed(given)]}
        except Exception as error:  # noqa: BLE001 - whatever the library raises is shown
            answer = {"error": str(error), "type": type(error).__name__}
        print(json.dumps(answer), flush=True)  # noqa: T201 - the program's result
