"""`python main.py download`, with a hub that the test serves."""

from collections.abc import Callable
from pathlib import Path

import pytest

from config import BUNDLED_MODEL
from tests.support.commands import HUB_MODEL, RunCommand, change, command
from tests.support.hubs import Hub
from tests.support.tiny import TinyModel

MISSING_MODEL = "BAAI/bge-small-en-v1.5"
"""A model of the registry that the test's hub does not have."""


def cut(name: str, content: bytes) -> bytes:
    return content[: len(content) // 2] if name.endswith(".onnx") else content


def scramble(name: str, content: bytes) -> bytes:
    return bytes(len(content)) if name.endswith(".onnx") else content


@pytest.mark.timeout(60)  # starts a process
def test_progress_goes_to_standard_error_and_the_outcome_to_standard_output(hub: Hub, tmp_path: Path) -> None:
    outcome = command("download", HUB_MODEL, variables={"HF_ENDPOINT": hub.url, "HUB_CACHE_DIR": str(tmp_path)})
    size_mb = sum(map(len, hub.files.values())) / 1e6
    start = f"{HUB_MODEL}: downloaded, {size_mb:.1f} MB, revision {hub.commit[:12]}, fingerprint "
    assert (outcome.code, len(outcome.out)) == (0, len(start) + 17)
    assert outcome.out.startswith(start)
    assert f"Downloading {HUB_MODEL} (about " in outcome.err
    assert "  downloaded: " in outcome.err
    for hidden in ("Reconstruct", "Fetching", str(tmp_path)):
        assert hidden not in outcome.err


def test_download_that_exceeds_the_size_of_the_cache_is_a_failure(hub: Hub, run_command: RunCommand) -> None:
    outcome = run_command("download", HUB_MODEL, HF_ENDPOINT=hub.url, HUB_CACHE_MAX_SIZE="1MB")
    assert (outcome.code, outcome.out) == (1, "")
    assert "HUB_CACHE_MAX_SIZE" in outcome.err
    assert [request for request in hub.requests if "/resolve/" in request] == []


def test_cached_model_is_verified_without_asking_the_hub(hub: Hub, run_command: RunCommand) -> None:
    first = run_command("download", HUB_MODEL, HF_ENDPOINT=hub.url)
    second = run_command("download", HUB_MODEL)
    assert (second.code, second.err) == (0, "")
    assert second.out == first.out.replace("downloaded", "already in the cache")


def test_corrupt_file_in_the_cache_is_downloaded_again(hub: Hub, run_command: RunCommand, tmp_path: Path) -> None:
    first = run_command("download", HUB_MODEL, HF_ENDPOINT=hub.url)
    [cached] = tmp_path.glob("hub/models--*/snapshots/*/model_optimized.onnx")
    cached.resolve().write_bytes(bytes(cached.stat().st_size))
    second = run_command("download", HUB_MODEL, HF_ENDPOINT=hub.url)
    assert second.code == 0
    assert second.out.rpartition(" ")[2] == first.out.rpartition(" ")[2]
    assert "put aside" in second.err
    assert "model_optimized.onnx" in second.err


@pytest.mark.parametrize("corrupt", [pytest.param(cut, id="cut short"), pytest.param(scramble, id="wrong content")])
def test_corrupt_download_is_a_failure(
    corrupt: Callable[[str, bytes], bytes], hub: Hub, run_command: RunCommand, tmp_path: Path
) -> None:
    hub.corrupt = corrupt
    outcome = run_command("download", HUB_MODEL, HF_ENDPOINT=hub.url)
    assert (outcome.code, outcome.out) == (1, "")
    assert f"{HUB_MODEL}: failed: its download " in outcome.err
    assert str(tmp_path) not in outcome.err


def test_failure_of_one_model_does_not_stop_the_others(hub: Hub, run_command: RunCommand) -> None:
    outcome = run_command("download", MISSING_MODEL, HUB_MODEL, HF_ENDPOINT=hub.url)
    assert outcome.code == 1
    assert f"{MISSING_MODEL}: failed: it is not in the cache, and the hub does not have it" in outcome.err
    assert outcome.out.startswith(f"{HUB_MODEL}: downloaded")


def test_required_models_are_downloaded_each_once(hub: Hub, run_command: RunCommand) -> None:
    required = f"{BUNDLED_MODEL},{HUB_MODEL}"
    outcome = run_command(
        "download", HUB_MODEL.lower(), "--all-required", REQUIRED_MODELS=required, HF_ENDPOINT=hub.url
    )
    assert outcome.code == 0
    assert [line.partition(":")[0] for line in outcome.out.splitlines()] == [HUB_MODEL, BUNDLED_MODEL]


def test_unknown_name_is_wrong_use_and_nothing_is_downloaded(hub: Hub, run_command: RunCommand) -> None:
    outcome = run_command("download", HUB_MODEL, "BAAI/bge-smal-en-v1.5", HF_ENDPOINT=hub.url)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith(f"No model named 'BAAI/bge-smal-en-v1.5' is offered. Did you mean '{MISSING_MODEL}'")
    assert hub.requests == []


def test_no_name_is_wrong_use(run_command: RunCommand) -> None:
    outcome = run_command("download")
    assert (outcome.code, outcome.out) == (2, "")
    assert "--all-required" in outcome.err


def test_model_of_a_folder_needs_no_download(run_command: RunCommand, tmp_path: Path) -> None:
    TinyModel("acme/tiny").write(tmp_path)
    outcome = run_command("download", BUNDLED_MODEL, "acme/tiny")
    assert (outcome.code, outcome.err) == (0, "")
    assert [line.partition(",")[0] for line in outcome.out.splitlines()] == [
        f"{BUNDLED_MODEL}: needs no download",
        "acme/tiny: needs no download",
    ]
    assert not (tmp_path / "hub").exists()


def test_missing_file_of_a_folder_is_a_failure(run_command: RunCommand, tmp_path: Path) -> None:
    (TinyModel("acme/tiny").write(tmp_path) / "model.onnx").unlink()
    outcome = run_command("download", "acme/tiny")
    assert (outcome.code, outcome.err) == (1, "acme/tiny: failed: its file 'model.onnx' is missing\n")


def test_file_of_a_folder_with_another_hash_than_stated_is_a_failure(run_command: RunCommand, tmp_path: Path) -> None:
    folder = TinyModel("acme/tiny").write(tmp_path)
    size_bytes = (folder / "model.onnx").stat().st_size
    change(folder, files={"model.onnx": {"sha256": "0" * 64, "size_bytes": size_bytes}})
    outcome = run_command("download", "acme/tiny")
    assert (outcome.code, outcome.out) == (1, "")
    assert "acme/tiny: failed: its file 'model.onnx' is not the expected one" in outcome.err


def test_failed_download_names_the_variable_that_may_be_the_cause(run_command: RunCommand) -> None:
    outcome = run_command("download", HUB_MODEL, SSL_CERT_FILE="/none")
    assert outcome.code == 1
    assert outcome.err.endswith(
        "\nSSL_CERT_FILE in the environment cannot be used: the file cannot be read (No such file or directory)\n"
    )


def test_ignored_folder_is_reported_beside_the_result(run_command: RunCommand, tmp_path: Path) -> None:
    change(TinyModel("acme/tiny").write(tmp_path), dim=0)
    outcome = run_command("download", BUNDLED_MODEL)
    assert (outcome.code, len(outcome.out.splitlines())) == (0, 1)
    assert outcome.err.startswith("warning: model folder ignored (folder=acme--tiny, reason=")
