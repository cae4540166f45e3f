"""Keys and tokens in the whole service: the routes they open, what pages of other origins may read, and the log."""

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from tests.support.apps import running_app
from tests.support.servers import ROOT, ServerProcess, environment, running_server, started_server
from tests.support.signing_keys import SECRET, Issuer, ec_key, issuing, public_jwk, rsa_key, token

ALICE, METER, ADMIN, FILED = (f"{name}-key-0123456789" for name in ("alice", "meter", "admin", "filed"))
KEYS = f"alice:{ALICE},meter:{METER}:metrics,admin:{ADMIN}:admin"
ORIGIN = "https://app.example"
MODEL, NOT_ALLOWED = "tiny/one", "tiny/two"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def embed(client: httpx.Client, headers: dict[str, str] | None = None, **body: object) -> httpx.Response:
    return client.post("/embed", json={"text": "one", **body}, headers=headers)


def challenge_of(response: httpx.Response, status: int, code: str) -> str:
    """Return the WWW-Authenticate header of a response that has this *status* and *code*."""
    problem = response.json()
    assert (response.status_code, problem["status"], problem["code"]) == (status, status, code), response.text
    return str(response.headers.get("www-authenticate"))


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with issuing(public_jwk(rsa_key("one"), "one"), public_jwk(ec_key("curve"), "curve")) as issuer:
        yield issuer


@pytest.fixture(scope="module")
def settings(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory, issuer: Issuer) -> dict[str, str]:
    """Keys of both kinds, tokens of all kinds, and every route closed that can be."""
    key_file = tmp_path_factory.mktemp("keys") / "keys.txt"
    key_file.write_text(f"# those of the file\nfiled:{FILED}\n")
    return {
        "MODELS_DIR": str(tiny_models),
        "REQUIRED_MODELS": MODEL,
        "ALLOWED_MODELS": MODEL,
        "LOG_LEVEL": "DEBUG",
        "API_KEYS": KEYS,
        "API_KEYS_FILE": str(key_file),
        "JWT_SECRET": SECRET,
        "JWT_JWKS_URL": issuer.url,
        "JWT_AUDIENCE": "embeddings",
        "JWT_ISSUER": "https://login.example",
        "JWT_LEEWAY": "300",
        "CLOSED_ROUTES": "metrics,docs,models",
        "CORS_ORIGINS": f"{ORIGIN},https://other.example",
    }


@pytest.fixture(scope="module")
def client(settings: dict[str, str]) -> Iterator[httpx.Client]:
    with running_app(**settings) as client:
        yield client


@pytest.fixture
def server(settings: dict[str, str], server_with: Callable[..., ServerProcess]) -> ServerProcess:
    return server_with(**settings)


def issued(key: Any = SECRET, algorithm: str = "HS256", **claims: Any) -> str:
    """Return a token that the service accepts unless *claims* make it invalid."""
    return token(key, algorithm, **{"aud": "embeddings", "iss": "https://login.example", **claims})


# --- Keys ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        pytest.param("POST", "/embed", {"alice", "admin", "filed"}, id="embed"),
        pytest.param("POST", "/embed/batch", {"alice", "admin", "filed"}, id="batch"),
        pytest.param("POST", "/tokenize", {"alice", "admin", "filed"}, id="tokenize"),
        pytest.param("GET", "/metrics", {"meter", "admin"}, id="metrics"),
        pytest.param("HEAD", "/metrics", {"meter", "admin"}, id="head of the metrics"),
        pytest.param("GET", "/metrics/prometheus", {"meter", "admin"}, id="metrics as text"),
        pytest.param("GET", "/models", {"alice", "meter", "admin", "filed"}, id="models"),
        pytest.param("GET", f"/models/{MODEL}", {"alice", "meter", "admin", "filed"}, id="model"),
        pytest.param("GET", "/schema/openapi.yaml", {"alice", "meter", "admin", "filed"}, id="docs as YAML"),
        pytest.param("GET", "/schema/openapi.json", {"alice", "meter", "admin", "filed"}, id="docs for programs"),
    ],
)
def test_route_accepts_only_keys_with_its_permission(
    method: str, path: str, allowed: set[str], client: httpx.Client
) -> None:
    body = {"text": "one"} if path == "/embed" else {"texts": ["one"]}
    json_body = body if method == "POST" else None
    keys = {"alice": ALICE, "meter": METER, "admin": ADMIN, "filed": FILED}
    statuses = {
        name: client.request(method, path, headers=bearer(key), json=json_body).status_code
        for name, key in keys.items()
    }
    assert statuses == {name: 200 if name in allowed else 403 for name in keys}
    without_key = client.request(method, path)
    assert (without_key.status_code, without_key.headers["www-authenticate"]) == (401, 'Bearer realm="fast-embedding"')


