"""Starts a Ray cluster of two nodes on this machine, in a separate process.

`python -m tests.support.ray_clusters FOLDER HEAD_CPUS WORKER_CPUS` starts a cluster and prints its address. A line on
its standard input kills the second node; the end of the input stops the cluster. The tests themselves never import Ray.
"""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Self

import pytest

from tests.support.servers import ROOT, environment

START_S = 120.0
END_S = 30.0
STORE_BYTES = 80_000_000
"""Ray's minimum for a node's object store."""
MARKER = "RAY_TEST_CLUSTER"
"""Environment variable that identifies all processes of a cluster."""


class RayCluster:
    """A cluster for tests.

    Attributes:
        address: the address of its head, once it is `ready`.
        environment: environment variables for the cluster's clients.
    """

    address = ""

    def __init__(self, *cpus: int, **settings: str) -> None:
        """Start a head and a second node with these numbers of *cpus*, without waiting for them."""
        # A short path, because the length of socket names is limited.
        self.folder = Path(tempfile.mkdtemp(prefix="ray-"))
        self._mark = token_hex(8)
        self.environment = {
            name: value
            for name, value in environment(settings).items()
            if not name.startswith(("COV_", "COVERAGE_", "RAY_")) and name != "PYTHONPATH"
        } | {
            MARKER: self._mark,
            "RAY_TMPDIR": str(self.folder),  # otherwise clusters overwrite each other's address file
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "ignore",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": token_hex(),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deploy.ray.retries:middlewares",
        }
        (self.folder / "ray").mkdir()  # Ray writes an address file there, but does not create the folder
        self._errors = (self.folder / "errors").open("w+", encoding="utf-8")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.ray_clusters", str(self.folder), *map(str, cpus)],
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def ready(self) -> Self:
        """Wait until both nodes have started; return the cluster."""
        self.address = self._answer()
        return self

    def kill_second_node(self) -> None:
        assert self._process.stdin
        self._process.stdin.write("kill\n")
        self._process.stdin.flush()
        assert self._answer() == "killed"

    def processes(self, title: str = "") -> list[int]:
        """Return the ids of its processes whose title starts with *title*."""
        return sorted(pid for pid, command in self._all_processes() if command.startswith(title))

    def logged(self, name: str) -> str:
        """Return the content of all its log files that match the pattern *name*."""
        return "\n".join(path.read_text(errors="replace") for path in self.folder.glob(f"session_2*/logs/{name}"))

    def stop(self) -> None:
        """Stop the cluster, and kill the processes that remain."""
        assert self._process.stdin
        assert self._process.stdout
        with suppress(OSError):
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _answer(self) -> str:
        assert self._process.stdout
        for line in self._process.stdout:
            with suppress(ValueError, TypeError, KeyError):
                return str(json.loads(line)["answer"])
        self._errors.seek(0)
        return pytest.fail(f"the Ray cluster has exited: {self._errors.read()[-2000:]}")

    def _all_processes(self) -> Iterator[tuple[int, str]]:
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if f"{MARKER}={self._mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                    yield int(folder.name), (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()


@contextmanager
def running_cluster(*cpus: int, **settings: str) -> Iterator[RayCluster]:
    """Run a cluster until the end of the block. Without Ray, skip the test; in CI, fail it."""
    if importlib.util.find_spec("ray") is None:
        missing = "Ray is not installed: pip install --require-hashes -r requirements/lock-ray.txt"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    cluster = RayCluster(*cpus, **settings)
    try:
        yield cluster.ready()
    finally:
        cluster.stop()


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = START_S) -> None:
    """Poll *condition* until it is true; fail the test after *timeout_s*."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"timed out after {timeout_s:g} s: {what}")
        time.sleep(0.05)


def answer(value: str) -> None:
    sys.stdout.write(json.dumps({"answer": value}) + "\n")
    sys.stdout.flush()


def main() -> None:
    from ray.cluster_utils import Cluster  # noqa: PLC0415 - tests do not import Ray

    folder, head_cpus, worker_cpus = sys.argv[1:]
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": int(head_cpus),
            "object_store_memory": STORE_BYTES,
            "include_dashboard": False,
            "temp_dir": folder,
        },
    )
    second = cluster.add_node(num_cpus=int(worker_cpus), object_store_memory=STORE_BYTES)
    answer(cluster.address)
    for _ in sys.stdin:
        cluster.remove_node(second, allow_graceful=False)
        answer("killed")
    cluster.shutdown()


if __name__ == "__main__":
    main()
