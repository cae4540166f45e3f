import errno
import hashlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastembed import TextEmbedding

from engine.catalog import read_catalog
from engine.encoder import load_encoder
from engine.hub import fetch
from tests.support.hubs import Hub, Loader, hub_environment, loading, serving, unchanged
from tests.support.servers import free_port, running_server, started_server
from tests.support.tiny import TinyModel, mean_of

pytestmark = pytest.mark.timeout(60)  # it starts processes, on a machine that may be busy

# A model of the registry that pools by the mean and does not normalise, so a test can say what must come out.
NAME = "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2"
DIM = 384
WORDS = ["one", "two", "five"]
TEXT = " ".join(WORDS)
VECTOR = mean_of(WORDS, DIM)


def repository_of(name: str) -> str:
    return str(TextEmbedding._get_model_description(name).sources.hf)  # noqa: SLF001 - as engine/hub.py finds it


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A tiny model's files, under the names that the registry's model has on the hub."""
    folder = TinyModel("tiny", dim=DIM).write(tmp_path_factory.mktemp("repository"))
    names = ["config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
    contents = {name: (folder / name).read_bytes() for name in names}
    return {**contents, "model_optimized.onnx": (folder / "model.onnx").read_bytes(), "README.md": b"not needed"}


@pytest.fixture(scope="module")
def served(files: dict[str, bytes]) -> Iterator[Hub]:
    with serving(repository_of(NAME), files) as hub:
        yield hub


@pytest.fixture
def hub(served: Hub) -> Hub:
    """The hub, without the failures that an earlier test has set."""
    served.refusal, served.refused, served.spoil, served.breaks_off = None, "/", unchanged, None
    served.asked.clear()
    return served


@pytest.fixture(scope="module")
def loader(served: Hub) -> Iterator[Loader]:
    """A process that knows the hub."""
    with loading(NAME, HF_ENDPOINT=served.url) as loader:
        yield loader


@pytest.mark.usefixtures("hub")
def test_registry_model_is_downloaded_from_the_hub_and_embeds(loader: Loader, tmp_path: Path) -> None:
    outcome = loader.load(tmp_path, TEXT)
    np.testing.assert_allclose(outcome["vector"], VECTOR, atol=1e-6)


def test_only_the_files_a_model_needs_are_downloaded(hub: Hub, loader: Loader, tmp_path: Path) -> None:
    assert "vector" in loader.load(tmp_path, TEXT)
    got = {line.rpartition("/")[2] for line in hub.asked if line.startswith("GET") and "/resolve/" in line}
    assert got == set(hub.files) - {"README.md"}


def test_cached_model_is_loaded_without_asking_the_hub(hub: Hub, loader: Loader, tmp_path: Path) -> None:
    assert "vector" in loader.load(tmp_path, TEXT)
    hub.asked.clear()
    np.testing.assert_allclose(loader.load(tmp_path, TEXT)["vector"], VECTOR, atol=1e-6)
    assert hub.asked == []


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    "variables",
    [
        pytest.param({"HF_ENDPOINT": f"http://127.0.0.1:{free_port()}"}, id="the hub is gone"),
        pytest.param({"HF_HUB_OFFLINE": "1"}, id="the hub is switched off"),
    ],
)
def test_another_process_uses_the_cache_when(variables: dict[str, str], loader: Loader, tmp_path: Path) -> None:
    assert "vector" in loader.load(tmp_path, TEXT)
    with loading(NAME, **variables) as other:
        np.testing.assert_allclose(other.load(tmp_path, TEXT)["vector"], VECTOR, atol=1e-6)


def preloaded_below(parent: Path, loader: Loader) -> Path:
    """A cache that has the model, as an image is built with one."""
    assert "vector" in loader.load(parent / "preloaded")
    return parent / "preloaded"


def test_preloaded_model_needs_neither_the_hub_nor_the_cache(hub: Hub, loader: Loader, tmp_path: Path) -> None:
    preloaded = preloaded_below(tmp_path, loader)
    before = sorted(preloaded.rglob("*"))
    hub.asked.clear()
    outcome = loader.load(tmp_path / "cache", TEXT, preloaded=preloaded)
    np.testing.assert_allclose(outcome["vector"], VECTOR, atol=1e-6)
    assert outcome["fingerprint"]["revision"] == hub.commit
    assert (hub.asked, (tmp_path / "cache").exists(), sorted(preloaded.rglob("*"))) == ([], False, before)


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(lambda file: file.write_bytes(bytes(file.stat().st_size)), id="has another content"),
        pytest.param(lambda file: file.write_bytes(b"short"), id="is cut short"),
        pytest.param(lambda file: file.unlink(), id="is missing"),
    ],
)
def test_cache_stands_in_for_a_preloaded_model_whose_file(
    harm: Callable[[Path], object], hub: Hub, loader: Loader, tmp_path: Path
) -> None:
    preloaded = preloaded_below(tmp_path, loader)
    [file] = preloaded.glob("models--*/snapshots/*/*.onnx")
    harm(file.resolve())
    hub.asked.clear()
    for _ in range(2):
        outcome = loader.load(tmp_path / "cache", TEXT, preloaded=preloaded)
        np.testing.assert_allclose(outcome["vector"], VECTOR, atol=1e-6)
    assert sum(line.startswith("GET") and line.endswith(".onnx") for line in hub.asked) == 1


@pytest.mark.parametrize(
    ("refusal", "cause"),
    [
        pytest.param((404, "RepoNotFound"), "the hub does not have it", id="missing"),
        pytest.param((401, "RepoNotFound"), "the hub does not have it", id="missing, as strangers are told"),
        pytest.param((401, None), "status 401", id="token refused"),
        pytest.param((401, "GatedRepo"), "set HF_TOKEN", id="gated, token missing"),
        pytest.param((403, "GatedRepo"), "set HF_TOKEN", id="gated, terms not accepted"),
        pytest.param((403, None), "status 403", id="forbidden"),
        pytest.param((429, None), "status 429", id="too many requests"),
        pytest.param((500, None), "status 500", id="broken"),
        pytest.param((503, None), "status 503", id="under maintenance"),
    ],
)
def test_hub_that_refuses_is_told_as_the_cause(
    refusal: tuple[int, str | None], cause: str, hub: Hub, loader: Loader, tmp_path: Path
) -> None:
    hub.refusal = refusal
    outcome = loader.load(tmp_path)
    assert outcome["cause"].startswith("it is not in the cache, and ")
    assert cause in outcome["cause"]


@pytest.mark.parametrize("status", [401, 403])
def test_gated_model_whose_facts_are_public_is_told_as_gated(
    status: int, hub: Hub, loader: Loader, tmp_path: Path
) -> None:
    """So the real hub does it: everybody may read what the model is, but not its files."""
    hub.refusal, hub.refused = (status, "GatedRepo"), "/resolve/"
    assert "set HF_TOKEN" in loader.load(tmp_path)["cause"]


def test_hub_that_fails_in_the_middle_is_given_up(hub: Hub, loader: Loader, tmp_path: Path) -> None:
    """It says that it has the model, and then it has trouble."""
    hub.refusal, hub.refused = (503, None), "/tree/"
    assert "download" in loader.load(tmp_path)["cause"]


def test_hub_that_refuses_is_asked_once_and_no_more(hub: Hub, loader: Loader, tmp_path: Path) -> None:
    hub.refusal = (500, None)
    loader.load(tmp_path)
    assert hub.asked == [f"GET /api/models/{hub.repository}"]


def test_model_is_loaded_once_the_hub_gives_it_again(hub: Hub, loader: Loader, tmp_path: Path) -> None:
    hub.refusal = (404, "RepoNotFound")
    assert "cause" in loader.load(tmp_path, TEXT)
    hub.refusal = None
    assert "vector" in loader.load(tmp_path, TEXT)


def test_hub_that_cannot_be_reached_is_told_as_the_cause(tmp_path: Path) -> None:
    with loading(NAME, HF_ENDPOINT=f"http://127.0.0.1:{free_port()}") as loader:
        outcome = loader.load(tmp_path)
    assert outcome["cause"] == "it is not in the cache, and the hub cannot be reached (ConnectError)"


@pytest.mark.slow
def test_hub_that_takes_calls_and_never_answers_is_given_up(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        loading(NAME, HF_ENDPOINT=f"http://127.0.0.1:{silent.getsockname()[1]}") as loader,
    ):
        outcome = loader.load(tmp_path)
    assert outcome["cause"] == "it is not in the cache, and the hub cannot be reached (ReadTimeout)"


def test_offline_mode_is_told_as_the_cause(hub: Hub, tmp_path: Path) -> None:
    with loading(NAME, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1") as loader:
        outcome = loader.load(tmp_path)
    assert outcome["cause"] == "it is not in the cache, and HF_HUB_OFFLINE disables the hub"
    assert hub.asked == []


def cut(name: str, content: bytes) -> bytes:
    return content[: len(content) // 2] if name.endswith(".onnx") else content


def scramble(name: str, content: bytes) -> bytes:
    return bytes(len(content)) if name.endswith(".onnx") else content


def scramble_tokenizer(name: str, content: bytes) -> bytes:
    return bytes(len(content)) if name == "tokenizer.json" else content


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(cut, id="cut short"),
        pytest.param(scramble, id="of the right size but wrong content"),
        pytest.param(scramble_tokenizer, id="with a broken tokenizer"),
    ],
)
def test_spoilt_download_is_not_served_and_the_next_try_gets_a_good_one(
    spoil: object, hub: Hub, loader: Loader, tmp_path: Path
) -> None:
    hub.spoil = spoil  # type: ignore[assignment]  # pytest's parameters have no types
    cause = loader.load(tmp_path, TEXT)["cause"]
    assert "download" in cause or "broken" in cause
    hub.spoil = unchanged
    outcome = loader.load(tmp_path, TEXT)
    assert outcome.get("cause") is None
    np.testing.assert_allclose(outcome["vector"], VECTOR, atol=1e-6)


@pytest.mark.parametrize("name", ["model_optimized.onnx", "tokenizer.json"])
def test_hub_that_hangs_up_in_the_middle_of_a_file_is_told_and_the_next_try_gets_all_of_it(
    name: str, hub: Hub, loader: Loader, tmp_path: Path
) -> None:
    hub.breaks_off = name
    assert loader.load(tmp_path, TEXT)["cause"].startswith("its download failed: ")
    assert list(tmp_path.glob(f"models--*/snapshots/*/{name}")) == []
    hub.breaks_off = None
    np.testing.assert_allclose(loader.load(tmp_path, TEXT)["vector"], VECTOR, atol=1e-6)


@pytest.mark.parametrize("name", ["model_optimized.onnx", "tokenizer.json"])
@pytest.mark.usefixtures("hub")
def test_file_missing_in_the_cache_is_downloaded_again(name: str, loader: Loader, tmp_path: Path) -> None:
    assert "vector" in loader.load(tmp_path, TEXT)
    [cached] = tmp_path.glob(f"models--*/snapshots/*/{name}")
    cached.unlink()
    outcome = loader.load(tmp_path, TEXT)
    assert outcome.get("cause") is None


@pytest.mark.usefixtures("hub")
def test_file_cut_short_in_the_cache_is_downloaded_again(loader: Loader, tmp_path: Path) -> None:
    assert "vector" in loader.load(tmp_path, TEXT)
    [cached] = tmp_path.glob("models--*/snapshots/*/model_optimized.onnx")
    os.truncate(cached, 100)
    outcome = loader.load(tmp_path, TEXT)
    assert outcome.get("cause") is None


def cached_file(cache: Path, name: str) -> Path:
    [cached] = cache.glob(f"models--*/snapshots/*/{name}")
    return cached


def flip(path: Path) -> None:
    """Change one bit in the middle; the size stays."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["model_optimized.onnx", "tokenizer.json"])
