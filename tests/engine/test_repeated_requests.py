"""A request whose answer is kept: what it does besides the vectors, and when the answer is right."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from engine.catalog import Catalog, read_catalog
from engine.embedder import Embedder
from engine.options import EmbedOptions
from engine.recall import Recall
from engine.request_terms import RequestTerms
from engine.result_store import CacheCounts, CacheUse
from telemetry.request_work import RequestWork
from tests.support.dict_results import DictResults
from tests.support.one_model import OneModel
from tests.support.tiny import TinyModel

LONG = "zero " * 100


@pytest.fixture
def embedder(make_embedder: Callable[..., Embedder], results: DictResults) -> Embedder:
    return make_embedder(results=results)


async def recall_of(embedder: Embedder, text: str = "one two", options: EmbedOptions | None = None) -> Recall:
    """Return what an answer from the kept result of *text* was made of."""
    options = options or EmbedOptions()
    assert (await embedder.embed(None, [text], options)).recall is None
    recall = (await embedder.embed(None, [text], options)).recall
    assert recall is not None
    return recall


@pytest.mark.parametrize("text", ["one two", LONG])
@pytest.mark.parametrize("is_opened", [False, True])
async def test_repeat_does_all_that_embedding_from_a_kept_result_does(
    embedder: Embedder, text: str, *, is_opened: bool
) -> None:
    options, works, charged, usages = EmbedOptions(dimensions=2), list[RequestWork](), list[int](), []

    async def embed(terms: RequestTerms) -> Recall | None:
        if not is_opened:
            return (await embedder.embed(None, [text], options, terms)).recall
        async with embedder.open(None, [text], options, terms) as run:
            _ = [vectors async for vectors in run.slices()]
        return run.recall

    assert await embed(RequestTerms()) is None
    recall = await embed(RequestTerms())
    assert recall is not None
    for way in (embed, lambda terms: embedder.repeat(recall, terms)):
        before = replace(embedder.usage("acme/tiny"), cache=replace(embedder.usage("acme/tiny").cache))
        terms = RequestTerms(on_tokens=charged.append)
        done = way(terms)
        assert (done if isinstance(done, bool) else await done) is not None
        after = embedder.usage("acme/tiny")
        usages.append((after.requests - before.requests, after.texts - before.texts, after.tokens - before.tokens))
        assert after.cache == replace(before.cache, hit=before.cache.hit + 1)
        assert [stage.name for stage in terms.work.stages] == ["cache"]
        works.append(replace(terms.work, stages=[]))
    assert works[0] == works[1]
    assert charged[0] == charged[1] == works[0].tokens > 0
    assert usages == [(1, 1, charged[0])] * 2


@pytest.mark.parametrize("options", [EmbedOptions(long_text="mean"), EmbedOptions(long_text="chunks")])
async def test_chunks_are_not_repeated_and_means_are(embedder: Embedder, options: EmbedOptions) -> None:
    assert (await embedder.embed(None, [LONG], options)).recall is None
    assert ((await embedder.embed(None, [LONG], options)).recall is None) is (options.long_text == "chunks")


async def test_answers_with_several_texts_or_without_a_kept_result_are_not_repeated(embedder: Embedder) -> None:
    for texts in (["one", "two"], ["one", "one"], ["one", "three"]):
        for _ in range(2):
            assert (await embedder.embed(None, texts)).recall is None
    for use in (CacheUse(may_keep=False), CacheUse(may_read=False, may_keep=False)):
        assert (await embedder.embed(None, ["four"], terms=RequestTerms(cache=use))).recall is None


async def test_answer_is_right_only_while_its_result_is_kept_as_it_was(
    embedder: Embedder, results: DictResults
) -> None:
    recall, charged = await recall_of(embedder), list[int]()
    terms = RequestTerms(on_tokens=charged.append)
    [key] = results.memory
    kept = results.memory.pop(key)
    assert not embedder.repeat(recall, terms)
    results.memory[key] = bytes([*kept[:-1], kept[-1] ^ 1])
    assert not embedder.repeat(recall, terms)
    assert (terms.work, charged) == (RequestWork(), [])
    assert embedder.usage("acme/tiny").cache == CacheCounts(hit=1, miss=1)
    results.memory[key] = bytes([*kept])
    assert embedder.repeat(recall, terms)
    assert charged == [recall.tokens]


async def test_answer_is_right_only_while_its_model_is_in_memory(embedder: Embedder, models: OneModel) -> None:
    recall = await recall_of(embedder)
    models.gate.clear()
    assert not embedder.repeat(recall, RequestTerms())
    models.gate.set()
    assert embedder.repeat(recall, RequestTerms())
    assert not embedder.repeat(replace(recall, fingerprint="0" * 16), RequestTerms())


async def test_answer_is_not_right_after_a_reload_has_replaced_its_model(
    embedder: Embedder, catalog: Catalog, tmp_path: Path
) -> None:
    recall, before = await recall_of(embedder), catalog.models
    TinyModel("acme/tiny", matryoshka=(2,)).write(tmp_path)
    catalog.adopt(read_catalog([tmp_path], bundled=""))
    try:
        assert not embedder.repeat(recall, RequestTerms())
    finally:
        catalog.adopt(Catalog(before))
    assert embedder.repeat(recall, RequestTerms())


async def test_answer_stays_right_after_a_reload_has_read_the_same_model_again(
    embedder: Embedder, catalog: Catalog
) -> None:
    """The model of an encoder may be a copy of the catalogue's: that of a hub model always is."""
    recall, before = await recall_of(embedder), catalog.models
    catalog.adopt(Catalog([replace(model) for model in before]))
    try:
        assert embedder.repeat(recall, RequestTerms())
    finally:
        catalog.adopt(Catalog(before))
