"""Models of a hub: downloaded, cached, verified, and a clear cause if any of it fails."""

import errno
import hashlib
import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import islice
from pathlib import Path

import httpx
import numpy as np
import pytest

from config import BUNDLED_MODEL
from engine.catalog import read_catalog
from engine.download_queue import MAX_WAITING_PER_CALLER
from engine.encoder import load_encoder
from engine.fastembed_adapter import registry_model
from engine.hub import fetch
from tests.support.held_hub import held_hub
from tests.support.hubs import Hub, Json, Loader, commit_of, hub_environment, loading, serving, unchanged
from tests.support.servers import free_port, running_server, started_server
from tests.support.tiny import TinyModel, mean_of

pytestmark = pytest.mark.timeout(60)  # it starts processes, on a machine that may be busy

NAME = "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2"
"""A model of the registry that uses mean pooling and does not normalise, so a test can state its vectors."""
REPOSITORY = registry_model(NAME).repository
ONNX, TOKENIZER = "model_optimized.onnx", "tokenizer.json"
DIM = 384
WORDS = ["one", "two", "five"]
TEXT = " ".join(WORDS)
VECTOR = mean_of(WORDS, DIM)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A tiny model's files, under the names that the registry's model has on the hub."""
    folder = TinyModel("tiny", dim=DIM).write(tmp_path_factory.mktemp("repository"))
    names = ["config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
    contents = {name: (folder / name).read_bytes() for name in names}
    return {**contents, ONNX: (folder / "model.onnx").read_bytes(), "README.md": b"not needed"}


@pytest.fixture(scope="module")
def served(files: dict[str, bytes]) -> Iterator[Hub]:
    with serving(REPOSITORY, files) as hub:
        yield hub


@pytest.fixture
def hub(served: Hub) -> Hub:
    """The hub, without the failures that an earlier test has set."""
    served.rejection, served.rejected, served.corrupt, served.disconnects_in = None, "/", unchanged, ()
    served.requests.clear()
    return served


@pytest.fixture(scope="module")
def loader(served: Hub) -> Iterator[Loader]:
    """A process that can reach the hub."""
    with loading(NAME, HF_ENDPOINT=served.url) as loader:
        yield loader


@pytest.fixture(scope="module")
def loader_without_hub() -> Iterator[Loader]:
    with loading(NAME, HF_ENDPOINT=f"http://127.0.0.1:{free_port()}") as loader:
        yield loader


@pytest.fixture(scope="module")
def offline_loader(served: Hub) -> Iterator[Loader]:
    with loading(NAME, HF_ENDPOINT=served.url, HF_HUB_OFFLINE="1") as loader:
        yield loader


def assert_loaded(outcome: Json) -> None:
    assert "cause" not in outcome
    np.testing.assert_allclose(outcome["vector"], VECTOR, atol=1e-6)


def cached_file(cache: Path, name: str) -> Path:
    [cached] = cache.glob(f"models--*/snapshots/*/{name}")
    return cached


def cut(name: str, content: bytes) -> bytes:
    return content[: len(content) // 2] if name == ONNX else content


def scramble(name: str, content: bytes) -> bytes:
    return bytes(len(content)) if name == ONNX else content


def scramble_tokenizer(name: str, content: bytes) -> bytes:
    return bytes(len(content)) if name == TOKENIZER else content


def flip_bit(path: Path) -> None:
    """Change one bit in the middle; the size stays."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# --- Download and cache ----------------------------------------------------------------------------------------------


def test_registry_model_is_downloaded_from_the_hub_and_embeds(hub: Hub, loader: Loader, tmp_path: Path) -> None:
    """Only the files that it needs are downloaded, and its fingerprint contains the hub's commit."""
    outcome = loader.load(tmp_path, TEXT)
    assert_loaded(outcome)
    got = {line.rpartition("/")[2] for line in hub.requests if line.startswith("GET") and "/resolve/" in line}
    assert got == set(hub.files) - {"README.md"}
    assert outcome["fingerprint"]["revision"] == hub.commit
    assert outcome["fingerprint"]["onnx_sha256"] == hashlib.sha256(hub.files[ONNX]).hexdigest()


def test_cached_model_is_loaded_without_a_request_to_the_hub(
    hub: Hub, loader: Loader, loader_without_hub: Loader, offline_loader: Loader, tmp_path: Path
) -> None:
    assert_loaded(loader.load(tmp_path, TEXT))
    hub.requests.clear()
    for again in (loader, loader_without_hub, offline_loader):
        assert_loaded(again.load(tmp_path, TEXT))
    assert hub.requests == []


