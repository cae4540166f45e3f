"""Every answer that the OpenAPI document promises is reached over HTTP, and no other one turns up on the way.

`WAYS` says for each route and status how. A documented answer without a row here fails, and so does
the reverse.
"""

import json
import os
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator

from api.answer_formats import TEXT_TYPES
from tests.serving.test_server import held_hub
from tests.support.servers import running_server, started_server
from tests.support.tiny import TinyModel
from tests.support.tiny_models import TROUBLE_WORDS, troubled

Json = dict[str, Any]
HUB_MODEL = "BAAI/bge-small-en-v1.5"
OUTSIDE = "sentence-transformers/all-MiniLM-L6-v2"
"""A model that exists and that the narrow server does not offer."""
ARROW = "application/vnd.apache.arrow.stream"
METHODS = {"get", "put", "post", "delete", "options", "head", "patch", "trace"}

pytestmark = pytest.mark.timeout(90)


@dataclass(frozen=True, slots=True)
class Way:
    """How an answer is reached: which server is asked for what.

    Attributes:
        server: the name of a fixture of this file, or `default`.
        path: where it is not the route itself.
    """

    server: str
    body: object = None
    path: str | None = None
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


def works(body: object) -> dict[int, Way]:
    """The ways to what every route that takes texts may answer; *body* makes a small model work."""
    assert isinstance(body, dict)
    return {
        200: Way("narrow", body),
        400: Way("narrow", {}),
        401: Way("locked", body),
        403: Way("narrow", {**body, "model_name": OUTSIDE}),
        413: Way("narrow", content=b'{"text": "one"}'.ljust(1025)),
        415: Way("narrow", content=b"one", headers={"Content-Type": "text/plain"}),
        429: Way("limited", body),
        503: Way("narrow", {**body, "model_name": "tiny/broken"}),
        504: Way("narrow", body, headers={"X-Request-Timeout": "1e-9"}),
    }


def runs(body: Json, failing: Json) -> dict[int, Way]:
    """The same for routes that run a model; *failing* makes it fail."""
    return {**works(body), 406: Way("narrow", body, headers={"Accept": ARROW}), 500: Way("narrow", failing)}


STRANGE_TOKEN = ".".join(
    urlsafe_b64encode(part).decode().rstrip("=")
    for part in (b'{"alg": "RS256", "kid": "unknown", "typ": "JWT"}', b"{}", b"signature")
)
KEYS_GONE = Way("locked", headers={"Authorization": f"Bearer {STRANGE_TOKEN}"})
"""A token by a key that has to be fetched first, from an issuer that cannot be reached."""
ALIKE = {"starting", "hanging", "limited", "locked"}
"""Servers that answer each request of a route alike, or only for a while."""
WAYS: dict[tuple[str, str], dict[int, Way]] = {
    ("post", "/embed"): runs({"text": "one"}, {"text": "poison"}),
    ("post", "/embed/batch"): runs({"texts": ["one"]}, {"texts": ["one", "nan"]}),
    ("post", "/tokenize"): {
        **works({"texts": ["one"]}),
        504: Way(
            "default", {"texts": ["one two " * 1000]}, headers={"X-Request-Timeout": "1e-9"}
        ),  # short ones are at once
    },
    ("get", "/health"): {200: Way("default"), 503: Way("starting")},
    ("get", "/health/live"): {200: Way("default"), 503: Way("hanging")},
    ("get", "/health/ready"): {200: Way("default"), 503: Way("starting")},
    ("get", "/models"): {200: Way("default"), 401: Way("locked"), 503: KEYS_GONE},
    ("get", "/models/{name}"): {
        200: Way("default", path=f"/models/{OUTSIDE}"),
        400: Way("default", path="/models/one", headers={"Host": "no host"}),  # so would any other route
        401: Way("locked", path="/models/one"),
        403: Way("narrow", path=f"/models/{OUTSIDE}"),
        404: Way("default", path="/models/no-such-model"),
        503: replace(KEYS_GONE, path="/models/one"),
    },
    ("get", "/metrics"): {200: Way("default"), 401: Way("locked"), 403: Way("narrow"), 503: KEYS_GONE},
}
PAIRS = [(*route, status) for route, ways in WAYS.items() for status in ways]


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Tiny limits, a model that fails on some words, one with broken files, no metrics, no pyarrow."""
    models, packages = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("packages")
    TinyModel("tiny/one").write(models)
    (TinyModel("tiny/broken").write(models) / "model.onnx").write_bytes(b"not a model")
    (packages / "pyarrow").mkdir()
    (packages / "pyarrow" / "__init__.py").write_text("raise ImportError('not installed')")
    settings = {
        "MODELS_DIR": str(models),
        "REQUIRED_MODELS": "tiny/one",
        "ALLOWED_MODELS": "tiny/one,tiny/broken",
        "MAX_REQUEST_SIZE": "1KiB",
        "ENABLE_METRICS": "false",
        "PYTHONPATH": os.pathsep.join([str(packages), os.environ.get("PYTHONPATH", "")]),
    }
    with running_server(**settings) as server:
        yield server.url


@pytest.fixture(scope="module")
def starting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """It waits for a hub that has its model and does not give it."""
    patient = {"HF_HUB_ETAG_TIMEOUT": "1000", "HF_HUB_DOWNLOAD_TIMEOUT": "1000"}
    folder = str(tmp_path_factory.mktemp("hub"))
    with (
        held_hub(has_models=True) as hub,
        started_server(HF_ENDPOINT=hub.url, HUB_CACHE_DIR=folder, REQUIRED_MODELS=HUB_MODEL, **patient) as server,
    ):
        assert hub.called.wait(60)
        yield server.url


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Settings of a server with two tiny models: one works, one may hang."""
    models = tmp_path_factory.mktemp("tiny")
    TinyModel("tiny/one").write(models)
    TinyModel("tiny/troubled", words=TROUBLE_WORDS, graph=troubled, max_tokens=64).write(models)
    return {"MODELS_DIR": str(models), "REQUIRED_MODELS": "tiny/one"}


