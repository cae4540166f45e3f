"""What `peers.py` measures: this service, another server that runs or is started, or FastEmbed called directly."""

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from benchmarks.formats import BASE_PATHS, FORMATS, Target
from benchmarks.machine import memory_of_tree, tree_of
from benchmarks.processes import BenchError, Child, end_tree, healthy_server
from benchmarks.samples import Meter, Sample
from benchmarks.tables import percentile
from benchmarks.texts import Stream
from benchmarks.tokens import bundled_tokens
from benchmarks.workloads import MODEL

START_TIMEOUT_S = 180.0
REQUEST_TIMEOUT_S = 60.0


class Side(Protocol):
    """What is measured: this service or a peer."""

    @property
    def name(self) -> str: ...
    def sample(self, meter: Meter, stream: Stream, seed: str) -> Sample: ...
    def vectors(self, texts: Sequence[str]) -> NDArray[np.float64]: ...
    def memory_mb(self) -> float: ...


@dataclass(frozen=True, slots=True)
class HttpSide:
    """A server. *pid*: its process on this machine, if known."""

    name: str
    target: Target
    pid: int | None

    def sample(self, meter: Meter, stream: Stream, seed: str) -> Sample:
        return meter.sample(self.target, self.pid, [stream], seed)

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float64]:
        return self.target.vectors(exchange(self.target, texts))

    def memory_mb(self) -> float:
        return float("nan") if self.pid is None else memory_of_tree(self.pid).pss


@dataclass(frozen=True, slots=True)
class DirectSide:
    """FastEmbed in a process of its own without HTTP: `embed()` once per request, one request at a time."""

    name: str
    process: Child

    def sample(self, meter: Meter, stream: Stream, seed: str) -> Sample:
        answer = self.process.ask("call", stream=asdict(stream), seed=seed, warm_s=meter.warm_s, seconds=meter.seconds)
        latencies = answer["latencies_ms"]
        first = answer["first"]
        requests = islice(stream.requests(seed), first, first + len(latencies))
        tokens = sum(sum(bundled_tokens().count(texts)) for texts in requests)
        return Sample(
            texts_per_s=len(latencies) * stream.texts_per_request / answer["seconds"],
            tokens_per_s=tokens / answer["seconds"],
            cpu_ms_per_1000_tokens=answer["cpu_s"] * 1e6 / tokens,
            p50_ms=percentile(latencies, 0.5),
            p99_ms=percentile(latencies, 0.99),
            others_core_share=float("nan"),
        )

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float64]:
        return np.array(self.process.ask("vectors", texts=list(texts)))

    def memory_mb(self) -> float:
        return memory_of_tree(self.process.pid).pss


def exchange(target: Target, texts: Sequence[str]) -> Any:
    """Send one request and return the JSON of its answer.

    Raises:
        BenchError: there is no answer, or it is not a 200.
    """
    form = FORMATS[target.format]
    headers = {"Content-Type": "application/json"}
    if target.bearer:
        headers["Authorization"] = f"Bearer {target.bearer}"
    connection = http.client.HTTPConnection(target.host, target.port, timeout=REQUEST_TIMEOUT_S)
    try:
        connection.request("POST", target.path + form.route(texts), json.dumps(form.body(target.model, texts)), headers)
        response = connection.getresponse()
        content = response.read()
        if response.status != http.client.OK:
            raise BenchError(f"{target.path}{form.route(texts)} answered {response.status}: {content[:300]!r}")
        return json.loads(content)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise BenchError(
            f"http://{target.host}:{target.port}{target.path}: {str(error) or type(error).__name__}"
        ) from None
    finally:
        connection.close()


def target_of(base_url: str, dialect: str, model: str) -> Target:
    """Read a base URL.

    Raises:
        BenchError: it is not an http:// URL.
    """
    parts = urlsplit(base_url)
    if parts.scheme != "http" or not parts.hostname or parts.query or parts.fragment:
        raise BenchError(f"{base_url} is not a base URL of the form http://HOST:PORT/PATH. TLS is not supported.")
    bearer = os.environ.get("PEER_API_KEY", "")
    return Target(parts.port or 80, parts.hostname, parts.path.rstrip("/"), dialect, model, bearer)


@contextmanager
def started(
    command: Sequence[str], env: Mapping[str, str], url: str, log_file: Path, *, cwd: str = "."
) -> Iterator[int]:
    """Start a peer and wait until its port accepts connections; end it and its children with the block.

    Raises:
        BenchError: it cannot be started, has ended, or was not ready in time.
    """
    parts = urlsplit(url)
    with log_file.open("wb") as output:
        try:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env={**os.environ, **env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise BenchError(f"`{command[0]}` cannot be started ({error.strerror})") from None
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _accepts(parts.hostname or "", parts.port or 80):
            if process.poll() is not None:
                raise BenchError(f"the server ended with code {process.returncode}; its output is in {log_file.name}")
            if time.monotonic() > deadline:
                raise BenchError(f"the server was not ready within {START_TIMEOUT_S:.0f} s")
            time.sleep(0.1)
        yield process.pid
    finally:
        end_tree(process, tree_of(process.pid))


def _accepts(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=1)
    try:
        connection.connect()
    except OSError:
        return False
    finally:
        connection.close()
    return True


def wait_for_vectors(side: Side, is_alive: Callable[[], bool]) -> None:
    """Wait until a started server embeds a text: a port that accepts connections may belong to one that still loads.

    Raises:
        BenchError: it does not within the time limit.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            side.vectors(["ready?"])
        except BenchError:
            if time.monotonic() > deadline or not is_alive():
                raise
            time.sleep(0.5)
        else:
            return


@contextmanager
def this_service(dialect: str, cores: int, workers: int = 1) -> Iterator[HttpSide]:
    settings = {"WORKERS": str(workers)} if workers > 1 else {}
    with healthy_server(settings, lanes=cores) as server:
        target = Target(server.port, path=BASE_PATHS.get(dialect, ""), format=dialect, model=MODEL)
        yield HttpSide("this service", target, server.process.pid)


def log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