def test_model_that_is_not_allowed_is_rejected_on_every_route(client: httpx.Client) -> None:
    admin = bearer(ADMIN)
    for name in (NOT_ALLOWED, NOT_ALLOWED.upper(), "sentence-transformers/all-MiniLM-L6-v2"):
        for response in (
            embed(client, admin, model_name=name),
            client.post("/embed/batch", json={"texts": ["one"], "model_name": name}, headers=admin),
            client.post("/tokenize", json={"texts": ["one"], "model_name": name}, headers=admin),
            client.get(f"/models/{name}", headers=admin),
            client.get(f"/models/{name.replace('/', '%2F')}", headers=admin),
        ):
            challenge_of(response, 403, "model-not-allowed")
    assert client.get("/models", headers=admin).json()["allowed_models"] == [MODEL]


def test_request_log_names_the_caller(client: httpx.Client) -> None:
    for key, name in (
        (ALICE, "alice"),
        (METER, "meter"),  # which lacks the permission
        (issued(sub="service-7"), "service-7"),
        ("nobody-0123456789", None),
    ):
        with capture_logs() as events:
            embed(client, bearer(key))
        assert [event.get("caller") for event in events if event["event"] == "request_answered"] == [name]


def test_rejection_is_sent_before_the_body_arrives(server: ServerProcess) -> None:
    """A large upload is announced, and none of it is sent."""
    for length in (("Content-Length", "9000000"), ("Transfer-Encoding", "chunked")):
        with closing(http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=20)) as connection:
            connection.putrequest("POST", "/embed")
            connection.putheader("Content-Type", "application/json")
            connection.putheader(*length)
            connection.endheaders()
            response = connection.getresponse()
            assert response.status == 401
            assert json.loads(response.read())["code"] == "unauthenticated"


def test_two_different_keys_in_the_same_header_are_rejected(server: ServerProcess) -> None:
    headers = [("X-API-Key", ALICE), ("X-API-Key", METER)]
    response = httpx.post(f"{server.url}/embed", json={"text": "one"}, headers=headers)
    assert 'error="invalid_request"' in challenge_of(response, 401, "unauthenticated")


def test_caller_that_sends_a_large_body_without_a_key_receives_the_rejection(server: ServerProcess) -> None:
    response = httpx.post(f"{server.url}/embed", content=b'{"text": "' + b"x" * 9_000_000 + b'"}', timeout=30)
    challenge_of(response, 401, "unauthenticated")


# --- Tokens: tests/access/test_jwt_tokens.py has every way in which one is invalid ---------------------------------


@pytest.mark.parametrize(
    "good",
    [
        pytest.param(issued(), id="HS256"),
        pytest.param(issued(rsa_key("one"), "RS256", kid="one"), id="RS256"),
        pytest.param(issued(ec_key("curve"), "ES256", kid="curve"), id="ES256"),
    ],
)
def test_valid_token_is_accepted(good: str, client: httpx.Client) -> None:
    response = embed(client, bearer(good))
    assert response.status_code == 200, response.text


def test_token_that_expired_within_the_leeway_is_accepted(client: httpx.Client) -> None:
    assert embed(client, bearer(issued(exp=int(time.time()) - 100))).status_code == 200


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        pytest.param(issued(exp=int(time.time()) - 400), "expired", id="expired"),
        pytest.param(issued(aud="else"), "another audience", id="for another audience"),
        pytest.param(issued(iss="https://else.example"), "another issuer", id="of another issuer"),
        pytest.param(issued(rsa_key("two"), "RS256", kid="one"), "signature", id="of another key"),
    ],
)
def test_invalid_token_is_rejected_with_the_reason(bad: str, reason: str, client: httpx.Client) -> None:
    challenge = challenge_of(embed(client, bearer(bad)), 401, "unauthenticated")
    assert challenge.startswith('Bearer realm="fast-embedding", error="invalid_token", error_description="')
    assert reason in challenge


def test_token_has_the_permissions_of_its_scope(client: httpx.Client) -> None:
    def statuses(**claims: str) -> tuple[int, int]:
        headers = bearer(issued(**claims))
        return embed(client, headers).status_code, client.get("/metrics", headers=headers).status_code

    assert statuses() == (200, 403)
    assert statuses(scope="metrics") == (403, 200)


def test_issuer_that_is_down_locks_out_only_callers_whose_key_is_unknown(tiny_models: Path) -> None:
    settings = {"MODELS_DIR": str(tiny_models), "REQUIRED_MODELS": MODEL, "API_KEYS": KEYS}
    known, new = (token(rsa_key(name), "RS256", kid=name) for name in ("one", "two"))
    with (
        issuing(public_jwk(rsa_key("one"), "one")) as issuer,
        running_app(JWT_JWKS_URL=issuer.url, **settings) as client,
    ):
        assert embed(client, bearer(known)).status_code == 200
        issuer.status = 500
        with capture_logs() as events:
            response = embed(client, bearer(new))
        assert (response.status_code, response.json()["code"]) == (503, "keys-unavailable")
        assert int(response.headers["retry-after"]) > 0
        assert embed(client, bearer(known)).status_code == 200
        assert embed(client, bearer(ALICE)).status_code == 200
    assert [event.get("reason") for event in events if event["event"] == "jwks_fetch_failed"] == [
        "the answer is 500, not 200"
    ]
    assert issuer.url not in str(events)


