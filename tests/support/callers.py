"""Clients that request vectors of known texts without a pause, check every answer, and count."""

import base64
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np

REFERENCE = Path(__file__).parents[1] / "reference" / "all-MiniLM-L6-v2.json"
MIN_COSINE = 0.9999
MAX_TOKENS = 120
TEXTS_OF_A_BATCH = 3
PATIENCE_S = 90

ENTRIES: list[dict[str, Any]] = [
    entry
    for entry in json.loads(REFERENCE.read_text(encoding="utf-8"))["texts"]
    if entry["text"].strip() and entry["tokens"] <= MAX_TOKENS
]
"""Texts and their vectors from sentence-transformers."""


class Callers:
    """Threads that send one request after another, and count the results.

    Attributes:
        sent: the number of requests sent.
        answered: the number of answers with status 200 and the right vectors.
        faults: a line for each other request.
        longest_s: the time of the slowest answer, in seconds.
    """

    def __init__(self, url: str, *, count: int) -> None:
        self.sent = 0
        self.answered = 0
        self.faults: list[str] = []
        self.longest_s = 0.0
        self._url = url
        self._changed = threading.Condition()
        self._is_over = False
        self._threads = [threading.Thread(target=self._call, args=(number,), daemon=True) for number in range(count)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def wait_for_answers(self, count: int) -> None:
        """Wait for *count* more answers; fail if a request gets no right answer, or none arrives for long."""
        with self._changed:
            wanted = self.answered + count
            self._changed.wait_for(lambda: self.answered >= wanted or bool(self.faults), PATIENCE_S)
        assert self.faults == []
        assert self.answered >= wanted

    def stop(self) -> None:
        """Send nothing more, and wait for the remaining answers."""
        self._is_over = True
        for thread in self._threads:
            thread.join(PATIENCE_S)

    def _call(self, caller: int) -> None:
        with httpx.Client(base_url=self._url, timeout=PATIENCE_S) as client:
            for number in itertools.count():
                if self._is_over:
                    return
                with self._changed:
                    self.sent += 1
                started = time.monotonic()
                fault = _fault_of(client, caller, number)
                with self._changed:
                    self.longest_s = max(self.longest_s, time.monotonic() - started)
                    self.answered += fault is None
                    if fault is not None:
                        self.faults.append(fault)
                    self._changed.notify_all()


def _fault_of(client: httpx.Client, caller: int, number: int) -> str | None:
    """Send a request, every other one with several texts; return what is wrong with its answer, or None."""
    first, headers = (caller * 7 + number) % len(ENTRIES), {"X-Request-ID": f"caller-{caller}-{number}"}
    entries = [ENTRIES[(first + step) % len(ENTRIES)] for step in range(TEXTS_OF_A_BATCH if number % 2 else 1)]
    texts = [entry["text"] for entry in entries]
    try:
        if number % 2:
            response = client.post("/embed/batch", json={"texts": texts, "encoding": "base64"}, headers=headers)
        else:
            response = client.post("/embed", json={"text": texts[0]}, headers=headers)
    except httpx.HTTPError as error:
        return f"{type(error).__name__}: {error}"
    if response.status_code != 200:
        return f"{response.status_code}: {response.text}"
    cosines = [vector @ np.asarray(entry["vector"]) for vector, entry in zip(_vectors(response), entries, strict=True)]
    return None if min(cosines) >= MIN_COSINE else f"wrong vectors: {cosines}"


def _vectors(response: httpx.Response) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    answer = response.json()
    if "embedding" in answer:
        return [np.asarray(answer["embedding"], dtype=np.float32)]
    return [np.frombuffer(base64.b64decode(text), dtype="<f4") for text in answer["embeddings"]]


@contextmanager
def calling(url: str, *, count: int = 4, record: Callable[[str, object], None]) -> Iterator[Callers]:
    """Run *count* clients until the end of the block, and check that every request got the right answer.

    *record* gets the names and values of the attributes of `Callers`.
    """
    callers = Callers(url, count=count)
    callers.start()
    try:
        callers.wait_for_answers(count)  # so all of them are running
        yield callers
    finally:
        callers.stop()
        for name in ("sent", "answered"):
            record(name, getattr(callers, name))
        record("longest_s", round(callers.longest_s, 2))
    assert callers.faults == []
    assert callers.sent == callers.answered
