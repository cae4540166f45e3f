"""Names of models in dialects: real names, aliases, Ollama's library names, and what is suggested for unknown ones."""

import re
from collections.abc import Iterator

import pytest

from api.model_names import OLLAMA_LIBRARY, ModelNames
from assembly.app import parts_of
from assembly.catalog import open_catalog
from config import HERE
from engine.catalog import Catalog
from engine.embedder import Embedder
from engine.errors import ModelNotAllowedError, UnknownModelError
from tests.support.apps import running_app, settings_of

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
NOMIC = "nomic-ai/nomic-embed-text-v1.5"


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return open_catalog(settings_of())


@pytest.fixture(scope="module")
def embedder() -> Iterator[Embedder]:
    with running_app() as client:
        yield parts_of(client.app).service.parts.embedder


@pytest.fixture(scope="module")
def names(catalog: Catalog, embedder: Embedder) -> ModelNames:
    aliases = {"text-embedding-3-small": MINILM, "Company/Search": NOMIC}
    return ModelNames(catalog, lambda: embedder, default_model=MINILM, aliases=aliases)


@pytest.mark.parametrize(
    ("name", "real"),
    [
        (None, MINILM),
        ("", MINILM),
        (MINILM, MINILM),
        (MINILM.upper(), MINILM),
        (f"{MINILM}:latest", MINILM),
        (f"{MINILM}:LATEST", MINILM),
        ("text-embedding-3-small", MINILM),
        ("TEXT-embedding-3-small:latest", MINILM),
        ("company/search", NOMIC),
        ("all-minilm", MINILM),
        ("All-MiniLM:latest", MINILM),
        ("library/all-minilm", MINILM),
        ("registry.ollama.ai/library/all-minilm:l6-v2", MINILM),
        ("all-minilm:22m", MINILM),
        ("nomic-embed-text", NOMIC),
        ("nomic-embed-text:v1.5", NOMIC),
        ("mxbai-embed-large:latest", "mixedbread-ai/mxbai-embed-large-v1"),
        ("snowflake-arctic-embed", "snowflake/snowflake-arctic-embed-l"),
        ("snowflake-arctic-embed:22m", "snowflake/snowflake-arctic-embed-xs"),
        ("snowflake-arctic-embed:m-long", "snowflake/snowflake-arctic-embed-m-long"),
        ("bge-large", "BAAI/bge-large-en-v1.5"),
        ("paraphrase-multilingual", "sentence-transformers/paraphrase-multilingual-mpnet-base-v2"),
        ("embeddinggemma:300m", "google/embeddinggemma-300m"),
        ("qwen3-embedding:0.6b", "Qwen/Qwen3-Embedding-0.6B"),
    ],
)
def test_a_name_of_another_server_means_one_of_our_models(names: ModelNames, name: str | None, real: str) -> None:
    assert names.resolve(name).name == real


@pytest.mark.parametrize(
    "name",
    [
        *("all-minilm:33m", "all-minilm:l12-v2", "nomic-embed-text:v1", "qwen3-embedding", "qwen3-embedding:8b"),
        *("nomic-embed-text-v2-moe", "snowflake-arctic-embed2", "embeddinggemma:300m-qat-q4_0", "granite-embedding"),
        *("bge-m3", ":latest", "latest", "all-minilm:", f"x/{MINILM}", f"{MINILM} "),
    ],
)
def test_a_model_that_we_do_not_have_is_unknown(names: ModelNames, name: str) -> None:
    with pytest.raises(UnknownModelError) as failure:
        names.resolve(name)
    assert failure.value.name == failure.value.extensions["model"] == name


def test_every_library_name_means_a_model_of_the_catalogue(names: ModelNames, catalog: Catalog) -> None:
    found = {name: names.resolve(name).name for name in OLLAMA_LIBRARY}
    assert found == dict(OLLAMA_LIBRARY)
    assert all(catalog.get(real).source in {"hub", "bundled"} for real in found.values())


def test_an_alias_wins_over_a_library_name(catalog: Catalog, embedder: Embedder) -> None:
    names = ModelNames(catalog, lambda: embedder, default_model=MINILM, aliases={"nomic-embed-text:latest": MINILM})
    assert names.resolve("nomic-embed-text").name == MINILM
    assert names.resolve("nomic-embed-text:v1.5").name == NOMIC
    assert names.other_names(catalog.get(NOMIC)) == ["nomic-embed-text:v1.5", "nomic-embed-text:137m-v1.5-fp16"]
    assert names.other_names(catalog.get(MINILM))[:2] == ["nomic-embed-text:latest", "all-minilm"]


def test_a_real_name_wins_over_an_alias(catalog: Catalog, embedder: Embedder) -> None:
    """A reload may bring a model with the name of an alias."""
    names = ModelNames(catalog, lambda: embedder, default_model=MINILM, aliases={NOMIC: MINILM})
    assert names.resolve(NOMIC).name == NOMIC
    assert NOMIC not in names.other_names(catalog.get(MINILM))


def test_an_alias_without_its_model_is_unknown(catalog: Catalog, embedder: Embedder) -> None:
    """A reload may remove the model that an alias names."""
    names = ModelNames(catalog, lambda: embedder, default_model=MINILM, aliases={"ours": "acme/gone"})
    with pytest.raises(UnknownModelError, match="'ours'"):
        names.resolve("ours")


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("all-minilm:l12-v2", "all-minilm"),
        ("all-MiniLM-L6-v3", MINILM),
        ("text-embedding-3-large", "text-embedding-3-small"),
        ("company/serch", "Company/Search"),
        ("qwen3-embedding:latest", "qwen3-embedding:0.6b"),
        ("nomic-embed-txt:latest", "nomic-embed-text"),
    ],
)
def test_the_closest_names_are_drawn_from_real_names_aliases_and_library_names(
    names: ModelNames, name: str, suggestion: str
) -> None:
    with pytest.raises(UnknownModelError) as failure:
        names.resolve(name)
    assert suggestion in failure.value.closest
    assert failure.value.detail.startswith(f"No model named '{name}' is offered. Did you mean ")


def test_a_model_that_is_not_allowed_is_neither_found_nor_suggested_by_other_names(catalog: Catalog) -> None:
    with running_app(ALLOWED_MODELS=MINILM) as client:
        embedder = parts_of(client.app).service.parts.embedder
        names = ModelNames(catalog, lambda: embedder, default_model=MINILM, aliases={"search": NOMIC})
        for name in ("nomic-embed-text", "search:latest", NOMIC):
            with pytest.raises(ModelNotAllowedError):
                names.resolve(name)
        with pytest.raises(UnknownModelError) as failure:
            names.resolve("nomic-embed-txt")
    assert failure.value.closest == []


def test_the_names_on_the_models_page_are_those_of_the_code(names: ModelNames) -> None:
    page = (HERE / "docs" / "MODELS.md").read_text("utf-8")
    rows = re.findall(
        r"(?m)^\| (`[a-z].*`) \| (`[^|]*) \|$", page.partition("## Names of other servers")[2].partition("\n## ")[0]
    )
    stated = {name for cell, _ in rows for name in re.findall(r"`([a-z][^`]*)`", cell)}
    assert {name.partition(":")[0] for name in stated} == {name.partition(":")[0] for name in OLLAMA_LIBRARY}
    single = {
        name: re.findall("`([^`]*)`", models) for cell, models in rows for name in re.findall("`([a-z][^`]*)`", cell)
    }
    assert {name: names.resolve(name).name for name in single} == {name: models[0] for name, models in single.items()}
