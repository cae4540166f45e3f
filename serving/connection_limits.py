"""The limits of every connection, and the stages of a connection to which they apply.

`serving.protocol` enforces them: deadlines for slow clients, sizes and numbers.
"""

import math
from dataclasses import dataclass
from enum import Enum, auto

MAX_PIPELINED = 64
"""Requests that may wait on one connection for the answers to earlier ones; clients that pipeline at all send a few."""
MAX_PIPELINED_PER_ADDRESS = 512
"""Such requests on all connections of one address together: as many as eight connections may have. Each connection may
have one nevertheless, so a client that pipelines does not refuse others of its address."""
MAX_FIELDS = 100
"""Header fields of a head, and of a trailer. Browsers and proxies send fewer than 50; each costs the parser a call."""
MAX_TINY_CHUNKS, TINY_BYTES = 1000, 64
"""Pieces of a body that may be tiny, and the least average size beyond that. Each piece costs the parser a call."""
FIELD_SEPARATORS = len(": \r\n")
STALL_S = 2.0
"""A connection that has made no progress for so long is stalled, and gives way to others before those that have."""
PROGRESS_BYTES = 1024
"""Bytes of a body that count as progress. Single bytes do not: with one a second, a client could keep its place. Of
connections that make progress, the one whose last progress is oldest gives way first: slow ones before fast ones.
"""
EXTRA_PART = 8
"""An eighth of the connections and of the memory is kept beyond the limits, for addresses that hold little: those that
have no other connection, and those whose bodies fit into it."""
MAX_EXTRA_CONNECTIONS = 50
"""The extra connections at most; they are open files beyond `MAX_CONNECTIONS`."""


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
    max_connections_per_address: int | None = None
    workers: int = 1
    """Processes that have these numbers of connections together, in equal shares."""

    def share_of(self, connections: int) -> int:
        """Return the share of this process in a number of connections, rounded up."""
        return math.ceil(connections / self.workers)
