"""A real nginx in front of replicas, with the project's configuration, in a temporary folder and on a free port."""

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
"""How much longer than one replica may take nginx goes on trying others."""
BALANCER = {r"(?m)^( *)#lb ": r"\1"}
"""The change that nginx.conf describes for use behind a load balancer: it enables the lines that start with `#lb`."""
NEW = {r"(?m)^( *)#new ": r"\1"}
"""The change that nginx.conf describes for nginx 1.27.4 and later."""
DNS = {r"(?m)^( *)#dns ": r"\1", r"(?m)^.*# static\n": ""}
"""The change that deploy/compose/start-nginx.sh makes, so that the addresses of the replicas are looked up."""

Event = dict[str, Any]


class ProxyProcess(LoggedProcess):
    """An nginx that a test has started; its access log and its error log are collected as one."""

    def __init__(
        self, folder: Path, replicas: Sequence[str], *, changes: Mapping[str, str], source: Path, command: str
    ) -> None:
        """Start nginx, by its *command*, in *folder* in front of *replicas*, each `host:port`, with *source*.

        *changes* replaces patterns of the configuration.
        """
        address = f"127.0.0.1:{free_port()}"
        self.url = f"http://{address}"
        config = configuration(source, address, replicas, changes=changes)
        (folder / "nginx.conf").write_text(config, encoding="utf-8")
        # Started by root, nginx switches to a user that may not enter a test's folder.
        more = "daemon off; pid nginx.pid;" + (" user root;" if os.geteuid() == 0 else "")
        words = [command, "-p", str(folder), "-c", "nginx.conf", "-e", "stderr", "-g", more]
        super().__init__(words, folder=folder, environment=os.environ)

    @property
    def requests(self) -> list[Event]:
        """One log line per finished request, with its status and the replicas that were tried."""
        return [event for event in self.events if event["event"] == "request_proxied"]

    def wait_for_requests(
        self, what: str, matches: Callable[[Event], bool], *, times: int = 1, timeout_s: float = START_S
    ) -> list[Event]:
        """Wait until at least *times* requests match, and return them; *what* names them if none comes."""

        def matching() -> list[Event]:
            return [request for request in self.requests if matches(request)]

        self.wait_until(lambda: len(matching()) >= times, what, timeout_s=timeout_s)
        return matching()

    def count(self, words: str) -> int:
        """Return the number of log lines that contain *words*."""
        return sum(words in line for line in self.lines)

    def wait_until_ready(self) -> None:
        self._wait_for_workers(1)  # the port is open before the first worker exists

    def reload(self) -> None:
        """Start new workers; the old ones finish their requests and end."""
        before = self.count("start worker process ")
        self.process.send_signal(signal.SIGHUP)
        self._wait_for_workers(before + 1)

    def _wait_for_workers(self, count: int) -> None:
        self.wait_until(lambda: self.count("start worker process ") >= count, "worker")


def nginx() -> str:
    """Return the command; if it is missing, skip the test, or fail it in CI."""
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if found is None:
        missing = "nginx is not installed (Debian: apt-get install nginx-light)"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return found


def newer_nginx() -> str:
    """Return the command of an nginx that knows all lines of nginx.conf; if there is none, skip the test."""
    if not (command := os.environ.get("NEWER_NGINX")):
        pytest.skip("needs nginx 1.27.4 or later: export NEWER_NGINX=$(bash .ci/newer-nginx FOLDER)")
    return command


def configuration(source: Path, address: str, replicas: Sequence[str], *, changes: Mapping[str, str]) -> str:
    """Return *source* with these addresses and *changes*, and with temporary files in the working folder.

    Without *replicas*, their name stays.
    """
    temporary = "".join(
        f"    {name}_temp_path {name};\n" for name in ("client_body", "proxy", "fastcgi", "scgi", "uwsgi")
    )
    own = {r"(?m)^http \{\n": "http {\n" + temporary, **(to_replicas(replicas) if replicas else {})}
    here = {r"(?m)^( +)listen 8080;": rf"\1listen {address};", r"(?m)^.*listen \[::\].*\n": ""}
    return changed(source.read_text(encoding="utf-8"), {**own, **changes, **here})


def to_replicas(replicas: Sequence[str]) -> dict[str, str]:
    """Return the change of nginx.conf that names these replicas, each `host:port`."""
    servers = " ".join(f"server {replica} max_fails=0;" for replica in replicas)
    return {r"server fast-embedding:8000 max_fails=0;": servers}


def changed(text: str, changes: Mapping[str, str]) -> str:
    """Return *text* with each pattern replaced, in order; fail if one matches nothing."""
    for pattern, replacement in changes.items():
        text, count = re.subn(pattern, replacement, text)
        assert count, f"nginx.conf has nothing like {pattern}"
    return text


def problem(
    response: httpx.Response, status: int, code: str, *, media_type: str = "application/problem+json"
) -> dict[str, Any]:
    """Return the problem details of *response*, checked; dialects send them as another *media_type*."""
    body: dict[str, Any] = response.json()
    assert (response.status_code, body["status_code"], body["code"]) == (status, status, code), response.text
    assert body.get("status", status) == status  # Ollama's routes omit it
    assert response.headers.get_list("content-type") == [media_type]
    assert body["request_id"] == response.headers["x-request-id"]
    return body


def read_timeout(read_timeout_s: int) -> dict[str, str]:
    """Return changes for a test that cannot wait for a frozen replica as long as nginx.conf does."""
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
    command: str | None = None,
) -> Iterator[ProxyProcess]:
    """Start an nginx that accepts requests, and stop it at the end of the block. *command*: another nginx."""
    proxy = ProxyProcess(
        folder, replicas, changes=changes or {}, source=source or CONFIGURATION, command=command or nginx()
    )
    try:
        proxy.wait_until_ready()
        yield proxy
    finally:
        proxy.stop()