def test_file_with_a_flipped_bit_in_the_cache_is_fetched_again_at_once(
    name: str, hub: Hub, loader: Loader, tmp_path: Path
) -> None:
    assert "vector" in loader.load(tmp_path, TEXT)
    flip(cached_file(tmp_path, name))
    hub.asked.clear()
    np.testing.assert_allclose(loader.load(tmp_path, TEXT)["vector"], VECTOR, atol=1e-6)
    assert f"GET /{hub.repository}/resolve/{hub.commit}/{name}" in hub.asked
    assert list(tmp_path.rglob("*.spoilt")) == []


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(flip, id="a flipped bit"),
        pytest.param(lambda path: os.truncate(path, 100), id="cut short"),
    ],
)
@pytest.mark.parametrize("name", ["model_optimized.onnx", "tokenizer.json"])
@pytest.mark.usefixtures("hub")
def test_spoilt_file_is_put_aside_and_named_while_the_hub_is_gone(
    name: str, spoil: Callable[[Path], None], served: Hub, loader: Loader, tmp_path: Path
) -> None:
    assert "vector" in loader.load(tmp_path, TEXT)
    spoil(cached_file(tmp_path, name))
    served.refusal = (503, None)
    for _ in range(2):  # the second try finds it put aside already
        cause = loader.load(tmp_path, TEXT)["cause"]
        assert name in cause
        assert "put aside" in cause
        assert "the hub answered with status 503" in cause
    assert [path.name for path in tmp_path.rglob("*.spoilt")] == [f"{name}.spoilt"]
    served.refusal = None
    np.testing.assert_allclose(loader.load(tmp_path, TEXT)["vector"], VECTOR, atol=1e-6)
    assert list(tmp_path.rglob("*.spoilt")) == []


