"""uvicorn's lines of the log: in the form of all others, and without what callers send, however uvicorn was started.

`uvicorn main:app` sets up its own output before it imports the app. `--log-config` sets up another one, which stays as
it is: only what callers send is removed.
"""

import logging
import re

from telemetry.answered_request import known_method

ERRORS, ACCESS, TRACE = LOGGERS = ("uvicorn.error", "uvicorn.access", "uvicorn.asgi")
"""The loggers that uvicorn writes to; `uvicorn.asgi` writes requests in full."""
DEFAULT_FORMATS = frozenset(
    {
        ("DefaultFormatter", "%(levelprefix)s %(message)s"),
        ("AccessFormatter", '%(levelprefix)s %(client_addr)s - "%(request_line)s" %(status_code)s'),
    }
)
"""The formatters of uvicorn's own set-up, and their formats."""
RUNNING = re.compile(r"Uvicorn running on (?:unix socket |socket )?(.+) \(Press CTRL\+C to quit\)")
ACCESS_ARGUMENTS = 5
"""Those of an access line: client, method, path with query, version of HTTP, status."""


class UvicornFilter(logging.Filter):
    """Removes what callers send from uvicorn's lines, and notes the address on which it listens.

    Attributes:
        address: as in a URL, or the path of a Unix socket; None: it is not known yet.
    """

    def __init__(self, *, is_ours: bool) -> None:
        """Filter for our output, or else for one that the operator has set up."""
        super().__init__()
        self.address: str | None = None
        self._is_ours = is_ours

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name == TRACE:
            return False
        if record.name == ACCESS:
            self._clean_access(record)
        elif '"WebSocket ' in str(record.msg):  # with the client, the path and the query
            record.msg, record.args = "WebSocket request", ()
        elif str(record.msg).startswith("Exception in ASGI application"):
            record.exc_info = None  # it may quote a text; the request log has written `request_failed`
        elif found := RUNNING.fullmatch(record.getMessage()):
            self.address = found[1]
            if self._is_ours:
                record.msg, record.args, record.address = "Uvicorn running", (), self.address
        return True

    def _clean_access(self, record: logging.LogRecord) -> None:
        if not isinstance(record.args, tuple) or len(record.args) != ACCESS_ARGUMENTS:
            return
        client, method, path, version, status = record.args
        method = known_method(str(method))
        if self._is_ours:
            record.msg, record.args = "%s answered with %s", (method, status)
        else:  # its formatter needs all of them
            record.args = (client, method, str(path).partition("?")[0], version, status)


def adopt_uvicorn_lines(*, has_access_lines: bool) -> None:
    """Let uvicorn's lines go where all lines go, unless the operator has set up its loggers.

    Args:
        has_access_lines: write uvicorn's line about each request, too; `request_answered` has all of it and more.
    """
    loggers = [logging.getLogger(name) for name in ("uvicorn", *LOGGERS)]
    is_ours = all(_is_default(handler) for logger in loggers for handler in logger.handlers)
    if is_ours:
        for logger in loggers:
            if logger.handlers:
                logger.handlers, logger.propagate = [], True
            logger.setLevel(logging.NOTSET)
        if not has_access_lines:
            logging.getLogger(ACCESS).propagate = False
    added = UvicornFilter(is_ours=is_ours)
    for logger in loggers:
        logger.filters = [*(one for one in logger.filters if not isinstance(one, UvicornFilter)), added]


def uvicorn_address() -> str | None:
    """Return the address on which uvicorn says that it listens; None: it has not said that."""
    found = (one.address for one in logging.getLogger(ERRORS).filters if isinstance(one, UvicornFilter))
    return next(found, None)


def _is_default(handler: logging.Handler) -> bool:
    formatter = handler.formatter
    kind = type(formatter)
    form = getattr(formatter, "_fmt", None)
    return kind.__module__ == "uvicorn.logging" and (kind.__name__, form) in DEFAULT_FORMATS
