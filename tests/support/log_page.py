"""What the section Log of docs/MONITORING.md says: the events, and the fields of their lines."""

import re

from tests.support.servers import ROOT

COMMON = {"event", "level", "timestamp", "logger", "exception", "worker", "pid", "process"}
"""The fields that lines of all events may have."""


def _section(title: str, level: str = "##") -> str:
    page = (ROOT / "docs/MONITORING.md").read_text("utf-8").partition(f"\n{level} {title}\n")[2]
    assert page, f"there is no section {title}"
    return re.split(rf"\n#{{2,{len(level)}}} ", page)[0]


def documented_events() -> list[tuple[list[str], set[str]]]:
    """Return the events of each row of the tables of events, and their fields."""
    rows = re.findall(r"(?m)^\| (`[^|]+) \| ([^|]*) \| [^|]+ \|$", _section("Log"))
    return [(re.findall(r"`(\w+)`", events), set(re.findall(r"`(\w+)`", fields))) for events, fields in rows]


def documented_fields(title: str) -> set[str]:
    """Return the fields in the table of the subsection with this *title*."""
    rows = re.findall(r"(?m)^\| (`[^|]+) \| [^|]+ \|$", _section(title, "###"))
    return {name for cell in rows for name in re.findall(r"`(\w+)`", cell)}
