"""`python main.py top`: figures of a real service, on a real terminal."""

import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from cli.top_figures import figures_of
from cli.top_reading import KEY_VARIABLE, Reading
from tests.support.commands import RunCommand
from tests.support.processes import END_S, killed_at_the_end
from tests.support.servers import ROOT, environment, free_port, running_server

pytestmark = pytest.mark.timeout(120)

KEY = "some-key-of-32-characters-or-more"
INTERVAL = ("--interval", "0.5")


def reading(at_s: float, **metrics: Any) -> Reading:
    return Reading(at_s, {"status": "healthy"}, metrics)


def test_rates_are_differences_by_time() -> None:
    before = reading(10, uptime_seconds=5, total_requests=100, models={"a": {"tokens": 10}}, errors={"x": 1})
    models = {"a": {"tokens": 40}, "b": {"tokens": 20}}
    now = reading(12, uptime_seconds=7, total_requests=150, models=models, errors={"x": 1, "y": 4})
    figures = figures_of(before, now)
    assert figures["requests_per_second"] == 25
    assert figures["tokens_per_second"] == 25
    assert figures["errors"] == {"x": 0, "y": 2}
    assert figures["errors_per_second"] == 2
    assert figures["restarted"] is False


def test_after_a_restart_rates_are_those_since_then() -> None:
    before = reading(10, uptime_seconds=500, total_requests=1000)
    figures = figures_of(before, reading(20, uptime_seconds=4, total_requests=8))
    assert (figures["requests_per_second"], figures["restarted"], figures["interval_seconds"]) == (2, True, 4)


@pytest.mark.parametrize("metrics", [{}, {"errors": 3, "models": [], "endpoints": {"a": 1}, "queue": None}])
def test_what_is_not_reported_is_null(metrics: dict[str, Any]) -> None:
    figures = figures_of(reading(1, **metrics), reading(2, **metrics))
    named = ("requests_per_second", "refused_per_second", "tokens_per_second", "event_loop_lag_seconds")
    assert [figures[name] for name in named] == [None] * len(named)
    assert figures["queue"] == dict.fromkeys(("requests", "texts", "seconds"))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server whose metrics need a key."""
    with running_server(API_KEYS=f"ops:{KEY}:metrics+embed", CLOSED_ROUTES="metrics") as server:
        httpx.post(
            f"{server.url}/embed", json={"text": "one"}, headers={"Authorization": f"Bearer {KEY}"}
        ).raise_for_status()
        assert httpx.post(f"{server.url}/tokenize", json={"text": "one"}).status_code == 401
        yield server.url


def test_figures_of_a_service_for_people_and_for_programs(
    url: str, run_command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    figures = run_command("top", "--url", url, "--once", "--json", *INTERVAL).json
    assert figures["status"] == "healthy"
    assert figures["requests_per_second"] > 0
    assert figures["lanes"]["busy_share"] == 0
    assert (figures["refused_per_second"], figures["in_flight"]) == (0, 1)
    assert figures["event_loop_lag_seconds"] >= 0
    assert figures["routes"]["POST /embed"]["p99"] > 0
    [model] = figures["models"].values()
    assert model["in_memory"]
    shown = run_command("top", "--url", url, "--once", *INTERVAL)
    assert (shown.code, shown.err) == (0, "")
    assert "POST /embed  " in shown.out
    assert "POST /tokenize (errors only)  " in shown.out
    assert "Press" not in shown.out
    assert max(map(len, shown.out.splitlines())) <= 100


def test_without_a_key_the_service_says_so_and_top_says_where_to_put_it(url: str, run_command: RunCommand) -> None:
    outcome = run_command("top", "--url", url, *INTERVAL)
    assert (outcome.code, outcome.out) == (1, "")
    assert "401" in outcome.err
    assert KEY_VARIABLE in outcome.err


def test_metrics_that_are_off_are_named(run_command: RunCommand) -> None:
    with running_server(ENABLE_METRICS="false") as server:
        outcome = run_command("top", "--url", server.url, "--once")
    assert (outcome.code, outcome.out) == (1, "")
    assert "ENABLE_METRICS" in outcome.err
    assert KEY_VARIABLE not in outcome.err


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:9", "No answer from http://127.0.0.1:9"),
        ("ftp://localhost", "not an HTTP address"),
        ("http://", "not an HTTP address"),
        ("http://localhost:port", "not an HTTP address"),
    ],
)
def test_service_that_cannot_be_read_is_one_line(url: str, reason: str, run_command: RunCommand) -> None:
    outcome = run_command("top", "--url", url, "--once")
    assert (outcome.code, outcome.out) == (1, "")
    assert reason in outcome.err
    assert len(outcome.err.splitlines()) == 1


@pytest.mark.parametrize("interval", ["0", "nan", "inf", "soon", "-1"])
def test_impossible_interval_is_wrong_usage(
    interval: str, run_command: RunCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        run_command("top", f"--interval={interval}")
    assert end.value.code == 2
    assert "is not a number of seconds from 0.5 to 3600" in capsys.readouterr().err


def test_terminal_shows_live_figures_and_an_outage_until_q_is_pressed() -> None:
    port = str(free_port())
    with ExitStack() as stack:
        terminal, inner = pty.openpty()
        for end in (terminal, inner):
            stack.callback(os.close, end)
        with running_server(PORT=port):
            process = subprocess.Popen(
                [sys.executable, "main.py", "top", *INTERVAL],
                cwd=ROOT,
                env=environment({"PORT": port, "TERM": "xterm", "COLUMNS": "100", "LINES": "40"}),
                stdin=inner,
                stdout=inner,
                stderr=inner,
            )
            stack.enter_context(killed_at_the_end(process))
            read_until(terminal, b"Press q to quit.")
            read_until(terminal, b"Tokens/s")
        read_until(terminal, b"Trying again")
        with running_server(PORT=port):
            read_until(terminal, b"Tokens/s")
            os.write(terminal, b"xq")
            assert process.wait(END_S) == 0


def read_until(terminal: int, wanted: bytes) -> None:
    """Read what the terminal shows until *wanted* is among it."""
    seen, end = b"", time.monotonic() + 30
    while wanted not in seen:
        assert select.select([terminal], [], [], end - time.monotonic())[0], seen
        seen += os.read(terminal, 65536)


def test_without_a_terminal_an_object_per_interval_is_printed_until_nobody_reads(url: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "main.py", "top", "--json", "--url", url, *INTERVAL],
        cwd=ROOT,
        env=environment({KEY_VARIABLE: KEY}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with killed_at_the_end(process):
        assert process.stdout
        assert process.stderr
        lines = [process.stdout.readline() for _ in range(2)]
        process.stdout.close()  # as `head -2` does
        assert (process.stderr.read(), process.wait(END_S)) == (b"", 1)
    assert [json.loads(line)["status"] for line in lines] == ["healthy", "healthy"]
