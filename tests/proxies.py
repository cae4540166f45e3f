"""A real nginx in front of replicas, with the project's own configuration, in a folder and on a port of its own."""

import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.logged import START_S, LoggedProcess
from tests.servers import ROOT, free_port

TEMPLATE = ROOT / "deploy" / "nginx.conf.template"
RETRY_MARGIN_S = 5

Event = dict[str, Any]


class ProxyProcess(LoggedProcess):
    """An nginx that a test has started; its log of requests and its log of errors are one."""

    def __init__(self, folder: Path, replicas: Sequence[str], *, read_timeout_s: int, max_request_bytes: int) -> None:
        """Start nginx below *folder* in front of *replicas*, each `host:port`."""
        address = f"127.0.0.1:{free_port()}"
        self.url = f"http://{address}"
        config = configuration(address, replicas, read_timeout_s=read_timeout_s, max_request_bytes=max_request_bytes)
        (folder / "nginx.conf").write_text(config, encoding="utf-8")
        # Started by root, nginx gives up its rights to a user who may not enter a test's folder.
        more = "daemon off; user root;" if os.geteuid() == 0 else "daemon off;"
        command = [nginx(), "-p", str(folder), "-c", "nginx.conf", "-e", "stderr", "-g", more]
        super().__init__(command, folder=folder, environment=os.environ)
        self._wait_for_workers(1)  # the port is open before the first worker is there

    @property
    def requests(self) -> list[Event]:
        """A line of the log per request that has ended: its status, and which replicas were tried."""
        return [event for event in self.events if event["event"] == "request_proxied"]

    def wait_for_requests(
        self, what: str, is_meant: Callable[[Event], bool], *, times: int = 1, timeout_s: float = START_S
    ) -> list[Event]:
        """The requests that *is_meant* picks, as soon as there are so many."""

        def meant() -> list[Event]:
            return [request for request in self.requests if is_meant(request)]

        self.wait_until(lambda: len(meant()) >= times, what, timeout_s=timeout_s)
        return meant()

    def count(self, words: str) -> int:
        """How many lines of the log hold these *words*."""
        return sum(words in line for line in self.lines)

    def reload(self) -> None:
        """Let new workers take over; the old ones end what they have begun."""
        before = self.count("start worker process ")
        self.process.send_signal(signal.SIGHUP)
        self._wait_for_workers(before + 1)

    def _wait_for_workers(self, count: int) -> None:
        self.wait_until(lambda: self.count("start worker process ") >= count, "worker")


def nginx() -> str:
    """The command; without it the test is skipped, or fails where CI promises that all is there."""
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if found is None:
        missing = "nginx is not installed (Debian: apt-get install nginx-light)"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return found


def configuration(address: str, replicas: Sequence[str], *, read_timeout_s: int, max_request_bytes: int) -> str:
    """The project's template, filled in; fails if it asks for more than is given here."""
    values = {
        "LISTEN": address,
        "REPLICAS": " ".join(f"server {replica} max_fails=0;" for replica in replicas),
        "MAX_REQUEST_SIZE": str(max_request_bytes),
        "READ_TIMEOUT": str(read_timeout_s),
        "RETRY_TIMEOUT": str(read_timeout_s + RETRY_MARGIN_S),
    }
    about, _, directives = TEMPLATE.read_text(encoding="utf-8").partition("\n\n")
    return about + "\n\n" + re.sub(r"\$\{([A-Z_]+)\}", lambda found: values[found[1]], directives)


@contextmanager
def running_proxy(
    folder: Path, replicas: Sequence[str], *, read_timeout_s: int = 60, max_request_bytes: int = 10_000_000
) -> Iterator[ProxyProcess]:
    """An nginx that takes requests; it is stopped at the end of the block."""
    proxy = ProxyProcess(folder, replicas, read_timeout_s=read_timeout_s, max_request_bytes=max_request_bytes)
    try:
        yield proxy
    finally:
        proxy.stop()
