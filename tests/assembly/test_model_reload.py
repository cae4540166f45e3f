"""Model folders are read again while the service runs: what is served from then on, and what stays as it was."""

import asyncio
import json
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from operator import is_
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from structlog.typing import EventDict

from api.model_names import ModelNames
from assembly.app import parts_of
from assembly.model_reload import compare
from assembly.running import RunningService
from engine.catalog import Model, read_catalog
from engine.encoder import Encoder, load_encoder
from engine.errors import ModelUnavailableError, UnknownModelError
from engine.result_store import CacheCounts
from tests.support.apps import settings_of
from tests.support.tiny import TinyModel

REQUIRED, OTHER = "tiny/required", "tiny/other"
HUB_MODEL = "BAAI/bge-small-en-v1.5"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 90405214\n"

Start = Callable[..., AbstractAsyncContextManager[RunningService]]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Start the service with two models, of which one is required."""
    from main import create_app  # noqa: PLC0415 - importing main builds an app, too

    @asynccontextmanager
    async def start(load: Callable[..., Encoder] = load_encoder, **settings: str) -> AsyncIterator[RunningService]:
        for name in (REQUIRED, OTHER):
            TinyModel(name).write(tmp_path)
        app = create_app(
            settings_of(MODELS_DIR=str(tmp_path), REQUIRED_MODELS=REQUIRED, **settings), load=load, stop=lambda: None
        )
        async with app.lifespan():
            service = parts_of(app).service
            await service.lifecycle.wait_for_start()
            yield service

    return start


def folder_of(name: str, parent: Path) -> Path:
    return parent / name.replace("/", "--")


def rewrite(name: str, parent: Path, **changes: Any) -> Path:
    """Replace a model's folder by that of another model with the same name."""
    shutil.rmtree(folder_of(name, parent), ignore_errors=True)
    return TinyModel(name, **changes).write(parent)


async def dimension(service: RunningService, name: str) -> int:
    return (await service.parts.embedder.embed(name, ["one"])).dimension


async def reload(service: RunningService) -> EventDict:
    """Reload, and return the log line that says what has changed."""
    with capture_logs() as events:
        await service.reload()
    [line] = [event for event in events if event["event"] in {"models_reloaded", "models_not_reloaded"}]
    return line


def changes(line: EventDict) -> dict[str, list[str]]:
    """Return what a log line lists, without what is empty."""
    return {key: line[key] for key in ("added", "changed", "removed", "rejected", "kept") if line[key]}


async def test_folder_that_was_added_is_served_and_one_that_was_removed_is_not(start: Start, tmp_path: Path) -> None:
    async with start() as service:
        assert await dimension(service, OTHER) == 4
        TinyModel("tiny/new", dim=6).write(tmp_path)
        shutil.rmtree(folder_of(OTHER, tmp_path))
        with pytest.raises(UnknownModelError):
            await dimension(service, "tiny/new")
        assert changes(await reload(service)) == {"added": ["tiny/new"], "removed": [OTHER]}
        assert await dimension(service, "tiny/new") == 6
        with pytest.raises(UnknownModelError):
            await dimension(service, OTHER)
        assert set(service.parts.models.loaded) == {REQUIRED, "tiny/new"}
        before = service.parts.embedder.models
        assert changes(await reload(service)) == {}
        assert all(map(is_, service.parts.embedder.models, before))


async def test_corrected_manifest_is_served_without_waiting_for_the_pause_after_a_failure(
    start: Start, tmp_path: Path
) -> None:
    """One model was ignored, as its manifest could not be read; the other could not be loaded."""
    unreadable, wrong = rewrite("tiny/unreadable", tmp_path), rewrite("tiny/wrong", tmp_path, stated_dim=8)
    content = (unreadable / "model.json").read_text()
    (unreadable / "model.json").write_text(content.replace('"pooling"', '"poling"'))
    async with start(MODEL_RETRY_PAUSE="3600") as service:
        with pytest.raises(ModelUnavailableError, match="set dim to 4"):
            await dimension(service, "tiny/wrong")
        (unreadable / "model.json").write_text(content)
        manifest = json.loads((wrong / "model.json").read_text())
        (wrong / "model.json").write_text(json.dumps({**manifest, "dim": 4}))
        assert changes(await reload(service)) == {"added": ["tiny/unreadable"], "changed": ["tiny/wrong"]}
        assert [await dimension(service, name) for name in ("tiny/unreadable", "tiny/wrong")] == [4, 4]


