"""The stages and the bounds of every connection."""

from dataclasses import dataclass
from enum import Enum, auto

MAX_PIPELINED = 64
"""Requests that may wait on one connection for answers to earlier ones; hardly any client sends a second one."""


class Stage(Enum):
    """Whose turn it is."""

    HEAD = auto()  # a request's head has begun, or the first one is awaited
    BODY = auto()
    WORK = auto()  # the service's turn; in all other stages it waits for the caller
    IDLE = auto()  # between two requests
    TAKING = auto()  # the answer is written, but not all of it taken
    LINGER = auto()  # the answer came before the body's end, or the connection ends


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """What holds for every connection."""

    header_timeout_s: float
    body_timeout_s: float
    keep_alive_timeout_s: float
    max_header_bytes: int
    max_bodies_bytes: int
    """Of all bodies that are under way or at work together."""
    max_connections: int
