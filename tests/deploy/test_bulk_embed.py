"""The whole job: refused where it cannot be done; killed, resumed, and short of a node on a Ray cluster of two."""

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.texts import distinct_texts
from config import load_settings
from deploy.ray.bulk_embed import Job, main, opened, parser, plan
from deploy.ray.bulk_embedder import Done, embed_unit, read_done
from deploy.ray.bulk_inputs import Unit
from deploy.ray.bulk_progress import Progress
from tests.support.clock import ManualClock
from tests.support.ray_clusters import RayCluster, running_cluster, wait_until
from tests.support.servers import ROOT

TEXTS, ROWS_PER_FILE = 320, 10
SCRIPT = [sys.executable, "deploy/ray/bulk_embed.py"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files of each 160 texts of 4 to 300 words."""
    folder = tmp_path_factory.mktemp("texts")
    texts = [text for text, _ in zip(distinct_texts("mixed", "bulk"), range(TEXTS), strict=False)]
    for number in range(2):
        with (folder / f"{number}.jsonl").open("w") as file:
            file.writelines(json.dumps({"id": at, "text": texts[at]}) + "\n" for at in range(number, TEXTS, 2))
    return folder


def options(texts: Path, output: Path) -> list[str]:
    return [str(texts), str(output), "--rows-per-file", str(ROWS_PER_FILE)]


def job_of(texts: Path, output: Path) -> Job:
    return plan(parser().parse_args(options(texts, output)), load_settings())


def parts(output: Path) -> list[Path]:
    return sorted(output.glob("part-*.parquet"))


def rows_of(output: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(part).replace_schema_metadata() for part in parts(output)).sort_by("id")


@pytest.fixture(scope="module")
def expected(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """What a run that nobody disturbs gives; here one process does all units."""
    output = tmp_path_factory.mktemp("expected")
    job = job_of(texts, output)
    encoder = opened(job.model, job.settings.hub_cache_dir)
    for unit in job.units:
        embed_unit(encoder, unit, job.work)
    return rows_of(output)


def written(part: Path) -> tuple[int, int]:
    """What changes when a file is written again."""
    facts = part.stat()
    return facts.st_ino, facts.st_mtime_ns


def check_same(output: Path, expected: pa.Table) -> None:
    found = rows_of(output)
    assert found.drop(["embedding"]).equals(expected.drop(["embedding"]))
    np.testing.assert_allclose(
        np.stack(found["embedding"].to_numpy()), np.stack(expected["embedding"].to_numpy()), atol=1e-6
    )


def on_two_nodes(test: Any) -> Any:
    return pytest.mark.ray(pytest.mark.slow(pytest.mark.timeout(300)(test)))


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with running_cluster(1, 1) as cluster:
        yield cluster


def start(cluster: RayCluster, texts: Path, output: Path, *more: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*SCRIPT, *options(texts, output), "--address", cluster.address, *more],
        cwd=ROOT,
        env=cluster.environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(job: "subprocess.Popen[str]") -> str:
    with job:
        assert job.stderr
        told = job.stderr.read()
    assert job.returncode == 0, told
    return told


@on_two_nodes
def test_killed_job_goes_on_without_embedding_twice(
    cluster: RayCluster, texts: Path, tmp_path: Path, expected: pa.Table
) -> None:
    with start(cluster, texts, tmp_path, "--actors", "1") as killed:
        wait_until(lambda: len(parts(tmp_path)) >= 3 or killed.poll() is not None, "three files are there")
        killed.send_signal(signal.SIGKILL)
    wait_until(lambda: not cluster.processes("ray::MapWorker"), "the actors of the killed job have ended")
    before = {part: written(part) for part in parts(tmp_path)}
    assert 3 <= len(before) < TEXTS // ROWS_PER_FILE
    told = end(start(cluster, texts, tmp_path))
    assert f"{len(before)} are there." in told
    report = json.loads((tmp_path / "_report.json").read_text())
    done = [read_done(part) for part in parts(tmp_path)]
    by_run = Counter[str]()
    for one in done:
        by_run[one.run] += one.texts
    assert {part: written(part) for part in before} == before  # not one of them was written again
    assert len(by_run) == 2
    assert by_run.total() == TEXTS
    assert report["texts"] == by_run.total() - sum(read_done(part).texts for part in before)
    assert report["units_done_before"] == len(before)
    check_same(tmp_path, expected)


@on_two_nodes
def test_other_options_are_refused(
    cluster: RayCluster, texts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "_manifest.json").write_text(json.dumps(job_of(texts, tmp_path).manifest))
    assert main([*options(texts, tmp_path), "--dtype", "int8", "--address", cluster.address]) == 1
    assert 'options dtype was "float32" and is "int8"' in capfd.readouterr().err
    assert parts(tmp_path) == []


@on_two_nodes
def test_job_that_loses_a_node_is_done_by_the_other(
    cluster: RayCluster, texts: Path, tmp_path: Path, expected: pa.Table
) -> None:
    job = start(cluster, texts, tmp_path, "--actors", "2")
    wait_until(lambda: len(cluster.processes("ray::MapWorker")) == 2, "an actor on each node")
    wait_until(lambda: len(parts(tmp_path)) >= 2 or job.poll() is not None, "two files are there")
    cluster.kill_second_node()
    assert len(parts(tmp_path)) < TEXTS // ROWS_PER_FILE
    end(job)
    check_same(tmp_path, expected)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (["--text-column", "body"], "there is no column 'body'; the input has id, text"),
        (["--model", "nope"], "No model named 'nope' is offered."),
        (["--dimensions", "64"], "dimensions: "),
        (["--keep", "id,embedding"], "there is no column 'embedding'"),
    ],
)
def test_job_that_cannot_be_done_is_refused_before_it_begins(
    changed: list[str], told: str, texts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*options(texts, tmp_path / "out"), *changed]) == 1
    assert capfd.readouterr().err.startswith(f"bulk_embed.py: {told}")
    assert not (tmp_path / "out").exists()


def test_output_in_the_input_is_refused(texts: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(options(texts, texts)) == 1
    assert "has the input in it" in capfd.readouterr().err


def test_ray_leaves_the_end_by_sigterm_to_the_job() -> None:
    """Its own handler ends the process without a word, and with another exit code."""
    code = """
import signal, ray
from deploy.ray.bulk_embed import InputError, cluster
mine = lambda *_: None
signal.signal(signal.SIGTERM, mine)
try:
    with cluster(ray, "ray-nonsense"):
        pass
except InputError:
    print(signal.getsignal(signal.SIGTERM) is mine)
"""
    pytest.importorskip("ray", reason="needs requirements/ray.txt")
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.stdout == "True\n", ended.stderr


def test_column_that_the_output_will_have_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x", "tokens": 1}\n')
    assert main([str(tmp_path), str(tmp_path / "out")]) == 1
    assert "the input has a column 'tokens', as the output will; leave it out by --keep" in capfd.readouterr().err


@pytest.mark.parametrize("arguments", [["--actors", "3:1"], ["--rows-per-file", "0"], ["--on-bad-row", "hide"]])
def test_wrong_options_are_told(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["in", "out", *arguments])
    assert f"argument {arguments[0]}" in capfd.readouterr().err


def test_progress_tells_share_pace_and_time_left() -> None:
    units, clock, told = [Unit(number, "x", 0, 100) for number in range(4)], ManualClock(), list[str]()
    progress = Progress(units, units[:1], tell=told.append, run="now", clock=clock)
    clock.now_s += 10
    progress.note(units[1], Done(1, "now", texts=100, tokens=1000, truncated=3, skipped=1))
    clock.now_s += 10
    progress.note(units[2], replace(Done(2, "before", texts=100), skipped=9))
    assert told == [
        " 50.0%  100 texts  10 texts/s  100 tokens/s  0:00:20 left",
        " 75.0%  100 texts  5 texts/s  50 tokens/s  0:00:10 left",
    ]
    assert progress.totals.units_done_before == 2
    assert progress.totals.skipped == 1
