import json
import subprocess
import sys
from typing import Any

import pytest

from engine.errors import InferenceError, ModelUnavailableError
from telemetry.log_setup import tell_exception
from tests.support.servers import ROOT

pytestmark = pytest.mark.timeout(60)  # it starts processes, on a machine that may be busy

QUOTED = "what a caller has sent"

SETUP = """
import asyncio, logging, sys, warnings
import numpy as np
import structlog
from telemetry.log_setup import configure_logging
from engine.errors import ModelUnavailableError
configure_logging(level={level!r}, is_json={is_json})
log = structlog.get_logger()
"""


def write(code: str, *, level: str = "INFO", is_json: bool = True) -> str:
    """What *code* sends to standard output, in a process of its own: logging is set up for a whole process."""
    script = SETUP.format(level=level, is_json=is_json) + code
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def events(code: str, *, level: str = "INFO") -> list[dict[str, Any]]:
    return [json.loads(line) for line in write(code, level=level).splitlines()]


def test_event_is_one_line_of_json_with_its_fields() -> None:
    [event] = events("log.info('model_loaded', model='a/b', seconds=0.25)")
    assert event.pop("timestamp").endswith("Z")
    assert event == {"event": "model_loaded", "level": "info", "model": "a/b", "seconds": 0.25}


@pytest.mark.parametrize(
    ("level", "written"),
    [
        ("DEBUG", ["debug", "info", "warning", "error", "critical"]),
        ("INFO", ["info", "warning", "error", "critical"]),
        ("WARNING", ["warning", "error", "critical"]),
        ("ERROR", ["error", "critical"]),
        ("CRITICAL", ["critical"]),
    ],
)
def test_events_below_the_level_are_left_out(level: str, written: list[str]) -> None:
    code = "for level in ('debug', 'info', 'warning', 'error', 'critical'): getattr(log, level)(level)"
    assert [event["level"] for event in events(code, level=level)] == written


def test_lines_of_libraries_look_like_ours() -> None:
    [event] = events("logging.getLogger('uvicorn.error').info('Started %s', 'well')")
    assert event.pop("timestamp")
    assert event == {"event": "Started well", "level": "info", "logger": "uvicorn.error"}


def test_libraries_stay_quiet_below_info_and_chatty_ones_below_warning() -> None:
    code = """
logging.getLogger("litestar").debug("left out")
logging.getLogger("httpx").info("left out")
logging.getLogger("huggingface_hub.file_download").info("left out")
logging.getLogger("httpx").warning("written")
"""
    assert [event["event"] for event in events(code, level="DEBUG")] == ["written"]


def test_warnings_of_libraries_are_not_written() -> None:
    assert write("warnings.warn('for developers', DeprecationWarning)") == ""


def test_line_break_in_a_field_forges_no_line() -> None:
    [event] = events("log.info('a', name='x\\n{\"event\": \"forged\"}')")
    assert event["event"] == "a"


@pytest.mark.parametrize(
    ("value", "written"),
    [
        pytest.param("object()", "object", id="object"),
        pytest.param("np.float32(1.5)", "float32", id="numpy number"),
        pytest.param("b'secret'", "bytes", id="bytes"),
    ],
)
def test_field_that_json_does_not_know_becomes_the_name_of_its_type(value: str, written: str) -> None:
    [event] = events(f"log.info('a', field={value})")
    assert event["field"] == written


@pytest.mark.parametrize("value", [r"'\ud800'", "10**30", "{1: 2}"], ids=["lone surrogate", "huge number", "odd key"])
def test_field_that_json_cannot_hold_does_not_break_the_caller(value: str) -> None:
    [event] = events(f"log.info('a', field={value})")
    assert event["event"] == "a"


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
    "tell",
    [
        pytest.param("log.exception('failed')", id="ours"),
        pytest.param("log.error('failed', exc_info=error)", id="ours, handed over"),
        pytest.param("logging.getLogger('x').exception('failed')", id="a library's"),
    ],
)
def test_failure_is_told_by_type_and_place_and_never_by_what_it_quotes(tell: str, *, is_json: bool) -> None:
    written = write(RAISE.replace("pass", tell), is_json=is_json)
    assert QUOTED not in written
    for told in ("failed", "ValueError", "__main__:", "outer", "inner"):
        assert told in written