def test_preloaded_model_needs_neither_the_hub_nor_the_cache(hub: Hub, loader: Loader, tmp_path: Path) -> None:
    preloaded = tmp_path / "preloaded"
    assert_loaded(loader.load(preloaded, TEXT))
    before = sorted(preloaded.rglob("*"))
    hub.requests.clear()
    outcome = loader.load(tmp_path / "cache", TEXT, preloaded=preloaded)
    assert_loaded(outcome)
    assert outcome["fingerprint"]["revision"] == hub.commit
    assert (hub.requests, (tmp_path / "cache").exists(), sorted(preloaded.rglob("*"))) == ([], False, before)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda file: file.write_bytes(bytes(file.stat().st_size)), id="other content"),
        pytest.param(lambda file: file.write_bytes(b"short"), id="cut short"),
        pytest.param(lambda file: file.unlink(), id="missing"),
    ],
)
def test_cache_replaces_a_preloaded_model_with_a_damaged_file(
    damage: Callable[[Path], object], hub: Hub, loader: Loader, tmp_path: Path
) -> None:
    preloaded = tmp_path / "preloaded"
    assert_loaded(loader.load(preloaded, TEXT))
    damage(cached_file(preloaded, ONNX).resolve())
    hub.requests.clear()
    for _ in range(2):
        assert_loaded(loader.load(tmp_path / "cache", TEXT, preloaded=preloaded))
    assert sum(line.startswith("GET") and line.endswith(".onnx") for line in hub.requests) == 1


def test_model_of_a_folder_needs_no_cache(tmp_path: Path) -> None:
    folder = TinyModel("acme/tiny").write(tmp_path)
    model = read_catalog([tmp_path], bundled="").get("acme/tiny")
    assert fetch(model, tmp_path / "cache").folder == folder
    assert load_encoder(model, hub_cache_dir=tmp_path / "cache").dim == 4
    assert not (tmp_path / "cache").exists()


# --- Failures of the hub ---------------------------------------------------------------------------------------------


def test_rejection_by_the_hub_is_the_cause(hub: Hub, loader: Loader, tmp_path: Path) -> None:
    """The hub is asked once, and the model is loaded as soon as the hub gives it."""
    expected: dict[tuple[int, str | None], str] = {
        (404, "RepoNotFound"): "the hub does not have it",
        (401, "RepoNotFound"): "the hub does not have it",  # its answer about private models, without a token
        (401, None): "the hub answered with status 401",
        (401, "GatedRepo"): "the hub requires that you accept the model's terms (set HF_TOKEN)",
        (403, "GatedRepo"): "the hub requires that you accept the model's terms (set HF_TOKEN)",
        (403, None): "the hub answered with status 403",
        (429, None): "the hub answered with status 429",
        (500, None): "the hub answered with status 500",
        (503, None): "the hub answered with status 503",
    }
    causes = {}
    for hub.rejection in expected:
        hub.requests.clear()
        causes[hub.rejection] = loader.load(tmp_path)["cause"]
        assert hub.requests == [f"GET /api/models/{hub.repository}"]
    assert causes == {rejection: f"it is not in the cache, and {cause}" for rejection, cause in expected.items()}
    hub.rejection = None
    assert_loaded(loader.load(tmp_path, TEXT))


def test_rejection_during_the_download_is_the_cause(hub: Hub, loader: Loader, tmp_path: Path) -> None:
    expected = {
        # The real hub shows a gated model's description to everybody, but not its files.
        ((401, "GatedRepo"), "/resolve/"): "the hub requires that you accept the model's terms (set HF_TOKEN)",
        ((403, "GatedRepo"), "/resolve/"): "the hub requires that you accept the model's terms (set HF_TOKEN)",
        ((503, None), "/tree/"): "the hub answered with status 503",
    }
    for ((status, code), path), cause in expected.items():
        hub.rejection, hub.rejected = (status, code), path
        assert loader.load(tmp_path)["cause"] == f"its download failed: {cause}"


def test_unreachable_hub_is_the_cause(
    hub: Hub, loader_without_hub: Loader, offline_loader: Loader, tmp_path: Path
) -> None:
    cause = loader_without_hub.load(tmp_path)["cause"]
    assert cause == "it is not in the cache, and the hub cannot be reached (ConnectError)"
    cause = offline_loader.load(tmp_path)["cause"]
    assert cause == "it is not in the cache, and HF_HUB_OFFLINE disables the hub"
    assert hub.requests == []


