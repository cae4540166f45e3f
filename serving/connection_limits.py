"""The limits of every connection, and the stages of a connection to which they apply.

`serving.protocol` enforces them: deadlines for slow clients, sizes and numbers.
"""

from dataclasses import dataclass
from enum import Enum, auto

MAX_PIPELINED = 64
"""Requests that may wait on one connection for the answers to earlier ones; clients that pipeline at all send a few."""


class Stage(Enum):
    """What happens next on a connection. In every stage but `PROCESSING`, the server waits for the client."""

    READING_HEAD = auto()  # also before the first request
    READING_BODY = auto()
    PROCESSING = auto()  # the app works on the request
    SENDING = auto()  # the answer is complete, but the client has not received all of it
    IDLE = auto()  # kept alive between two requests
    LINGERING = auto()  # the answer was sent before the whole body arrived, or the connection is about to end


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """Limits of time, size and number."""

    header_timeout_s: float
    body_timeout_s: float
    keep_alive_timeout_s: float
    max_header_bytes: int
    max_bodies_bytes: int
    """Of all request bodies in memory together: those being received and those not answered yet."""
    max_connections: int
