"""`python main.py download`, with a hub that the test serves."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from config import BUNDLED_MODEL
from tests.support.commands import HUB_MODEL, NO_HUB, Outcome, change, command, repository_files, repository_of
from tests.support.hubs import Hub, serving, unchanged
from tests.support.tiny import TinyModel

pytestmark = pytest.mark.timeout(60)

ABSENT = "BAAI/bge-small-en-v1.5"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with serving(repository_of(HUB_MODEL), repository_files(tmp_path_factory.mktemp("repository"))) as hub:
        yield hub


@pytest.fixture
def hub(served: Hub) -> Hub:
    served.corrupt = unchanged
    served.requests.clear()
    return served


def download(*arguments: str, hub: Hub | None, cache: Path, **variables: str) -> Outcome:
    endpoint = hub.url if hub else NO_HUB
    return command(
        "download", *arguments, variables={"HF_ENDPOINT": endpoint, "HUB_CACHE_DIR": str(cache), **variables}
    )


def cut(name: str, content: bytes) -> bytes:
    return content[: len(content) // 2] if name.endswith(".onnx") else content


def scramble(name: str, content: bytes) -> bytes:
    return bytes(len(content)) if name.endswith(".onnx") else content


def test_model_is_downloaded_and_told_with_size_revision_and_fingerprint(hub: Hub, tmp_path: Path) -> None:
    outcome = download(HUB_MODEL, hub=hub, cache=tmp_path)
    assert outcome.code == 0
    [line] = outcome.out.splitlines()
    megabytes = sum(map(len, hub.files.values())) / 1e6
    start = f"{HUB_MODEL}: downloaded, {megabytes:.1f} MB, revision {hub.commit[:12]}, fingerprint "
    assert line.startswith(start)
    assert len(line) == len(start) + 16


def test_progress_is_shown_on_standard_error_in_words_of_ours(hub: Hub, tmp_path: Path) -> None:
    told = download(HUB_MODEL, hub=hub, cache=tmp_path).err
    assert f"Downloading {HUB_MODEL} (about " in told
    assert "  downloaded: " in told
    assert "Reconstruct" not in told
    assert "Fetching" not in told
    assert str(tmp_path) not in told


def test_model_that_is_there_is_checked_without_asking_the_hub(hub: Hub, tmp_path: Path) -> None:
    first = download(HUB_MODEL, hub=hub, cache=tmp_path)
    second = download(HUB_MODEL, hub=None, cache=tmp_path)
    assert (second.code, second.err) == (0, "")
    assert second.out == first.out.replace("downloaded", "already here")


def test_file_that_was_spoilt_in_the_cache_is_downloaded_again(hub: Hub, tmp_path: Path) -> None:
    first = download(HUB_MODEL, hub=hub, cache=tmp_path)
    [cached] = tmp_path.glob("models--*/snapshots/*/model_optimized.onnx")
    cached.resolve().write_bytes(bytes(cached.stat().st_size))
    second = download(HUB_MODEL, hub=hub, cache=tmp_path)
    assert second.code == 0
    assert second.out.rpartition(" ")[2] == first.out.rpartition(" ")[2]
    assert "put aside" in second.err
    assert "model_optimized.onnx" in second.err


@pytest.mark.parametrize("spoil", [pytest.param(cut, id="cut short"), pytest.param(scramble, id="wrong content")])
def test_spoilt_download_is_a_failure(spoil: object, hub: Hub, tmp_path: Path) -> None:
    hub.corrupt = spoil  # type: ignore[assignment]  # pytest's parameters have no types
    outcome = download(HUB_MODEL, hub=hub, cache=tmp_path)
    assert (outcome.code, outcome.out) == (1, "")
    assert f"{HUB_MODEL}: failed: its download " in outcome.err
    assert str(tmp_path) not in outcome.err


def test_one_that_fails_does_not_keep_the_others_from_being_got(hub: Hub, tmp_path: Path) -> None:
    outcome = download(ABSENT, HUB_MODEL, hub=hub, cache=tmp_path)
    assert outcome.code == 1
    assert f"{ABSENT}: failed: it is not in the cache, and the hub does not have it" in outcome.err
    assert outcome.out.startswith(f"{HUB_MODEL}: downloaded")


def test_unknown_name_is_wrong_use_and_nothing_is_downloaded(hub: Hub, tmp_path: Path) -> None:
    outcome = download(HUB_MODEL, "BAAI/bge-smal-en-v1.5", hub=hub, cache=tmp_path)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith(f"No model is named 'BAAI/bge-smal-en-v1.5'. Did you mean '{ABSENT}'")
    assert hub.requests == []


def test_models_of_folders_need_no_download(tmp_path: Path) -> None:
    TinyModel("acme/tiny").write(tmp_path)
    cache = tmp_path / "hub"
    outcome = download(BUNDLED_MODEL, "acme/tiny", hub=None, cache=cache, MODELS_DIR=str(tmp_path))
    assert (outcome.code, outcome.err) == (0, "")
    assert [line.partition(",")[0] for line in outcome.out.splitlines()] == [
        f"{BUNDLED_MODEL}: needs no download",
        "acme/tiny: needs no download",
    ]
    assert not cache.exists()


def test_spoilt_file_of_a_folder_is_a_failure(tmp_path: Path) -> None:
    folder = TinyModel("acme/tiny").write(tmp_path)
    (folder / "model.onnx").unlink()
    outcome = download("acme/tiny", hub=None, cache=tmp_path, MODELS_DIR=str(tmp_path))
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1] == "acme/tiny: failed: its file 'model.onnx' is missing"


def test_all_required_models_are_got_each_once(hub: Hub, tmp_path: Path) -> None:
    required = f"{BUNDLED_MODEL},{HUB_MODEL}"
    outcome = download(HUB_MODEL.lower(), "--all-required", hub=hub, cache=tmp_path, REQUIRED_MODELS=required)
    assert outcome.code == 0
    assert [line.partition(":")[0] for line in outcome.out.splitlines()] == [HUB_MODEL, BUNDLED_MODEL]


def test_folder_that_is_no_model_is_told_beside_the_result(tmp_path: Path) -> None:
    change(TinyModel("acme/tiny").write(tmp_path), dim=0)
    outcome = download(BUNDLED_MODEL, hub=None, cache=tmp_path, MODELS_DIR=str(tmp_path))
    assert (outcome.code, len(outcome.out.splitlines())) == (0, 1)
    assert outcome.err.startswith("warning: model folder ignored (folder=acme--tiny, reason=")


def test_file_of_a_folder_that_is_not_the_promised_one_is_a_failure(tmp_path: Path) -> None:
    folder = TinyModel("acme/tiny").write(tmp_path)
    size_bytes = (folder / "model.onnx").stat().st_size
    change(folder, files={"model.onnx": {"sha256": "0" * 64, "size_bytes": size_bytes}})
    outcome = download("acme/tiny", hub=None, cache=tmp_path, MODELS_DIR=str(tmp_path))
    assert (outcome.code, outcome.out) == (1, "")
    assert "acme/tiny: failed: its file 'model.onnx' is not the expected one" in outcome.err


def test_no_name_is_wrong_use(tmp_path: Path) -> None:
    outcome = download(hub=None, cache=tmp_path)
    assert (outcome.code, outcome.out) == (2, "")
    assert "--all-required" in outcome.err
