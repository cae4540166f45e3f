"""Log lines of processes of their own: the setup changes the logging of a whole process."""

import json
import re
import subprocess
import sys
from typing import Any

import pytest

from engine.errors import InferenceError, ModelUnavailableError
from telemetry.log_setup import summarize_exception
from tests.support.servers import ROOT

pytestmark = pytest.mark.timeout(60)  # starts processes, perhaps on a busy machine

QUOTED = "what a caller has sent"
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?Z"

SETUP = """
import asyncio, logging, sys, warnings
import numpy as np
import structlog
from telemetry.log_setup import configure_logging
from engine.errors import ModelUnavailableError
configure_logging(level={level!r}, is_json={is_json})
log = structlog.get_logger()
"""


def output_of(code: str, *, level: str = "INFO", is_json: bool = True) -> str:
    """Return what *code* writes to standard output in a process of its own."""
    script = SETUP.format(level=level, is_json=is_json) + code
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def events_of(code: str, *, level: str = "INFO") -> list[dict[str, Any]]:
    return [json.loads(line) for line in output_of(code, level=level).splitlines()]


def test_events_of_the_service_and_of_libraries_are_lines_of_json() -> None:
    ours, theirs = events_of("""
log.info('model_loaded', model='a/b', seconds=0.25)
logging.getLogger('uvicorn.error').info('Started %s', 'well')
""")
    assert ours.pop("timestamp").endswith("Z")
    assert ours == {"event": "model_loaded", "level": "info", "model": "a/b", "seconds": 0.25}
    assert theirs.pop("timestamp").endswith("Z")
    assert theirs == {"event": "Started well", "level": "info", "logger": "uvicorn.error"}


@pytest.mark.parametrize(
    ("level", "written"),
    [
        ("DEBUG", ["debug", "info", "warning", "error", "critical"]),
        ("WARNING", ["warning", "error", "critical"]),
        ("CRITICAL", ["critical"]),
    ],
)
def test_events_below_the_level_are_not_written(level: str, written: list[str]) -> None:
    code = "for level in ('debug', 'info', 'warning', 'error', 'critical'): getattr(log, level)(level)"
    assert [event["level"] for event in events_of(code, level=level)] == written


def test_debug_lines_of_libraries_and_info_lines_of_verbose_ones_are_not_written() -> None:
    code = """
logging.getLogger("litestar").debug("left out")
logging.getLogger("httpx").info("left out")
logging.getLogger("huggingface_hub.file_download").info("left out")
warnings.warn("for developers", DeprecationWarning)
logging.getLogger("httpx").warning("written")
"""
    assert [event["event"] for event in events_of(code, level="DEBUG")] == ["written"]


def test_line_break_in_a_field_forges_no_line() -> None:
    [event] = events_of("log.info('a', name='x\\n{\"event\": \"forged\"}')")
    assert event["event"] == "a"


def test_value_that_json_cannot_represent_never_fails_the_caller() -> None:
    events = events_of("""
log.info('object', field=object())
log.info('numpy', field=np.float32(1.5))
log.info('bytes', field=b'secret')
for value in ('\\ud800', 10**30, {1: 2}): log.info('other', field=value)
""")
    assert [event["field"] for event in events[:3]] == ["object", "float32", "bytes"]
    assert [event["event"] for event in events[3:]] == ["other"] * 3
    assert [event["field"] for event in events[4:]] == [10**30, {"1": 2}]
    assert all(re.fullmatch(TIME, event["timestamp"]) for event in events)


RAISE = f"""
def outer(text):
    local = text * 2
    inner(text)
def inner(text):
    raise ValueError(text)
try:
    outer({QUOTED!r})
except ValueError as error:
    pass
"""


@pytest.mark.parametrize("is_json", [pytest.param(True, id="json"), pytest.param(False, id="console")])
@pytest.mark.parametrize(
    "statement",
    [
        pytest.param("log.exception('failed')", id="ours"),
        pytest.param("log.error('failed', exc_info=error)", id="ours, passed"),
        pytest.param("logging.getLogger('x').exception('failed')", id="a library's"),
    ],
)
def test_exception_is_logged_with_type_and_locations_but_without_what_it_quotes(
    statement: str, *, is_json: bool
) -> None:
    output = output_of(RAISE.replace("pass", statement), is_json=is_json)
    assert QUOTED not in output
    for part in ("failed", "ValueError", "__main__:", "outer", "inner"):
        assert part in output
    if is_json:
        [record] = json.loads(output)["exception"]
        assert record["type"] == "builtins.ValueError"
        assert [location.partition(" ")[2] for location in record["at"]] == ["<module>", "outer", "inner"]
        assert "message" not in record


def test_event_is_readable_on_a_console() -> None:
    output = output_of("log.info('model_loaded', model='a/b')", is_json=False)
    assert re.search(TIME, output)
    assert "model_loaded" in output
    assert "a/b" in output


def test_library_names_no_path() -> None:
    """As messages of huggingface_hub, onnxruntime and asyncio do."""
    [event] = events_of(
        "logging.getLogger('huggingface_hub').warning('Ignored error while writing to /srv/x/refs/main.')"
    )
    assert "/srv" not in event["event"]


def test_exception_of_a_forgotten_task_is_logged_without_what_it_quotes() -> None:
    code = f"""
async def fail():
    raise ValueError({QUOTED!r})
async def main():
    task = asyncio.create_task(fail())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    del task
asyncio.run(main())
"""
    output = output_of(code)
    assert "never retrieved" in output
    assert "ValueError" in output
    assert QUOTED not in output


