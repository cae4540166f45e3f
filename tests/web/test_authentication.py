"""The authentication middleware, on a small app with a route of each kind; and the permissions of the real routes."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, cast

import httpx
import pytest
from litestar import Litestar, Request, get, post, put
from litestar.routes import HTTPRoute
from litestar.testing import TestClient
from litestar.types import HTTPScope

from access.principals import KeysUnavailableError, Principal, UnauthenticatedError
from api.docs import FORMER_PAGES
from api.tei_errors import TEI_SHARED
from tests.support.apps import settings_of
from web.authentication import AuthenticationMiddleware, required_permission
from web.json_bodies import StrictRequest
from web.large_body_queue import LargeBodyQueue
from web.problems import problem_handlers
from web.request_context import context_of
from web.request_log import RequestLog

KEYS = {
    b"embedder-key": Principal("key", "embedder", permissions=frozenset({"embed"})),
    b"meter-key": Principal("key", "meter", permissions=frozenset({"metrics"})),
    b"admin-key": Principal("key", "admin", permissions=frozenset({"admin"})),
    b"nothing-key": Principal("key", "nothing", permissions=frozenset()),
}
NETWORK = "192.0.2.1"
UNKNOWN = "The key is not valid."
TOKEN_AS_KEY = f"{UNKNOWN} Send a token as 'Authorization: Bearer TOKEN'."
TOKEN = "head.claims.signature"  # noqa: S105 - of the tests
ALL = frozenset({"embed", "metrics", "models", "docs"})

AnyRequest = Request[Any, Any, Any]


async def verify_token(token: bytes) -> Principal | None:
    if token == b"un.avail.able":
        raise KeysUnavailableError(retry_after_s=7)
    if token == b"ex.pi.red":
        raise UnauthenticatedError("The token has expired.")
    return Principal("key", "tokened", permissions=frozenset({"embed"})) if token == TOKEN.encode() else None


def name_of(request: AnyRequest) -> str:
    principal = context_of(request.scope).principal
    return str(principal and principal.name)


@post("/embed", opt={"permission": "embed"}, status_code=200)
async def embed(request: AnyRequest) -> str:
    return name_of(request)


@put("/unmarked")
async def unmarked(request: AnyRequest) -> str:
    return name_of(request)


@get("/metrics", opt={"permission": "metrics"})
async def metrics(request: AnyRequest) -> str:
    return name_of(request)


@get("/models", opt={"permission": "models"})
async def models(request: AnyRequest) -> str:
    return name_of(request)


@get("/health")
async def health(request: AnyRequest) -> str:
    return name_of(request)


Guarded = Callable[..., TestClient[Litestar]]


@pytest.fixture
def guarded() -> Iterator[Guarded]:
    """Returns a function that makes a client of an app in which routes with these permissions are closed."""
    with ExitStack() as stack:

        def guard(*, closed: frozenset[str] = ALL) -> TestClient[Litestar]:
            app = Litestar(
                [embed, unmarked, metrics, models, health],
                middleware=[
                    AuthenticationMiddleware(
                        protected=closed,
                        find_key=KEYS.get,
                        verify_token=verify_token,
                        principal_at=lambda *_: Principal("address", network=NETWORK),
                    )
                ],
                request_class=StrictRequest,
                exception_handlers=problem_handlers(),
                logging_config=None,
                openapi_config=None,
            )
            app.asgi_handler = RequestLog(app.asgi_handler, observe=lambda _: None, large_bodies=LargeBodyQueue())
            return stack.enter_context(TestClient(app, raise_server_exceptions=False))

        yield guard


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def challenge_of(response: httpx.Response, status: int, code: str) -> str:
    """Return the WWW-Authenticate header of a response that has this *status* and *code*."""
    problem = response.json()
    assert (response.status_code, problem["status"], problem["code"]) == (status, status, code)
    return str(response.headers.get("www-authenticate", ""))


@pytest.mark.parametrize(
    ("headers", "name"),
    [
        pytest.param({"Authorization": "Bearer embedder-key"}, "embedder", id="bearer"),
        pytest.param({"Authorization": "bearer   embedder-key "}, "embedder", id="bearer with spaces"),
        pytest.param({"X-API-Key": "embedder-key"}, "embedder", id="X-API-Key"),
        pytest.param({"x-api-key": " embedder-key "}, "embedder", id="X-API-Key with spaces"),
        pytest.param({"X-API-Key": "embedder-key", **bearer("embedder-key")}, "embedder", id="the same twice"),
        pytest.param(
            {"X-API-Key": "embedder-key", "Authorization": "Basic eDp5"}, "embedder", id="beside Basic, for a proxy"
        ),
        pytest.param({"X-API-Key": "", **bearer("embedder-key")}, "embedder", id="beside an empty one"),
        pytest.param({"api-key": "embedder-key"}, "embedder", id="Azure's api-key"),
        pytest.param(bearer("Bearer embedder-key"), "embedder", id="Bearer twice"),
        pytest.param(bearer("bearer  Bearer embedder-key"), "embedder", id="Bearer three times"),
        pytest.param(bearer(TOKEN), "tokened", id="token"),
        pytest.param(bearer("admin-key"), "admin", id="admin"),
    ],
)
def test_caller_with_a_valid_key_or_token_is_identified(headers: dict[str, str], name: str, guarded: Guarded) -> None:
    response = guarded().post("/embed", headers=headers)
    assert (response.status_code, response.text) == (200, name)


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({}, id="none"),
        pytest.param({"Authorization": "Basic eDp5"}, id="another scheme"),
        pytest.param({"Authorization": "embedder-key"}, id="without a scheme"),
        pytest.param({"Authorization": "Bearer"}, id="scheme only"),
        pytest.param({"X-API-Key": ""}, id="empty"),
        pytest.param({"Cookie": "key=embedder-key"}, id="cookie"),
    ],
)
def test_request_without_a_key_is_a_401_that_says_how_to_send_one(headers: dict[str, str], guarded: Guarded) -> None:
    response = guarded().post("/embed?api_key=embedder-key", headers=headers)
    assert challenge_of(response, 401, "unauthenticated") == 'Bearer realm="fast-embedding"'
    assert "X-API-Key: KEY" in response.json()["detail"]


@pytest.mark.parametrize(
    ("headers", "error", "detail"),
    [
        pytest.param(bearer("nobody"), "invalid_token", UNKNOWN, id="unknown"),
        pytest.param({"X-API-Key": "nobody"}, "invalid_token", UNKNOWN, id="unknown, other header"),
        pytest.param(bearer("embedder-key meter-key"), "invalid_token", UNKNOWN, id="two at once"),
        pytest.param(bearer("ex.pi.red"), "invalid_token", "The token has expired.", id="bad token"),
        pytest.param({"X-API-Key": TOKEN}, "invalid_token", TOKEN_AS_KEY, id="token as X-API-Key"),
        pytest.param(
            {"X-API-Key": "meter-key", **bearer("embedder-key")},
            "invalid_request",
            "Several different keys were sent; send one.",
            id="two different keys",
        ),
    ],
)
def test_invalid_key_is_a_401_that_says_why_and_does_not_repeat_it(
    headers: dict[str, str], error: str, detail: str, guarded: Guarded
) -> None:
    response = guarded().post("/embed", headers=headers)
    challenge = challenge_of(response, 401, "unauthenticated")
    assert challenge == f'Bearer realm="fast-embedding", error="{error}", error_description="{detail}"'
    assert response.json()["detail"] == detail
    for value in headers.values():
        assert value.removeprefix("Bearer ") not in response.text


def test_key_without_the_permission_is_a_403_that_names_it(guarded: Guarded) -> None:
    client = guarded()
    for method, path, key, permission in (
        ("POST", "/embed", "meter-key", "embed"),
        ("POST", "/embed", "nothing-key", "embed"),
        ("GET", "/metrics", "embedder-key", "metrics"),
    ):
        response = client.request(method, path, headers=bearer(key))
        challenge = challenge_of(response, 403, "missing-scope")
        assert response.json()["scope"] == permission
        assert challenge.startswith('Bearer realm="fast-embedding", error="insufficient_scope", error_description="')
        assert challenge.endswith(f', scope="{permission}"')


def test_token_that_cannot_be_verified_now_is_a_503_without_a_challenge(guarded: Guarded) -> None:
    response = guarded().post("/embed", headers=bearer("un.avail.able"))
    assert challenge_of(response, 503, "keys-unavailable") == ""
    assert response.headers["retry-after"] == "7"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        pytest.param("POST", "/embed", {"embedder", "admin"}, id="embed"),
        pytest.param("PUT", "/unmarked", {"embedder", "admin"}, id="a writing route without the option"),
        pytest.param("GET", "/metrics", {"meter", "admin"}, id="metrics"),
        pytest.param("HEAD", "/metrics", {"meter", "admin"}, id="metrics, its head"),
        pytest.param("GET", "/models", {"embedder", "meter", "admin", "nothing"}, id="models"),
    ],
)
def test_closed_route_accepts_callers_with_its_permission(
    method: str, path: str, allowed: set[str], guarded: Guarded
) -> None:
    client = guarded()
    statuses = {name: client.request(method, path, headers=bearer(f"{name}-key")).status_code for name in names()}
    assert {name for name, status in statuses.items() if status == 200} == allowed
    assert client.request(method, path).status_code == 401


def names() -> list[str]:
    return [caller.name for caller in KEYS.values()]


@pytest.mark.parametrize(
    ("closed", "open_routes"),
    [
        pytest.param(frozenset(), {"/embed", "/unmarked", "/metrics", "/models", "/health"}, id="nothing"),
        pytest.param(frozenset({"embed"}), {"/metrics", "/models", "/health"}, id="embed"),
        pytest.param(frozenset({"embed", "models"}), {"/metrics", "/health"}, id="models"),
        pytest.param(ALL, {"/health"}, id="all"),
    ],
)
def test_route_that_is_not_closed_needs_no_key(closed: frozenset[str], open_routes: set[str], guarded: Guarded) -> None:
    client = guarded(closed=closed)
    methods = {"/embed": "POST", "/unmarked": "PUT"}
    paths = ["/embed", "/unmarked", "/metrics", "/models", "/health"]
    for headers in ({}, bearer("nobody")):
        answered = {path: client.request(methods.get(path, "GET"), path, headers=headers).status_code for path in paths}
        assert {path for path, status in answered.items() if status == 200} == open_routes


def test_unknown_path_and_wrong_method_need_no_key(guarded: Guarded) -> None:
    client = guarded()
    assert client.post("/nowhere").status_code == 404
    assert client.put("/embed").status_code == 405
    assert client.options("/embed").status_code == 204


def test_every_route_of_the_service_but_health_needs_a_permission() -> None:
    from main import create_app  # noqa: PLC0415 - importing main builds an app, too

    paths: dict[str | None, set[str]] = {}
    for route in create_app(settings_of()).routes:
        assert isinstance(route, HTTPRoute)
        for method, (handler, _) in route.route_handler_map.items():
            if method != "OPTIONS":
                permission = required_permission(cast("HTTPScope", {"method": method, "route_handler": handler}))
                is_native = handler.opt.get("dialect") in {None, TEI_SHARED}
                paths.setdefault(permission, set()).add(route.path if is_native else "a dialect's")
    probes = {"/health", "/health/live", "/health/ready", "/tei/health"}
    documents = {"/", "/page/{file:path}", "/docs", "/docs/{file:path}", *FORMER_PAGES}  # they contain nothing
    assert paths.pop(None) == {*probes, *documents, "a dialect's"}  # /api/version is open, too
    assert paths.pop("docs") == {"/schema/openapi.json", "/schema/openapi.yaml", "/schema/openapi.yml"}
    assert paths == {
        "embed": {"/embed", "/embed/batch", "/tokenize", "a dialect's"},
        "metrics": {"/metrics", "/metrics/prometheus"},
        "models": {"/models", "/models/{name:path}", "a dialect's"},
        "admin": {"/cache"},
    }


@pytest.mark.parametrize(
    ("protected", "headers", "caller"),
    [
        pytest.param((), [], "address", id="anyone may call"),
        pytest.param(("embed",), [(b"x-api-key", b"embedder-key")], "embedder", id="key"),
        pytest.param(("embed",), [(b"authorization", b"Bearer embedder-key")], "embedder", id="bearer"),
        pytest.param(("embed",), [(b"x-api-key", b"wrong")], None, id="unknown key"),
        pytest.param(("embed",), [], None, id="no key"),
        pytest.param(
            ("embed",), [(b"x-api-key", b"embedder-key"), (b"authorization", b"Bearer admin-key")], None, id="two keys"
        ),
    ],
)
def test_caller_of_an_embedding_route_is_found_without_verifying_a_token(
    protected: tuple[str, ...], headers: list[tuple[bytes, bytes]], caller: str | None
) -> None:
    at_address = Principal("address", network=NETWORK)
    middleware = AuthenticationMiddleware(
        protected=frozenset(protected),
        find_key=KEYS.get,
        verify_token=verify_token,
        principal_at=lambda *_: at_address,
    )
    known = {"address": at_address, "embedder": KEYS[b"embedder-key"]}
    found = middleware.find_embed_caller(("192.0.2.1", 1), headers)
    assert found == (known[caller].share_keys if caller else None)
