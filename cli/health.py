"""`python -m cli.health`: is the service on this machine healthy? For a container's HEALTHCHECK, where no curl is.

It runs every few seconds beside a service that wants the cores, so it imports the standard library only.
"""

import json
import os
import sys
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

ENV_FILE = Path(__file__).resolve().parent.parent / ".env"
HEALTHY, UNHEALTHY = 0, 1
"""Exit codes; Docker keeps all others for itself."""
ANSWER_S = 4.0
"""Less than the time-out of HEALTHCHECK, so that it is we who say what is wrong."""
EVERYWHERE_V4, DEFAULT_PORT = "0.0.0.0", "8000"  # noqa: S104 - nothing is bound here
"""The defaults of HOST and PORT."""
LOOPBACK = {EVERYWHERE_V4: "127.0.0.1", "::": "::1"}
"""Where a service that listens everywhere can be reached."""


def run() -> int:
    """Ask and tell.

    Returns:
        The exit code.
    """
    host, port = address(os.environ)
    try:
        problem = problem_at(host, port)
    except (OSError, HTTPException) as error:
        problem = f"no answer from {host}:{port} ({str(error).strip() or type(error).__name__})"
    sys.stdout.write(f"unhealthy: {problem}\n" if problem else "healthy\n")
    return UNHEALTHY if problem else HEALTHY


def address(environment: Mapping[str, str]) -> tuple[str, int]:
    """Where the service can be reached, by HOST and PORT as `Settings` reads them."""
    given = {name.upper(): value for name, value in environment.items()}
    host, port = given.get("HOST"), given.get("PORT")
    if not (host and port) and ENV_FILE.exists():
        from config import load_settings  # noqa: PLC0415 - takes many times as long as all the rest

        settings = load_settings()
        host, port = settings.host, str(settings.port)
    host = host or EVERYWHERE_V4
    return LOOPBACK.get(host, host), int(port or DEFAULT_PORT)


def problem_at(host: str, port: int) -> str | None:
    """Why the service there is not healthy; None if it is.

    Raises:
        OSError: it cannot be reached, or says nothing.
        HTTPException: what it says is no HTTP.
    """
    for path in ("/health/live", "/health/ready"):
        connection = HTTPConnection(host, port, timeout=ANSWER_S)
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
        return "no JSON"


if __name__ == "__main__":
    sys.exit(run())