async def test_corrected_file_is_served_although_the_manifest_is_the_same(start: Start, tmp_path: Path) -> None:
    folder = rewrite("tiny/pointer", tmp_path)
    graph = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(LFS)
    async with start(MODEL_RETRY_PAUSE="3600") as service:
        with pytest.raises(ModelUnavailableError, match="git-lfs"):
            await dimension(service, "tiny/pointer")
        (folder / "model.onnx").write_bytes(graph)
        assert changes(await reload(service)) == {"changed": ["tiny/pointer"]}
        assert await dimension(service, "tiny/pointer") == 4


async def test_changed_file_in_a_subfolder_counts(start: Start, tmp_path: Path) -> None:
    """A graph may take weights from there."""
    folder = rewrite("tiny/deep", tmp_path)
    (folder / "onnx" / "weights").mkdir(parents=True)
    (folder / ".git").mkdir()
    async with start() as service:
        (folder / ".git" / "index").write_bytes(b"1")
        assert changes(await reload(service)) == {}
        (folder / "onnx" / "weights" / "all.bin").write_bytes(b"1")
        assert changes(await reload(service)) == {"changed": ["tiny/deep"]}


async def test_changed_model_in_memory_is_replaced_and_loaded_again_at_once(start: Start, tmp_path: Path) -> None:
    async with start() as service:
        assert [await dimension(service, name) for name in (REQUIRED, OTHER)] == [4, 4]
        for name in (REQUIRED, OTHER):
            rewrite(name, tmp_path, dim=5)
        assert changes(await reload(service)) == {"changed": [OTHER, REQUIRED]}
        assert set(service.parts.models.loaded) == {REQUIRED, OTHER}
        assert [await dimension(service, name) for name in (REQUIRED, OTHER)] == [5, 5]


async def test_results_are_found_after_a_reload_of_the_same_model_and_not_after_one_of_another(
    start: Start, tmp_path: Path
) -> None:
    async with start() as service:
        first = await service.parts.embedder.embed(OTHER, ["one"])
        manifest = tmp_path / "tiny--other" / "model.json"
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "description": "changed"}))
        assert changes(await reload(service)) == {"changed": [OTHER]}
        again = await service.parts.embedder.embed(OTHER, ["one"])
        assert (again.cache, again.vectors.tobytes()) == (CacheCounts(hit=1), first.vectors.tobytes())
        rewrite(OTHER, tmp_path, words=("two", "one"))
        assert changes(await reload(service)) == {"changed": [OTHER]}
        changed = await service.parts.embedder.embed(OTHER, ["one"])
        assert changed.cache == CacheCounts(miss=1)


async def test_answers_of_before_a_reload_are_deleted_before_changed_models_are_loaded(
    start: Start, tmp_path: Path
) -> None:
    """That may take minutes, and names, such as aliases, may mean other models from then on."""
    kept = list[int]()

    def load(model: Model, **keys: Any) -> Encoder:
        kept.append(len(answers))
        return load_encoder(model, **keys)

    answers: Any = ()
    async with start(load) as service:
        answers = service.results.answers
        result = b"key of the result"[:16]
        service.results.store.put("", {result: b"result"}, generation=service.results.store.generation)
        answers.put(b"key", object(), 10, result_key=result)
        rewrite(REQUIRED, tmp_path, dim=5)
        assert changes(await reload(service)) == {"changed": [REQUIRED]}
    assert kept[1:] == [1, 0]  # whether the new one can be loaded is found out first


async def test_lease_that_is_held_ends_with_the_old_model(start: Start, tmp_path: Path) -> None:
    async with start() as service:
        models, old = service.parts.models, service.parts.embedder.resolve_model(OTHER)
        async with models.lease(old) as encoder:
            rewrite(OTHER, tmp_path, dim=5)
            await reload(service)
            assert encoder.encode(encoder.tokenizer.tokenize(["one"])).shape == (1, 4)
            async with models.lease(old) as new:  # of a caller that looked the model up before the reload
                assert new.dim == 5
        assert await dimension(service, OTHER) == 5


