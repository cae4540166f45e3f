"""Benchmarks and drills measure work that is done: no text is sent twice, and no server has a result cache.

The service computes equal texts in flight once, also without a cache, so a repeated text would make numbers too good.
"""

import asyncio
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest

from benchmarks import main_thread
from benchmarks.load import Job, Load
from benchmarks.processes import spawned_server
from benchmarks.texts import Kind, Stream, distinct_texts
from benchmarks.wrk import run_wrk
from drills.abusers import ABUSES, Abuser
from drills.open_loop_load import PREBUILT, Generator, OpenLoopJob, OpenLoopStream, numbered, prebuilt
from drills.soak_clients import TINY, Client, Tally, invalid_requests
from tests.support.recorder import Recorder, recording


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    with recording() as server:
        yield server


def test_servers_of_benchmarks_and_drills_have_no_result_cache_unless_they_ask_for_one(tmp_path: Path) -> None:
    code = "import os; print(os.environ['RESULT_CACHE_MB'], os.environ['RESULT_CACHE_REDIS'])"
    (tmp_path / "show.py").write_text(code)
    for settings, shown in (({}, b"0 false"), ({"RESULT_CACHE_MB": "64", "RESULT_CACHE_REDIS": "true"}, b"64 true")):
        with spawned_server(settings, lanes=1, checkout=tmp_path, command=("show.py",)) as server:
            server.process.wait(20)
            assert os.pread(server.log.fileno(), 100, 0).strip() == shown


def test_servers_are_started_in_no_other_way() -> None:
    """Another way would miss the settings above. `bulk.py`, `quantised.py`: programs without a server."""
    starts = re.compile(r"""["']main\.py["']""")
    found = {
        file.name
        for folder in ("benchmarks", "drills")
        for file in Path(__file__).parents[2].joinpath(folder).glob("*.py")
        if starts.search(file.read_text("utf-8"))
    }
    assert found == {"processes.py", "quantised.py", "scale.py"}, "scale.py looks for the workers' command"


@pytest.mark.parametrize("kind", ["short", "mixed", "cut", "full"])
def test_no_text_comes_twice_in_a_stream(kind: Kind) -> None:
    texts = list(islice(distinct_texts(kind, "a"), 3000 if kind == "short" else 100))
    assert len(set(texts)) == len(texts)


def test_rounds_have_hardly_a_text_in_common() -> None:
    """They are drawn independently: the shortest texts come again by chance, but not while equal ones are in flight."""
    texts = [text for number in range(8) for text in islice(distinct_texts("short", f"round/{number}"), 1000)]
    assert len(texts) - len(set(texts)) <= 0.003 * len(texts)


def test_load_generator_sends_no_text_twice(recorder: Recorder) -> None:
    streams = [Stream("short", 1, 8), Stream("mixed", 3, 2)]
    report = Load(Job(recorder.port, None, streams, "test", 0.1, 1.0)).run()
    answered = [stream.answered for stream in report.streams]
    recorder.finish()
    assert recorder.texts.total() >= answered[0] + 3 * answered[1] > 100
    assert recorder.repeated == {}


def test_load_generator_refuses_streams_that_would_send_the_same_texts() -> None:
    with pytest.raises(ValueError, match="same texts"):
        Job(80, None, [Stream("short", 1, 1), Stream("short", 32, 1)], "test", 0.0, 1.0)


def test_fixed_rate_generator_sends_no_text_twice(recorder: Recorder) -> None:
    streams = [
        OpenLoopStream("short", 1, rate=300),
        OpenLoopStream("mixed", 1, rate=50),
        OpenLoopStream("mixed", 4, 50),
    ]
    Generator(OpenLoopJob(recorder.port, os.getpid(), streams, "test", 1.0)).run()
    recorder.finish()
    assert recorder.texts.total() > 200
    assert recorder.repeated == {}


def test_fixed_rate_generator_has_other_texts_when_its_prebuilt_requests_come_again() -> None:
    requests = prebuilt(OpenLoopStream("mixed", 3, rate=1.0), "test")
    bodies = [numbered(requests[number % PREBUILT], number).partition(b"\r\n\r\n")[2] for number in range(2 * PREBUILT)]
    texts = [text for body in bodies for text in json.loads(body)["texts"]]
    assert len(set(texts)) == len(texts) == 6 * PREBUILT
    lengths = {int(re.findall(rb"Content-Length: (\d+)", numbered(parts, 7))[0]) for parts in requests[:20]}
    assert lengths == {len(numbered(parts, 7).partition(b"\r\n\r\n")[2]) for parts in requests[:20]}


def test_requests_for_the_main_thread_differ_between_rows_and_rounds() -> None:
    bodies: list[bytes] = []
    for number, row in enumerate(main_thread.ROWS, 1):
        for count in range(3):
            if row.texts:
                requests = main_thread.requests_of(row, f"{number} {count}")
                bodies += [request.partition(b"\r\n\r\n")[2] for request in islice(requests, 150)]
    texts = Counter(text for body in bodies for text in re.findall(r"How do I [^\"]*", body.decode()))
    assert texts.total() > 10_000
    assert max(texts.values()) == 1


EMBEDDED = [
    *("mixed-flood", "short-flood", "bulk-flood", "tokenize-flood", "gone-at-once"),
    pytest.param("long-texts", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("name", EMBEDDED)
def test_abuse_sends_no_text_twice(name: str, recorder: Recorder) -> None:
    """Else the service would embed most of a flood once, and the abuse would be none."""
    for seed in range(20):  # on a busy machine, the first ones may end before they have connected
        asyncio.run(_abuse(name, recorder.port, str(seed), seconds=3.0 if name == "long-texts" else 0.5))
        if seed and len(recorder.texts) > 50:
            break
    recorder.finish()
    assert recorder.texts.total() > 50
    assert recorder.repeated == {}
    assert max(map(len, recorder.texts)) <= 8192, "longer texts would be rejected"


async def _abuse(name: str, port: int, seed: str, *, seconds: float) -> None:
    await ABUSES[name](Abuser(port, seconds, seed))


def test_clients_of_the_soak_drill_embed_no_text_twice(recorder: Recorder) -> None:
    """Those of invalid requests do not count: they are rejected before they are embedded."""
    recorder.ignored = {request.body for request, _, _ in invalid_requests()}
    asyncio.run(_soak(recorder.port))
    recorder.finish()
    assert recorder.texts.total() > 200
    assert recorder.repeated == {}


async def _soak(port: int) -> None:
    clients = [Client(port, Tally(), seed) for seed in ("warm/0", "0", "1", "last")]
    await asyncio.gather(*(client.run_until(_after(60)) for client in clients))
    last = Client(port, Tally(), "last/last")
    for name in (*TINY, *TINY):
        await last.embed_words("one two", name)
    await last.close()


def _after(actions: int) -> Callable[[], bool]:
    left = iter(range(actions))
    return lambda: next(left, None) is None


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_runs_of_wrk_have_no_text_in_common(recorder: Recorder) -> None:
    for seed in ("warm single 0", "single 0", "single 1"):
        run_wrk(f"http://127.0.0.1:{recorder.port}/embed", body='{"text": "%s"}', connections=4, seconds=1, seed=seed)
    recorder.finish()
    assert recorder.texts.total() > 300
    assert recorder.repeated == {}
