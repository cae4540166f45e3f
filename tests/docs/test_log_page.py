"""The section Log of docs/MONITORING.md names every event and every field, and nothing else."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from access.principals import Principal
from telemetry.answered_request import AnsweredRequest
from telemetry.request_work import RequestWork, Stage
from telemetry.trace_context import TraceContext
from tests.support.log_page import COMMON, documented_events, documented_fields
from tests.support.servers import ROOT
from web.request_context import RequestContext
from web.request_lines import CallerFields, RequestLines

OUTSIDE = {"tests", "benchmarks", "drills", "deploy", "models", "docs"}
"""Folders whose programs have no part in the service's log."""
LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
REQUEST_EVENTS = {"request_answered", "request_slow"}
"""Their fields are collected by `RequestLines`; see the test of their tables."""


@cache
def modules() -> dict[Path, ast.Module]:
    files = [*ROOT.glob("*.py"), *ROOT.glob("*/*.py")]
    inside = [file for file in files if file.relative_to(ROOT).parts[0] not in OUTSIDE | {"conftest.py", "test_api.py"}]
    return {file: ast.parse(file.read_text("utf-8")) for file in inside}


def functions() -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for module in modules().values():
        yield from (node for node in ast.walk(module) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def is_written(call: ast.Call) -> bool:
    """Return whether *call* writes an event: `log.info("…")`, or `write("…")` where the level is chosen before."""
    if not call.args or not isinstance(call.args[0], ast.Constant) or not isinstance(call.args[0].value, str):
        return False
    function = call.func
    if isinstance(function, ast.Name):
        return function.id == "write"
    is_level = isinstance(function, ast.Attribute) and function.attr in LEVELS
    return is_level and ast.unparse(function).rpartition(".")[0] in {"log", "structlog.get_logger()"}


def keys_in(node: ast.AST) -> set[str]:
    """Return the keys of all dictionaries that *node* writes out."""
    found = [key for part in ast.walk(node) if isinstance(part, ast.Dict) for key in part.keys]
    return {key.value for key in found if isinstance(key, ast.Constant) and isinstance(key.value, str)}


def fields_of(keyword: ast.keyword, around: ast.AST) -> set[str]:
    """Return the fields that an argument adds; of `**name`, those of the function or variable with that name."""
    if keyword.arg is not None:
        return {"exception" if keyword.arg == "exc_info" else keyword.arg}
    value = keyword.value
    if isinstance(value, ast.Name):
        assigned = [part for part in ast.walk(around) if isinstance(part, ast.Assign)]
        return {key for part in assigned if ast.unparse(part.targets[0]) == value.id for key in keys_in(part)}
    name = ast.unparse(value.func if isinstance(value, ast.Call) else value).rpartition(".")[2]
    return {key for function in functions() if function.name == name for key in keys_in(function)}


@cache
def written() -> dict[str, set[str]]:
    """Return the fields of each event, as the code writes them."""
    found: dict[str, set[str]] = {}
    for function in functions():
        for call in ast.walk(function):
            if isinstance(call, ast.Call) and is_written(call):
                event = ast.literal_eval(call.args[0])
                fields = found.setdefault(event, set())
                fields.update(*(fields_of(keyword, function) for keyword in call.keywords))
                if isinstance(call.func, ast.Attribute) and call.func.attr == "exception":
                    fields.add("exception")
    return found


def test_page_names_every_event_once_and_no_other() -> None:
    assert len(written()) > 80
    named = [event for events, _ in documented_events() for event in events]
    assert Counter(named) == Counter([*(written().keys() - REQUEST_EVENTS)])


@pytest.mark.parametrize(
    ("events", "fields"), documented_events(), ids=lambda value: value[0] if type(value) is list else ""
)
def test_page_names_the_fields_of_each_event(events: list[str], fields: set[str]) -> None:
    assert {field for event in events for field in written()[event]} - COMMON == fields


def request_fields(**more: Any) -> set[str]:
    """Return the fields of the lines about a request for which everything was done that can be."""
    names = ("load", "cache", "tokenize", "queue", "run")
    work = RequestWork(model="a/b", texts=1, tokens=1, stages=[Stage(name, 0.0, 1.0) for name in names])  # type: ignore[arg-type]  # literals
    answered = AnsweredRequest(method="POST", route="/embed", status=200, seconds=9.0, work=work)
    principal = Principal("token", "alice", issuer="https://login")
    context = RequestContext("one", trace=TraceContext("1" * 32, "1" * 16, 0), principal=principal, work=work)
    scope: Any = {"method": "POST", "client": ("192.0.2.1", 1), "headers": []}
    with capture_logs() as events:
        lines = RequestLines(caller_fields=CallerFields(find_address=lambda *_: "192.0.2.1"), **more)
        lines.write(answered, context, scope, 9.0)
    return set(events[-1]) - {"event", "log_level"}


def test_page_names_the_fields_of_lines_about_requests() -> None:
    assert documented_fields("Lines about requests") == request_fields()
    assert documented_fields("Slow requests") == request_fields(slow_s=1.0) - request_fields()


def test_page_names_what_every_line_may_have() -> None:
    """Where the log is set up; tests/system/test_log_secrets.py compares the page with the lines of real servers."""
    assert documented_fields("Fields of all lines") == COMMON
    source = "".join((ROOT / path).read_text("utf-8") for path in ("assembly/app.py", "assembly/workers.py"))
    contexts = re.findall(r"context=.*?\{(.*?)\}", source)
    assert {name for context in contexts for name in re.findall(r'"(\w+)":', context)} < COMMON
