"""Fixtures of the tests of the embedder. The module states its `catalog`."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine.catalog import Catalog
from engine.encoder import Encoder, load_encoder
from engine.tokenizer_queue import TokenizerQueue
from tests.support.one_model import OneModel


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
