"""A small model hub that the test serves itself, and a process that loads a model from it.

It implements the part of the hub's API that `huggingface_hub` needs to download a model: the model's description, its
tree, and `resolve` with HEAD and GET. `huggingface_hub` reads HF_ENDPOINT at import, so another process loads.
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

from tests.support.processes import killed_at_the_end
from tests.support.servers import ROOT, environment

Json = dict[str, Any]

OUTCOME = "outcome: "
"""Starts the lines in which a `Loader`'s process reports; libraries may print others."""


def unchanged(_name: str, content: bytes) -> bytes:
    return content


@dataclass(slots=True)
class Hub:
    """A hub with one repository; a test sets how it fails.

    Attributes:
        rejection: status and X-Error-Code of its answers; None: it answers normally.
        rejected: requests whose path contains this are rejected; by default all.
        corrupt: changes a file before it is sent, by name and content.
        disconnects_in: it closes the connection in the middle of these files.
        older: files of older commits.
        requests: every request so far, such as `GET /api/models/a/b`.
    """

    url: str
    repository: str
    files: Mapping[str, bytes]
    rejection: tuple[int, str | None] | None = None
    rejected: str = "/"
    corrupt: Callable[[str, bytes], bytes] = unchanged
    disconnects_in: tuple[str, ...] = ()
    older: list[Mapping[str, bytes]] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    @property
    def commit(self) -> str:
        return commit_of(self.files)

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body for a GET of *path*."""
        if self.rejection and self.rejected in path:
            status, code = self.rejection
            return status, {"X-Error-Code": code} if code else {}, b""
        description = f"/api/models/{self.repository}"
        if path in (description, f"{description}/revision/main"):
            return self._describe(self.commit)
        for files in (self.files, *self.older):
            commit = commit_of(files)
            resolved = f"/{self.repository}/resolve/{commit}/"
            if path == f"{description}/revision/{commit}":
                return self._describe(commit)
            if path == f"{description}/tree/{commit}":
                return _json([_entry(name, content) for name, content in files.items()])
            if path.startswith(resolved) and (name := path.removeprefix(resolved)) in files:
                content = files[name]
                return 200, {"ETag": f'"{_etag(name, content)}"', "X-Repo-Commit": commit}, content
        is_revision = path.startswith(f"{description}/revision/")
        return 404, {"X-Error-Code": "RevisionNotFound" if is_revision else "RepoNotFound"}, b""

    def _describe(self, commit: str) -> tuple[int, dict[str, str], bytes]:
        return _json({"id": self.repository, "sha": commit, "private": False, "tags": [], "siblings": []})


def commit_of(files: Mapping[str, bytes]) -> str:
    return hashlib.sha1(b"".join(files.values()), usedforsecurity=False).hexdigest()


def _json(content: object) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()


def _blob_id(content: bytes) -> str:
    """Return git's blob id."""
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content), usedforsecurity=False).hexdigest()


def _is_large(name: str) -> bool:
    """Whether the hub keeps a file in its large file storage, where its id is its SHA-256."""
    return name.endswith(".onnx")


def _etag(name: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if _is_large(name) else _blob_id(content)


def _entry(name: str, content: bytes) -> Json:
    entry = {"type": "file", "path": name, "size": len(content), "oid": _blob_id(content)}
    if _is_large(name):
        entry["lfs"] = {"oid": _etag(name, content), "size": len(content), "pointerSize": 130}
    return entry


@contextmanager
def serving(repository: str, files: Mapping[str, bytes]) -> Iterator[Hub]:
    """Serve a hub on a free port of this machine, for the length of the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            status, headers, body = hub.answer(path)
            if self.command == "GET":
                body = hub.corrupt(path.rpartition("/")[2], body)
            hub.requests.append(f"{self.command} {path}")
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body)), "Connection": "close"}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET" and hub.disconnects_in and path.endswith(hub.disconnects_in):
                self.wfile.write(body[: len(body) // 2])
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
            elif self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

        def log_message(self, *_: object) -> None:
            """Log nothing."""

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
    """A separate process that loads a model each time `load` is called."""

    def __init__(self, name: str, *, hub_timeout_s: float | None = None, **variables: str) -> None:
        """Start the process.

        Args:
            name: a model of the registry.
            hub_timeout_s: replaces `engine.hub_client.HUB_TIMEOUT_S`.
            variables: environment variables.
        """
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.load_model", name, *([str(hub_timeout_s)] if hub_timeout_s else [])],
            cwd=ROOT,
            env=hub_environment(**variables),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def load(self, cache_dir: Path, text: str = "", *, preloaded: Path | None = None, revision: str = "") -> Json:
        """Load the model, at *revision* as if its card stated it.

        Return the `vector` of *text* and the `fingerprint`, or the `cause` why it is unavailable.
        """
        self.start(cache_dir, text, preloaded=preloaded, revision=revision)
        return self.outcome()

    def start(self, cache_dir: Path, text: str = "", *, preloaded: Path | None = None, revision: str = "") -> None:
        """Let the process begin to load; `outcome` waits for its end."""
        assert self.process.stdin
        request = {"cache_dir": str(cache_dir), "text": text, "preloaded": str(preloaded) if preloaded else None}
        request["revision"] = revision
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

    def outcome(self) -> Json:
        """Wait for the end of a load."""
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith(OUTCOME):
                outcome: Json = json.loads(line.removeprefix(OUTCOME))
                return outcome
        raise AssertionError("the loading process has ended")

    def wait_for_event(self, name: str) -> None:
        """Wait until the process logs an event."""
        assert self.process.stdout
        assert any(name in line for line in iter(self.process.stdout.readline, ""))

    def kill(self) -> None:
        """End the process as the kernel does when memory runs out."""
        self.process.kill()
        self.process.wait()


@contextmanager
def loading(name: str, *, hub_timeout_s: float | None = None, **variables: str) -> Iterator[Loader]:
    loader = Loader(name, hub_timeout_s=hub_timeout_s, **variables)
    with killed_at_the_end(loader.process):
        yield loader
        loader.process.communicate()  # it ends with its input


def hub_environment(**variables: str) -> dict[str, str]:
    """Return this process's environment with *variables*, without a developer's settings for the real hub."""
    inherited = {name: value for name, value in environment({}).items() if not name.startswith(("HF_", "HUGGING"))}
    return {**inherited, "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", **variables}
