"""Every answer that the OpenAPI document promises is reached over HTTP, and no other one turns up on the way.

`WAYS` says for each route and status how. A row in `api/docs.py` without one here fails, and so does the reverse.
"""

import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator

from tests.servers import running_server, started_server
from tests.tiny import TinyModel
from tests.tokens import rsa_key, token

Json = dict[str, Any]
HUB_MODEL = "BAAI/bge-small-en-v1.5"
OUTSIDE = "sentence-transformers/all-MiniLM-L6-v2"
"""A model that exists and that the narrow server does not offer."""
ARROW = "application/vnd.apache.arrow.stream"
UNCHECKED = {"Authorization": f"Bearer {token(rsa_key(), 'RS256', kid='one')}"}
"""A token whose key would have to be fetched first."""
METHODS = {"get", "put", "post", "delete", "options", "head", "patch", "trace"}

pytestmark = pytest.mark.timeout(90)


@dataclass(frozen=True, slots=True)
class Way:
    """How an answer is reached: which server is asked for what.

    Attributes:
        server: `default`; `narrow`, with tiny limits and models that fail; `closed`, which wants keys that it cannot
            fetch; `starting`, which never gets ready.
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
        401: Way("closed", body),
        403: Way("narrow", {**body, "model_name": OUTSIDE}),
        413: Way("narrow", content=b'{"text": "one"}'.ljust(1025)),
        415: Way("narrow", content=b"one", headers={"Content-Type": "text/plain"}),
        503: Way("narrow", {**body, "model_name": "tiny/broken"}),
        504: Way("narrow", body, headers={"X-Request-Timeout": "1e-9"}),
    }


def runs(body: Json, failing: Json) -> dict[int, Way]:
    """The same for routes that run a model; *failing* makes it fail."""
    return {**works(body), 406: Way("narrow", body, headers={"Accept": ARROW}), 500: Way("narrow", failing)}


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
    ("get", "/health/live"): {200: Way("default")},
    ("get", "/health/ready"): {200: Way("default"), 503: Way("starting")},
    ("get", "/models"): {200: Way("default"), 401: Way("closed"), 503: Way("closed", headers=UNCHECKED)},
    ("get", "/models/{name}"): {
        200: Way("default", path=f"/models/{OUTSIDE}"),
        400: Way("default", path="/models/one", headers={"Host": "no host"}),  # so would any other route
        401: Way("closed", path="/models/one"),
        403: Way("narrow", path=f"/models/{OUTSIDE}"),
        404: Way("default", path="/models/no-such-model"),
        503: Way("closed", path="/models/one", headers=UNCHECKED),
    },
    ("get", "/metrics"): {
        200: Way("default"),
        401: Way("closed"),
        403: Way("narrow"),
        503: Way("closed", headers=UNCHECKED),
    },
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
def closed() -> Iterator[str]:
    with running_server(JWT_JWKS_URL="http://127.0.0.1:9/", CLOSED_ROUTES="metrics,models") as server:
        yield server.url


@pytest.fixture(scope="module")
def starting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """It waits for a hub that takes its call and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as hub:
        settings = {
            "HF_ENDPOINT": f"http://127.0.0.1:{hub.getsockname()[1]}",
            "HUB_CACHE_DIR": str(tmp_path_factory.mktemp("hub")),
            "REQUIRED_MODELS": HUB_MODEL,
        }
        with started_server(**settings) as server:
            server.wait_for("threads_planned")
            call, _ = hub.accept()
            with call:
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


@pytest.mark.parametrize(("method", "route"), WAYS)
def test_no_undocumented_answer_turns_up(
    ask: Callable[[str, str, Way], httpx.Response], document: Json, method: str, route: str
) -> None:
    """Whatever makes some route fail is tried on each."""
    documented = {int(status) for status in document["paths"][route][method]["responses"]}
    ways = [way for ways in WAYS.values() for way in ways.values()]
    tried = {str(way): way for way in ways if way.server != "starting" and "Host" not in way.headers}
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