async def test_load_that_began_before_the_reload_is_not_used_after_it(start: Start, tmp_path: Path) -> None:
    is_loading, may_finish = threading.Event(), threading.Event()

    def load(model: Model, **keys: Any) -> Encoder:
        if model.name == OTHER and model.dim == 4:
            is_loading.set()
            assert may_finish.wait(10)
        return load_encoder(model, **keys)

    async with start(load) as service, asyncio.timeout(15):
        first = asyncio.create_task(dimension(service, OTHER))
        await asyncio.to_thread(is_loading.wait, 10)
        kept = tmp_path / "tiny--other" / "model.json"
        kept.write_text(json.dumps({**json.loads(kept.read_text()), "description": "changed"}))
        reloading = asyncio.create_task(reload(service))
        while service.parts.embedder.resolve_model(OTHER).description != "changed":  # noqa: ASYNC110 - a reload sets no event
            await asyncio.sleep(0)
        may_finish.set()
        assert await first == 4
        assert changes(await reloading) == {"changed": [OTHER]}
        await dimension(service, OTHER)
        loaded = service.parts.models.find(OTHER)
        assert loaded
        assert loaded.encoder.model.description == "changed"


@pytest.mark.parametrize("name", [REQUIRED, OTHER])
@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        pytest.param("model.json", b'{"name": "tiny/', "model.json is not valid JSON", id="half-written manifest"),
        pytest.param("model.onnx", LFS, "git-lfs pointer", id="git-lfs pointer"),
        pytest.param("tokenizer.json", b"", "'tokenizer.json' is empty", id="empty file"),
    ],
)
async def test_model_whose_folder_cannot_be_used_now_stays_as_it_was(
    *, name: str, file: str, content: bytes, reason: str, start: Start, tmp_path: Path
) -> None:
    async with start() as service:
        await dimension(service, name)
        path = folder_of(name, tmp_path) / file
        whole = path.read_bytes()
        path.write_bytes(content)
        found = changes(await reload(service))
        assert (found.pop("kept"), [reason in line for line in found.pop("rejected")], found) == ([name], [True], {})
        assert name in service.parts.models.loaded
        assert await dimension(service, name) == 4
        path.write_bytes(whole)
        assert "kept" not in changes(await reload(service))
        assert await dimension(service, name) == 4


@pytest.mark.parametrize("name", [REQUIRED, OTHER])
async def test_model_in_memory_stays_if_the_changed_one_cannot_be_loaded(
    name: str, start: Start, tmp_path: Path
) -> None:
    async with start() as service:
        await dimension(service, name)
        rewrite(name, tmp_path, dim=5, stated_dim=8)
        found = changes(await reload(service))
        assert (found.pop("kept"), ["set dim to 5" in line for line in found.pop("rejected")], found) == (
            [name],
            [True],
            {},
        )
        assert name in service.parts.models.loaded
        assert await dimension(service, name) == 4


async def test_required_and_allowed_model_stays_so_if_its_name_is_spelled_in_another_case(
    start: Start, tmp_path: Path
) -> None:
    async with start(ALLOWED_MODELS=f"{REQUIRED},{OTHER}") as service:
        for name in (REQUIRED, OTHER):
            shutil.rmtree(folder_of(name, tmp_path))
            TinyModel(name.upper(), dim=5).write(tmp_path)
        assert changes(await reload(service)) == {"changed": [OTHER, REQUIRED]}
        assert [await dimension(service, name) for name in (REQUIRED, OTHER)] == [5, 5]
        assert set(service.parts.models.loaded) >= service.parts.models.required == {REQUIRED}
        assert changes(await reload(service)) == {}


async def test_required_model_does_not_vanish_with_its_folder(start: Start, tmp_path: Path) -> None:
    async with start() as service:
        folder_of(REQUIRED, tmp_path).rename(tmp_path.parent / "moved")
        assert changes(await reload(service)) == {"kept": [REQUIRED]}
        assert await dimension(service, REQUIRED) == 4
        (tmp_path.parent / "moved").rename(folder_of(REQUIRED, tmp_path))
        assert changes(await reload(service)) == {}


@pytest.mark.parametrize("required", [[], [HUB_MODEL]], ids=["optional", "required"])
def test_broken_folder_does_not_replace_a_hub_model_and_is_named(required: list[str], tmp_path: Path) -> None:
    old = read_catalog([tmp_path], bundled="")
    folder = TinyModel(HUB_MODEL).write(tmp_path).rename(tmp_path / "my-copy")
    (folder / "model.onnx").write_bytes(LFS)
    change = compare(old, read_catalog([tmp_path], bundled=""), required=required)
    assert (change.changed, change.kept, change.outdated) == ([], [HUB_MODEL], [])
    assert change.catalog.get(HUB_MODEL).source == "hub"
    assert [text[:42] for text in change.rejected] == ["my-copy: its file 'model.onnx' is a git-lf"]