def test_download_that_stays_spoilt_is_told_and_not_served(hub: Hub, loader: Loader, tmp_path: Path) -> None:
    hub.spoil = scramble
    cause = loader.load(tmp_path, TEXT)["cause"]
    assert "its download is corrupt" in cause
    assert "model_optimized.onnx" in cause


@pytest.mark.usefixtures("hub")
def test_half_a_download_is_completed(loader: Loader, tmp_path: Path) -> None:
    """As when a machine was switched off: the model's file is there in part, under the name of a download under way."""
    assert "vector" in loader.load(tmp_path, TEXT)
    link = cached_file(tmp_path, "model_optimized.onnx")
    blob = link.resolve()
    content = blob.read_bytes()
    blob.with_name(f"{blob.name}.incomplete").write_bytes(content[: len(content) // 2])
    blob.unlink()
    link.unlink()
    np.testing.assert_allclose(loader.load(tmp_path, TEXT)["vector"], VECTOR, atol=1e-6)


def test_fingerprint_of_a_downloaded_model_names_the_hubs_commit(hub: Hub, loader: Loader, tmp_path: Path) -> None:
    fingerprint = loader.load(tmp_path, TEXT)["fingerprint"]
    assert fingerprint["revision"] == hub.commit
    assert fingerprint["onnx_sha256"] == hashlib.sha256(hub.files["model_optimized.onnx"]).hexdigest()


def test_repository_without_the_models_file_cannot_be_used(
    files: dict[str, bytes], hub: Hub, loader: Loader, tmp_path: Path
) -> None:
    hub.files = {name: content for name, content in files.items() if not name.endswith(".onnx")}
    try:
        outcome = loader.load(tmp_path)
    finally:
        hub.files = files
    assert "missing" in outcome["cause"] or "download" in outcome["cause"]


@pytest.mark.usefixtures("hub")
def test_cache_that_cannot_be_written_is_told_as_the_cause(loader: Loader, tmp_path: Path) -> None:
    """An operator must not look at the network when it is the disk."""
    file = tmp_path / "file"
    file.touch()
    outcome = loader.load(file / "cache")
    assert os.strerror(errno.ENOTDIR).lower() in outcome["cause"].lower()


def test_causes_name_no_path_and_no_address(hub: Hub, loader: Loader, tmp_path: Path) -> None:
    causes = []
    for spoil, refusal in ((cut, None), (unchanged, (500, None)), (unchanged, (403, None))):
        hub.spoil, hub.refusal = spoil, refusal
        causes.append(loader.load(tmp_path)["cause"])
    assert not [cause for cause in causes if str(tmp_path) in cause or hub.url in cause or "/" in cause]


def test_model_of_a_folder_is_taken_from_there(tmp_path: Path) -> None:
    folder = TinyModel("acme/tiny").write(tmp_path)
    model = read_catalog([tmp_path], bundled="").get("acme/tiny")
    assert fetch(model, tmp_path / "cache").folder == folder
    assert load_encoder(model, hub_cache_dir=tmp_path / "cache").dim == 4
    assert not (tmp_path / "cache").exists()


def test_server_embeds_with_a_model_of_the_hub_and_says_so(hub: Hub, tmp_path: Path) -> None:
    variables = {**hub_environment(), "HF_ENDPOINT": hub.url}
    with running_server(**variables, HUB_CACHE_DIR=str(tmp_path)) as server:
        answer = httpx.post(f"{server.url}/embed", json={"text": TEXT, "model_name": NAME}, timeout=15).json()
        assert answer["model_name"] == NAME
        np.testing.assert_allclose(answer["embedding"], VECTOR, atol=1e-6)
        details = httpx.get(f"{server.url}/models/{NAME}").json()
        assert (details["source"], details["is_cached"]) == ("hub", True)


def test_download_writes_nothing_to_the_log_but_events(hub: Hub, tmp_path: Path) -> None:
    variables = {**hub_environment(), "HF_ENDPOINT": hub.url}
    with running_server(**variables, REQUIRED_MODELS=NAME, HUB_CACHE_DIR=str(tmp_path)) as server:
        assert server.wait_for("model_loaded")["model"] == NAME
    assert [line for line in server.lines if not line.startswith("{")] == []
    assert str(tmp_path) not in server.log


def test_server_without_a_hub_says_why_and_keeps_its_other_models(tmp_path: Path) -> None:
    variables = {**hub_environment(), "HF_ENDPOINT": f"http://127.0.0.1:{free_port()}"}
    with running_server(**variables, HUB_CACHE_DIR=str(tmp_path)) as server:
        refused = httpx.post(f"{server.url}/embed", json={"text": TEXT, "model_name": NAME}, timeout=15)
        assert (refused.status_code, refused.json()["code"]) == (503, "model-unavailable")
        assert "the hub cannot be reached" in refused.json()["detail"]
        assert int(refused.headers["Retry-After"]) > 0
        assert httpx.post(f"{server.url}/embed", json={"text": TEXT}, timeout=15).status_code == 200


@pytest.mark.parametrize("spoil", [pytest.param(cut, id="spoilt download"), pytest.param(None, id="no hub")])
def test_server_logs_no_path_and_no_foreign_line_when_a_required_model_cannot_be_had(
    spoil: object, hub: Hub, tmp_path: Path
) -> None:
    if spoil:
        hub.spoil = cut
    endpoint = hub.url if spoil else f"http://127.0.0.1:{free_port()}"
    variables = {**hub_environment(), "HF_ENDPOINT": endpoint}
    with started_server(**variables, REQUIRED_MODELS=NAME, HUB_CACHE_DIR=str(tmp_path)) as server:
        assert server.wait_for_end() != 0
    assert [line[:14] for line in server.lines if not line.startswith("{")] == ["Cannot start: "]
    assert str(tmp_path) not in server.log