@pytest.fixture(scope="module")
def limited(tiny: dict[str, str]) -> Iterator[str]:
    """Its callers have asked for all that they may."""
    with running_server(**tiny, ENABLE_RATE_LIMIT="true", RATE_LIMIT_REQUESTS="1", RATE_LIMIT_WINDOW="86400") as server:
        assert httpx.post(f"{server.url}/embed", json={"text": "one"}, timeout=60).status_code == 200
        yield server.url


@pytest.fixture(scope="module")
def locked(tiny: dict[str, str]) -> Iterator[str]:
    """It wants a key for everything that may be closed; the issuer of its tokens cannot be reached."""
    keys = {"API_KEYS": "somebody:some-key-of-32-characters-or-more", "JWT_JWKS_URL": "http://127.0.0.1:9/keys"}
    with running_server(**tiny, **keys, CLOSED_ROUTES="metrics,models,docs") as server:
        yield server.url


@pytest.fixture(scope="module")
def hanging(tiny: dict[str, str]) -> Iterator[str]:
    """One of its lanes is in a run that does not end."""
    with running_server(**tiny, THREAD_POOL_WORKERS="2", LANE_STUCK_SECONDS="0.2") as server:
        body = {"text": "hang", "model_name": "tiny/troubled"}
        assert httpx.post(f"{server.url}/embed", json=body, headers={"X-Request-Timeout": "1"}, timeout=60).is_error
        server.wait_for("lane_stuck")
        yield server.url


@pytest.fixture
def ask(base_url: str, request: pytest.FixtureRequest) -> Callable[[str, str, Way], httpx.Response]:
    def ask(method: str, route: str, way: Way) -> httpx.Response:
        url = base_url if way.server == "default" else request.getfixturevalue(way.server)
        path = url + (way.path or route)
        headers = {"Content-Type": "application/json", **way.headers}
        content = way.content if way.body is None else json.dumps(way.body).encode()
        return httpx.request(method, path, content=content, headers=headers, timeout=60)

    return ask


@pytest.fixture(scope="module")
def document(base_url: str) -> Json:
    return dict(httpx.get(f"{base_url}/schema/openapi.json", timeout=30).json())


def test_each_documented_answer_has_a_way_and_no_other_one_has(document: Json) -> None:
    told = {
        (method, path, int(status))
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if method in METHODS
        for status in operation["responses"]
    }
    assert told == set(PAIRS)


@pytest.mark.parametrize(("method", "route", "status"), PAIRS)
def test_documented_answer_is_reached_and_as_documented(
    ask: Callable[[str, str, Way], httpx.Response], document: Json, *, method: str, route: str, status: int
) -> None:
    response = ask(method, route, WAYS[method, route][status])
    assert response.status_code == status, response.text
    told = document["paths"][route][method]["responses"][str(status)]["content"]
    schema = told[response.headers["content-type"]]["schema"]
    Draft202012Validator({**document, **schema}).validate(response.json())


@pytest.mark.parametrize("wanted", TEXT_TYPES)
def test_text_for_prometheus_is_as_documented(base_url: str, document: Json, wanted: str) -> None:
    response = httpx.get(f"{base_url}/metrics", headers={"Accept": wanted}, timeout=30)
    assert response.status_code == 200
    told = document["paths"]["/metrics"]["get"]["responses"]["200"]["content"]
    assert set(told) == {"application/json", *TEXT_TYPES.values()}
    media_type = told[response.headers["content-type"]]
    assert media_type["schema"] == {"type": "string"}
    for example in media_type["examples"].values():
        assert f"\n{example['value'].partition(' ')[0]} " in response.text


@pytest.mark.parametrize("status", [401, 403, 503])
def test_who_wants_text_gets_problems_as_all_others_do(
    ask: Callable[[str, str, Way], httpx.Response], status: int
) -> None:
    way = WAYS["get", "/metrics"][status]
    response = ask("GET", "/metrics", replace(way, headers={**way.headers, "Accept": "text/plain"}))
    assert response.status_code == response.json()["status"] == status
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(("method", "route"), WAYS)
def test_no_undocumented_answer_turns_up(
    ask: Callable[[str, str, Way], httpx.Response], document: Json, method: str, route: str
) -> None:
    """Whatever makes some route fail is tried on each."""
    documented = {int(status) for status in document["paths"][route][method]["responses"]}
    ways = [way for ways in WAYS.values() for way in ways.values()]
    tried = {str(way): way for way in ways if way.server not in ALIKE and "Host" not in way.headers}
    path = route.replace("{name}", "tiny/one")
    seen = {ask(method, path, replace(way, path=None)).status_code for way in tried.values()}
    assert seen - documented == set()


def test_wrong_method_and_wrong_path_are_told_as_everywhere(base_url: str, document: Json) -> None:
    """They belong to no route, so the document has no row for them."""
    for path, operations in document["paths"].items():
        for method in ("GET", "POST", "DELETE", "TRACE", "PATCH"):
            if method.lower() not in operations:
                response = httpx.request(method, base_url + path.replace("{name}", "a"))
                assert (response.status_code, response.json()["code"]) == (405, "method-not-allowed")
                allowed = {name.strip().lower() for name in response.headers["allow"].split(",")}
                assert set(operations) <= allowed
                assert method.lower() not in allowed
    response = httpx.get(f"{base_url}/nothing/here")
    assert (response.status_code, response.json()["code"]) == (404, "not-found")
