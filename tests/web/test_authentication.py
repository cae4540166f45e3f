"""Who is let in where: the middleware on an app with a route of each kind."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from litestar import Litestar, Request, get, post, put
from litestar.testing import TestClient

from access.principals import KeysUnavailableError, Principal, UnauthenticatedError
from tests.support.servers import ROOT, environment
from web.authentication import AuthenticationMiddleware
from web.json_bodies import StrictRequest
from web.problems import problem_handlers
from web.request_context import context_of
from web.request_log import RequestLog

KEYS = {
    b"embedder-key": Principal("key", "embedder", permissions=frozenset({"embed"})),
    b"meter-key": Principal("key", "meter", permissions=frozenset({"metrics"})),
    b"admin-key": Principal("key", "admin", permissions=frozenset({"admin"})),
    b"nothing-key": Principal("key", "nothing", permissions=frozenset()),
}
HERE = "192.0.2.1"
UNKNOWN = "The key is not valid."
IN_PLACE = f"{UNKNOWN} Send a token as 'Authorization: Bearer TOKEN'."
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


@put("/unsaid")
async def unsaid(request: AnyRequest) -> str:
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
    """Makes a client of an app whose routes of these kinds are closed."""
    with ExitStack() as stack:

        def guard(*, closed: frozenset[str] = ALL) -> TestClient[Litestar]:
            app = Litestar(
                [embed, unsaid, metrics, models, health],
                middleware=[
                    AuthenticationMiddleware(
                        closed=closed, find_key=KEYS.get, verify_token=verify_token, network_of=lambda _: HERE
                    )
                ],
                request_class=StrictRequest,
                exception_handlers=problem_handlers(),
                logging_config=None,
                openapi_config=None,
            )
            app.asgi_handler = RequestLog(app.asgi_handler, count=lambda *_: None)
            return stack.enter_context(TestClient(app, raise_server_exceptions=False))

        yield guard


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def refused(response: httpx.Response, status: int, code: str) -> str:
    """The challenge of a refusal, checked for what every problem has."""
    problem = response.json()
    assert (response.status_code, problem["status"], problem["code"]) == (status, status, code)
    return str(response.headers.get("www-authenticate", ""))


@pytest.mark.parametrize(
    ("headers", "name"),
    [
        pytest.param({"Authorization": "Bearer embedder-key"}, "embedder", id="bearer"),
        pytest.param({"Authorization": "bearer   embedder-key "}, "embedder", id="bearer with spaces"),
        pytest.param({"X-API-Key": "embedder-key"}, "embedder", id="header of its own"),
        pytest.param({"x-api-key": " embedder-key "}, "embedder", id="with spaces"),
        pytest.param({"X-API-Key": "embedder-key", **bearer("embedder-key")}, "embedder", id="the same twice"),
        pytest.param(
            {"X-API-Key": "embedder-key", "Authorization": "Basic eDp5"}, "embedder", id="a proxy's beside it"
        ),
        pytest.param({"X-API-Key": "", **bearer("embedder-key")}, "embedder", id="empty one beside it"),
        pytest.param(bearer(TOKEN), "tokened", id="token"),
        pytest.param(bearer("admin-key"), "admin", id="admin"),
    ],
)
def test_caller_with_a_good_key_is_let_in_by_name(headers: dict[str, str], name: str, guarded: Guarded) -> None:
    response = guarded().post("/embed", headers=headers)
    assert (response.status_code, response.text) == (200, name)


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({}, id="none"),
        pytest.param({"Authorization": "Basic eDp5"}, id="of another scheme"),
        pytest.param({"Authorization": "embedder-key"}, id="without a scheme"),
        pytest.param({"Authorization": "Bearer"}, id="scheme only"),
        pytest.param({"X-API-Key": ""}, id="empty"),
        pytest.param({"Cookie": "key=embedder-key"}, id="cookie"),
    ],
)
def test_caller_without_a_key_learns_how_to_send_one(headers: dict[str, str], guarded: Guarded) -> None:
    response = guarded().post("/embed?api_key=embedder-key", headers=headers)
    assert refused(response, 401, "unauthenticated") == 'Bearer realm="fast-embedding"'
    assert "X-API-Key: KEY" in response.json()["detail"]


@pytest.mark.parametrize(
    ("headers", "error", "told"),
    [
        pytest.param(bearer("nobody"), "invalid_token", UNKNOWN, id="unknown"),
        pytest.param({"X-API-Key": "nobody"}, "invalid_token", UNKNOWN, id="unknown, other header"),
        pytest.param(bearer("embedder-key meter-key"), "invalid_token", UNKNOWN, id="two at once"),
        pytest.param(bearer("ex.pi.red"), "invalid_token", "The token has expired.", id="bad token"),
        pytest.param({"X-API-Key": TOKEN}, "invalid_token", IN_PLACE, id="token for a key"),
        pytest.param(
            {"X-API-Key": "meter-key", **bearer("embedder-key")},
            "invalid_request",
            "Several different keys were sent; send one.",
            id="two different ones",
        ),
    ],
)
def test_bad_key_is_refused_with_a_challenge_that_says_why(
    headers: dict[str, str], error: str, told: str, guarded: Guarded
) -> None:
    response = guarded().post("/embed", headers=headers)
    challenge = refused(response, 401, "unauthenticated")
    assert challenge == f'Bearer realm="fast-embedding", error="{error}", error_description="{told}"'
    assert response.json()["detail"] == told
    for value in headers.values():
        assert value.removeprefix("Bearer ") not in response.text


def test_key_without_the_scope_is_a_403_that_names_it(guarded: Guarded) -> None:
    client = guarded()
    for method, path, key, scope in (
        ("POST", "/embed", "meter-key", "embed"),
        ("POST", "/embed", "nothing-key", "embed"),
        ("GET", "/metrics", "embedder-key", "metrics"),
    ):
        response = client.request(method, path, headers=bearer(key))
        challenge = refused(response, 403, "missing-scope")
        assert response.json()["scope"] == scope
        assert challenge.startswith('Bearer realm="fast-embedding", error="insufficient_scope", error_description="')
        assert challenge.endswith(f', scope="{scope}"')


def test_token_that_cannot_be_checked_now_is_a_503(guarded: Guarded) -> None:
    response = guarded().post("/embed", headers=bearer("un.avail.able"))
    assert refused(response, 503, "keys-unavailable") == ""
    assert response.headers["retry-after"] == "7"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        pytest.param("POST", "/embed", {"embedder", "admin"}, id="embed"),
        pytest.param("PUT", "/unsaid", {"embedder", "admin"}, id="a route that does not say"),
        pytest.param("GET", "/metrics", {"meter", "admin"}, id="metrics"),
        pytest.param("HEAD", "/metrics", {"meter", "admin"}, id="metrics, its head"),
        pytest.param("GET", "/models", {"embedder", "meter", "admin", "nothing"}, id="models"),
    ],
)
def test_closed_route_lets_in(method: str, path: str, allowed: set[str], guarded: Guarded) -> None:
    client = guarded()
    statuses = {name: client.request(method, path, headers=bearer(f"{name}-key")).status_code for name in names()}
    assert {name for name, status in statuses.items() if status == 200} == allowed
    assert client.request(method, path).status_code == 401


def names() -> list[str]:
    return [caller.name for caller in KEYS.values()]


@pytest.mark.parametrize(
    ("closed", "open_routes"),
    [
        pytest.param(frozenset(), {"/embed", "/unsaid", "/metrics", "/models", "/health"}, id="nothing"),
        pytest.param(frozenset({"embed"}), {"/metrics", "/models", "/health"}, id="embed"),
        pytest.param(frozenset({"embed", "models"}), {"/metrics", "/health"}, id="models"),
        pytest.param(ALL, {"/health"}, id="all"),
    ],
)
def test_what_is_not_closed_needs_no_key(closed: frozenset[str], open_routes: set[str], guarded: Guarded) -> None:
    client = guarded(closed=closed)
    methods = {"/embed": "POST", "/unsaid": "PUT"}
    paths = ["/embed", "/unsaid", "/metrics", "/models", "/health"]
    for headers in ({}, bearer("nobody")):
        answered = {path: client.request(methods.get(path, "GET"), path, headers=headers).status_code for path in paths}
        assert {path for path, status in answered.items() if status == 200} == open_routes


def test_unknown_address_and_wrong_method_need_no_key(guarded: Guarded) -> None:
    client = guarded()
    assert client.post("/nowhere").status_code == 404
    assert client.put("/embed").status_code == 405
    assert client.options("/embed").status_code == 204


# --- The routes of the service ------------------------------------------------------------------------------------


TELL_NEEDS = """
import json
import main
from web.authentication import needed_permission

print(json.dumps([
    (method, route.path, needed_permission({"method": method, "route_handler": handler}))
    for route in main.app.routes
    for method, (handler, _) in route.route_handler_map.items()
    if method != "OPTIONS"
]))
"""


@pytest.mark.timeout(60)  # it starts a process, on a machine that may be busy
def test_every_route_of_the_service_but_health_needs_something() -> None:
    """Asked in a process of its own: who imports the service sets up the logs of a whole process."""
    done = subprocess.run(
        [sys.executable, "-c", TELL_NEEDS], cwd=ROOT, env=environment({}), capture_output=True, text=True, check=True
    )
    told: list[tuple[str, str, str | None]] = json.loads(done.stdout)
    paths: dict[str | None, set[str]] = {}
    for _, path, needed in told:
        paths.setdefault(needed, set()).add(path)
    assert paths[None] == {"/health", "/health/live", "/health/ready"}
    assert paths["metrics"] == {"/metrics"}
    assert paths["models"] == {"/models", "/models/{name:path}"}
    assert all(path.startswith("/schema") for path in paths["docs"])
    assert {needed for method, _, needed in told if method != "GET"} == {"embed"}
