"""Trace context: which values of the header `traceparent` are accepted, by levels 1 and 2 of the standard."""

import pytest

from telemetry.trace_context import TraceContext, parse_traceparent

ARABIC_DIGIT = "\u0661"
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(
    ("value", "flags"),
    [
        pytest.param(f"00-{TRACE}-{SPAN}-01", 1, id="sampled"),
        pytest.param(f"00-{TRACE}-{SPAN}-00", 0, id="not sampled"),
        pytest.param(f"00-{TRACE}-{SPAN}-03", 3, id="random id, level 2"),
        pytest.param(f"00-{TRACE}-{SPAN}-ff", 255, id="flags that are not defined yet"),
        pytest.param(f"01-{TRACE}-{SPAN}-01", 1, id="later version"),
        pytest.param(f"cc-{TRACE}-{SPAN}-01-what-else", 1, id="later version with more fields"),
    ],
)
def test_valid_value_is_parsed(value: str, flags: int) -> None:
    assert parse_traceparent(value) == TraceContext(TRACE, SPAN, flags)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(None, id="none"),
        pytest.param("", id="empty"),
        pytest.param(f"ff-{TRACE}-{SPAN}-01", id="forbidden version"),
        pytest.param(f"00-{'0' * 32}-{SPAN}-01", id="zero trace"),
        pytest.param(f"00-{TRACE}-{'0' * 16}-01", id="zero span"),
        pytest.param(f"00-{TRACE.upper()}-{SPAN}-01", id="upper case"),
        pytest.param(f"00-{TRACE}-{SPAN}-01-more", id="version 00 with more fields"),
        pytest.param(f"cc-{TRACE}-{SPAN}-01more", id="later version with longer flags"),
        pytest.param(f"00-{TRACE}-{SPAN}", id="no flags"),
        pytest.param(f"00-{TRACE[1:]}-{SPAN}-01", id="short trace"),
        pytest.param(f"00-{TRACE}-{SPAN}0-01", id="long span"),
        pytest.param(f"00-{TRACE}-{SPAN}-0g", id="flags that are no number"),
        pytest.param(f"00_{TRACE}_{SPAN}_01", id="other separators"),
        pytest.param(f"00-{TRACE}-{SPAN}-01\n", id="line break at the end"),
        pytest.param(f"cc-{TRACE}-{SPAN}-01-a\nb", id="line break in a later version's fields"),
        pytest.param(f"00-{ARABIC_DIGIT * 32}-{SPAN}-01", id="digits of another script"),
    ],
)
def test_malformed_value_is_ignored(value: str | None) -> None:
    assert parse_traceparent(value) is None
