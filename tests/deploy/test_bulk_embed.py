"""The bulk job's command: bad options fail before any work begins; progress and models are those that users expect."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from config import load_settings
from deploy.ray.bulk_embed import Job, build_parser, main, plan
from deploy.ray.bulk_inputs import Unit
from deploy.ray.bulk_progress import Progress
from deploy.ray.bulk_units import UnitResult
from tests.support.clock import ManualClock
from tests.support.commands import HUB_MODEL, command, repository_files, repository_of
from tests.support.hubs import serving


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """An input folder with columns id and text."""
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.jsonl").write_text("".join(f'{{"id": {at}, "text": "number {at}"}}\n' for at in range(5)))
    return folder


def plan_job(texts: Path, output: Path, *more: str) -> Job:
    return plan(build_parser().parse_args([str(texts), str(output), *more]), load_settings())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--text-column", "body"], "there is no column 'body'; the input has id, text"),
        (["--model", "nope"], "No model named 'nope' is offered."),
        (["--dimensions", "64"], "dimensions: "),
        (["--keep", "id,embedding"], "there is no column 'embedding'"),
    ],
)
def test_bad_job_fails_before_it_begins(
    options: list[str], message: str, texts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([str(texts), str(tmp_path / "out"), *options]) == 1
    assert capfd.readouterr().err.startswith(f"bulk_embed.py: {message}")
    assert not (tmp_path / "out").exists()


def test_output_folder_must_not_contain_the_input(texts: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([str(texts), str(texts)]) == 1
    assert "contains the input" in capfd.readouterr().err


def test_input_must_not_have_a_column_that_the_output_adds(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x", "tokens": 1}\n')
    assert main([str(tmp_path), str(tmp_path / "out")]) == 1
    assert "the input has a column 'tokens', which the output adds; exclude it with --keep" in capfd.readouterr().err


def test_resumed_job_must_have_the_same_options(texts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "_manifest.json").write_text(json.dumps(plan_job(texts, output).manifest))
    assert main([str(texts), str(output), "--dtype", "int8"]) == 1
    assert 'options dtype was "float32" and is "int8"' in capfd.readouterr().err
    assert list(output.glob("part-*")) == []


def test_resumed_job_has_the_same_units_on_any_number_of_cores(texts: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    first = plan_job(texts, output, "--actors", "1", "--rows-per-file", "2")
    (output / "_manifest.json").write_text(json.dumps(first.manifest))
    again = plan_job(texts, output, "--actors", "64")
    assert (again.units, again.manifest) == (first.units, first.manifest)
    assert len(plan_job(texts, tmp_path / "other", "--actors", "64").units) == 1


@pytest.mark.parametrize("arguments", [["--actors", "3:1"], ["--rows-per-file", "0"], ["--on-bad-row", "hide"]])
def test_usage_error_names_the_option(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["in", "out", *arguments])
    assert f"argument {arguments[0]}" in capfd.readouterr().err


def test_job_finds_the_models_that_are_preloaded_in_an_image(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preloaded, cache = tmp_path / "preloaded", tmp_path / "cache"
    with serving(repository_of(HUB_MODEL), repository_files(tmp_path / "repository")) as hub:
        variables = {"HF_ENDPOINT": hub.url, "HUB_CACHE_DIR": str(preloaded)}
        downloaded = command("download", HUB_MODEL, variables=variables)
    assert downloaded.code == 0, downloaded.err
    monkeypatch.setattr("assembly.catalog.PRELOADED_DIR", preloaded)
    monkeypatch.setenv("HUB_CACHE_DIR", str(cache))
    job = plan_job(texts, tmp_path / "out", "--model", HUB_MODEL)
    assert job.model.preloaded == preloaded
    assert job.spec.fingerprint
    assert not cache.exists() or not list(cache.glob("models--*"))


def test_progress_reports_percentage_rates_and_time_left() -> None:
    units, clock, lines = [Unit(number, "x", 0, 100) for number in range(4)], ManualClock(), list[str]()
    first = UnitResult(0, "before", texts=70, tokens=700, truncated=1, skipped=30)
    progress = Progress(units, [(units[0], first)], report=lines.append, run="now", clock=clock)
    clock.now_s += 10
    progress.add(units[1], UnitResult(1, "now", texts=99, tokens=1000, truncated=3, skipped=1))
    clock.now_s += 10
    progress.add(units[2], replace(first, number=2))  # Ray repeated a unit that an earlier run has written
    assert lines == [
        " 50.0%  169 texts  10 texts/s  100 tokens/s  0:00:20 left",
        " 75.0%  239 texts  5 texts/s  50 tokens/s  0:00:10 left",
    ]
    assert progress.totals.summary("out/_skipped-*.jsonl") == (
        "Done: 239 texts (5 truncated), 2,400 tokens, 61 rows skipped (listed in out/_skipped-*.jsonl), in 3 files. "
        "This run: 99 texts in 20.0 s; 2 files existed already."
    )
