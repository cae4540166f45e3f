"""A small model hub, served by the test itself, and a process that loads a model from it.

It speaks as much of the hub's API as `huggingface_hub` uses to download a model: the model's facts, its tree, and
`resolve` with HEAD and GET. `huggingface_hub` reads HF_ENDPOINT when it is imported, so what loads is another process.
"""

import hashlib
import json
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.support.servers import ROOT, environment

Facts = dict[str, Any]


def unchanged(_name: str, content: bytes) -> bytes:
    return content


@dataclass(slots=True)
class Hub:
    """A hub that has one repository; a test sets how it fails.

    Attributes:
        refusal: status and X-Error-Code of its answers; None: it answers as it should.
        refused: what an address must hold to be refused; by default, each is.
        spoil: what becomes of a file on its way, by name and content.
        breaks_off: the end of the names of files in the middle of which it hangs up; None: it sends all of each.
        asked: every request so far, such as `GET /api/models/a/b`.
    """

    url: str
    repository: str
    files: Mapping[str, bytes]
    refusal: tuple[int, str | None] | None = None
    refused: str = "/"
    spoil: Callable[[str, bytes], bytes] = unchanged
    breaks_off: str | None = None
    asked: list[str] = field(default_factory=list)

    @property
    def commit(self) -> str:
        return hashlib.sha1(b"".join(self.files.values()), usedforsecurity=False).hexdigest()

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for a GET of *path*."""
        if self.refusal and self.refused in path:
            status, code = self.refusal
            return status, {"X-Error-Code": code} if code else {}, b""
        facts, resolved = f"/api/models/{self.repository}", f"/{self.repository}/resolve/{self.commit}/"
        if path in (facts, f"{facts}/revision/main"):
            return _json({"id": self.repository, "sha": self.commit, "private": False, "tags": [], "siblings": []})
        if path == f"{facts}/tree/{self.commit}":
            return _json([_entry(name, content) for name, content in self.files.items()])
        if path.startswith(resolved) and (name := path.removeprefix(resolved)) in self.files:
            content = self.files[name]
            return 200, {"ETag": f'"{_etag(name, content)}"', "X-Repo-Commit": self.commit}, content
        return 404, {"X-Error-Code": "RepoNotFound"}, b""


def _json(content: object) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()


def _blob_id(content: bytes) -> str:
    """As git names it."""
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content), usedforsecurity=False).hexdigest()


def _is_large(name: str) -> bool:
    """Weights are kept in the large file storage, and known by their SHA-256."""
    return name.endswith(".onnx")


def _etag(name: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if _is_large(name) else _blob_id(content)


def _entry(name: str, content: bytes) -> Facts:
    entry = {"type": "file", "path": name, "size": len(content), "oid": _blob_id(content)}
    if _is_large(name):
        entry["lfs"] = {"oid": _etag(name, content), "size": len(content), "pointerSize": 130}
    return entry


@contextmanager
def serving(repository: str, files: Mapping[str, bytes]) -> Iterator[Hub]:
    """A hub on a free port of this machine, for the length of the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            status, headers, body = hub.answer(path)
            if self.command == "GET":
                body = hub.spoil(path.rpartition("/")[2], body)
            hub.asked.append(f"{self.command} {path}")
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body)), "Connection": "close"}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET" and hub.breaks_off and path.endswith(hub.breaks_off):
                self.wfile.write(body[: len(body) // 2])
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # so: a reset
            elif self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

        def log_message(self, *_: object) -> None:
            """Stay quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub = Hub(f"http://127.0.0.1:{server.server_address[1]}", repository, files)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


class Loader:
    """A process of its own that loads a model again and again, each time when it is told to."""

    def __init__(self, name: str, **variables: str) -> None:
        """Start it; *variables* are its environment's."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.load_model", name],
            cwd=ROOT,
            env=hub_environment(**variables),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def load(self, cache_dir: Path, text: str = "", *, preloaded: Path | None = None) -> Facts:
        """What came of it: the `vector` of *text* and the `files` loaded, or the `cause` why it cannot be had."""
        assert self._process.stdin
        assert self._process.stdout
        order = {"cache_dir": str(cache_dir), "text": text, "preloaded": str(preloaded) if preloaded else None}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("came of it: "):
                outcome: Facts = json.loads(line.removeprefix("came of it: "))
                return outcome
        raise AssertionError("the loading process has ended")

    def close(self) -> None:
        """End the process and wait for it."""
        self._process.communicate()


@contextmanager
def loading(name: str, **variables: str) -> Iterator[Loader]:
    loader = Loader(name, **variables)
    try:
        yield loader
    finally:
        loader.close()


def hub_environment(**variables: str) -> dict[str, str]:
    """This process's environment with *variables*, but without what a developer has set up for the real hub."""
    inherited = {name: value for name, value in environment({}).items() if not name.startswith(("HF_", "HUGGING"))}
    return {**inherited, "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", **variables}