# --- Browsers -----------------------------------------------------------------------------------------------------


def test_preflight_needs_no_key_and_allows_each_header_by_name(client: httpx.Client) -> None:
    wanted = "authorization, x-api-key, x-request-id, x-request-timeout, content-type, x-stainless-lang"
    preflight = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": wanted}
    response = client.options("/embed", headers=preflight)
    assert response.is_success
    assert set(wanted.split(", ")) <= set(response.headers["access-control-allow-headers"].lower().split(", "))
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert response.headers["access-control-allow-credentials"] == "true"


def test_page_of_an_allowed_origin_may_read_rejections(client: httpx.Client) -> None:
    for response in (
        embed(client, {"Origin": ORIGIN}),
        embed(client, {"Origin": ORIGIN, **bearer(METER)}),
        embed(client, {"Origin": ORIGIN, **bearer(ALICE)}, model_name=NOT_ALLOWED),
        embed(client, {"Origin": ORIGIN, **bearer(ALICE)}, text=""),
    ):
        assert response.is_error
        assert response.headers["access-control-allow-origin"] == ORIGIN
        assert response.headers["access-control-allow-credentials"] == "true"
        exposed = response.headers["access-control-expose-headers"].lower()
        assert "www-authenticate" in exposed
        assert "retry-after" in exposed


def test_page_of_another_origin_may_read_nothing(client: httpx.Client) -> None:
    for headers in ({}, bearer(ALICE)):
        response = embed(client, {"Origin": "https://evil.example", **headers})
        assert "access-control-allow-origin" not in response.headers
    preflight = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    assert client.options("/embed", headers=preflight).status_code == 400


def test_page_may_read_that_the_service_is_draining(tiny_models: Path) -> None:
    """This answer is made outside of Litestar, which adds CORS headers only to its own."""
    with (
        running_server(MODELS_DIR=str(tiny_models), REQUIRED_MODELS=MODEL) as server,
        socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), 20) as held,
        httpx.Client(base_url=server.url, timeout=30) as client,
    ):
        # A request whose body is not complete keeps the service from ending.
        held.sendall(b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: 15\r\n\r\n")
        embed(client)
        server.process.terminate()
        server.wait_for("drain_started")
        response = httpx.post(f"{server.url}/embed", json={"text": "one"}, headers={"Origin": ORIGIN}, timeout=30)
        held.sendall(b'{"text": "one"}')
        assert held.recv(12) == b"HTTP/1.1 200"
    assert response.json()["code"] == "draining"
    assert response.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in response.headers


# --- What gets out ------------------------------------------------------------------------------------------------


def test_bad_setting_stops_the_start_without_showing_a_key() -> None:
    """tests/assembly/test_access.py has the other bad settings; this is about the process."""
    with started_server(API_KEYS=ALICE, PORT="0", JWT_JWKS_URL=f"https://x:{ALICE}@y/") as server:
        assert server.wait_for_end() == 1
    assert len(server.lines) == 1
    assert server.log.startswith("Bad settings: ")
    assert ALICE not in server.log


def test_example_client_reads_its_key_from_the_environment(server: ServerProcess) -> None:
    def run_client(**variables: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "example_client.py", "--base-url", server.url]
        return subprocess.run(
            command, cwd=ROOT, env={**environment({}), **variables}, capture_output=True, text=True, check=False
        )

    assert "Send a key as" in run_client().stderr
    assert "in memory" in run_client(FAST_EMBEDDING_API_KEY=ALICE).stdout


def test_no_key_and_no_token_is_in_the_log_or_in_an_answer(server: ServerProcess, settings: dict[str, str]) -> None:
    stranger, good, bad = "stranger-key-0123456789", issued(), issued(exp=1)
    sent = [ALICE, METER, ADMIN, FILED, stranger, good, bad]
    with httpx.Client(base_url=server.url, timeout=30) as client:
        answers = [embed(client, headers) for key in sent for headers in (bearer(key), {"X-API-Key": key})]
        answers += [
            client.get("/nothing", headers=bearer(ALICE)),
            client.put("/embed", headers=bearer(ALICE)),
            embed(client, {"Authorization": f"Basic {ALICE}"}),
            client.get("/metrics", headers=bearer(ADMIN)),
            embed(client, {**bearer(ADMIN), "X-Request-ID": "the-last-one"}),
        ]
    server.wait_for_request("the-last-one")
    parts = [part for part in (*good.split("."), *bad.split(".")) if part]
    secrets = [*sent, *parts, SECRET, settings["API_KEYS_FILE"]]
    written = server.log + "".join(f"{answer.headers}{answer.text}" for answer in answers)
    assert [secret for secret in secrets if secret in written] == []
    assert os.fspath(ROOT) not in server.log