async def test_folder_that_was_added_and_cannot_be_used_is_logged_with_the_reason(start: Start, tmp_path: Path) -> None:
    async with start() as service:
        (TinyModel("tiny/new").write(tmp_path) / "model.onnx").write_bytes(LFS)
        with capture_logs() as events:
            await service.reload()
    [logged] = [event for event in events if event["event"] == "model_folder_unusable"]
    assert (logged["model"], "git-lfs" in logged["reason"]) == ("tiny/new", True)


async def test_broken_folder_does_not_bring_back_the_hub_model_of_its_name(start: Start, tmp_path: Path) -> None:
    folder = rewrite(HUB_MODEL, tmp_path)
    async with start() as service:
        (folder / "model.json").write_text("{")
        assert changes(await reload(service))["kept"] == [HUB_MODEL]
        assert service.parts.embedder.resolve_model(HUB_MODEL).source == "local"
        shutil.rmtree(folder)
        assert changes(await reload(service)) == {"changed": [HUB_MODEL]}
        assert service.parts.embedder.resolve_model(HUB_MODEL).source == "hub"


async def test_models_stay_if_models_dir_is_gone(start: Start, tmp_path: Path) -> None:
    async with start() as service:
        gone = shutil.move(tmp_path, tmp_path.parent / "gone")
        line = await reload(service)
        shutil.move(gone, tmp_path)
        assert (line["event"], line["log_level"]) == ("models_not_reloaded", "error")
        assert line["reason"] == "MODELS_DIR does not exist, so the models stay as they were"
        assert await dimension(service, OTHER) == 4


@contextmanager
def replaced_by_loop(folder: Path) -> Iterator[None]:
    """Put a link to itself in the place of *folder*: root cannot read it either."""
    folder.rename(moved := folder.with_name(f"{folder.name}-moved"))
    folder.symlink_to(folder)
    yield
    folder.unlink()
    moved.rename(folder)


async def test_models_stay_if_models_dir_cannot_be_read(start: Start, tmp_path: Path) -> None:
    async with start() as service:
        with replaced_by_loop(tmp_path):
            line = await reload(service)
        assert line["event"] == "models_not_reloaded"
        assert "the models stay as they were" in line["reason"]
        assert await dimension(service, REQUIRED)


async def test_two_reloads_at_once_run_one_after_the_other(start: Start, tmp_path: Path) -> None:
    async with start() as service:
        TinyModel("tiny/new").write(tmp_path)
        with capture_logs() as events:
            await asyncio.gather(service.reload(), service.reload())
        assert [event["added"] for event in events if event["event"] == "models_reloaded"] == [["tiny/new"], []]


async def test_reload_does_nothing_while_the_app_does_not_run(start: Start) -> None:
    async with start() as service:
        pass
    with capture_logs() as events:
        await service.reload()
    assert events == []


async def test_alias_ends_and_returns_with_its_model(start: Start, tmp_path: Path) -> None:
    async with start(MODEL_ALIASES=f"ours={OTHER},required={REQUIRED}") as service:
        catalog, embedder = service._catalog, service.parts.embedder  # noqa: SLF001 - what the app connects
        names = ModelNames(
            catalog, lambda: embedder, default_model=REQUIRED, aliases={"ours": OTHER, "required": REQUIRED}
        )
        assert names.resolve("ours").name == OTHER
        shutil.rmtree(folder_of(OTHER, tmp_path))
        with capture_logs() as events:
            await service.reload()
        [warning] = [event for event in events if event["event"] == "model_alias_unusable"]
        assert warning["reason"].startswith(
            f"the alias 'ours' needs the real name of a model. No model named '{OTHER}'"
        )
        with pytest.raises(UnknownModelError, match="'ours'"):
            names.resolve("ours")
        assert names.resolve("required").name == REQUIRED
        TinyModel(OTHER).write(tmp_path)
        with capture_logs() as events:
            await service.reload()
        assert [event for event in events if event["event"] == "model_alias_unusable"] == []
        assert names.resolve("ours").name == OTHER
