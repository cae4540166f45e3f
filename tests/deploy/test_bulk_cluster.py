"""A bulk job on a Ray cluster of two nodes: it survives a kill and the loss of a node."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.texts import distinct_texts
from config import load_settings
from deploy.ray.bulk_cluster import load_model
from deploy.ray.bulk_embed import build_parser, plan
from deploy.ray.bulk_units import embed_unit, read_result
from tests.support.processes import killed_at_the_end
from tests.support.ray_clusters import RayCluster, running_cluster, wait_until
from tests.support.servers import ROOT

TEXTS, ROWS_PER_FILE = 320, 10


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files of 160 texts of 4 to 300 words each."""
    folder = tmp_path_factory.mktemp("texts")
    texts = [text for text, _ in zip(distinct_texts("mixed", "bulk"), range(TEXTS), strict=False)]
    for number in range(2):
        with (folder / f"{number}.jsonl").open("w") as file:
            file.writelines(json.dumps({"id": at, "text": texts[at]}) + "\n" for at in range(number, TEXTS, 2))
    return folder


def options(texts: Path, output: Path) -> list[str]:
    return [str(texts), str(output), "--rows-per-file", str(ROWS_PER_FILE)]


def parts(output: Path) -> list[Path]:
    return sorted(output.glob("part-*.parquet"))


def read_rows(output: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(part).replace_schema_metadata() for part in parts(output)).sort_by("id")


@pytest.fixture(scope="module")
def expected(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """The output of an undisturbed job; here one process embeds all units."""
    output = tmp_path_factory.mktemp("expected")
    job = plan(build_parser().parse_args(options(texts, output)), load_settings())
    encoder = load_model(job.model, job.settings.hub_cache_dir)
    for unit in job.units:
        embed_unit(encoder, unit, job.spec)
    return read_rows(output)


def assert_same_rows(output: Path, expected: pa.Table) -> None:
    found = read_rows(output)
    assert found.drop(["embedding"]).equals(expected.drop(["embedding"]))
    np.testing.assert_allclose(
        np.stack(found["embedding"].to_numpy()), np.stack(expected["embedding"].to_numpy()), atol=1e-6
    )


def test_ray_does_not_replace_the_sigterm_handler_of_the_job() -> None:
    """Ray's own handler ends the process without a message, and with another exit code."""
    code = """
import signal, ray
from deploy.ray.bulk_cluster import InputError, ray_cluster
handler = lambda *_: None
signal.signal(signal.SIGTERM, handler)
try:
    with ray_cluster(ray, "ray-nonsense"):
        pass
except InputError:
    print(signal.getsignal(signal.SIGTERM) is handler)
"""
    pytest.importorskip("ray", reason="needs requirements/ray.txt")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "True\n", done.stderr


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with running_cluster(1, 1) as cluster:
        yield cluster


def started(
    cluster: RayCluster, texts: Path, output: Path, *more: str
) -> AbstractContextManager["subprocess.Popen[str]"]:
    """Start a job, which is killed at the end of the block."""
    script = [sys.executable, "deploy/ray/bulk_embed.py", *options(texts, output), "--address", cluster.address, *more]
    return killed_at_the_end(
        subprocess.Popen(script, cwd=ROOT, env=cluster.environment, stderr=subprocess.PIPE, text=True)
    )


def output_of(job: "subprocess.Popen[str]", *, code: int = 0) -> str:
    """Wait for the end of a job, and return what it has printed."""
    _, output = job.communicate()
    assert job.returncode == code, output
    return output


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_job_resumes_without_embedding_a_text_twice(
    cluster: RayCluster, texts: Path, tmp_path: Path, expected: pa.Table
) -> None:
    with started(cluster, texts, tmp_path, "--actors", "1") as killed:
        wait_until(lambda: len(parts(tmp_path)) >= 3 or killed.poll() is not None, "three files exist")
        killed.kill()
    wait_until(lambda: not cluster.processes("ray::MapWorker"), "the actors of the killed job have ended")
    before = {part: (part.stat().st_ino, part.stat().st_mtime_ns) for part in parts(tmp_path)}
    assert 3 <= len(before) < TEXTS // ROWS_PER_FILE
    with started(cluster, texts, tmp_path) as job:
        output = output_of(job)
    assert f"{len(before)} exist already." in output
    report = json.loads((tmp_path / "_report.json").read_text())
    texts_by_run = Counter[str]()
    for result in map(read_result, parts(tmp_path)):
        texts_by_run[result.run] += result.texts
    assert {part: (part.stat().st_ino, part.stat().st_mtime_ns) for part in before} == before  # none was rewritten
    assert len(texts_by_run) == 2
    assert texts_by_run.total() == TEXTS
    assert report["texts"] == TEXTS
    assert report["texts_this_run"] == TEXTS - sum(read_result(part).texts for part in before)
    assert f"Done: {TEXTS} texts" in output
    assert report["units_done_before"] == len(before)
    assert_same_rows(tmp_path, expected)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_job_that_failed_on_a_bad_row_completes_with_bad_rows_skipped(cluster: RayCluster, tmp_path: Path) -> None:
    rows = [{"id": number, "text": f"number {number}"} for number in range(40)]
    bad = [
        '{"text": 5}',
        '{"text": null}',
        '{"text": []}',
        '{"text": {}}',
        '{"id": 1}',
        '{"text": " "}',
        '{"text": "\udcff"}',
        "{",
    ]
    lines = [json.dumps(row) for row in rows] + bad
    file = tmp_path / "texts.jsonl"
    file.write_bytes("\n".join(lines).encode(errors="surrogateescape"))
    output = tmp_path / "out"
    with started(cluster, file, output) as job:
        message = output_of(job, code=1)
    assert f"{file}, line 41: the text is not a string but a number; correct it, or skip" in message
    with started(cluster, file, output, "--on-bad-row", "skip") as job:
        message = output_of(job)
    assert "Done: 40 texts (0 truncated)" in message
    assert f"8 rows skipped (listed in {output}/_skipped-*.jsonl)" in message
    report = json.loads((output / "_report.json").read_text())
    assert (report["texts"], report["skipped"]) == (40, 8)
    assert sorted(read_rows(output)["id"].to_pylist()) == list(range(40))
    skipped = [json.loads(line) for part in output.glob("_skipped-*") for line in part.read_text().splitlines()]
    assert sorted(line["line"] for line in skipped) == list(range(41, 49))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_job_that_loses_a_node_completes_on_the_other(
    cluster: RayCluster, texts: Path, tmp_path: Path, expected: pa.Table
) -> None:
    with started(cluster, texts, tmp_path, "--actors", "2") as job:
        wait_until(lambda: len(cluster.processes("ray::MapWorker")) == 2, "each node has an actor")
        wait_until(lambda: len(parts(tmp_path)) >= 2 or job.poll() is not None, "two files exist")
        cluster.kill_second_node()
        assert len(parts(tmp_path)) < TEXTS // ROWS_PER_FILE
        output_of(job)
    assert_same_rows(tmp_path, expected)
