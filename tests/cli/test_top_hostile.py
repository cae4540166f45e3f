"""`python main.py top` and a server that is not ours, or no longer: whatever it answers is shown as text, or named."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count

import pytest

from cli import top_reading
from cli.top_figures import figures_of
from cli.top_reading import Reading, read_json
from cli.top_view import view_of
from tests.support.commands import RunCommand

pytestmark = pytest.mark.timeout(60)

COMMANDS = "\x1b]0;title\x07\x9b2J\u202eabc\ud800\r\n\x7f"
"""What some terminals obey, and a half of a pair, which cannot be written at all."""


@contextmanager
def answering(status: int, *parts: bytes, without_end: bool = False) -> Iterator[str]:
    """Answer all requests with *parts*, over and over *without_end*; yield the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            try:
                for _ in count() if without_end else range(1):
                    self.wfile.writelines(parts)
            except OSError:
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


def test_other_server_is_recognised(run_command: RunCommand) -> None:
    with answering(404, b"Not found") as url:
        outcome = run_command("top", "--url", url, "--once")
    assert outcome.code == 1
    assert "answered GET /health with 404, which is not an answer of this service" in outcome.err


def test_error_of_a_server_commands_no_terminal(run_command: RunCommand) -> None:
    with answering(500, json.dumps({"detail": COMMANDS + "x" * 1000}).encode()) as url:
        outcome = run_command("top", "--url", url, "--once")
    assert outcome.code == 1
    assert "?]0;title??2J?abc????xxx" in outcome.err
    assert len(outcome.err) < 1000
    assert outcome.err.rstrip("\n").isprintable()


@pytest.mark.parametrize("output", [(), ("--json",)])
def test_names_of_a_server_command_no_terminal(output: tuple[str, ...], run_command: RunCommand) -> None:
    named = {COMMANDS: {"requests": 1, "texts": 1}}
    answer = {
        "status": COMMANDS,
        "endpoints": named,
        "models": named,
        "errors": {COMMANDS: 1},
        "cache_info": {"cached_models": [COMMANDS]},
        "workers": {"processes": [{"worker": COMMANDS, "status": COMMANDS, "stale": True}]},
    }
    with answering(200, json.dumps(answer).encode()) as url:
        outcome = run_command("top", "--url", url, "--once", "--interval", "0.5", *output)
    assert outcome.code == 0
    assert outcome.out.replace("\n", "").isprintable()


@pytest.mark.parametrize("part", [b"[" * 100_000, b" " * 100_000])
def test_answer_without_end_is_not_read_to_the_end(
    part: bytes, run_command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(top_reading, "MAX_ANSWER_BYTES", 1_000_000)
    with answering(200, part, without_end=True) as url:
        outcome = run_command("top", "--url", url, "--once")
    assert outcome.code == 1
    assert "answered GET /health with 200, which is not an answer of this service" in outcome.err


def test_answer_that_comes_slowly_ends_in_time(run_command: RunCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top_reading, "TIMEOUT_S", 0.2)
    monkeypatch.setattr(top_reading, "MAX_ANSWER_BYTES", 10**15)
    with answering(200, b" " * 1000, without_end=True) as url:
        assert run_command("top", "--url", url, "--once").code == 1


def test_nested_objects_are_no_answer() -> None:
    assert read_json(b'{"a":' * 100_000) is None
    assert read_json(b"[" * 100_000) is None


NUMBERS = ["NaN", "Infinity", "1e999", "-1e308", "9" * 400, "9" * 5000, "1.5", "-0", "null", "true", '"1"', "[]", "{}"]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("before", ["0", "-1e300", "1"])
def test_any_number_is_one_that_can_be_added_or_none(before: str, number: str) -> None:
    def reading(at_s: float, text: str) -> Reading:
        worker = dict.fromkeys(("queue_seconds", "connections", "proportional_bytes", "worker", "status"), 0)
        answer = {
            **dict.fromkeys(("uptime_seconds", "total_requests", "event_loop_lag_seconds", "lanes_busy_seconds"), 0),
            "queue": {"waiting_requests": 0, "waiting_texts": 0, "waiting_seconds": 0, "lanes": 0, "lanes_stuck": 0},
            "result_cache": {"hits": 0, "misses": 0, "coalesced": 0, "bytes": 0, "limit_bytes": 0},
            "endpoints": {"a": {"requests": 0, "latency_ms": {"p50": 0}}},
            "errors": {"a": 0},
            "models": {"a": {"requests": 0, "tokens": 0, "memory_bytes": 0}},
            "cache_info": {"cached_models": 0},
            "workers": {"processes": [worker, 0, {"restarts": {"a": 0}}, {"restarts": 0}]},
        }
        found = read_json(json.dumps(answer).replace(": 0", f": {text}").encode())
        assert isinstance(found, dict)
        return Reading(at_s, {"status": "healthy"}, found)

    figures = figures_of(reading(1, before), reading(2, number))
    json.dumps(figures, allow_nan=False)
    view_of(figures, url="http://localhost")


@pytest.mark.parametrize("content", [[], {}, 1, "a", None, [1], [[]], {"processes": 1}, {"processes": {"a": 1}}])
def test_any_type_is_shown_or_left_out(content: object) -> None:
    names = ("queue", "result_cache", "endpoints", "errors", "models", "cache_info", "workers", "statuses", "backlog")
    reading = Reading(1, {"status": content}, dict.fromkeys(names, content))
    view_of(figures_of(reading, Reading(2, reading.health, reading.metrics)), url="http://localhost")
