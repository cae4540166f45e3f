"""From texts to vectors: who may use what, deadlines, counts, honesty."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from engine.catalog import Catalog, read_catalog
from engine.encoder import Encoder, load_encoder
from engine.errors import (
    DeadlineError,
    InferenceError,
    InvalidVectorError,
    ModelNotAllowedError,
    ModelNotFoundError,
    UnknownModelError,
)
from engine.scheduler import Scheduler
from engine.service import INLINE_CHARACTERS, EmbeddingService
from tests.gated import GatedModel, Text
from tests.tiny import TinyModel, mean_of


class OneModel:
    """Leases the same encoder whatever the name, once the gate is open."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.gate = asyncio.Event()
        self.gate.set()

    @asynccontextmanager
    async def lease(self, name: str) -> AsyncIterator[Encoder]:
        assert name == self.encoder.name
        await self.gate.wait()
        yield self.encoder


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    folder = tmp_path_factory.mktemp("models")
    TinyModel("acme/tiny").write(folder)
    TinyModel("acme/other").write(folder)
    return read_catalog([folder], bundled="")


@pytest.fixture(scope="module")
def encoder(catalog: Catalog) -> Encoder:
    return load_encoder(catalog.get("acme/tiny"), hub_cache_dir=Path("unused"))


@pytest.fixture
def threads() -> Iterator[list[ThreadPoolExecutor]]:
    with ExitStack() as stack:
        yield [stack.enter_context(ThreadPoolExecutor(1)) for _ in range(3)]


@pytest.fixture
async def scheduler(threads: list[ThreadPoolExecutor]) -> AsyncIterator[Scheduler]:
    scheduler = Scheduler(lanes=threads[:1], express=threads[1], micro_batch_tokens=512, max_queue_s=1e9)
    yield scheduler
    await scheduler.aclose()


@pytest.fixture
async def models(encoder: Encoder) -> OneModel:
    return OneModel(encoder)


@pytest.fixture
def service(
    catalog: Catalog, models: OneModel, scheduler: Scheduler, threads: list[ThreadPoolExecutor]
) -> EmbeddingService:
    return EmbeddingService(
        catalog=catalog,
        allowed=frozenset({"ACME/tiny"}),
        models=models,
        scheduler=scheduler,
        tokenizing=threads[2],
        timeout_s=60,
    )


async def test_an_answer_holds_vectors_tokens_and_cuts_in_the_order_asked(service: EmbeddingService) -> None:
    answer = await service.embed("acme/tiny", ["one", "two " * 20, "three four"])
    assert answer.tokens == [3, 22, 4]
    assert answer.truncated == [False, True, False]
    np.testing.assert_allclose(answer.vectors[2], mean_of(["three", "four"]), rtol=1e-6)


async def test_long_texts_are_tokenised_off_the_loop_with_the_same_result(service: EmbeddingService) -> None:
    long = "one " * INLINE_CHARACTERS
    answer = await service.embed("acme/tiny", [long])
    assert answer.tokens == [INLINE_CHARACTERS + 2]


async def test_usage_counts_what_was_answered(service: EmbeddingService) -> None:
    await service.embed("acme/tiny", ["one", "two"])
    await service.embed("Acme/Tiny", ["three"])
    with pytest.raises(InferenceError):
        await service.embed("acme/tiny", ["poison"])
    usage = service.usage("acme/tiny")
    assert (usage.requests, usage.texts, usage.tokens) == (2, 3, 9)
    assert list(service.used) == ["acme/tiny"]


@pytest.mark.parametrize(
    ("text", "reason"), [pytest.param("nan", "NaN", id="nan"), pytest.param("null", "zero", id="zero-norm")]
)
async def test_a_dishonest_vector_is_never_passed_on(service: EmbeddingService, text: str, reason: str) -> None:
    with pytest.raises(InvalidVectorError, match=reason) as caught:
        await service.embed("acme/tiny", ["one", text])
    assert caught.value.index == 1


async def test_a_model_outside_the_allowed_ones_is_refused(service: EmbeddingService) -> None:
    with pytest.raises(ModelNotAllowedError):
        await service.embed("acme/other", ["one"])
    assert [model.name for model in service.models] == service.allowed == ["acme/tiny"]


def test_an_unknown_model_is_told_with_the_closest_names(service: EmbeddingService) -> None:
    with pytest.raises(UnknownModelError, match="acme/tiny") as caught:
        service.offered("acme/tinny")
    assert caught.value.status == 400
    with pytest.raises(ModelNotFoundError) as not_found:
        service.offered("acme/tinny", error=ModelNotFoundError)
    assert not_found.value.status == 404


async def test_a_deadline_that_passes_while_a_model_is_loaded_is_told(
    service: EmbeddingService, models: OneModel
) -> None:
    models.gate.clear()
    with pytest.raises(DeadlineError):
        await service.embed("acme/tiny", ["one"], timeout_s=0.001)


async def test_work_whose_deadline_has_passed_is_dropped_and_never_computed(
    service: EmbeddingService, scheduler: Scheduler
) -> None:
    blocking = GatedModel()
    blocked = [asyncio.create_task(scheduler.submit(blocking, [item])) for item in (Text(100, 0), Text(100, 1))]
    await asyncio.to_thread(blocking.wait_for_runs, 1)
    done_before = scheduler.state().texts
    with pytest.raises(DeadlineError):
        await service.embed("acme/tiny", ["one two " * 200, "two one " * 200, "one", "two", "one"], timeout_s=0.01)
    assert scheduler.state().dropped_texts == 5
    blocking.open()
    await asyncio.gather(*blocked)
    assert scheduler.state().texts == done_before + 2
