"""`Cache-Control` and `X-Cache` on every route that embeds, in every format: where the results come from."""

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.embed_run import SLICE_TEXTS
from main import create_app
from tests.support.apps import running_app, settings_of
from web.litestar_adapter import paths_with

Json = dict[str, Any]
Body = Callable[[list[str]], Json]
MODEL = "tiny/one"
DIGITS = ("zero", "one", "two", "three", "four", "five")
NUMBERS = count()
TEI_PATHS = ("", "/tei", "/tei/tiny/one", "/tei/tiny%2Fone")
ROUTES: dict[str, Body] = {
    "/embed/batch": lambda texts: {"texts": texts},
    **dict.fromkeys(
        (
            *("/v1/embeddings", "/embeddings", "/openai/v1/embeddings"),
            *(f"/openai/deployments/{name}/embeddings?api-version=1" for name in ("tiny%2Fone", "tiny/one")),
            "/api/embed",
        ),
        lambda texts: {"input": texts},
    ),
    **dict.fromkeys(("/v1/embed", "/v2/embed"), lambda texts: {"texts": texts}),
    **dict.fromkeys(
        (path + action or "/" for path in TEI_PATHS for action in ("", "/embed")), lambda texts: {"inputs": texts}
    ),
    **dict.fromkeys(
        (f"{path}/similarity" for path in TEI_PATHS),
        lambda texts: {"inputs": {"source_sentence": texts[0], "sentences": texts[1:]}},
    ),
}
"""Routes that embed several texts, with what makes their bodies."""
LONE_ROUTES: dict[str, Body] = {
    "/embed": lambda texts: {"text": texts[0]},
    "/api/embeddings": lambda texts: {"prompt": texts[0]},
}
"""Routes that embed one text."""


@pytest.fixture(scope="module")
def client(tiny_models: Path) -> Iterator[httpx.Client]:
    with running_app(MODELS_DIR=str(tiny_models), REQUIRED_MODELS=MODEL, RESULT_CACHE_MB="8") as client:
        yield client


def new_texts(number: int) -> list[str]:
    """Return texts that no test has sent before."""
    texts = []
    for _ in range(number):
        value, words = next(NUMBERS), list[str]()
        while value or not words:
            value, digit = divmod(value, len(DIGITS))
            words.append(DIGITS[digit])
        texts.append(" ".join(words))
    return texts


def ask(client: httpx.Client, path: str, body: Json, *cache_control: str, accept: str = "*/*") -> httpx.Response:
    directives = [("Cache-Control", value) for value in cache_control]
    response = client.post(path, json=body, headers=[("Accept", accept), *directives])
    assert response.status_code == 200, response.text
    return response


def cached(response: httpx.Response) -> tuple[int, int, int]:
    """Return the hits, misses and coalesced texts that *response* states."""
    [value] = response.headers.get_list("x-cache")
    names, numbers = zip(*(part.split("=") for part in value.split(", ")), strict=True)
    assert names == ("hit", "miss", "coalesced")
    hit, miss, coalesced = map(int, numbers)
    return hit, miss, coalesced


def without_times(response: httpx.Response) -> object:
    content = response.json()
    changing = ("processing_time_ms", "total_duration", "load_duration", "id")
    return {key: value for key, value in content.items() if key not in changing} if type(content) is dict else content


def test_the_routes_above_are_all_that_embed() -> None:
    found = {path.partition("?")[0] for path in (*ROUTES, *LONE_ROUTES)}
    for name, template in {"tiny%2Fone": "{name}", "tiny/one": "{owner}/{name}"}.items():
        found = {path.replace(name, template) for path in found}
    assert found == paths_with(create_app(settings_of()), "work", ["queued"])


@pytest.mark.parametrize("path", ROUTES)
def test_repeated_texts_are_hits_and_change_nothing_else_in_the_answer(path: str, client: httpx.Client) -> None:
    first, second, third, new = new_texts(4)
    texts = [first, second, third]
    computed = ask(client, path, ROUTES[path](texts))
    assert cached(computed) == (0, 3, 0)
    again = ask(client, path, ROUTES[path](texts))
    assert cached(again) == (3, 0, 0)
    assert without_times(again) == without_times(computed)  # also `usage`, and what else counts tokens
    for name in ("x-embedding-tokens", "x-embedding-truncated", "x-model-fingerprint"):
        assert again.headers.get(name) == computed.headers.get(name)
    assert cached(ask(client, path, ROUTES[path]([third, new, new, first]))) == (2, 1, 1)


@pytest.mark.parametrize("path", LONE_ROUTES)
def test_repeated_text_is_a_hit(path: str, client: httpx.Client) -> None:
    body = LONE_ROUTES[path](new_texts(1))
    assert [cached(ask(client, path, body)) for _ in range(2)] == [(0, 1, 0), (1, 0, 0)]