def test_failure_is_one_line_of_json() -> None:
    [event] = events(RAISE.replace("pass", "log.exception('failed')"))
    [record] = event["exception"]
    assert record["type"] == "builtins.ValueError"
    assert [place.partition(" ")[2] for place in record["at"]] == ["<module>", "outer", "inner"]
    assert "message" not in record


def test_event_is_readable_on_a_console() -> None:
    written = write("log.info('model_loaded', model='a/b')", is_json=False)
    assert "model_loaded" in written
    assert "a/b" in written


def test_library_names_no_path() -> None:
    """As huggingface_hub, onnxruntime and asyncio do, each in its own words."""
    [event] = events("logging.getLogger('huggingface_hub').warning('Ignored error while writing to /srv/x/refs/main.')")
    assert "/srv" not in event["event"]


def test_failure_of_a_task_that_nobody_waits_for_is_told_without_what_it_quotes() -> None:
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
    written = write(code)
    assert "never retrieved" in written
    assert "ValueError" in written
    assert QUOTED not in written


def told(event: dict[str, Any]) -> list[dict[str, Any]]:
    """The records of the exception in *event*, the latest first."""
    records: list[dict[str, Any]] = tell_exception(None, "error", event)["exception"]
    return records


def fail_with(error: BaseException) -> None:
    raise error


def caught(error: BaseException, *, cause: BaseException | None = None) -> BaseException:
    """*error*, as it is after it was raised."""
    with pytest.raises(type(error)) as raised:
        raise error from cause
    return raised.value


@pytest.mark.parametrize("form", ["instance", "tuple", "true"])
def test_exception_may_be_handed_over_in_any_form(form: str) -> None:
    try:
        fail_with(ValueError(QUOTED))
    except ValueError as error:
        forms = {"instance": error, "tuple": (ValueError, error, error.__traceback__), "true": True}
        [record] = told({"event": "a", "exc_info": forms[form]})
    assert record["type"] == "builtins.ValueError"


@pytest.mark.parametrize("nothing", [None, False, True, (None, None, None)])
def test_event_without_an_exception_stays_as_it_is(nothing: object) -> None:
    assert tell_exception(None, "info", {"event": "a", "exc_info": nothing}) == {"event": "a"}
    assert tell_exception(None, "info", {"event": "a"}) == {"event": "a"}


def test_message_of_our_own_failures_is_told() -> None:
    [record] = told({"exc_info": caught(ModelUnavailableError("a/b", "the hub cannot be reached"))})
    assert record["type"] == "engine.errors.ModelUnavailableError"
    assert record["message"] == "The model 'a/b' cannot be loaded now: the hub cannot be reached."


@pytest.mark.parametrize(
    "path",
    ["/srv/models/x.onnx", "/root/.cache/models", r"C:\models\x.onnx", "'/srv/models/x'", "/srv/my models/x.onnx"],
)
def test_paths_in_messages_are_struck_out(path: str) -> None:
    [record] = told({"exc_info": caught(ModelUnavailableError("a", f"Load model from {path} failed:File is broken"))})
    assert "<path>" in record["message"]
    assert "models" not in record["message"]
    assert "failed" in record["message"]


def test_causes_are_told_behind_what_they_caused() -> None:
    records = told({"exc_info": caught(InferenceError(), cause=caught(ValueError(QUOTED)))})
    assert [record["type"] for record in records] == ["engine.errors.InferenceError", "builtins.ValueError"]
    assert QUOTED not in str(records)


def test_what_was_being_handled_is_told_unless_it_was_cut_off() -> None:
    def handled(*, is_cut_off: bool) -> BaseException:
        try:
            try:
                fail_with(KeyError(QUOTED))
            except KeyError:
                if is_cut_off:
                    raise ValueError from None
                raise ValueError  # noqa: B904 - this is what is tried here
        except ValueError as error:
            return error
        raise AssertionError

    assert len(told({"exc_info": handled(is_cut_off=False)})) == 2
    assert len(told({"exc_info": handled(is_cut_off=True)})) == 1
