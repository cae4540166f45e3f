"""One line of the report of `check`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Level = Literal["ok", "warn", "FAIL"]

SUBJECT_COLUMNS = 15


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        level: `FAIL` if the service would not start because of it.
        facts: the same for programs.
    """

    section: str
    level: Level
    subject: str
    detail: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.level:<4}  {self.subject:<{SUBJECT_COLUMNS}}  {self.detail}"

    def as_json(self) -> dict[str, Any]:
        named = {"section": self.section, "level": self.level.lower(), "subject": self.subject, "detail": self.detail}
        return {**named, **self.facts}
