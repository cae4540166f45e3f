"""Fixtures of the tests of the scheduler and of the embedder."""

from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from engine.catalog import Catalog, read_catalog
from engine.embedder import Embedder
from engine.encoder import Encoder, load_encoder
from engine.lane import Lane
from engine.scheduler import Scheduler
from engine.tokenizer_queue import TokenizerQueue
from tests.support.clock import ManualClock
from tests.support.dict_results import DictResults
from tests.support.gated import GatedModel
from tests.support.one_model import OneModel
from tests.support.one_model import one_lane as running_on_one_lane
from tests.support.scheduling import open_lanes, scheduler_checked_at_the_end
from tests.support.tiny import TinyModel


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    folder = tmp_path_factory.mktemp("models")
    TinyModel("acme/tiny", matryoshka=(2,)).write(folder)
    return read_catalog([folder], bundled="")


@pytest.fixture(scope="module")
def encoder(catalog: Catalog) -> Encoder:
    return load_encoder(catalog.get("acme/tiny"), hub_cache_dir=Path("unused"))


@pytest.fixture
def tokenizing() -> Iterator[TokenizerQueue]:
    with ThreadPoolExecutor(1) as thread:
        yield TokenizerQueue(thread, max_queue_s=1e9)


@pytest.fixture
async def models(encoder: Encoder) -> OneModel:
    return OneModel(encoder)


@pytest.fixture
async def scheduler() -> AsyncIterator[Scheduler]:
    async with running_on_one_lane(max_bulk_queue_s=100) as scheduler:  # amounts below a billionth of it count as zero
        yield scheduler


@pytest.fixture
def results() -> DictResults:
    return DictResults()


@pytest.fixture
def make_embedder(
    catalog: Catalog, models: OneModel, scheduler: Scheduler, tokenizing: TokenizerQueue
) -> Callable[..., Embedder]:
    """Returns an embedder, such as `make_embedder(results=results)`; without results, nothing is kept."""
    return partial(
        Embedder,
        catalog=catalog,
        allowed=frozenset(),
        default_model="acme/tiny",
        models=models,
        scheduler=scheduler,
        tokenizing=tokenizing,
        timeout_s=60,
    )


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def lanes(clock: ManualClock) -> Iterator[list[Lane]]:
    with ExitStack() as stack:
        yield open_lanes(clock, stack)


@pytest.fixture
def model() -> Iterator[GatedModel]:
    model = GatedModel()
    yield model
    model.open()


@pytest.fixture
async def one_lane(lanes: list[Lane], clock: ManualClock, model: GatedModel) -> AsyncIterator[Scheduler]:
    async with scheduler_checked_at_the_end(lanes, clock, model, count=1) as scheduler:
        yield scheduler


@pytest.fixture
async def two_lanes(lanes: list[Lane], clock: ManualClock, model: GatedModel) -> AsyncIterator[Scheduler]:
    async with scheduler_checked_at_the_end(lanes, clock, model, count=2) as scheduler:
        yield scheduler
