"""What the benchmark of the result cache sends, how it counts, and which numbers it refuses."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from tempfile import TemporaryFile

import pytest

from benchmarks.cache_rows import COUNTS, GOALS, ROWS, Found, Pair, check_shares, section, verdicts
from benchmarks.load import RowError
from benchmarks.processes import Server
from benchmarks.replay import Replayed, replay, requests_of
from tests.support.processes import killed_at_the_end
from tests.support.recorder import OK, Recorder, recording
from tests.support.servers import ROOT, environment

HIT = b"HTTP/1.1 200 OK\r\nX-Cache: hit=2, miss=1, coalesced=0\r\nContent-Length: 2\r\n\r\n{}"
REFUSED = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\n{}"
CLOSING = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}"
TEXTS = [f"text {number}" for number in range(60)]


@contextmanager
def answering(answer: bytes) -> Iterator[tuple[Server, Recorder]]:
    """Start a server that gives this answer, and a process whose CPU is measured in its place."""
    command = [sys.executable, "-c", "input()"]
    with (
        recording(answer) as recorder,
        TemporaryFile() as log,
        killed_at_the_end(subprocess.Popen(command, stdin=subprocess.PIPE, text=True)) as process,
    ):
        yield Server(recorder.port, process, log), recorder
        recorder.finish()


def test_every_request_is_sent_once_and_its_shares_are_counted() -> None:
    with answering(HIT) as (server, recorder):
        found = replay(server, requests_of(TEXTS, batch=3, clients=4))
    assert recorder.texts == dict.fromkeys(TEXTS, 1)
    assert (found.hits, found.misses, found.coalesced) == pytest.approx((2 / 3, 1 / 3, 0))
    assert 0 < found.p50_ms <= found.p99_ms
    assert found.texts_per_s > 10


def test_answers_without_x_cache_are_no_hits() -> None:
    with answering(OK) as (server, _):
        found = replay(server, requests_of(TEXTS, clients=4))
    assert (found.hits, found.misses, found.coalesced) == (0, 0, 0)


def test_connection_that_the_server_closes_is_opened_again() -> None:
    with answering(CLOSING) as (server, recorder):
        replay(server, requests_of(TEXTS, clients=2))
    assert recorder.texts == dict.fromkeys(TEXTS, 1)


def test_work_beside_is_sent_meanwhile_and_not_counted() -> None:
    beside = requests_of([f"beside {number}" for number in range(10_000)], clients=1)
    with answering(HIT) as (server, recorder):
        found = replay(server, requests_of(TEXTS, batch=3, clients=2), beside)
    assert found.hits == pytest.approx(2 / 3)
    assert 60 < recorder.texts.total() < 5_000


def test_work_beside_must_not_end_first() -> None:
    with answering(OK) as (server, _), pytest.raises(RowError, match="ended first"):
        replay(server, requests_of(TEXTS * 50, clients=1), requests_of(["beside"], clients=1))


def test_refused_request_aborts_the_row() -> None:
    with answering(REFUSED) as (server, _), pytest.raises(RowError, match="503"):
        replay(server, requests_of(TEXTS, clients=2))


SAMPLE = Replayed(
    texts_per_s=100.0,
    cpu_ms=4.0,
    thread_ms=0.5,
    p50_ms=10.0,
    p99_ms=20.0,
    hits=0.0,
    misses=1.0,
    coalesced=0.0,
    load_core_share=0.1,
    others_core_share=0.0,
)


def test_numbers_of_a_cache_that_had_other_texts_are_refused() -> None:
    known = replace(SAMPLE, hits=0.45, coalesced=0.05)
    check_shares("search", Pair(SAMPLE, known))
    with pytest.raises(RowError, match=r"100% should have been known"):
        check_shares("repeated", Pair(SAMPLE, known))
    with pytest.raises(RowError, match=r"Without cache: 45\.0% hits"):
        check_shares("search", Pair(known, known))


def test_goals_compare_medians_over_the_rounds() -> None:
    found = Found()
    for texts_per_s, thread_ms in ((700.0, 0.39), (900.0, 0.3), (900.0, 0.9)):
        found.rounds["repeated"].append(Pair(SAMPLE, replace(SAMPLE, texts_per_s=texts_per_s, thread_ms=thread_ms)))
    found.rounds["ingest"].append(Pair(SAMPLE, replace(SAMPLE, cpu_ms=4.2)))
    found.aborted["chat"] = "a reason"
    seen = {(one.work, one.measured, one.is_met) for one in verdicts(found)}
    assert seen == {
        ("one short text repeated", "9.00 x (7.00 to 9.00)", True),
        ("… CPU of the main thread per hit", "0.39 ms (0.30 to 0.90)", True),
        ("ingest of mixed texts, no repeats", "0.95 x (0.95 to 0.95)", False),
        ("chat, 10 % repeats", "a reason", None),
    }


def test_page_says_what_was_left_out() -> None:
    found = Found(skipped="Redis: not measured, because redis-server is not installed.")
    found.rounds["search"].append(Pair(SAMPLE, replace(SAMPLE, texts_per_s=180.0, hits=0.5)))
    found.aborted["chat"] = "a reason"
    text = section(found, "a command")
    assert "redis-server is not installed" in text
    assert "not measured, a reason" in text
    assert "| search, 50 % repeats | ≥ 1.8 x the rate without cache | 1.80 x (1.80 to 1.80) | passed |" in text
    assert "| 50.0% | 0.0% | 180 (180 to 180) |" in text


def test_every_goal_belongs_to_a_row() -> None:
    assert {goal.row for goal in GOALS} == set(ROWS) - {"distinct"}
    assert set(COUNTS) >= set(ROWS) - {"reindex"}


@pytest.mark.slow
@pytest.mark.redis
@pytest.mark.timeout(240)
def test_small_run_finds_in_each_row_the_texts_that_the_cache_should_have() -> None:
    command = [sys.executable, "benchmarks/result_cache.py", "--rounds", "1", "--size", "0.02"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment({}), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row.title for row in ROWS.values() if f"| {row.title} | off |" not in done.stdout] == []
