"""Reads health and metrics of a running service, for `top`."""

import ipaddress
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import httpx

TIMEOUT_S = 5.0
"""How long to wait for an answer. A busy service answers within milliseconds."""
KEY_VARIABLE = "FAST_EMBEDDING_API_KEY"


class ReadingError(Exception):
    """The service cannot be read; the message is for the person who started `top`.

    Attributes:
        is_final: trying again does not help.
    """

    def __init__(self, message: str, *, is_final: bool = False) -> None:
        super().__init__(message)
        self.is_final = is_final


@dataclass(frozen=True, slots=True)
class Reading:
    """What the service reported at one moment.

    Attributes:
        at_s: the moment, in seconds on a monotonic clock.
        health: the answer of `GET /health`.
        metrics: the answer of `GET /metrics`.
    """

    at_s: float
    health: Mapping[str, Any]
    metrics: Mapping[str, Any]


class ServiceReader:
    """Reads one service. A context manager that closes its connection."""

    def __init__(self, url: str, *, key: str | None, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the service at *url*, with *key* if it requires one.

        Raises:
            ReadingError: *url* is not the address of an HTTP server.
        """
        self.url = url if "://" in url else f"http://{url}"
        self._clock = clock
        try:
            parsed = httpx.URL(self.url)
            if parsed.scheme not in {"http", "https"} or not parsed.host:
                raise ReadingError(
                    f"{url!r} is not an HTTP address. Use http://localhost:8000 or alike.", is_final=True
                )
            self._client = httpx.Client(
                base_url=self.url,
                headers={"Authorization": f"Bearer {key}"} if key else {},
                timeout=TIMEOUT_S,
                follow_redirects=False,
                trust_env=not _is_local(parsed.host),  # proxies of the environment cannot reach this machine
            )
        except (httpx.InvalidURL, UnicodeError, ValueError) as error:
            raise ReadingError(f"{url!r} is not an HTTP address: {error}", is_final=True) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def read(self) -> Reading:
        """Return what the service reports now.

        Raises:
            ReadingError: it does not answer, or does not report its metrics.
        """
        _, health = self._get("health", accepted=(200, 503))
        at_s, metrics = self._get("metrics", accepted=(200,))
        return Reading(at_s, health, metrics)

    def _get(self, path: str, *, accepted: tuple[int, ...]) -> tuple[float, Mapping[str, Any]]:
        try:
            answer = self._client.get(path, headers={"Accept": "application/json"})
        except (httpx.HTTPError, OSError) as error:
            reason = str(error).strip() or type(error).__name__
            raise ReadingError(f"No answer from {self.url} ({reason}).") from None
        at_s = self._clock()
        try:
            content = answer.json()
        except ValueError:
            content = None
        if answer.status_code in accepted and isinstance(content, dict):
            return at_s, content
        raise self._problem(path, answer.status_code, content)

    def _problem(self, path: str, status: int, content: object) -> ReadingError:
        detail = content.get("detail") if isinstance(content, dict) else None
        said = f"{self.url} answered GET /{path} with {status}"
        if not isinstance(detail, str):
            return ReadingError(f"{said}, which is not an answer of this service.")
        advice = f" Set {KEY_VARIABLE} to a key with the permission `metrics`." if status in {401, 403} else ""
        if isinstance(content, dict) and content.get("code") == "metrics-disabled":
            advice = ""
        return ReadingError(f"{said}: {detail}{advice}", is_final=status in {401, 403, 404})


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
