"""Compares one process with several workers in work that the main thread does: `/health`, `/tokenize`, refusals.

`wrk` sends the requests from the same machine, on the same cores; install it as a package of your system. Both services
run all the time, and are measured in turns. Prints a Markdown table; takes about two minutes.
"""

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import cpu_s_of, describe_run
from benchmarks.processes import BenchError, Server, healthy_server
from benchmarks.tables import markdown
from host.cores import usable_cores

CONNECTIONS = 32
KEY = "a-key-of-this-benchmark-only"
POST = 'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\n'
WITH_KEY = f'wrk.headers["X-API-Key"] = "{KEY}"\n'


@dataclass(frozen=True, slots=True)
class Work:
    """One kind of request, and the status of its answer."""

    name: str
    path: str
    script: str
    is_refused: bool = False


WORKS = (
    Work("`GET /health`", "/health", ""),
    Work(
        "`POST /tokenize`, 1 short text",
        "/tokenize",
        POST + WITH_KEY + """wrk.body = '{"texts": ["one short text"]}'""",
    ),
    Work("`POST /embed` without a key: 401", "/embed", POST + """wrk.body = '{"text": "one"}'""", is_refused=True),
)


def requests_per_s(server: Server, work: Work, *, seconds: int) -> tuple[float, float]:
    """Let wrk send requests; return the answers per second, and the service's CPU milliseconds per answer."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "requests.lua")
        script.write_text(work.script)
        pids = [server.process.pid, *children_of(server.process.pid)]
        cpu_s = sum(map(cpu_s_of, pids))
        url = f"http://127.0.0.1:{server.port}{work.path}"
        command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}", "-s", str(script), url]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        cpu_s = sum(map(cpu_s_of, pids)) - cpu_s
    answers = int(found_in(output, r"(\d+) requests in"))
    refused = int(found_in(output, r"Non-2xx or 3xx responses: (\d+)", default="0"))
    if refused != (answers if work.is_refused else 0) or "Socket errors" in output:
        message = f"{work.name}: unexpected answers\n{output}"
        raise BenchError(message)
    return float(found_in(output, r"Requests/sec: +([\d.]+)")), cpu_s / answers * 1000


def found_in(text: str, pattern: str, *, default: str | None = None) -> str:
    if (match := re.search(pattern, text)) is not None:
        return match[1]
    if default is None:
        message = f"wrk printed something else:\n{text}"
        raise BenchError(message)
    return default


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def measure(workers: int, *, rounds: int, seconds: int) -> list[list[str]]:
    common = {"API_KEYS": KEY, "LOG_LEVEL": "WARNING"}
    lanes = usable_cores()
    lines = []
    with (
        healthy_server(common, lanes=lanes) as one,
        healthy_server({**common, "WORKERS": str(workers)}, lanes=lanes) as n,
    ):
        for work in WORKS:
            found: dict[int, list[tuple[float, float]]] = {1: [], workers: []}
            for _ in range(rounds):
                found[1].append(requests_per_s(one, work, seconds=seconds))
                found[workers].append(requests_per_s(n, work, seconds=seconds))
            ratios = [many[0] / single[0] for single, many in zip(found[1], found[workers], strict=True)]
            cells = []
            for count in (1, workers):
                rates, cpu_ms = zip(*found[count], strict=True)
                cells += [f"{statistics.median(rates):,.0f}", f"{statistics.median(cpu_ms):.2f}"]
            lines.append(
                [work.name, *cells, f"{statistics.median(ratios):.2f} x [{min(ratios):.2f}, {max(ratios):.2f}]"]
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=6)
    given = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is missing: install it, for example with apt-get install wrk.")
    command = (
        f"python -m benchmarks.workers --workers {given.workers} --rounds {given.rounds} --seconds {given.seconds}"
    )
    try:
        lines = measure(given.workers, rounds=given.rounds, seconds=given.seconds)
    except BenchError as error:
        sys.exit(str(error))
    print(describe_run(command), end="\n\n")
    head = ["Work", "1 process: answers/s", "CPU ms", f"{given.workers} workers: answers/s", "CPU ms", "Ratio"]
    print(markdown(head, lines))


if __name__ == "__main__":
    main()
