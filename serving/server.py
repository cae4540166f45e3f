"""The process around the app: its socket, its signals, its exit code."""

import os
import socket
import sys
import threading
from types import FrameType
from typing import Literal, Protocol

import uvicorn
from litestar import Litestar

BACKLOG = 2048
"""Connections that the kernel holds until the service takes them."""


class Stoppable(Protocol):
    """What a running service shows of itself."""

    phase: Literal["starting", "healthy", "draining"]
    failure: str | None


class Server(uvicorn.Server):
    """A server that tells the service when it is asked to stop, and ends with exit code 0 then."""

    def __init__(self, app: Litestar, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._app = app

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        """First signal: drain. Second signal: end at once."""
        if (service := running_service(self._app)) is not None:
            service.phase = "draining"
        self.force_exit, self.should_exit = self.should_exit, True


def serve(app: Litestar, *, host: str, port: int, drain_s: int) -> int:
    """Run *app* until a signal stops it.

    Args:
        app: the service; its lifespan puts the running service into `app.state.service`.
        host: address to listen on.
        port: TCP port to listen on.
        drain_s: seconds that accepted requests get to end.

    Returns:
        The exit code: 0 after a signal, 1 where the service could not start; standard error says why.
    """
    try:
        listening = _listen(host, port)
    except (OSError, TypeError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "this is no address"
        return _fail(f"Cannot listen on HOST={host} PORT={port}: {reason}.")
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=drain_s,
    )
    Server(app, config).run(sockets=[listening])
    service = running_service(app)
    if service is None or service.failure:
        return _end(_fail(f"Cannot start: {service.failure if service else 'the log says why.'}"))
    return _end(0)


def running_service(app: Litestar) -> Stoppable | None:
    service: Stoppable | None = app.state.get("service")
    return service


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(BACKLOG)  # only this takes the port: two servers may have bound it
    except BaseException:
        listening.close()
        raise
    return listening


def _end(code: int) -> int:
    """Leave threads alone that still run: a download cannot be stopped, and Python would wait for its end."""
    if any(thread is not threading.main_thread() and not thread.daemon for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _fail(reason: str) -> int:
    sys.stderr.write(f"{reason}\n")
    return 1
