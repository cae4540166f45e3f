"""uvicorn's lines in processes of their own, set up by the real uvicorn before our log is."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.servers import ROOT

pytestmark = pytest.mark.timeout(60)  # starts processes, perhaps on a busy machine

SETUP = """
import logging
import structlog
import uvicorn
from telemetry.log_setup import configure_logging
from telemetry.uvicorn_lines import uvicorn_address
errors, access, asgi = (logging.getLogger(f'uvicorn.{{name}}') for name in ('error', 'access', 'asgi'))
config = uvicorn.Config('main:app', {options})
configure_logging(level={level!r}, is_json=True)
"""
REQUEST = """
access.info('%s - "%s %s HTTP/%s" %d', '192.0.2.1:5', 'POST', '/path?api-key=QUERY', '1.1', 200)
errors.info('%s - "WebSocket %s" 403', '192.0.2.1:5', '/path?api-key=QUERY')
asgi.log(5, '%s - ASGI [%d] Started scope=%s', '192.0.2.1:5', 1, {'query_string': b'api-key=QUERY'})
try:
    raise ValueError('TEXT')
except ValueError as error:
    errors.error('Exception in ASGI application\\n', exc_info=error)
"""
RUNNING = "errors.info('Uvicorn running on %s://%s:%d (Press CTRL+C to quit)', 'http', '127.0.0.1', 8765)\n"


def output_of(code: str, *, options: str = "", level: str = "INFO") -> str:
    """Return what *code* writes, after uvicorn was set up with *options*, and then our log."""
    script = SETUP.format(options=options, level=level) + code
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def events_of(code: str, *, options: str = "", level: str = "INFO") -> list[dict[str, Any]]:
    return [json.loads(line) for line in output_of(code, options=options, level=level).splitlines()]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param("", id="as `uvicorn main:app`"),
        pytest.param("log_level='trace'", id="log level of uvicorn"),
        pytest.param("log_config=None, access_log=False", id="as `python main.py`"),
    ],
)
def test_lines_have_the_form_of_all_others_without_what_callers_send(options: str) -> None:
    events = events_of(REQUEST, options=options)
    assert [(event["event"], event["logger"]) for event in events] == [
        ("WebSocket request", "uvicorn.error"),
        ("Exception in ASGI application", "uvicorn.error"),
    ]
    assert not any("exception" in event for event in events)


def test_line_about_each_request_is_written_at_level_debug_only() -> None:
    assert next(event["event"] for event in events_of(REQUEST, level="DEBUG")) == "POST answered with 200"
    assert output_of("print(access.hasHandlers())") == "False\n"  # so that uvicorn does not even make the line


def test_option_that_turns_these_lines_off_works_at_level_debug() -> None:
    events = events_of(REQUEST, options="access_log=False", level="DEBUG")
    assert "uvicorn.access" not in [event["logger"] for event in events]


@pytest.mark.parametrize(
    ("line", "address"),
    [
        pytest.param(RUNNING, "http://127.0.0.1:8765", id="port"),
        pytest.param(
            "errors.info('Uvicorn running on %s://[%s]:%d (Press CTRL+C to quit)', 'http', '::1', 8765)",
            "http://[::1]:8765",
            id="IPv6",
        ),
        pytest.param(
            "errors.info('Uvicorn running on unix socket %s (Press CTRL+C to quit)', '/run/a b/x.sock')",
            "/run/a b/x.sock",
            id="Unix socket",
        ),
    ],
)
def test_address_is_a_field_and_known_from_then_on(line: str, address: str) -> None:
    running, noted = events_of(f"{line}\nstructlog.get_logger().info('noted', address=uvicorn_address())")
    assert (running["event"], running["address"], noted["address"]) == ("Uvicorn running", address, address)


def test_set_up_of_the_operator_stays_but_shows_no_query_and_no_text(tmp_path: Path) -> None:
    """`--log-config` with the documented formatters of uvicorn, and a time."""
    form = "own %(asctime)s %(levelname)s %(message)s"
    handlers = {"own": {"class": "logging.StreamHandler", "formatter": "own", "stream": "ext://sys.stderr"}}
    formatters = {"own": {"()": "uvicorn.logging.DefaultFormatter", "fmt": form}}
    loggers = {"uvicorn": {"handlers": ["own"], "level": "INFO", "propagate": False}}
    content = {"version": 1, "disable_existing_loggers": False}
    path = tmp_path / "log.json"
    path.write_text(json.dumps({**content, "formatters": formatters, "handlers": handlers, "loggers": loggers}))
    output = output_of(
        RUNNING + REQUEST + "print(uvicorn_address())", options=f"log_config={str(path)!r}", level="DEBUG"
    )
    *lines, noted = [line for line in reversed(output.splitlines()) if line]
    assert noted == "http://127.0.0.1:8765"
    assert len(lines) == 4
    assert all(line.startswith("own ") for line in lines)
    assert '"POST /path HTTP/1.1" 200' in output
    assert "QUERY" not in output
    assert "TEXT" not in output


def test_setting_up_the_log_again_adds_no_second_filter() -> None:
    code = "configure_logging(level='INFO', is_json=True)\nprint(len(errors.filters))"
    assert output_of(code) == "1\n"


def test_uvicorn_that_is_set_up_after_the_app_is_adopted_at_its_start() -> None:
    """As `uvicorn.run(app)` in a program does."""
    adopt = "from telemetry.uvicorn_lines import adopt_uvicorn_lines\nadopt_uvicorn_lines(has_access_lines=False)\n"
    events = events_of("uvicorn.Config('main:app')\n" + adopt + REQUEST + RUNNING)
    assert [event["event"] for event in events] == [
        *("WebSocket request", "Exception in ASGI application", "Uvicorn running"),
    ]
