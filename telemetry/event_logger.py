"""The loggers behind `structlog.get_logger()`: they pass each event on in one step.

structlog's own loggers take four steps, most of which copy the fields of the event, and every request pays for that.
"""

import logging
from typing import Any

import structlog

LEVELS = ("debug", "info", "warning", "error", "critical")


class EventLogger(structlog.BoundLoggerBase):
    """Passes events through structlog's processors to the output."""

    def debug(self, event: str, **fields: Any) -> None:
        self._pass_on("debug", event, fields)

    def info(self, event: str, **fields: Any) -> None:
        self._pass_on("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._pass_on("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self._pass_on("error", event, fields)

    def critical(self, event: str, **fields: Any) -> None:
        self._pass_on("critical", event, fields)

    def exception(self, event: str, **fields: Any) -> None:
        """Log an error with the exception that is being handled."""
        self.error(event, **{"exc_info": True, **fields})

    def _pass_on(self, level: str, event: str, fields: dict[str, Any]) -> None:
        line: Any = {**self._context, **fields} if self._context else fields
        line["event"] = event
        try:
            for process in self._processors:
                line = process(self._logger, level, line)
        except structlog.DropEvent:
            return
        getattr(self._logger, level)(line)


def event_loggers(lowest: int) -> type[EventLogger]:
    """Return a class of loggers that ignore events below the level with this number."""
    numbers = logging.getLevelNamesMapping()
    ignored = {level: _ignore for level in LEVELS if numbers[level.upper()] < lowest}
    return type("EventLogger", (EventLogger,), ignored)


def _ignore(_logger: EventLogger, _event: str, **_fields: Any) -> None:
    pass