def test_error_in_a_thread_or_a_destructor_is_logged_without_what_it_quotes() -> None:
    lines = output_of(f"""
import threading
from telemetry.log_setup import log_unhandled_errors
log_unhandled_errors()
def fail(): raise ValueError({QUOTED!r})
def leave(): raise SystemExit
class Broken:
    def __del__(self): fail()
for target in (fail, leave):
    thread = threading.Thread(target=target, name="lane-1")
    thread.start()
    thread.join()
Broken()
""")
    events = [json.loads(line) for line in lines.splitlines()]
    assert [(event["event"], event["place"]) for event in events] == [
        ("error_unhandled", "lane-1"),
        ("error_unhandled", "destructor"),
    ]
    assert lines.count("builtins.ValueError") == 2
    assert QUOTED not in lines


def test_lines_go_to_what_replaced_standard_output() -> None:
    code = """
import contextlib, io
with contextlib.redirect_stdout(io.StringIO()) as captured:
    configure_logging(level="INFO", is_json=True)
    structlog.get_logger().info("first")
    logging.getLogger("x").warning("second")
print([json.loads(line)["event"] for line in captured.getvalue().splitlines()])
"""
    assert output_of("import json\n" + code) == "['first', 'second']\n"


def summaries(event: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the summaries of the exception in *event*, the latest exception first."""
    result: list[dict[str, Any]] = summarize_exception(None, "error", event)["exception"]
    return result


def fail_with(error: BaseException) -> None:
    raise error


def raised(error: BaseException, *, cause: BaseException | None = None) -> BaseException:
    """Raise *error* from *cause*, and return it."""
    with pytest.raises(type(error)) as info:
        raise error from cause
    return info.value


@pytest.mark.parametrize("form", ["instance", "tuple", "true"])
def test_exception_is_accepted_in_every_form_of_exc_info(form: str) -> None:
    try:
        fail_with(ValueError(QUOTED))
    except ValueError as error:
        forms = {"instance": error, "tuple": (ValueError, error, error.__traceback__), "true": True}
        [record] = summaries({"event": "a", "exc_info": forms[form]})
    assert record["type"] == "builtins.ValueError"


def test_event_without_an_exception_is_unchanged() -> None:
    for nothing in (None, False, True, (None, None, None)):
        assert summarize_exception(None, "info", {"event": "a", "exc_info": nothing}) == {"event": "a"}
    assert summarize_exception(None, "info", {"event": "a"}) == {"event": "a"}


def test_message_of_our_own_exception_is_logged() -> None:
    [record] = summaries({"exc_info": raised(ModelUnavailableError("a/b", "the hub cannot be reached"))})
    assert record["type"] == "engine.errors.ModelUnavailableError"
    assert record["message"] == "The model 'a/b' cannot be loaded now: the hub cannot be reached."


@pytest.mark.parametrize(
    "path",
    ["/srv/models/x.onnx", "/root/.cache/models", r"C:\models\x.onnx", "'/srv/models/x'", "/srv/my models/x.onnx"],
)
def test_path_in_a_message_is_replaced(path: str) -> None:
    error = ModelUnavailableError("a", f"Load model from {path} failed:File is broken")
    [record] = summaries({"exc_info": raised(error)})
    assert "<path>" in record["message"]
    assert "models" not in record["message"]
    assert "failed" in record["message"]


def test_cause_follows_its_exception() -> None:
    records = summaries({"exc_info": raised(InferenceError(), cause=raised(ValueError(QUOTED)))})
    assert [record["type"] for record in records] == ["engine.errors.InferenceError", "builtins.ValueError"]
    assert QUOTED not in str(records)


def test_context_follows_its_exception_unless_it_is_suppressed() -> None:
    context, suppressed = ValueError(), ValueError()
    context.__context__ = suppressed.__context__ = raised(KeyError(QUOTED))
    suppressed.__suppress_context__ = True  # as `raise … from None` does
    assert [record["type"] for record in summaries({"exc_info": context})] == [
        "builtins.ValueError",
        "builtins.KeyError",
    ]
    assert [record["type"] for record in summaries({"exc_info": suppressed})] == ["builtins.ValueError"]


MARKS = "\x1b[31m \x07 \x7f \x85 \x9b2J \u2028 \u202e \u200b"
"""A colour, a bell, other line breaks, an erased screen, and text that is reordered or hidden."""


def test_no_field_controls_a_terminal_or_breaks_a_line_of_json() -> None:
    code = f"log.info('a', caller={MARKS!r})\nlogging.getLogger('lib').warning({MARKS!r})"
    output = output_of(code)
    lines = output.rstrip("\n")
    assert lines.count("\n") == 1
    assert lines.replace("\n", "").isprintable()
    ours, theirs = map(json.loads, output.split("\n")[:2])
    assert (ours["caller"], theirs["event"]) == (MARKS, MARKS)  # JSON escapes them, so nothing is lost


def test_no_field_controls_a_terminal_or_breaks_a_line_for_people() -> None:
    code = f"log.info('a', caller={MARKS + chr(10)!r})\nlogging.getLogger('lib').warning({'x' + chr(10) + MARKS!r})"
    output = output_of(code, is_json=False)
    assert output.count("\n") == 2
    colours = re.compile("\x1b\\[[0-9;]*m")
    assert MARKS[:5] not in output
    assert colours.sub("", output).replace("\n", "").isprintable()
