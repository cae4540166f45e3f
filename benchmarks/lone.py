"""A lone caller, a process of its own: one short text at a time, on one connection.

`python -m benchmarks.lone PORT` answers each line of JSON on stdin with one on stdout.
"""

import itertools
import json
import select
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.load import Client, RefusedError, http_request
from benchmarks.rows import SHORT_CALLER


class LoneCaller:
    """Owns the connection; each public method is a command."""

    def __init__(self, port: int) -> None:
        self._client = Client(0, port)
        self._requests = map(http_request, SHORT_CALLER.requests("lone"))

    def warm(self, *, seconds: float) -> None:
        """Send requests for *seconds* after the first answer, which may have to wait for the model."""
        self._answer_ms(next(self._requests))
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            self._answer_ms(next(self._requests))

    def ask(self, *, requests: int, pause_s: float) -> list[float]:
        """Give the latency of each of *requests* requests in milliseconds; *pause_s* lies before each."""
        latencies_ms = []
        for request in list(itertools.islice(self._requests, requests)):
            if pause_s:
                time.sleep(pause_s)
            latencies_ms.append(self._answer_ms(request))
        return latencies_ms

    def _answer_ms(self, request: bytes) -> float:
        self._client.begin(0, request)
        while True:
            select.select([self._client.socket], [], [])
            if self._client.is_answered_after_reading():
                return (time.perf_counter() - self._client.sent_at) * 1e3


def serve(commands: dict[str, Callable[..., Any]]) -> None:
    for line in sys.stdin:  # not `baseline.serve`: this process would load FastEmbed for it
        asked = json.loads(line)
        print(json.dumps(commands[asked.pop("do")](**asked)), flush=True)


def main() -> None:
    try:
        caller = LoneCaller(int(sys.argv[1]))
        serve({"warm": caller.warm, "ask": caller.ask})
    except (RefusedError, OSError) as error:
        sys.exit(f"lone caller: {error}")


if __name__ == "__main__":
    main()
