"""`Server-Timing` on every route that embeds or tokenises: which times are stated, and which pages may read them."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.embed_run import SLICE_TEXTS
from main import create_app
from tests.support.apps import running_app, settings_of
from web.litestar_adapter import paths_with

MODEL = "tiny/one"
TEI_PATHS = ("", "/tei", "/tei/{owner}/{name}", "/tei/{name}")
AZURE_PATHS = ("/openai/deployments/{owner}/{name}/embeddings", "/openai/deployments/{name}/embeddings")
INPUT, INPUTS, TEXTS = {"input": ["one"]}, {"inputs": ["one"]}, {"texts": ["one", "two"]}
PAIR = {"inputs": {"source_sentence": "one", "sentences": ["two"]}}
BODIES: dict[str, dict[str, Any]] = {
    "/embed": {"text": "one"},
    "/api/embeddings": {"prompt": "one"},
    **dict.fromkeys(("/embed/batch", "/tokenize", "/v1/embed", "/v2/embed"), TEXTS),
    **dict.fromkeys(("/v1/embeddings", "/embeddings", "/openai/v1/embeddings", "/api/embed", *AZURE_PATHS), INPUT),
    **{path or "/": INPUTS for path in TEI_PATHS},
    **{path + action: INPUTS for path in TEI_PATHS[1:] for action in ("/embed", "/tokenize")},
    **{path + "/similarity": PAIR for path in TEI_PATHS},
}
"""A body for each route that embeds or tokenises."""
TIMES = re.compile(r"(?:[a-z]+;dur=\d+\.\d\d(?:, |$))+")


@pytest.fixture(scope="module")
def settings(tiny_models: Path) -> dict[str, str]:
    return {"MODELS_DIR": str(tiny_models), "REQUIRED_MODELS": MODEL}


@pytest.fixture(scope="module")
def client(settings: dict[str, str]) -> Iterator[httpx.Client]:
    with running_app(**settings) as client:
        yield client


def times_of(response: httpx.Response) -> dict[str, float]:
    """Return the times in milliseconds, by name, in the order of the header."""
    [value] = response.headers.get_list("server-timing")
    assert TIMES.fullmatch(value), value
    found = dict(part.split(";dur=") for part in value.split(", "))
    assert len(found) == value.count("dur=")
    return {name: float(milliseconds) for name, milliseconds in found.items()}


def path_of(template: str) -> str:
    return template.format(owner="tiny", name="one") if "{owner}" in template else template.format(name="tiny%2Fone")


def test_the_bodies_above_are_for_all_routes() -> None:
    assert BODIES.keys() == paths_with(create_app(settings_of()), "work", ["queued", "unqueued"])


@pytest.mark.parametrize("template", BODIES)
def test_answer_says_where_its_time_went(template: str, client: httpx.Client) -> None:
    response = client.post(path_of(template), json=BODIES[template], headers={"Cache-Control": "no-cache"})
    assert response.status_code == 200, response.text
    times = times_of(response)
    stages = ["tokenize"] if "tokenize" in template else ["tokenize", "queue", "infer"]
    assert [name for name in times if name not in ("cache", "load")] == [*stages, "total"]
    assert sum(times.values()) - times["total"] <= times["total"] + 0.01 * len(times)  # each of them is rounded


def test_kept_result_has_no_time_in_the_queue_or_the_model(client: httpx.Client) -> None:
    for _ in range(2):
        response = client.post("/embed", json={"text": "three"})
    assert list(times_of(response)) == ["cache", "total"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        pytest.param("/embed", {}, 400, id="body that is not valid"),
        pytest.param("/embed/batch", {"texts": ["one"], "model_name": "none"}, 400, id="model that is not known"),
        pytest.param("/v1/embeddings", {"input": "one", "model": "none"}, 404, id="error of a dialect"),
        pytest.param("/tokenize", {"texts": []}, 400, id="no texts"),
        pytest.param("/embed", {"text": "x" * 10_000}, 400, id="text that is too long"),
    ],
)
def test_errors_have_the_header_as_well(path: str, body: dict[str, Any], status: int, client: httpx.Client) -> None:
    response = client.post(path, json=body)
    assert response.status_code == status
    assert list(times_of(response)) == ["total"]


def test_answer_that_is_written_while_it_is_computed_states_only_what_is_known(client: httpx.Client) -> None:
    texts = [f"one two {number}" for number in range(SLICE_TEXTS + 1)]
    response = client.post("/v1/embeddings", json={"input": texts}, headers={"Cache-Control": "no-cache"})
    assert len(response.json()["data"]) == len(texts)
    times = times_of(response)
    assert "queue" in times
    assert not times.keys() & {"infer", "total"}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/health"),
        ("GET", "/models"),
        ("GET", "/metrics"),
        ("GET", "/embed"),
        ("POST", "/none"),
        ("OPTIONS", "/embed"),
    ],
)
def test_other_answers_do_not_have_the_header(method: str, path: str, client: httpx.Client) -> None:
    assert "server-timing" not in client.request(method, path, headers={"Origin": "https://app.example"}).headers


def test_setting_removes_the_header(settings: dict[str, str]) -> None:
    with running_app(**settings, SERVER_TIMING="false") as client:
        response = client.post("/embed", json={"text": "one"}, headers={"Origin": "https://app.example"})
    assert response.status_code == 200
    assert not response.headers.keys() & {"server-timing", "timing-allow-origin"}


@pytest.mark.parametrize(
    ("cors", "origin", "allowed"),
    [
        pytest.param({}, "https://app.example", "*", id="any"),
        pytest.param({}, None, None, id="no page"),
        pytest.param({"CORS_ORIGINS": "https://app.example"}, "https://app.example", "https://app.example", id="named"),
        pytest.param({"CORS_ORIGINS": "https://app.example"}, "https://other.example", None, id="another"),
        pytest.param({"ENABLE_CORS": "false"}, "https://app.example", None, id="off"),
    ],
)
def test_pages_that_may_read_the_answer_may_read_its_times(
    cors: dict[str, str], origin: str | None, allowed: str | None, settings: dict[str, str]
) -> None:
    with running_app(**settings, **cors) as client:
        for body in ({"text": "one"}, {}):  # an answer, and an error
            response = client.post("/embed", json=body, headers={"Origin": origin} if origin else {})
            assert "server-timing" in response.headers
            assert response.headers.get("timing-allow-origin") == allowed
            if allowed is not None:
                assert "Server-Timing" in response.headers["access-control-expose-headers"].split(", ")