def test_hub_that_accepts_connections_and_never_answers_is_given_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with loading(NAME, hub_timeout_s=0.2, HF_ENDPOINT=endpoint) as loader:
            outcome = loader.load(tmp_path)
    assert outcome["cause"] == "it is not in the cache, and the hub cannot be reached (ReadTimeout)"


def test_repository_without_the_models_file_cannot_be_used(
    files: dict[str, bytes], hub: Hub, loader: Loader, tmp_path: Path
) -> None:
    hub.files = {name: content for name, content in files.items() if name != ONNX}
    try:
        outcome = loader.load(tmp_path)
    finally:
        hub.files = files
    assert "missing" in outcome["cause"] or "download" in outcome["cause"]


@pytest.mark.usefixtures("hub")
def test_cache_that_cannot_be_written_is_the_cause(loader: Loader, tmp_path: Path) -> None:
    """Operators must not search the network for a problem of the disk."""
    file = tmp_path / "file"
    file.touch()
    outcome = loader.load(file / "cache")
    assert os.strerror(errno.ENOTDIR) in outcome["cause"]


def test_causes_name_no_path_and_no_address(hub: Hub, loader: Loader, tmp_path: Path) -> None:
    causes = []
    for hub.corrupt, hub.rejection in ((cut, None), (unchanged, (500, None)), (unchanged, (403, None))):
        causes.append(loader.load(tmp_path)["cause"])
    assert not [cause for cause in causes if str(tmp_path) in cause or hub.url in cause or "/" in cause]


# --- Corrupt files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "corrupt",
    [
        pytest.param(cut, id="cut short"),
        pytest.param(scramble, id="other content of the right size"),
        pytest.param(scramble_tokenizer, id="broken tokenizer"),
    ],
)
def test_corrupt_download_is_not_served_and_the_next_attempt_gets_a_good_one(
    corrupt: Callable[[str, bytes], bytes], hub: Hub, loader: Loader, tmp_path: Path
) -> None:
    hub.corrupt = corrupt
    cause = loader.load(tmp_path, TEXT)["cause"]
    assert cause.startswith("its download failed" if corrupt is cut else "its download is corrupt: its file ")
    hub.corrupt = unchanged
    assert_loaded(loader.load(tmp_path, TEXT))


def test_hub_that_hangs_up_in_the_middle_of_files_is_the_cause_and_the_next_attempt_gets_them_whole(
    hub: Hub, loader: Loader, tmp_path: Path
) -> None:
    hub.disconnects_in = (ONNX, TOKENIZER)
    assert loader.load(tmp_path, TEXT)["cause"].startswith("its download failed: ")
    assert [path for name in hub.disconnects_in for path in tmp_path.glob(f"models--*/snapshots/*/{name}")] == []
    hub.disconnects_in = ()
    assert_loaded(loader.load(tmp_path, TEXT))


@pytest.mark.usefixtures("hub")
def test_half_a_download_is_completed(loader: Loader, tmp_path: Path) -> None:
    """As after a power failure: part of the file exists, under the name of an unfinished download."""
    assert_loaded(loader.load(tmp_path, TEXT))
    link = cached_file(tmp_path, ONNX)
    blob = link.resolve()
    content = blob.read_bytes()
    blob.with_name(f"{blob.name}.incomplete").write_bytes(content[: len(content) // 2])
    blob.unlink()
    link.unlink()
    assert_loaded(loader.load(tmp_path, TEXT))


@pytest.mark.parametrize("name", [ONNX, TOKENIZER])
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(flip_bit, id="flipped bit"),
        pytest.param(lambda path: os.truncate(path, 100), id="cut short"),
        pytest.param(Path.unlink, id="missing"),
    ],
)
def test_damaged_file_in_the_cache_is_downloaded_again_at_once(
    damage: Callable[[Path], None], name: str, hub: Hub, loader: Loader, tmp_path: Path
) -> None:
    assert_loaded(loader.load(tmp_path, TEXT))
    damage(cached_file(tmp_path, name))
    hub.requests.clear()
    assert_loaded(loader.load(tmp_path, TEXT))
    if damage is not Path.unlink:  # a missing link is restored from its blob
        assert f"GET /{hub.repository}/resolve/{hub.commit}/{name}" in hub.requests
    assert list(tmp_path.rglob("*.spoilt")) == []


