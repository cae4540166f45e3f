"""The bounds of every connection."""

from dataclasses import dataclass

MOST_PIPELINED = 64
"""Requests that may wait on one connection for answers to earlier ones; hardly any client sends a second one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What holds for every connection."""

    header_timeout_s: float
    body_timeout_s: float
    keep_alive_timeout_s: float
    max_header_bytes: int
    max_bodies_bytes: int
    """Of all bodies that are under way or at work together."""
    max_connections: int
