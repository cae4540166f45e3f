"""A request whose answer is kept: what it does besides the vectors, and when the answer is right."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from engine.catalog import Catalog, read_catalog
from engine.embedder import Embedder
from engine.options import EmbedOptions
from engine.request_terms import RequestTerms
from engine.result_store import CacheCounts, CacheUse
from engine.single_hit import SingleHit
from telemetry.request_work import RequestWork
from tests.support.dict_results import DictResults
from tests.support.one_model import OneModel
from tests.support.tiny import TinyModel

LONG = "zero " * 100


@pytest.fixture
def embedder(make_embedder: Callable[..., Embedder], results: DictResults) -> Embedder:
    return make_embedder(results=results)


async def single_hit_of(embedder: Embedder, text: str = "one two", options: EmbedOptions | None = None) -> SingleHit:
    """Return the hit of a request for *text* that comes again."""
    options = options or EmbedOptions()
    assert (await embedder.embed(None, [text], options)).single_hit is None
    hit = (await embedder.embed(None, [text], options)).single_hit
    assert hit is not None
    return hit


@pytest.mark.parametrize("text", ["one two", LONG])
@pytest.mark.parametrize("is_opened", [False, True])
async def test_repeat_does_all_that_embedding_from_a_kept_result_does(
    embedder: Embedder, text: str, *, is_opened: bool
) -> None:
    options, works, charged, usages = EmbedOptions(dimensions=2), list[RequestWork](), list[int](), []

    async def embed(terms: RequestTerms) -> SingleHit | None:
        if not is_opened:
            return (await embedder.embed(None, [text], options, terms)).single_hit
        async with embedder.open(None, [text], options, terms) as run:
            _ = [vectors async for vectors in run.slices()]
        return run.single_hit

    assert await embed(RequestTerms()) is None
    hit = await embed(RequestTerms())
    assert hit is not None
    for way in (embed, lambda terms: embedder.repeat(hit, terms)):
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
    assert (await embedder.embed(None, [LONG], options)).single_hit is None
    assert ((await embedder.embed(None, [LONG], options)).single_hit is None) is (options.long_text == "chunks")


async def test_answers_with_several_texts_or_without_a_kept_result_are_not_repeated(embedder: Embedder) -> None:
    for texts in (["one", "two"], ["one", "one"], ["one", "three"]):
        for _ in range(2):
            assert (await embedder.embed(None, texts)).single_hit is None
    for use in (CacheUse(may_keep=False), CacheUse(may_read=False, may_keep=False)):
        assert (await embedder.embed(None, ["four"], terms=RequestTerms(cache=use))).single_hit is None


async def test_answer_is_right_only_while_its_result_is_kept_as_it_was(
    embedder: Embedder, results: DictResults
) -> None:
    hit, charged = await single_hit_of(embedder), list[int]()
    terms = RequestTerms(on_tokens=charged.append)
    [key] = results.memory
    kept = results.memory.pop(key)
    assert not embedder.repeat(hit, terms)
    results.memory[key] = bytes([*kept[:-1], kept[-1] ^ 1])
    assert not embedder.repeat(hit, terms)
    assert (terms.work, charged) == (RequestWork(), [])
    assert embedder.usage("acme/tiny").cache == CacheCounts(hit=1, miss=1)
    results.memory[key] = bytes([*kept])
    assert embedder.repeat(hit, terms)
    assert charged == [hit.tokens]


async def test_answer_is_right_only_while_its_model_is_in_memory(embedder: Embedder, models: OneModel) -> None:
    hit = await single_hit_of(embedder)
    models.gate.clear()
    assert not embedder.repeat(hit, RequestTerms())
    models.gate.set()
    assert embedder.repeat(hit, RequestTerms())
    assert not embedder.repeat(replace(hit, fingerprint="0" * 16), RequestTerms())


async def test_answer_is_not_right_after_a_reload_has_replaced_its_model(
    embedder: Embedder, catalog: Catalog, tmp_path: Path
) -> None:
    hit, before = await single_hit_of(embedder), catalog.models
    TinyModel("acme/tiny", matryoshka=(2,)).write(tmp_path)
    catalog.adopt(read_catalog([tmp_path], bundled=""))
    try:
        assert not embedder.repeat(hit, RequestTerms())
    finally:
        catalog.adopt(Catalog(before))
    assert embedder.repeat(hit, RequestTerms())


async def test_answer_stays_right_after_a_reload_has_read_the_same_model_again(
    embedder: Embedder, catalog: Catalog
) -> None:
    """The model of an encoder may be a copy of the catalogue's: that of a hub model always is."""
    hit, before = await single_hit_of(embedder), catalog.models
    catalog.adopt(Catalog([replace(model) for model in before]))
    try:
        assert embedder.repeat(hit, RequestTerms())
    finally:
        catalog.adopt(Catalog(before))
