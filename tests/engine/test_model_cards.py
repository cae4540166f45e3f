"""What is written down of models fits the models: names, sizes, and whether FastEmbed's classes normalise."""

import pytest
from fastembed import TextEmbedding
from msgspec.structs import replace

from engine.manifest import Manifest, Prompts
from engine.model_cards import CARDS, EMPTY_CARD, NORMALIZED, Matryoshka, ModelCard, card_of, card_of_folder

LEFT_TO_OTHERS = {
    "BuiltinSentenceEmbedding": "the graph itself decides, so a model's own card tells",
    "CustomTextEmbedding": "a folder's manifest decides",
}
REGISTRY = {
    facts.model: (kind.__name__, facts)
    for kind in TextEmbedding.EMBEDDINGS_REGISTRY
    for facts in kind._list_supported_models()  # noqa: SLF001 - the public list does not tell the kinds apart
    if "@" not in facts.model
}

each_card = pytest.mark.parametrize("name", CARDS)


@each_card
def test_card_is_of_a_model_that_fastembed_knows(name: str) -> None:
    assert name in REGISTRY


@each_card
def test_sizes_of_a_card_are_below_the_models_own(name: str) -> None:
    dim = REGISTRY[name][1].dim or 0
    if matryoshka := CARDS[name].matryoshka:
        sizes = [*matryoshka.sizes, *([matryoshka.any_from] if matryoshka.any_from else [])]
        assert sizes
        assert all(0 < size < dim for size in sizes)
        assert list(matryoshka.sizes) == sorted(set(matryoshka.sizes))


@each_card
def test_model_that_needs_a_prompt_has_one_or_knows_tasks(name: str) -> None:
    card = CARDS[name]
    assert not card.needs_prompt or bool(card.prompts) or card.uses_tasks


def test_every_class_of_fastembed_is_known_to_normalise_or_not() -> None:
    kinds = {kind.__name__ for kind in TextEmbedding.EMBEDDINGS_REGISTRY}
    assert kinds == set(NORMALIZED) | set(LEFT_TO_OTHERS)


def test_models_that_use_tasks_are_those_to_which_fastembed_gives_some() -> None:
    with_tasks = {name for name, (_, facts) in REGISTRY.items() if facts.tasks}
    assert {name for name, card in CARDS.items() if card.uses_tasks} == with_tasks


@pytest.mark.parametrize("name", REGISTRY)
def test_card_tells_of_each_model_whether_it_is_normalised_as_far_as_its_class_decides(name: str) -> None:
    kind = REGISTRY[name][0]
    card = card_of(name, kind)
    if kind in NORMALIZED:
        assert card.normalized is NORMALIZED[kind]
    assert card.prompts == CARDS.get(name, EMPTY_CARD).prompts


@pytest.mark.parametrize(
    ("name", "query", "document"),
    [
        pytest.param("intfloat/multilingual-e5-large", "query: ", "passage: ", id="e5"),
        pytest.param("nomic-ai/nomic-embed-text-v1.5", "search_query: ", "search_document: ", id="nomic"),
        pytest.param(
            "BAAI/bge-small-en-v1.5", "Represent this sentence for searching relevant passages: ", "", id="bge"
        ),
        pytest.param("sentence-transformers/all-MiniLM-L6-v2", "", "", id="minilm"),
    ],
)
def test_prompts_of_known_models(name: str, query: str, document: str) -> None:
    card = card_of(name, REGISTRY[name][0])
    assert card.prompt_for("query") == query
    assert card.prompt_for("document") == document
    assert card.prompt_for(None) == ""


@pytest.mark.parametrize(
    ("matryoshka", "allowed", "refused"),
    [
        pytest.param(Matryoshka((64, 128)), [64, 128], [1, 63, 65, 127, 129], id="sizes"),
        pytest.param(Matryoshka((), any_from=32), [32, 33, 1000], [1, 31], id="any-from"),
        pytest.param(Matryoshka((16,), any_from=32), [16, 32, 33], [15, 17, 31], id="both"),
    ],
)
def test_sizes_that_a_model_was_trained_for(matryoshka: Matryoshka, allowed: list[int], refused: list[int]) -> None:
    assert [matryoshka.allows(size) for size in allowed] == [True] * len(allowed)
    assert [matryoshka.allows(size) for size in refused] == [False] * len(refused)


def test_sizes_are_told_in_words() -> None:
    assert str(Matryoshka((64, 128))) == "64, 128"
    assert str(Matryoshka((64,), any_from=32)) == "any size from 32"


PLAIN = Manifest(name="a", dim=8, max_tokens=16, pooling="mean", normalized=False)


def test_card_of_a_folder_is_what_its_manifest_states() -> None:
    prompts = Prompts(query="q: ")
    assert card_of_folder(PLAIN) == ModelCard(normalized=False)
    assert card_of_folder(replace(PLAIN, prompts=prompts, matryoshka=[4, 2])) == ModelCard(
        prompts=prompts, needs_prompt=True, matryoshka=Matryoshka((2, 4)), normalized=False
    )


@pytest.mark.parametrize("stated", [True, False])
def test_manifest_may_say_itself_whether_a_prompt_is_needed(*, stated: bool) -> None:
    assert card_of_folder(replace(PLAIN, prompts=Prompts(query="q: "), needs_prompt=stated)).needs_prompt is stated
    assert card_of_folder(replace(PLAIN, needs_prompt=stated)).needs_prompt is stated
