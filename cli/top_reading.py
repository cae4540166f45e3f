"""Reads health and metrics of a running service, for `top`."""

import ipaddress
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import httpx

TIMEOUT_S = 5.0
"""How long to wait for an answer. A busy service answers within milliseconds."""
MAX_ANSWER_BYTES = 5_000_000
"""Longest answer that is read: ten times the metrics of a service with hundreds of models."""
MAX_CHARACTERS = 500
"""Longest text of an answer that is shown; the rest is cut."""
MAX_NUMBER = 1e18
"""Largest number that is understood: sums and differences of such numbers are numbers, too."""
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
            status, body = self._fetch(path)
        except (httpx.HTTPError, OSError) as error:
            reason = printable(str(error).strip()) or type(error).__name__
            raise ReadingError(f"No answer from {self.url} ({reason}).") from None
        at_s, content = self._clock(), None if body is None else read_json(body)
        if status in accepted and isinstance(content, dict):
            return at_s, content
        raise self._problem(path, status, content)

    def _fetch(self, path: str) -> tuple[int, bytes | None]:
        """Return status and body of an answer; None: the body is too long, or does not end."""
        # Compressed, a short answer could take all memory.
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        end_s, body = time.monotonic() + TIMEOUT_S, bytearray()
        with self._client.stream("GET", path, headers=headers) as answer:
            for part in answer.iter_raw():
                body += part
                if len(body) > MAX_ANSWER_BYTES or time.monotonic() > end_s:
                    return answer.status_code, None
        return answer.status_code, bytes(body)

    def _problem(self, path: str, status: int, content: object) -> ReadingError:
        detail = content.get("detail") if isinstance(content, dict) else None
        said = f"{self.url} answered GET /{path} with {status}"
        if not isinstance(detail, str):
            return ReadingError(f"{said}, which is not an answer of this service.")
        advice = f" Set {KEY_VARIABLE} to a key with the permission `metrics`." if status in {401, 403} else ""
        if isinstance(content, dict) and content.get("code") == "metrics-disabled":
            advice = ""
        return ReadingError(f"{said}: {detail}{advice}", is_final=status in {401, 403, 404})


def read_json(body: bytes) -> object:
    """Return what *body* contains, with texts that a terminal only shows, and numbers that can be added.

    None: it is not JSON.
    """
    try:
        return json.loads(
            body, object_hook=_printable_members, parse_int=_number, parse_float=_number, parse_constant=lambda _: None
        )
    except (ValueError, RecursionError):
        return None


def printable(text: str) -> str:
    """Return *text* without characters that a terminal obeys, such as the beginning of a command to it."""
    return "".join(character if character.isprintable() else "?" for character in text[:MAX_CHARACTERS])


def _printable_members(members: dict[str, Any]) -> dict[str, Any]:
    return {printable(name): _printable_value(value) for name, value in members.items()}


def _printable_value(value: Any) -> Any:
    if isinstance(value, list):
        return [printable(item) if isinstance(item, str) else item for item in value]
    return printable(value) if isinstance(value, str) else value


def _number(text: str) -> float | None:
    """Return the number that *text* is; None: it is too large."""
    number = float(text)
    if not abs(number) <= MAX_NUMBER:
        return None
    return int(text) if text.lstrip("-").isdigit() else number


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