@pytest.mark.parametrize("name", [ONNX, TOKENIZER])
@pytest.mark.parametrize(
    "damage",
    [pytest.param(flip_bit, id="flipped bit"), pytest.param(lambda path: os.truncate(path, 100), id="cut short")],
)
def test_corrupt_file_is_put_aside_and_named_while_the_hub_is_down(
    damage: Callable[[Path], None], name: str, hub: Hub, loader: Loader, tmp_path: Path
) -> None:
    assert_loaded(loader.load(tmp_path, TEXT))
    damage(cached_file(tmp_path, name))
    hub.rejection = (503, None)
    for _ in range(2):  # the second attempt finds it put aside
        cause = loader.load(tmp_path, TEXT)["cause"]
        reason = f"its cached files were corrupt and have been put aside ({name})"
        assert cause == f"{reason}, and the hub answered with status 503"
    assert [path.name for path in tmp_path.rglob("*.spoilt")] == [f"{name}.spoilt"]
    hub.rejection = None
    assert_loaded(loader.load(tmp_path, TEXT))
    assert list(tmp_path.rglob("*.spoilt")) == []


def test_download_that_stays_corrupt_is_the_cause_and_names_the_file(hub: Hub, loader: Loader, tmp_path: Path) -> None:
    hub.corrupt = scramble
    for _ in range(2):
        assert loader.load(tmp_path, TEXT)["cause"].startswith(f"its download is corrupt: its file {ONNX!r} ")


# --- The service -----------------------------------------------------------------------------------------------------


def test_server_embeds_with_a_hub_model_and_logs_nothing_but_events(hub: Hub, tmp_path: Path) -> None:
    variables = {**hub_environment(), "HF_ENDPOINT": hub.url}
    with running_server(**variables, HUB_CACHE_DIR=str(tmp_path)) as server:
        answer = httpx.post(f"{server.url}/embed", json={"text": TEXT, "model_name": NAME}, timeout=15).json()
        assert answer["model_name"] == NAME
        np.testing.assert_allclose(answer["embedding"], VECTOR, atol=1e-6)
        details = httpx.get(f"{server.url}/models/{NAME}").json()
        assert (details["source"], details["is_cached"]) == ("hub", True)
    assert [line for line in server.lines if not line.startswith("{")] == []
    assert str(tmp_path) not in server.log


def test_server_logs_no_path_and_nothing_but_events_if_a_required_model_is_corrupt(hub: Hub, tmp_path: Path) -> None:
    hub.corrupt = cut
    variables = {**hub_environment(), "HF_ENDPOINT": hub.url}
    with started_server(**variables, REQUIRED_MODELS=NAME, HUB_CACHE_DIR=str(tmp_path)) as server:
        assert server.wait_for_end() != 0
    assert [line[:14] for line in server.lines if not line.startswith("{")] == ["Cannot start: "]
    assert str(tmp_path) not in server.log


@pytest.mark.parametrize("limit", ["1KB", "200MB"])
def test_model_that_exceeds_the_size_of_the_cache_is_refused_before_its_download(
    limit: str, hub: Hub, tmp_path: Path
) -> None:
    """Its card states 220 MB."""
    variables = {**hub_environment(), "HF_ENDPOINT": hub.url}
    with running_server(**variables, HUB_CACHE_DIR=str(tmp_path), HUB_CACHE_MAX_SIZE=limit) as server:
        answer = httpx.post(f"{server.url}/embed", json={"text": TEXT, "model_name": NAME}, timeout=15)
        problem = answer.json()
        assert (answer.status_code, problem["code"]) == (503, "model-unavailable")
        assert "its download needs 220 MB, and 0 MB of the " in problem["detail"]
        assert "HUB_CACHE_MAX_SIZE" in problem["detail"]
        assert "retry-after" in answer.headers
        assert server.wait_for("model_load_failed")["cause"] in problem["detail"]
    assert [request for request in hub.requests if "/resolve/" in request] == []
    assert list(tmp_path.rglob("*.onnx")) == []


