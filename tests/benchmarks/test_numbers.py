"""The numbers that strangers compare: what counts as a token, how answers are read, and where results are published."""

import math
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import peers, scale, throughput
from benchmarks.formats import BASE_PATHS, FORMATS, Target
from benchmarks.known_peers import read_peers
from benchmarks.load import Job, Load, texts_done, tokens_done
from benchmarks.machine import cpu_features, cpu_s_of_tree, tree_of
from benchmarks.peer_sides import HttpSide, target_of, this_service
from benchmarks.pretended_cores import write_pretence
from benchmarks.processes import BenchError
from benchmarks.samples import Meter, Sample, SectionError, replace_section, spread
from benchmarks.texts import Stream, distinct_texts
from benchmarks.tokens import bundled_tokens
from benchmarks.workloads import MODEL
from tests.support.processes import killed_at_the_end
from tests.support.servers import ROOT

# --- Tokens ---


def test_tokens_include_the_special_ones_and_no_padding_and_are_cut_at_the_limit() -> None:
    assert bundled_tokens().count(["hello", "hello hello hello", "hello " * 1000]) == [3, 5, 256]


def test_full_length_texts_have_exactly_the_tokens_that_the_model_accepts() -> None:
    texts = list(islice(distinct_texts("full", "test"), 8))
    assert bundled_tokens().count(texts) == [256] * 8
    assert bundled_tokens().count([f"{text} the" for text in texts]) == [256] * 8, "one more would be cut"


def test_cut_texts_are_the_mixed_ones_without_the_words_above_the_limit() -> None:
    pairs = list(
        zip(islice(distinct_texts("mixed", "test"), 64), islice(distinct_texts("mixed", "test"), 64), strict=True)
    )
    cut = [bundled_tokens().cut(text) for text, _ in pairs]
    longer = [(text, short) for (text, _), short in zip(pairs, cut, strict=True) if text != short]
    assert longer
    assert all(text.startswith(f"{short} ") for text, short in longer)
    assert all(240 < count <= 256 for count in bundled_tokens().count([short for _, short in longer]))


# --- Load ---


class OneConnectionServer:
    """A real server that answers each request with the next of *answers*, and ends connections as they say."""

    def __init__(self, answer: bytes) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.connections = 0
        self._answer = answer
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            with connection:
                while self._read_request(connection):
                    connection.sendall(self._answer)
                    if b"close" in self._answer:
                        break

    def _read_request(self, connection: socket.socket) -> bool:
        received = b""
        while b"\r\n\r\n" not in received:
            if not (part := connection.recv(65536)):
                return False
            received += part
        head, _, body = received.partition(b"\r\n\r\n")
        length = int(re.findall(rb"Content-Length: (\d+)", head)[0])
        while len(body) < length:
            body += connection.recv(65536)
        return True

    def close(self) -> None:
        self._listening.close()


ANSWERS = {
    "with a length": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    "in chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n",
    "and closes": b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}",
}


@pytest.mark.parametrize("name", ANSWERS)
def test_load_generator_reads_answers_of_other_servers(name: str) -> None:
    server = OneConnectionServer(ANSWERS[name])
    stream = Stream("short", 1, 1)
    try:
        report = Load(Job(server.port, os.getpid(), [stream], "test", 0.0, 0.15, Target(server.port))).run()
    finally:
        server.close()
    assert report.streams[0].answered > 1
    assert (server.connections > 1) == (name == "and closes")
    done = texts_done(report, [stream])
    assert 5 * done < tokens_done(report, [stream], "test") < 25 * done, "a short text has 6 to 21 tokens"


def test_cpu_of_a_process_includes_its_children() -> None:
    work = "t = __import__('time'); e = t.process_time() + 0.3\nwhile t.process_time() < e: pass"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {work!r}]); print('x', flush=True); input()"
    pipe = subprocess.PIPE
    with killed_at_the_end(subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe)) as process:
        assert process.stdout
        process.stdout.readline()
        assert cpu_s_of_tree(process.pid) >= 0.3
        assert process.pid in tree_of(os.getpid())


