"""What Python clients of Ollama and of text-embeddings-inference ask a server for besides vectors of texts."""

from collections.abc import Callable, Iterator, Sequence

import pytest

from tests.clients.other_clients import ONLINE
from tests.clients.support import BUNDLED, FEW, MANY, TEST_TIMEOUT_S, TINY, Answer, Client, native, same
from tests.support.servers import ServerProcess

pytestmark = [pytest.mark.slow, pytest.mark.clients, pytest.mark.timeout(TEST_TIMEOUT_S)]

Run = Callable[..., Answer]


@pytest.fixture
def run(server: ServerProcess) -> Iterator[Run]:
    """Runs a program with texts once."""
    started: list[Client] = []

    def once(program: str, texts: Sequence[str], *, model: str = BUNDLED) -> Answer:
        started.append(Client(program, "sdks", ONLINE))
        return started[-1].run(server.url, "few", texts, model=model)

    yield once
    for client in started:
        client.stop()


def test_older_call_of_ollama_has_vectors_that_are_not_normalised(server: ServerProcess, run: Run) -> None:
    texts = MANY[6:18]
    vectors = run("ollama_prompt.py", texts, model=TINY).vectors
    assert same(vectors, native(server, texts, model=TINY, normalize=False))
    assert not same(vectors, native(server, texts, model=TINY))


def test_ollama_lists_shows_and_pulls_models(run: Run) -> None:
    answers = run("ollama_models.py", FEW, model="all-minilm").printed["answers"]
    assert {f"{BUNDLED}:latest", "all-minilm:latest", f"{TINY}:latest"} <= set(answers["listed"])
    assert f"{BUNDLED}:latest" in answers["running"]
    assert answers["context_length"] == 256
    assert answers["pulled"] == "success"
    assert answers["preloaded"] == []


def test_similarities_are_those_of_the_native_vectors(server: ServerProcess, run: Run) -> None:
    vectors = native(server, FEW)
    assert same(run("huggingface_similarity.py", FEW).vectors, vectors[:1] @ vectors[1:].T)


@pytest.mark.parametrize(
    ("query", "found"),
    [("Where does the feline sleep?", 2), ("I forgot how to log in", 4), ("Shares lost value", 3)],
)
def test_search_with_qdrant_finds_the_right_text(run: Run, query: str, found: int) -> None:
    assert run("qdrant_search.py", [query, *FEW]).vectors.tolist() == [[found]]