@pytest.mark.parametrize(("limit", "status"), [("230MB", 200), ("200MB", 503)])
def test_server_downloads_a_corrupt_file_again_only_within_the_limit_of_the_cache(
    limit: str, status: int, hub: Hub, loader: Loader, tmp_path: Path
) -> None:
    assert_loaded(loader.load(tmp_path, TEXT))
    flip_bit(cached_file(tmp_path, ONNX))
    variables = {**hub_environment(), "HF_ENDPOINT": hub.url}
    with running_server(**variables, HUB_CACHE_DIR=str(tmp_path), HUB_CACHE_MAX_SIZE=limit) as server:
        answer = httpx.post(f"{server.url}/embed", json={"text": TEXT, "model_name": NAME}, timeout=15)
        assert answer.status_code == status
        assert server.wait_for("model_files_put_aside")["files"] == [ONNX]


def test_model_that_fits_into_the_limit_of_the_cache_is_downloaded(hub: Hub, tmp_path: Path) -> None:
    variables = {**hub_environment(), "HF_ENDPOINT": hub.url}
    with running_server(**variables, HUB_CACHE_DIR=str(tmp_path), HUB_CACHE_MAX_SIZE="230MB") as server:
        answer = httpx.post(f"{server.url}/embed", json={"text": TEXT, "model_name": NAME}, timeout=15)
        assert answer.status_code == 200


def test_one_caller_that_asks_for_every_model_causes_one_download_at_a_time(tiny_models: Path, tmp_path: Path) -> None:
    hub_models = [model for model in read_catalog([], bundled="").models if model.name != BUNDLED_MODEL]
    held = MAX_WAITING_PER_CALLER + 1
    patient = {"HF_HUB_ETAG_TIMEOUT": "1000", "HF_HUB_DOWNLOAD_TIMEOUT": "1000"}
    settings = {"MODELS_DIR": str(tiny_models), "REQUIRED_MODELS": "tiny/one", "HUB_CACHE_DIR": str(tmp_path)}

    def ask(name: str) -> httpx.Response:
        return httpx.post(f"{server.url}/embed", json={"text": "one", "model_name": name}, timeout=60)

    with (
        held_hub(has_models=True) as slow,
        running_server(HF_ENDPOINT=slow.url, HUB_CACHE_MAX_SIZE="1TB", **settings, **patient) as server,
        ThreadPoolExecutor(len(hub_models)) as threads,
    ):
        asking = [threads.submit(ask, model.name) for model in hub_models]
        answers = [done.result() for done in islice(as_completed(asking), len(hub_models) - held)]
        assert {(answer.status_code, answer.json()["code"]) for answer in answers} == {(503, "overloaded")}
        assert all(int(answer.headers["retry-after"]) > 0 for answer in answers)
        assert slow.called.wait(30)
        loads = httpx.get(f"{server.url}/metrics").json()["model_loads"]
        assert loads == {
            "loads": held,
            "downloads_running": 1,
            "downloads_waiting": MAX_WAITING_PER_CALLER,
            "downloads_refused": len(answers),
        }
        assert len(slow.held) == 1
        assert ask("tiny/one").status_code == ask("tiny/two").status_code == 200
        slow.hang_up()
        last = [done.result() for done in asking]
    assert sorted(answer.json()["code"] for answer in last).count("model-unavailable") == held


def test_pinned_revision_is_loaded_although_the_hub_has_a_newer_one(
    loader: Loader, loader_without_hub: Loader, hub: Hub, files: dict[str, bytes], tmp_path: Path
) -> None:
    older = {**files, "config.json": b"{ " + files["config.json"].removeprefix(b"{"), "extra.bin": b"not needed"}
    hub.older = [older]
    pinned = commit_of(older)
    assert pinned != hub.commit
    newest = loader.load(tmp_path, TEXT)
    found = loader.load(tmp_path, TEXT, revision=pinned)
    np.testing.assert_allclose(found["vector"], newest["vector"], atol=1e-6)
    [folder] = tmp_path.glob("models--*/snapshots")
    assert {path.name for path in folder.iterdir()} == {hub.commit, pinned}
    assert (folder / pinned / "config.json").read_bytes() == older["config.json"]
    assert not (folder / pinned / "extra.bin").exists()
    assert found["fingerprint"]["revision"] == pinned
    assert loader_without_hub.load(tmp_path, TEXT, revision=pinned) == found
    hub.requests.clear()
    assert loader.load(tmp_path, TEXT, revision="f" * 40)["cause"].endswith(
        "the hub does not have the revision that its card states"
    )
    assert {path.name for path in folder.iterdir()} == {hub.commit, pinned}