def test_instruction_sets_are_those_in_cpuinfo(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_vnni\n")
    assert cpu_features(cpuinfo) == "AVX2, AVX-512, AVX-512 VNNI"


# --- Peers ---


@pytest.mark.parametrize("name", FORMATS)
def test_request_has_the_texts_and_its_answer_the_vectors(name: str) -> None:
    answers = {
        "native": {"embeddings": [[1.0], [2.0]]},
        "openai": {"data": [{"index": 1, "embedding": [2.0]}, {"index": 0, "embedding": [1.0]}]},
        "openai-base64": {"data": [{"index": 0, "embedding": "AACAPw=="}, {"index": 1, "embedding": "AAAAQA=="}]},
        "tei": [[1.0], [2.0]],
        "ollama": {"embeddings": [[1.0], [2.0]]},
    }
    target = Target(80, "example", "/base", name, "m", "key")
    head, _, body = target.request(["a", "b"]).partition(b"\r\n\r\n")
    assert head.startswith(b"POST /base/")
    assert b"Authorization: Bearer key" in head
    assert b'["a", "b"]' in body
    assert target.vectors(answers[name]).tolist() == [[1.0], [2.0]]


@pytest.mark.parametrize("url", ["https://example", "localhost:8000", "http://", "http://example/?q=1", "nonsense"])
def test_base_url_that_cannot_be_measured_is_refused(url: str) -> None:
    with pytest.raises(BenchError, match="is not a base URL"):
        target_of(url, "openai", "m")


def test_base_url_keeps_its_path() -> None:
    assert target_of("http://example:7997/v1/", "openai", "m") == Target(7997, "example", "/v1", "openai", "m")


def test_known_peers_can_be_read_and_name_files_of_the_folder() -> None:
    found = read_peers(Path("/peers"), 1234, 2)
    assert len({peer.name for peer in found}) == len(found) > 5
    assert {peer.dialect for peer in found} <= set(FORMATS)
    assert [peer.name for peer in found if "{" in "".join([peer.url, peer.python, *peer.command, *peer.prepare])] == []


@pytest.mark.slow
def test_this_service_equals_itself_in_every_format() -> None:
    rows = {"row": peers.Row("a row", Stream("short", 2, 1))}
    with this_service("native", 1) as native:
        for name in FORMATS:
            target = Target(native.target.port, path=BASE_PATHS.get(name, ""), format=name, model=MODEL)
            side = HttpSide(name if name != "native" else "itself", target, native.pid)
            found = peers.compare(native, side, rows, Meter(seconds=0.3, warm_s=0.0), rounds=1)
            assert found.cosine > 0.999999
            assert not found.failed
            [(ours, theirs)] = found.pairs["row"]
            assert min(ours.tokens_per_s, theirs.tokens_per_s, *found.memory_mb) > 1
            assert f"| {side.name} |" in peers.table(found, rows, 1)


class Mirrored:
    """A server whose vectors are those of another model. It must not be measured."""

    name = "mirrored"

    def sample(self, *_: object) -> Sample:
        raise AssertionError("It was measured.")

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float64]:
        return -Certain().vectors(texts)

    def memory_mb(self) -> float:
        return 0.0


class Certain(Mirrored):
    """A server that returns a unit vector for every text."""

    name = "certain"

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float64]:
        return np.tile([1.0, 0.0], (len(texts), 1))


def test_server_with_other_vectors_is_not_measured() -> None:
    rows = {"row": peers.Row("a row", Stream("short", 1, 1))}
    with pytest.raises(BenchError, match=r"other vectors: least cosine -1\.0000"):
        peers.compare(Certain(), Mirrored(), rows, Meter(0.1, 0.0), rounds=1)


# --- Lanes and workers ---


