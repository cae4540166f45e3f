"""Trace context of W3C: reads the header `traceparent`, by which a request belongs to a trace of its caller."""

import re
from dataclasses import dataclass

TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
"""Version, trace, span, flags; and what versions after 00 may add. Version ff is forbidden."""


@dataclass(frozen=True, slots=True)
class TraceContext:
    """The trace to which a request belongs.

    Attributes:
        trace_id: 32 hexadecimal digits, in lower case, not all zero.
        span_id: of the caller's span, 16 hexadecimal digits, not all zero.
        flags: bit 0: the caller may have recorded its span; bit 1: the trace's id is random.
    """

    trace_id: str
    span_id: str
    flags: int

    @property
    def is_recorded(self) -> bool:
        """Whether the caller records its span, or the service its own."""
        return self.flags & 1 == 1


def parse_traceparent(value: str | None) -> TraceContext | None:
    """Return the trace context in the *value* of the header; None: it is malformed, so the header is ignored."""
    if value is None or (found := TRACEPARENT.fullmatch(value)) is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if not trace_id.strip("0") or not span_id.strip("0") or (version == "00" and more is not None):
        return None
    return TraceContext(trace_id, span_id, int(flags, 16))
