"""`python -m cli.health`: is the service on this machine healthy? For a HEALTHCHECK in an image without curl.

It runs every few seconds beside the service and should take no CPU time from it, so it imports the standard library
only.
"""

import errno
import json
import os
import sys
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

ENV_FILE = Path(__file__).resolve().parent.parent / ".env"
HEALTHY, UNHEALTHY = 0, 1
"""Exit codes; Docker reserves all others."""
TIMEOUT_S = 4.0
"""How long to wait for an answer. HEALTHCHECK has a longer time-out, so this check ends with a message of its own."""
DEFAULT_HOST, DEFAULT_PORT = "0.0.0.0", "8000"  # noqa: S104 - nothing is bound here
"""The defaults of HOST and PORT."""
LOOPBACK = {DEFAULT_HOST: "127.0.0.1", "::": "::1"}
"""How to reach a service that listens on all addresses."""
NO_IPV6 = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})
"""Errors of a machine without IPv6. There, HOST=:: means 0.0.0.0."""


def run() -> int:
    """Check the service, print one line, and return the exit code."""
    host, port = address(os.environ)
    try:
        try:
            problem = problem_at(host, port)
        except OSError as error:
            if host != LOOPBACK["::"] or error.errno not in NO_IPV6:
                raise
            problem = problem_at(LOOPBACK[DEFAULT_HOST], port)
    except (OSError, HTTPException) as error:
        problem = f"no answer from {host}:{port} ({str(error).strip() or type(error).__name__})"
    sys.stdout.write(f"unhealthy: {problem}\n" if problem else "healthy\n")
    return UNHEALTHY if problem else HEALTHY


def address(environment: Mapping[str, str]) -> tuple[str, int]:
    """Return where the service can be reached, from HOST and PORT as `Settings` reads them."""
    given = {name.upper(): value for name, value in environment.items()}
    host, port = given.get("HOST"), given.get("PORT")
    if not (host and port) and ENV_FILE.exists():
        from config import load_settings  # noqa: PLC0415 - importing it takes many times as long as the check

        settings = load_settings()
        host, port = settings.host, str(settings.port)
    host = (host or DEFAULT_HOST).removeprefix("[").removesuffix("]")
    return LOOPBACK.get(host, host), int(port or DEFAULT_PORT)


def problem_at(host: str, port: int) -> str | None:
    """Return why the service is not healthy, or None if it is.

    Raises:
        OSError: it cannot be reached, or does not answer in time.
        HTTPException: its answer is not HTTP.
    """
    for path in ("/health/live", "/health/ready"):
        connection = HTTPConnection(host, port, timeout=TIMEOUT_S)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        if response.status != 200:  # noqa: PLR2004 - OK
            return f"{path} answers {response.status} ({_state(body)})"
    return None


def _state(body: bytes) -> Any:
    try:
        return json.loads(body)["status"]
    except (ValueError, KeyError, TypeError):
        return "not JSON"


if __name__ == "__main__":
    sys.exit(run())