@pytest.mark.parametrize("cores", [1, 2, 6, 64])
def test_combinations_fit_into_the_cores_and_reach_them(cores: int) -> None:
    found = [(one.workers, one.lanes) for one in scale.combinations(cores)]
    assert {(1, 1), (cores, 1), (1, cores)} <= set(found)
    assert all(workers * lanes <= cores for workers, lanes in found)
    assert all(a < b for a, b in pairwise(found))


NONSENSE = {
    "no rounds": ["--rounds", "0"],
    "no time": ["--seconds", "0"],
    "endless": ["--seconds", "inf"],
    "not a number": ["--seconds", "nan"],
    "unknown row": ["--rows", "fastest"],
    "no workers": ["--max-workers", "0"],
    "pretended cores for a real model": ["--pretend-cores", "8"],
    "a million cores": ["--tiny", "--pretend-cores", "1000000"],
}


@pytest.mark.parametrize("arguments", NONSENSE.values(), ids=NONSENSE)
def test_scale_refuses_nonsense(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        scale.main(arguments)
    assert caught.value.code == 2


def test_scale_refuses_what_takes_too_long(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert scale.main(["--rounds", "50", "--seconds", "60", "--json", str(tmp_path / "scale.json")]) == 1
    assert "--max-minutes" in capsys.readouterr().err


def test_pretended_cores_are_what_a_started_process_sees(tmp_path: Path) -> None:
    environment = {**os.environ, **write_pretence(tmp_path, 8)}
    code = "import os; os.sched_setaffinity(0, {7}); from host.cores import usable_cores; print(usable_cores())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "8"


# --- Pages ---


def test_section_of_a_page_is_replaced_and_the_rest_kept(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- begin a: written by x -->\n\nold\n\n<!-- end a -->\nafter\n")
    replace_section(page, "a", "new\n")
    assert page.read_text() == "before\n<!-- begin a: written by x -->\n\nnew\n\n<!-- end a -->\nafter\n"
    with pytest.raises(SectionError):
        replace_section(page, "b", "new")


def test_spread_shows_the_median_and_the_lowest_and_the_highest_round() -> None:
    assert spread([3.0, 1000.0, 12.34]) == "12.3 (3.00 to 1,000)"
    assert spread([1.0, math.nan]) == "not measured"


def test_numbers_of_the_readme_are_those_of_the_benchmarks_page() -> None:
    """`throughput.py --write` writes both."""
    readme = (ROOT / "README.md").read_text("utf-8")
    page = (ROOT / "docs/BENCHMARKS.md").read_text("utf-8")
    section = page.partition("<!-- begin throughput:")[2].partition("<!-- end throughput -->")[0]
    published = dict(re.findall(r"(?m)^\| \*\*(.+?)\*\* \| (.+) \|$", section))
    shown = {name: re.findall(rf"(?m)^\| \*\*{re.escape(name)}\*\* .*\| (.+) \|$", readme) for name in published}
    assert len(published) == 3
    assert shown == {name: [cell] for name, cell in published.items()}


def test_every_section_that_a_script_writes_is_on_the_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text((ROOT / "docs/BENCHMARKS.md").read_text("utf-8"))
    sections = ("throughput", "peers", "scale", "scale-pretended", "result-cache")
    for name in sections:
        replace_section(page, name, "new")
    assert page.read_text().count("\nnew\n") == len(sections)


def test_numbers_are_written_into_the_readme(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text((ROOT / "README.md").read_text("utf-8"))
    names = ("Batches are fast.", "Queries stay fast during bulk jobs.", "Small.")
    throughput.write_readme(readme, dict.fromkeys(names, "a new number"), 64)
    text = readme.read_text()
    assert text.count(" | a new number |") == 3
    assert "| | Measured on 64 cores |" in text
    with pytest.raises(BenchError):
        throughput.write_readme(readme, {"No such line": "x"}, 2)
