"""Model cards match the models: names, dimensions, and whether FastEmbed normalises."""

from fastembed import TextEmbedding
from msgspec.structs import replace

from engine.fastembed_adapter import registry_models
from engine.manifest import Manifest, Prompts
from engine.model_cards import CARDS, EMPTY_CARD, NORMALIZED, Matryoshka, ModelCard, card_of, card_of_folder

DECIDED_ELSEWHERE = {"BuiltinSentenceEmbedding": "by the graph", "CustomTextEmbedding": "by a folder's manifest"}
REGISTRY = {model.name: model for model in registry_models()}


def test_every_card_is_of_a_model_in_the_registry() -> None:
    assert set(CARDS) - set(REGISTRY) == set()


def test_matryoshka_dimensions_of_a_card_are_sorted_and_below_the_models_own() -> None:
    wrong = []
    for name, card in CARDS.items():
        if matryoshka := card.matryoshka:
            sizes = [*matryoshka.sizes, *([matryoshka.any_from] if matryoshka.any_from else [])]
            if list(matryoshka.sizes) != sorted(set(matryoshka.sizes)) or not 0 < min(sizes) <= max(sizes) < (
                REGISTRY[name].dim
            ):
                wrong.append(name)
    assert wrong == []


def test_card_that_needs_a_prompt_has_one_or_uses_tasks() -> None:
    assert [
        name for name, card in CARDS.items() if card.needs_prompt and not card.prompts and not card.uses_tasks
    ] == []


def test_cards_that_use_tasks_are_those_of_models_to_which_fastembed_gives_tasks() -> None:
    with_tasks = {entry["model"] for entry in TextEmbedding.list_supported_models() if entry["tasks"]}
    assert {name for name, card in CARDS.items() if card.uses_tasks} == with_tasks


def test_it_is_known_of_every_fastembed_class_whether_it_normalises() -> None:
    kinds = {model.kind for model in REGISTRY.values()} | {"CustomTextEmbedding"}
    assert kinds == set(NORMALIZED) | set(DECIDED_ELSEWHERE)


def test_card_of_a_registry_model_has_its_prompts_and_the_normalisation_of_its_class() -> None:
    wrong = [
        name
        for name, model in REGISTRY.items()
        if (card := card_of(name, model.kind)).prompts != CARDS.get(name, EMPTY_CARD).prompts
        or card.normalized is not NORMALIZED.get(model.kind, card.normalized)
    ]
    assert wrong == []


def test_prompts_of_known_models() -> None:
    expected = {
        "intfloat/multilingual-e5-large": ("query: ", "passage: ", ""),
        "nomic-ai/nomic-embed-text-v1.5": ("search_query: ", "search_document: ", ""),
        "BAAI/bge-small-en-v1.5": ("Represent this sentence for searching relevant passages: ", "", ""),
        "sentence-transformers/all-MiniLM-L6-v2": ("", "", ""),
    }
    cards = {name: card_of(name, REGISTRY[name].kind) for name in expected}
    found = {
        name: (card.prompt_for("query"), card.prompt_for("document"), card.prompt_for(None))
        for name, card in cards.items()
    }
    assert found == expected


def test_matryoshka_allows_the_listed_dimensions_and_all_from_any_from_up() -> None:
    def allowed(matryoshka: Matryoshka) -> list[int]:
        return [size for size in range(1, 40) if matryoshka.allows(size)]

    assert allowed(Matryoshka((8, 16))) == [8, 16]
    assert allowed(Matryoshka((), any_from=36)) == [36, 37, 38, 39]
    assert allowed(Matryoshka((16,), any_from=38)) == [16, 38, 39]
    assert (str(Matryoshka((64, 128))), str(Matryoshka((64,), any_from=32))) == ("64, 128", "any size from 32")


def test_card_of_a_folder_is_what_its_manifest_states() -> None:
    plain = Manifest(name="a", dim=8, max_tokens=16, pooling="mean", normalized=False)
    prompts = Prompts(query="q: ")
    assert card_of_folder(plain) == ModelCard(normalized=False, pooling="mean")
    assert card_of_folder(replace(plain, prompts=prompts, matryoshka=[4, 2])) == ModelCard(
        prompts=prompts, needs_prompt=True, matryoshka=Matryoshka((2, 4)), normalized=False, pooling="mean"
    )
    for needs_prompt in (True, False):  # stated explicitly
        assert card_of_folder(replace(plain, prompts=prompts, needs_prompt=needs_prompt)).needs_prompt is needs_prompt
        assert card_of_folder(replace(plain, needs_prompt=needs_prompt)).needs_prompt is needs_prompt
