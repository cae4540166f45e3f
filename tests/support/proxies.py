"""A real nginx in front of replicas, with the project's own configuration, in a folder and on a port of its own."""

import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.logged_process import START_S, LoggedProcess
from tests.support.servers import ROOT, free_port

CONFIGURATION = ROOT / "nginx.conf"
RETRY_MARGIN_S = 5
BALANCER = {r"(?m)^( *)#lb ": r"\1"}
"""What it tells to do behind a load balancer."""

Event = dict[str, Any]


class ProxyProcess(LoggedProcess):
    """An nginx that a test has started; its log of requests and its log of errors are one."""

    def __init__(self, folder: Path, replicas: Sequence[str], *, changes: Mapping[str, str], source: Path) -> None:
        """Start nginx below *folder* in front of *replicas*, each `host:port`, with *changes* to *source*."""
        address = f"127.0.0.1:{free_port()}"
        self.url = f"http://{address}"
        config = configuration(source, address, replicas, changes=changes)
        (folder / "nginx.conf").write_text(config, encoding="utf-8")
        # Started by root, nginx gives up its rights to a user who may not enter a test's folder.
        more = "daemon off; pid nginx.pid;" + (" user root;" if os.geteuid() == 0 else "")
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


def configuration(source: Path, address: str, replicas: Sequence[str], *, changes: Mapping[str, str]) -> str:
    """The project's own configuration, for these addresses and below the folder of a test."""
    temporary = "".join(
        f"    {name}_temp_path {name};\n" for name in ("client_body", "proxy", "fastcgi", "scgi", "uwsgi")
    )
    own = {r"(?m)^http \{\n": "http {\n" + temporary, **to_replicas(replicas)}
    here = {r"(?m)^( +)listen 8080;": rf"\1listen {address};"}
    return changed(source.read_text(encoding="utf-8"), {**own, **changes, **here})


def to_replicas(replicas: Sequence[str]) -> dict[str, str]:
    """The change that names them, each `host:port`."""
    servers = " ".join(f"server {replica} max_fails=0;" for replica in replicas)
    return {r"server fast-embedding:8000 max_fails=0;": servers}


def changed(text: str, changes: Mapping[str, str]) -> str:
    """*text* with each pattern replaced, one after the other; fails if one matches nothing."""
    for pattern, replacement in changes.items():
        text, count = re.subn(pattern, replacement, text)
        assert count, f"nginx.conf has nothing like {pattern}"
    return text


def problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    told: dict[str, Any] = response.json()
    assert (response.status_code, told["status"], told["code"]) == (status, status, code), response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert told["request_id"] == response.headers["x-request-id"]
    return told


def patience(read_timeout_s: int) -> dict[str, str]:
    """Changes for a test that cannot wait as long for a frozen replica as nginx.conf does."""
    return {
        r"proxy_read_timeout \d+s;": f"proxy_read_timeout {read_timeout_s}s;",
        r"proxy_next_upstream_timeout \d+s;": f"proxy_next_upstream_timeout {read_timeout_s + RETRY_MARGIN_S}s;",
    }


@contextmanager
def running_proxy(
    folder: Path,
    replicas: Sequence[str],
    changes: Mapping[str, str] | None = None,
    *,
    source: Path | None = None,
) -> Iterator[ProxyProcess]:
    """An nginx that takes requests; it is stopped at the end of the block."""
    proxy = ProxyProcess(folder, replicas, changes=changes or {}, source=source or CONFIGURATION)
    try:
        yield proxy
    finally:
        proxy.stop()
