"""Every answer in the OpenAPI document is reached over HTTP, and the service gives no answer that is not in it.

`WAYS` has a request for each route and status. A documented answer without a row there fails, and so does the reverse.
"""

import json
import os
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from jsonschema import Draft202012Validator

from api.answer_formats import TEXT_TYPES
from tests.support.apps import running_app
from tests.support.held_hub import held_hub
from tests.support.servers import running_server, started_server
from tests.support.tiny import TinyModel
from tests.support.tiny_models import TROUBLE_WORDS, troubled

Json = dict[str, Any]
Ask = Callable[[str, str, "Way"], httpx.Response]
HUB_MODEL = "BAAI/bge-small-en-v1.5"
OUTSIDE = "sentence-transformers/all-MiniLM-L6-v2"
"""A model of the catalogue that the server `narrow` does not allow."""
ARROW = "application/vnd.apache.arrow.stream"
HURRIED = {"X-Request-Timeout": "1e-9", "Cache-Control": "no-cache"}
"""Gives a computation no time. A result that was kept would be answered all the same."""
METHODS = {"get", "put", "post", "delete", "options", "head", "patch", "trace"}

pytestmark = pytest.mark.timeout(90)


@dataclass(frozen=True, slots=True)
class Way:
    """A request that gets a certain answer.

    Attributes:
        server: the name of a fixture of this file.
        path: None: the route itself.
    """

    server: str
    body: object = None
    path: str | None = None
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


def works(body: object) -> dict[int, Way]:
    """Return the ways to the answers of every route that accepts texts; *body* makes a small model work."""
    assert isinstance(body, dict)
    return {
        200: Way("narrow", body),
        400: Way("narrow", {}),
        401: Way("locked", body),
        403: Way("narrow", {**body, "model_name": OUTSIDE}),
        412: Way("narrow", body, headers={"If-Model-Fingerprint": "0123456789abcdef"}),
        413: Way("narrow", content=b'{"text": "one"}'.ljust(1025)),
        415: Way("narrow", content=b"one", headers={"Content-Type": "text/plain"}),
        429: Way("limited", body),
        503: Way("narrow", {**body, "model_name": "tiny/broken"}),
        504: Way("narrow", body, headers=HURRIED),
    }


def runs(body: Json, failing: Json) -> dict[int, Way]:
    """Return the ways to the answers of every route that runs a model; *failing* makes it fail."""
    return {**works(body), 406: Way("narrow", body, headers={"Accept": ARROW}), 500: Way("narrow", failing)}


def dialect_runs(body: Json, failing: Json, invalid: Json) -> dict[int, Way]:
    """Return the ways to the answers of a dialect's routes that run a model."""
    return {
        **works(body),
        400: Way("narrow", invalid),
        403: Way("narrow", {**body, "model": OUTSIDE}),
        404: Way("narrow", {**body, "model": "no-such-model"}),
        500: Way("narrow", failing),
        503: Way("narrow", {**body, "model": "tiny/broken"}),
    }


def azure(way: Way) -> Way:
    """Return *way* with its model in the path, where Azure's clients name it."""
    model = way.body.get("model", "tiny/one") if isinstance(way.body, dict) else "tiny/one"
    return replace(way, path=f"/openai/deployments/{quote(model, safe='')}/embeddings")


def tei(body: Json) -> dict[int, Way]:
    """Return the ways to the answers of TEI's routes, and to those that TEI adds to the native ones."""
    own = {
        404: Way("narrow", {**body, "model": "no-such-model"}),
        422: Way("narrow", {"inputs": [1]}),
        424: Way("narrow", {**body, "model": "tiny/broken"}),
    }
    ways = {**works(body), **own, 400: Way("narrow", {"inputs": []}), 403: Way("narrow", {**body, "model": OUTSIDE})}
    return {status: way for status, way in ways.items() if status != 503}


