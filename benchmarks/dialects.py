"""Measure what the wire format of another server costs, and what one request of 2,048 texts costs.

Run `python benchmarks/dialects.py`. One server gets short texts in three ways, alternately: batches of 32 by two
clients on `/embed/batch`, such batches on the other server's route, and one request with as many texts. All answers are
base64. Vectors of the three ways are compared before the first round.
"""

import argparse
import base64
import http.client
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

if not __package__:  # run as a script: let `benchmarks` be found
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.machine import cpu_s_of, describe_run, memory_mb_of
from benchmarks.processes import BenchError, Server, end_children_on_sigterm, healthy_server
from benchmarks.tables import markdown
from benchmarks.texts import distinct_texts
from benchmarks.workloads import MAX_RSS_MB, MODEL

BATCH_TEXTS, CLIENTS = 32, 2
MAX_CPU_RATIO = 1.10
"""Target: CPU per text of the other server's route, as a multiple of that of `/embed/batch`."""
MIN_RATE_RATIO = 0.95
"""Target: texts per second of one large request, as a multiple of that of batches on `/embed/batch`."""
TIMEOUT_S = 120


@dataclass(frozen=True, slots=True)
class Format:
    """A wire format: its route, its body for some texts, and the vectors, in base64, of its answer."""

    route: str
    body: Callable[[Sequence[str]], dict[str, Any]]
    vectors: Callable[[Any], list[str]]


NATIVE = Format(
    "/embed/batch",
    lambda texts: {"texts": texts, "encoding": "base64", "normalize": True},
    lambda answer: list(answer["embeddings"]),
)
FORMATS = {
    "openai": Format(
        "/v1/embeddings",
        lambda texts: {"model": MODEL, "input": texts, "encoding_format": "base64"},
        lambda answer: [item["embedding"] for item in answer["data"]],
    ),
    "cohere": Format(
        "/v2/embed",
        lambda texts: {"model": MODEL, "texts": texts, "embedding_types": ["base64"]},
        lambda answer: list(answer["embeddings"]["base64"]),
    ),
}


@dataclass(frozen=True, slots=True)
class Measured:
    """What the server did with some texts."""

    texts_per_s: float
    cpu_ms_per_text: float


def _send(connection: http.client.HTTPConnection, path: str, body: bytes) -> bytes:
    connection.request("POST", path, body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    content = response.read()
    if response.status != http.client.OK:
        raise BenchError(f"{path} answered {response.status}: {content[:300].decode(errors='replace')}")
    return content


def _measure(server: Server, form: Format, texts: Sequence[str], *, batch: int, clients: int) -> Measured:
    """Send *texts* in requests of this many, by several clients, each on one connection."""
    bodies = [json.dumps(form.body(texts[start : start + batch])).encode() for start in range(0, len(texts), batch)]
    waiting = iter(bodies)  # shared: the next request goes to the client that is free

    def run(connection: http.client.HTTPConnection) -> None:
        for body in waiting:
            _send(connection, form.route, body)

    connections = [http.client.HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT_S) for _ in range(clients)]
    with ThreadPoolExecutor(clients) as threads:
        cpu_s, started = cpu_s_of(server.process.pid), time.perf_counter()
        list(threads.map(run, connections))
        seconds, cpu_s = time.perf_counter() - started, cpu_s_of(server.process.pid) - cpu_s
    for connection in connections:
        connection.close()
    return Measured(len(texts) / seconds, cpu_s * 1000 / len(texts))


def _check(server: Server, form: Format, texts: Sequence[str]) -> None:
    """Compare the vectors of all ways.

    Raises:
        BenchError: they differ.
    """
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT_S)
    expected = list[str]()
    for start in range(0, len(texts), BATCH_TEXTS):
        batch = texts[start : start + BATCH_TEXTS]
        native, other = (
            json.loads(_send(connection, f.route, json.dumps(f.body(batch)).encode())) for f in (NATIVE, form)
        )
        expected += NATIVE.vectors(native)
        _compare(NATIVE.vectors(native), form.vectors(other))
    whole = json.loads(_send(connection, form.route, json.dumps(form.body(texts)).encode()))
    _compare(expected, form.vectors(whole))
    connection.close()


def _compare(first: Sequence[str], second: Sequence[str]) -> None:
    import numpy as np  # noqa: PLC0415 - not needed while the clock runs

    one, other = (np.stack([np.frombuffer(base64.b64decode(text), "<f4") for text in some]) for some in (first, second))
    if one.shape != other.shape or not np.allclose(one, other, atol=1e-4):
        raise BenchError("The vectors of the two routes differ.")


def _rounds(server: Server, form: Format, texts: int, rounds: int) -> Iterator[tuple[Measured, Measured, Measured]]:
    stream = distinct_texts("short", "dialects")  # each way gets texts of its own: no text is sent twice
    for _ in range(rounds):
        first, second, third = (list(itertools.islice(stream, texts)) for _ in range(3))
        yield (
            _measure(server, NATIVE, first, batch=BATCH_TEXTS, clients=CLIENTS),
            _measure(server, form, second, batch=BATCH_TEXTS, clients=CLIENTS),
            _measure(server, form, third, batch=texts, clients=1),
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="dialects.py", description="Measure the wire formats of other servers.")
    parser.add_argument("--dialect", choices=FORMATS, default="openai", help="the other server (default: openai)")
    parser.add_argument("--texts", type=int, default=2048, help="texts of a round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, of which the median is taken (default: 5)")
    parser.add_argument("--lanes", type=int, default=2, help="THREAD_POOL_WORKERS of the server (default: 2)")
    options = parser.parse_args()
    end_children_on_sigterm()
    form = FORMATS[options.dialect]
    command = " ".join(f"--{name} {value}" for name, value in vars(options).items())
    print(describe_run(f"python benchmarks/dialects.py {command}"), end="\n\n")
    with healthy_server(lanes=options.lanes, log_level="WARNING") as server:
        _check(server, form, list(itertools.islice(distinct_texts("short", "check"), 640)))
        found = list(_rounds(server, form, options.texts, options.rounds))
        now_mb, peak_mb = memory_mb_of(server.process.pid)
    names = (f"batches of {BATCH_TEXTS} on {NATIVE.route}", f"the same on {form.route}", f"one request on {form.route}")
    lines = []
    for way, name in enumerate(names):
        rates = median(measured[way].texts_per_s for measured in found)
        cpu_ms = median(measured[way].cpu_ms_per_text for measured in found)
        rate = median(measured[way].texts_per_s / measured[0].texts_per_s for measured in found)
        cpu = median(measured[way].cpu_ms_per_text / measured[0].cpu_ms_per_text for measured in found)
        lines.append([name, f"{rates:.0f}", f"{rate:.3f}", f"{cpu_ms:.3f}", f"{cpu:.3f}"])
    print(markdown([f"{options.texts} short texts", "texts/s", "ratio", "CPU ms per text", "ratio"], lines))
    print(
        f"\nTargets: CPU of row 2 at most {MAX_CPU_RATIO:.2f}, texts/s of row 3 at least {MIN_RATE_RATIO:.2f}, "
        f"memory at most {MAX_RSS_MB:.0f} MB. Memory of the server: {now_mb:.0f} MB, peak {peak_mb:.0f} MB."
    )


if __name__ == "__main__":
    try:
        main()
    except BenchError as error:
        sys.exit(str(error))
