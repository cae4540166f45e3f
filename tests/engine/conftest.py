"""Fixtures of the tests of the scheduler, and of the embedder, whose modules state their `catalog`."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from engine.catalog import Catalog
from engine.encoder import Encoder, load_encoder
from engine.lane import Lane
from engine.tokenizer_queue import TokenizerQueue
from tests.support.clock import ManualClock
from tests.support.gated import GatedModel
from tests.support.one_model import OneModel
from tests.support.scheduling import open_lanes


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