@pytest.mark.parametrize("path", ROUTES)
def test_each_api_finds_the_results_of_the_others(path: str, client: httpx.Client) -> None:
    texts = new_texts(2)
    assert cached(ask(client, path, ROUTES[path](texts))) == (0, 2, 0)
    for other, make in ROUTES.items():
        assert cached(ask(client, other, make(texts))) == (2, 0, 0), other
    for other, make in LONE_ROUTES.items():
        assert cached(ask(client, other, make(texts))) == (1, 0, 0), other
    assert cached(ask(client, "/api/embed", {"input": texts, "truncate": False})) == (2, 0, 0)


@pytest.mark.parametrize(
    ("path", "make", "number"),
    [
        *(pytest.param(path, make, 2, id=path) for path, make in ROUTES.items()),
        *(pytest.param(path, make, 1, id=f"{path}, one text") for path, make in LONE_ROUTES.items()),
    ],
)
def test_no_cache_computes_anew_and_no_store_keeps_nothing(
    path: str, make: Body, number: int, client: httpx.Client
) -> None:
    body = make(new_texts(number))
    missed, found = (0, number, 0), (number, 0, 0)
    assert cached(ask(client, path, body, "no-store")) == missed
    assert cached(ask(client, path, body, "No-Cache", "no-store")) == missed
    assert cached(ask(client, path, body, 'x=", no-store"')) == missed
    assert cached(ask(client, path, body, "no-store")) == found
    assert cached(ask(client, path, body, "max-age=0")) == missed
    assert cached(ask(client, path, body, "max-age=60, only-if-cached, unknown")) == found


@pytest.mark.parametrize(
    ("accept", "options"),
    [
        pytest.param("application/octet-stream", {}, id="bytes"),
        pytest.param("application/vnd.apache.arrow.stream", {}, id="arrow"),
        pytest.param("application/json", {"encoding": "base64"}, id="base64"),
        pytest.param("application/json", {"dtype": "ubinary"}, id="bits"),
    ],
)
def test_every_format_states_it(accept: str, options: Json, client: httpx.Client) -> None:
    if "arrow" in accept:
        pytest.importorskip("pyarrow")
    body = {"texts": new_texts(3), **options}
    computed, again = (ask(client, "/embed/batch", body, accept=accept) for _ in range(2))
    assert [cached(computed), cached(again)] == [(0, 3, 0), (3, 0, 0)]
    assert again.headers["content-type"].startswith(accept)
    if accept != "application/json":
        assert again.content == computed.content


def test_streamed_answer_states_what_is_known_at_its_begin(client: httpx.Client) -> None:
    texts = new_texts(2 * SLICE_TEXTS + 1)
    ask(client, "/v2/embed", {"texts": texts[:10]})
    streamed = ask(client, "/v2/embed", {"texts": texts})
    assert "content-length" not in streamed.headers
    hit, miss, coalesced = cached(streamed)
    assert hit >= 10
    assert hit + miss + coalesced == len(texts)
    assert sum(cached(ask(client, "/v2/embed", {"texts": texts}))) == len(texts)


@pytest.mark.parametrize(("path", "body"), [("/api/embed", {"input": []}), ("/api/embeddings", {"prompt": ""})])
def test_answer_without_texts_counts_none(path: str, body: Json, client: httpx.Client) -> None:
    assert cached(ask(client, path, body)) == (0, 0, 0)


@pytest.mark.parametrize(("path", "body"), [("/tokenize", {"texts": ["one"]}), ("/tei/tokenize", {"inputs": "one"})])
def test_routes_that_do_not_embed_say_nothing_of_it(path: str, body: Json, client: httpx.Client) -> None:
    assert "x-cache" not in ask(client, path, body).headers


def test_pages_of_other_origins_may_send_and_read_the_headers(client: httpx.Client) -> None:
    origin = {"Origin": "https://app.example"}
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "cache-control"}
    allowed = client.options("/embed", headers={**origin, **asked})
    assert allowed.is_success
    assert "cache-control" in allowed.headers["access-control-allow-headers"].lower()
    answer = client.post("/embed", json={"text": "one"}, headers=origin)
    assert "X-Cache" in answer.headers["access-control-expose-headers"].split(", ")


def test_openapi_document_describes_both_headers_where_they_count(client: httpx.Client) -> None:
    for path, operations in client.get("/schema/openapi.json").json()["paths"].items():
        for operation in operations.values():
            embeds = "inference-failed" in str(operation["responses"].get("500", operation["responses"].get("424")))
            parameters = [entry["name"] for entry in operation.get("parameters", ())]
            assert ("Cache-Control" in parameters) is embeds, path
            assert ("X-Cache" in operation["responses"].get("200", {}).get("headers", {})) is embeds, path