TEI_TEXT = {"inputs": "one"}
TEI_SENTENCES = {"inputs": {"source_sentence": "one", "sentences": ["two"]}}
COHERE = dialect_runs({"texts": ["one"]}, {"texts": ["poison"]}, {"texts": []})
OLLAMA_MODEL = {
    200: Way("narrow", {"model": "tiny/one", "stream": False}),
    400: Way("narrow", {"model": 1}),
    403: Way("narrow", {"model": OUTSIDE}),
    404: Way("narrow", {"model": "no-such-model"}),
    413: Way("narrow", content=b"{}".ljust(1025)),
    415: Way("narrow", content=b"one", headers={"Content-Type": "text/plain"}),
}
OPENAI = dialect_runs({"input": "one"}, {"input": "poison"}, {"input": []})
UNKNOWN_KEY_TOKEN = ".".join(
    urlsafe_b64encode(part).decode().rstrip("=")
    for part in (b'{"alg": "RS256", "kid": "unknown", "typ": "JWT"}', b"{}", b"signature")
)
KEYS_UNAVAILABLE = Way("locked", headers={"Authorization": f"Bearer {UNKNOWN_KEY_TOKEN}"})
"""A token whose key has to be fetched first, from an issuer that cannot be reached."""
MODELS = {200: Way("default"), 401: Way("locked"), 503: KEYS_UNAVAILABLE}
MODEL = {
    200: Way("default", path=f"/v1/models/{OUTSIDE}"),
    400: Way("default", path="/v1/models/one", headers={"Host": "no host"}),
    401: Way("locked", path="/v1/models/one"),
    403: Way("narrow", path=f"/v1/models/{OUTSIDE}"),
    404: Way("default", path="/v1/models/no-such-model"),
    503: replace(KEYS_UNAVAILABLE, path="/v1/models/one"),
}
SPECIAL_STATES = {"starting", "hanging", "limited", "locked"}
"""Servers that give every request of a route the same answer, or are in their state only for a while."""
METRICS = {
    200: Way("default"),
    401: Way("locked"),
    403: Way("narrow"),
    406: Way("default", headers={"Accept": "image/png"}),
    503: KEYS_UNAVAILABLE,
}
WAYS: dict[tuple[str, str], dict[int, Way]] = {
    ("post", "/embed"): {**tei(TEI_TEXT), **runs({"text": "one"}, {"text": "poison"})},
    ("post", "/embed/batch"): runs({"texts": ["one"]}, {"texts": ["one", "nan"]}),
    ("post", "/tokenize"): {
        **tei(TEI_TEXT),
        **works({"texts": ["one"]}),
        # Short texts are counted before any deadline.
        504: Way("default", {"texts": ["one two " * 1000]}, headers={"X-Request-Timeout": "1e-9"}),
    },
    ("post", "/v1/embed"): COHERE,
    ("post", "/v2/embed"): COHERE,
    ("post", "/api/embed"): dialect_runs({"input": "one"}, {"input": ["one", "nan"]}, {"input": 1}),
    ("post", "/api/embeddings"): dialect_runs({"prompt": "one"}, {"prompt": "poison"}, {"prompt": 1}),
    ("post", "/api/show"): {
        **OLLAMA_MODEL,
        401: Way("locked", {}),
        503: replace(KEYS_UNAVAILABLE, body={}),
    },
    ("post", "/api/pull"): {
        **OLLAMA_MODEL,
        401: Way("locked", {}),
        429: Way("limited", {}),
        503: replace(KEYS_UNAVAILABLE, body={}),
    },
    ("get", "/api/tags"): {200: Way("default"), 401: Way("locked"), 503: KEYS_UNAVAILABLE},
    ("get", "/api/ps"): {200: Way("default"), 401: Way("locked"), 503: KEYS_UNAVAILABLE},
    ("get", "/api/version"): {200: Way("default")},
    ("get", "/"): {200: Way("default"), 406: Way("default", headers={"Accept": "image/png"})},
    ("post", "/"): tei(TEI_TEXT),
    ("post", "/tei"): tei(TEI_SENTENCES),
    ("post", "/tei/embed"): {**tei(TEI_TEXT), 424: Way("narrow", {"inputs": "poison"})},
    ("post", "/similarity"): {
        **tei(TEI_SENTENCES),
        400: Way("narrow", {"inputs": {"source_sentence": "", "sentences": []}}),
    },
    ("post", "/tei/tokenize"): {
        **tei(TEI_TEXT),
        504: Way("default", {"inputs": "one two " * 1000}, headers={"X-Request-Timeout": "1e-9"}),
    },
    ("get", "/info"): {200: Way("default"), 401: Way("locked"), 429: KEYS_UNAVAILABLE},
    ("get", "/health"): {200: Way("default"), 503: Way("starting")},
    ("get", "/health/live"): {200: Way("default"), 503: Way("hanging")},
    ("get", "/health/ready"): {200: Way("default"), 503: Way("starting")},
    ("get", "/models"): {200: Way("default"), 401: Way("locked"), 503: KEYS_UNAVAILABLE},
    ("get", "/models/{name}"): {
        200: Way("default", path=f"/models/{OUTSIDE}"),
        400: Way("default", path="/models/one", headers={"Host": "no host"}),  # so would any other route
        401: Way("locked", path="/models/one"),
        403: Way("narrow", path=f"/models/{OUTSIDE}"),
        404: Way("default", path="/models/no-such-model"),
        503: replace(KEYS_UNAVAILABLE, path="/models/one"),
    },
    ("post", "/v1/embeddings"): OPENAI,
    ("post", "/embeddings"): OPENAI,
    ("post", "/openai/v1/embeddings"): OPENAI,
    ("post", "/openai/deployments/{name}/embeddings"): {status: azure(way) for status, way in OPENAI.items()},
    ("get", "/v1/models"): MODELS,
    ("get", "/openai/v1/models"): MODELS,
    ("get", "/v1/models/{name}"): MODEL,
    ("get", "/openai/v1/models/{name}"): {
        status: replace(way, path=f"/openai{way.path}") for status, way in MODEL.items()
    },
    ("delete", "/cache"): {
        200: Way("narrow"),
        401: Way("locked"),
        403: Way("narrow", headers={"Origin": "https://app.example"}),
        503: KEYS_UNAVAILABLE,
    },
    ("get", "/metrics"): METRICS,
    ("get", "/metrics/prometheus"): METRICS,
}
PAIRS = [(*route, status) for route, ways in WAYS.items() for status in ways]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Settings of a service with three tiny models: one works, one may hang, one has a broken file."""
    models = tmp_path_factory.mktemp("models")
    TinyModel("tiny/one").write(models)
    TinyModel("tiny/troubled", words=TROUBLE_WORDS, graph=troubled, max_tokens=64).write(models)
    (TinyModel("tiny/broken").write(models) / "model.onnx").write_bytes(b"not a model")
    return {"MODELS_DIR": str(models), "REQUIRED_MODELS": "tiny/one"}


@pytest.fixture(scope="module")
def default(base_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=base_url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def narrow(tiny: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A server with small limits, without metrics, and without pyarrow."""
    packages = tmp_path_factory.mktemp("packages")
    (packages / "pyarrow").mkdir()
    (packages / "pyarrow" / "__init__.py").write_text("raise ImportError('not installed')")
    settings = {
        **tiny,
        "ALLOWED_MODELS": "tiny/one,tiny/broken",
        "MAX_REQUEST_SIZE": "1KiB",
        "ENABLE_METRICS": "false",
        "PYTHONPATH": os.pathsep.join([str(packages), os.environ.get("PYTHONPATH", "")]),
    }
    with running_server(**settings) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def starting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A server that waits for a hub which has its model and does not send it."""
    patient = {"HF_HUB_ETAG_TIMEOUT": "1000", "HF_HUB_DOWNLOAD_TIMEOUT": "1000"}
    folder = str(tmp_path_factory.mktemp("hub"))
    with (
        held_hub(has_models=True) as hub,
        started_server(HF_ENDPOINT=hub.url, HUB_CACHE_DIR=folder, REQUIRED_MODELS=HUB_MODEL, **patient) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        assert hub.called.wait(60)
        yield client


@pytest.fixture(scope="module")
def limited(tiny: dict[str, str]) -> Iterator[httpx.Client]:
    """A service whose caller has used up its quota."""
    limits = {"ENABLE_RATE_LIMIT": "true", "RATE_LIMIT_REQUESTS": "1", "RATE_LIMIT_WINDOW": "86400"}
    with running_app(**tiny, **limits) as client:
        assert client.post("/embed", json={"text": "one"}).status_code == 200
        yield client


@pytest.fixture(scope="module")
def locked(tiny: dict[str, str]) -> Iterator[httpx.Client]:
    """A service that wants a key on every route that may be closed; the issuer of its tokens cannot be reached."""
    keys = {"API_KEYS": "somebody:some-key-of-32-characters-or-more", "JWT_JWKS_URL": "http://127.0.0.1:9/keys"}
    with running_app(**tiny, **keys, CLOSED_ROUTES="metrics,models,docs") as client:
        yield client


@pytest.fixture(scope="module")
def hanging(tiny: dict[str, str]) -> Iterator[httpx.Client]:
    """A server in which one lane is in a run that does not end."""
    with (
        running_server(**tiny, THREAD_POOL_WORKERS="2", LANE_STUCK_SECONDS="0.2") as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        body = {"text": "hang", "model_name": "tiny/troubled"}
        assert client.post("/embed", json=body, headers={"X-Request-Timeout": "1"}).is_error
        server.wait_for("lane_stuck")
        yield client


@pytest.fixture
def ask(request: pytest.FixtureRequest) -> Ask:
    def ask(method: str, route: str, way: Way) -> httpx.Response:
        client: httpx.Client = request.getfixturevalue(way.server)
        headers = {"Content-Type": "application/json", **way.headers}
        content = way.content if way.body is None else json.dumps(way.body).encode()
        return client.request(method, way.path or route, content=content, headers=headers)

    return ask


@pytest.fixture(scope="module")
def document(default: httpx.Client) -> Json:
    return dict(default.get("/schema/openapi.json").json())


def test_each_documented_answer_has_a_way_and_no_other_one_has(document: Json) -> None:
    documented = {
        (method, path, int(status))
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if method in METHODS
        for status in operation["responses"]
    }
    assert documented == set(PAIRS)


@pytest.mark.parametrize(("method", "route", "status"), PAIRS)
def test_documented_answer_is_reached_and_as_documented(
    ask: Ask, document: Json, *, method: str, route: str, status: int
) -> None:
    response = ask(method, route, WAYS[method, route][status])
    assert response.status_code == status, response.text
    content = document["paths"][route][method]["responses"][str(status)]["content"]
    media_type = response.headers["content-type"]
    value = response.json() if media_type.endswith("json") else response.text
    Draft202012Validator({**document, **content[media_type]["schema"]}).validate(value)


@pytest.mark.parametrize("wanted", TEXT_TYPES)
@pytest.mark.parametrize(
    ("route", "others"), [("/metrics", {"application/json"}), ("/metrics/prometheus", set())], ids=["all", "text"]
)
def test_text_for_prometheus_is_as_documented(
    default: httpx.Client, document: Json, *, wanted: str, route: str, others: set[str]
) -> None:
    response = default.get(route, headers={"Accept": wanted})
    assert response.status_code == 200
    content = document["paths"][route]["get"]["responses"]["200"]["content"]
    assert set(content) == {*others, *TEXT_TYPES.values()}
    media_type = content[response.headers["content-type"]]
    assert media_type["schema"] == {"type": "string"}
    for example in media_type["examples"].values():
        assert f"\n{example['value'].partition(' ')[0]} " in response.text


def test_callers_that_accept_text_get_problems_as_json(ask: Ask) -> None:
    for status in (401, 403, 503):
        way = WAYS["get", "/metrics"][status]
        response = ask("GET", "/metrics", replace(way, headers={**way.headers, "Accept": "text/plain"}))
        assert response.status_code == response.json()["status_code"] == status
        assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(("method", "route"), WAYS)
def test_route_gives_no_undocumented_answer(ask: Ask, document: Json, method: str, route: str) -> None:
    """Each request that makes some route fail is sent to every route."""
    documented = {int(status) for status in document["paths"][route][method]["responses"]}
    ways = [way for ways in WAYS.values() for way in ways.values()]
    tried = {str(way): way for way in ways if way.server not in SPECIAL_STATES and "Host" not in way.headers}
    path = route.replace("{name}", "tiny/one").replace("{deployment}", "tiny/one/embeddings")
    seen = {ask(method, path, replace(way, path=None)).status_code for way in tried.values()}
    assert seen - documented == set()


def test_wrong_method_is_a_405_and_unknown_path_a_404(default: httpx.Client, document: Json) -> None:
    """They belong to no route, so the document has no row for them."""
    for path, operations in document["paths"].items():
        for method in ("GET", "POST", "DELETE", "TRACE", "PATCH"):
            if method.lower() not in operations:
                response = default.request(method, path.replace("{name}", "a"))
                assert (response.status_code, response.json()["code"]) == (405, "method-not-allowed")
                allowed = {name.strip().lower() for name in response.headers["allow"].split(",")}
                assert set(operations) <= allowed
                assert method.lower() not in allowed
    response = default.get("/nothing/here")
    assert (response.status_code, response.json()["code"]) == (404, "not-found")
