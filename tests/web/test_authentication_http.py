"""Keys and tokens on real server processes: who is let in, what a refusal looks like, and that no key gets out."""

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest

from tests.support.servers import ROOT, ServerProcess, environment, running_server, started_server
from tests.support.signing_keys import SECRET, Issuer, ec_key, issuing, public_jwk, public_pem, rsa_key, token
from tests.support.tiny import TinyModel

ALICE, METER, ADMIN, FILED = (f"{name}-key-0123456789" for name in ("alice", "meter", "admin", "filed"))
KEYS = f"alice:{ALICE},meter:{METER}:metrics,admin:{ADMIN}:admin"
pytestmark = pytest.mark.timeout(60)  # several servers are started, on a machine that may be busy

ORIGIN = "https://app.example"
MODEL = "tiny/one"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def embed(server: ServerProcess, headers: dict[str, str] | None = None, **body: object) -> httpx.Response:
    return httpx.post(f"{server.url}/embed", json={"text": "one", **body}, headers=headers, timeout=30)


def refused(response: httpx.Response, status: int, code: str) -> str:
    """The challenge of a refusal."""
    told = response.json()
    assert (response.status_code, told["status"], told["code"]) == (status, status, code), response.text
    return str(response.headers.get("www-authenticate"))


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    TinyModel(MODEL).write(folder)
    TinyModel("tiny/two").write(folder)
    return folder


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys.txt"
    path.write_text(f"# those of the file\nfiled:{FILED}\n")
    return path


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with issuing(public_jwk(rsa_key("one"), "one"), public_jwk(ec_key("curve"), "curve")) as issuer:
        yield issuer


@pytest.fixture(scope="module")
def server(models_dir: Path, key_file: Path, issuer: Issuer) -> Iterator[ServerProcess]:
    """One that takes keys of both kinds and tokens of all, with everything closed that can be."""
    settings = {
        "MODELS_DIR": str(models_dir),
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
    with running_server(**settings) as server:
        yield server


def issued(key: Any = SECRET, algorithm: str = "HS256", **more: Any) -> str:
    """A token as this server takes them, but for *more*."""
    return token(key, algorithm, **{"aud": "embeddings", "iss": "https://login.example", **more})


# --- Keys ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        pytest.param("POST", "/embed", {"alice", "admin", "filed"}, id="embed"),
        pytest.param("POST", "/embed/batch", {"alice", "admin", "filed"}, id="batch"),
        pytest.param("POST", "/tokenize", {"alice", "admin", "filed"}, id="tokenize"),
        pytest.param("GET", "/metrics", {"meter", "admin"}, id="metrics"),
        pytest.param("HEAD", "/metrics", {"meter", "admin"}, id="head of the metrics"),
        pytest.param("GET", "/models", {"alice", "meter", "admin", "filed"}, id="models"),
        pytest.param("GET", f"/models/{MODEL}", {"alice", "meter", "admin", "filed"}, id="model"),
        pytest.param("GET", "/schema", {"alice", "meter", "admin", "filed"}, id="page of the docs"),
        pytest.param("GET", "/schema/openapi.json", {"alice", "meter", "admin", "filed"}, id="docs for programs"),
    ],
)
def test_route_is_for_those_whose_key_is_good_for_it(
    method: str, path: str, allowed: set[str], server: ServerProcess
) -> None:
    body = {"text": "one"} if path == "/embed" else {"texts": ["one"]}
    keys = {"alice": ALICE, "meter": METER, "admin": ADMIN, "filed": FILED}
    for headers in (bearer, lambda key: {"X-API-Key": key}):
        answers = {
            name: httpx.request(
                method, f"{server.url}{path}", headers=headers(key), json=body if method == "POST" else None, timeout=30
            )
            for name, key in keys.items()
        }
        assert {name for name, answer in answers.items() if answer.status_code == 200} == allowed
        assert {answer.status_code for name, answer in answers.items() if name not in allowed} <= {403}
    nobody = httpx.request(method, f"{server.url}{path}")
    assert (nobody.status_code, nobody.headers["www-authenticate"]) == (401, 'Bearer realm="fast-embedding"')


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready"])
def test_health_is_open_to_all(path: str, server: ServerProcess) -> None:
    for headers in ({}, bearer("nobody-0123456789")):
        assert httpx.get(f"{server.url}{path}", headers=headers).status_code == 200


def test_header_sent_twice_with_different_keys_is_refused(server: ServerProcess) -> None:
    headers = [("X-API-Key", ALICE), ("X-API-Key", METER)]
    response = httpx.post(f"{server.url}/embed", json={"text": "one"}, headers=headers)
    assert 'error="invalid_request"' in refused(response, 401, "unauthenticated")


def test_model_outside_the_allowed_ones_is_refused_on_every_route(server: ServerProcess) -> None:
    for name in ("tiny/two", "TINY/TWO", "sentence-transformers/all-MiniLM-L6-v2"):
        answers = [
            embed(server, bearer(ADMIN), model_name=name),
            *(
                httpx.post(f"{server.url}{path}", json={"texts": ["one"], "model_name": name}, headers=bearer(ADMIN))
                for path in ("/embed/batch", "/tokenize")
            ),
            httpx.get(f"{server.url}/models/{name}", headers=bearer(ADMIN)),
            httpx.get(f"{server.url}/models/{name.replace('/', '%2F')}", headers=bearer(ADMIN)),
        ]
        for answer in answers:
            refused(answer, 403, "model-not-allowed")
    assert httpx.get(f"{server.url}/models", headers=bearer(ADMIN)).json()["allowed_models"] == [MODEL]


def test_refusal_goes_out_before_the_body_comes(server: ServerProcess) -> None:
    """A large upload is announced, and none of it is sent."""
    for length in (("Content-Length", "9000000"), ("Transfer-Encoding", "chunked")):
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=20)
        connection.putrequest("POST", "/embed")
        connection.putheader("Content-Type", "application/json")
        connection.putheader(*length)
        connection.endheaders()
        response = connection.getresponse()
        assert response.status == 401
        assert json.loads(response.read())["code"] == "unauthenticated"
        connection.close()


def test_upload_of_a_stranger_is_refused_with_an_answer_that_arrives(server: ServerProcess) -> None:
    response = httpx.post(f"{server.url}/embed", content=b'{"text": "' + b"x" * 9_000_000 + b'"}', timeout=30)
    refused(response, 401, "unauthenticated")


def test_log_tells_the_name_of_the_caller(server: ServerProcess) -> None:
    for key, name, request_id in (
        (ALICE, "alice", "by-key"),
        (METER, "meter", "without-scope"),
        (issued(sub="service-7"), "service-7", "by-token"),
        ("nobody-0123456789", None, "by-nobody"),
    ):
        embed(server, {**bearer(key), "X-Request-ID": request_id})
        assert server.wait_for_request(request_id).get("caller") == name


# --- Tokens -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "good",
    [
        pytest.param(issued(), id="HS256"),
        pytest.param(issued(rsa_key("one"), "RS256", kid="one"), id="RS256"),
        pytest.param(issued(ec_key("curve"), "ES256", kid="curve"), id="ES256"),
        pytest.param(issued(ec_key("curve"), "ES256"), id="without a key id"),
        pytest.param(issued(aud=["other", "embeddings"]), id="for several"),
    ],
)
def test_good_token_is_let_in(good: str, server: ServerProcess) -> None:
    response = embed(server, bearer(good))
    assert response.status_code == 200, response.text


def test_token_that_has_just_ended_is_let_in_within_the_leeway(server: ServerProcess) -> None:
    assert embed(server, bearer(issued(exp=int(time.time()) - 100))).status_code == 200


def confused() -> str:
    """Signed by HMAC with the public key, which everybody knows."""
    algorithm = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    unsigned = issued(kid="one").rpartition(".")[0]
    signature = algorithm.sign(unsigned.encode(), public_pem(rsa_key("one")))
    return f"{unsigned}.{jwt.utils.base64url_encode(signature).decode()}"


def unsigned() -> str:
    return jwt.encode({"sub": "alice", "exp": 9**10, "aud": "embeddings"}, "", "none")


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        pytest.param(issued(exp=int(time.time()) - 400), "expired", id="expired"),
        pytest.param(issued(exp=None), "'exp'", id="without an end"),
        pytest.param(issued(aud="else"), "another audience", id="for somebody else"),
        pytest.param(issued(aud=None), "'aud'", id="for nobody"),
        pytest.param(issued(iss="https://else.example"), "another issuer", id="of another issuer"),
        pytest.param(issued(nbf=int(time.time()) + 86_400), "not valid yet", id="too early"),
        pytest.param(issued("x" * 40), "signature", id="of another secret"),
        pytest.param(issued(rsa_key("two"), "RS256", kid="one"), "signature", id="of another key"),
        pytest.param(issued(ec_key("curve"), "ES256", kid="one"), "does not have", id="id of another kind of key"),
        pytest.param(unsigned(), "must be signed", id="unsigned"),
        pytest.param(confused(), "signature", id="public key for a secret"),
        pytest.param("not.a.token", "malformed", id="no token"),
    ],
)
def test_bad_token_is_refused(bad: str, told: str, server: ServerProcess) -> None:
    challenge = refused(embed(server, bearer(bad)), 401, "unauthenticated")
    assert challenge.startswith('Bearer realm="fast-embedding", error="invalid_token", error_description="')
    assert told in challenge


@pytest.mark.parametrize(
    ("scopes", "statuses"),
    [
        pytest.param({}, (200, 403), id="none"),
        pytest.param({"scope": "embed metrics"}, (200, 200), id="both"),
        pytest.param({"scope": "metrics"}, (403, 200), id="one"),
        pytest.param({"scp": ["admin"]}, (200, 200), id="admin"),
        pytest.param({"scope": "openid"}, (403, 403), id="others"),
    ],
)
def test_token_is_good_for_its_scopes(scopes: dict[str, Any], statuses: tuple[int, int], server: ServerProcess) -> None:
    headers = bearer(issued(**scopes))
    asked = (embed(server, headers).status_code, httpx.get(f"{server.url}/metrics", headers=headers).status_code)
    assert asked == statuses


def test_new_key_of_the_issuer_is_fetched_and_made_up_ids_are_not_fetched_each_time(models_dir: Path) -> None:
    settings = {"MODELS_DIR": str(models_dir), "REQUIRED_MODELS": MODEL}
    first, second = (token(rsa_key(name), "RS256", kid=name) for name in ("one", "two"))
    with (
        issuing(public_jwk(rsa_key("one"), "one")) as issuer,
        running_server(JWT_JWKS_URL=issuer.url, **settings) as server,
    ):
        assert embed(server, bearer(first)).status_code == 200
        issuer.offer(public_jwk(rsa_key("two"), "two"))
        assert embed(server, bearer(second)).status_code == 200
        refused(embed(server, bearer(first)), 401, "unauthenticated")
        asked = issuer.asked
        for number in range(20):
            forged = token(rsa_key("three"), "RS256", kid=f"forged-{number}")
            refused(embed(server, bearer(forged)), 401, "unauthenticated")
        assert issuer.asked <= asked + 3  # one per 10 s, however slow this machine is


def test_issuer_that_is_down_locks_out_only_those_whose_key_is_not_known(models_dir: Path) -> None:
    settings = {"MODELS_DIR": str(models_dir), "REQUIRED_MODELS": MODEL, "API_KEYS": KEYS}
    good, new = (token(rsa_key(name), "RS256", kid=name) for name in ("one", "two"))
    with (
        issuing(public_jwk(rsa_key("one"), "one")) as issuer,
        running_server(JWT_JWKS_URL=issuer.url, **settings) as server,
    ):
        assert embed(server, bearer(good)).status_code == 200
        issuer.status = 500
        response = embed(server, bearer(new))
        assert response.json()["code"] == "keys-unavailable"
        assert (response.status_code, int(response.headers["retry-after"]) > 0) == (503, True)
        assert embed(server, bearer(good)).status_code == 200
        assert embed(server, bearer(ALICE)).status_code == 200
        assert server.wait_for("jwks_fetch_failed")["reason"] == "the answer is 500, not 200"
        assert issuer.url not in server.log


# --- The file -----------------------------------------------------------------------------------------------------


def test_file_that_changes_counts_while_the_service_runs(models_dir: Path, tmp_path: Path) -> None:
    file, others = tmp_path / "keys", "other-key-0123456789"

    def replace(text: str) -> None:
        (tmp_path / "new").write_text(text)
        (tmp_path / "new").replace(file)

    def ask_until(event: str, server: ServerProcess) -> dict[str, Any]:
        """Requests make the service look at the file, once in a second."""
        deadline = time.monotonic() + 40
        while time.monotonic() < deadline and not [told for told in server.events if told["event"] == event]:
            embed(server, bearer(others))
        return server.wait_for(event, timeout_s=1)

    replace(f"alice:{ALICE}\n")
    settings = {"MODELS_DIR": str(models_dir), "REQUIRED_MODELS": MODEL, "API_KEYS_FILE": str(file)}
    with running_server(**settings) as server:
        assert embed(server, bearer(ALICE)).status_code == 200
        replace(f"other:{others}\n")
        assert ask_until("api_keys_read", server)["keys"] == 1
        assert embed(server, bearer(others)).status_code == 200
        refused(embed(server, bearer(ALICE)), 401, "unauthenticated")
        file.unlink()
        assert "No such file" in ask_until("api_keys_kept", server)["reason"]
        assert embed(server, bearer(others)).status_code == 200
        refused(embed(server, None), 401, "unauthenticated")
        assert str(tmp_path) not in server.log
        assert others not in server.log


# --- Browsers -----------------------------------------------------------------------------------------------------


def test_preflight_needs_no_key_and_allows_all_headers_by_name(server: ServerProcess) -> None:
    wanted = "authorization, x-api-key, x-request-id, x-request-timeout, content-type, x-stainless-lang"
    asked = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": wanted}
    response = httpx.options(f"{server.url}/embed", headers=asked)
    assert response.is_success
    allowed = response.headers["access-control-allow-headers"].lower().split(", ")
    assert set(wanted.split(", ")) <= set(allowed)
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert response.headers["access-control-allow-credentials"] == "true"


def test_page_of_a_named_origin_may_read_refusals(server: ServerProcess) -> None:
    for response in (
        embed(server, {"Origin": ORIGIN}),
        embed(server, {"Origin": ORIGIN, **bearer(METER)}),
        embed(server, {"Origin": ORIGIN, **bearer(ALICE)}, model_name="tiny/two"),
        embed(server, {"Origin": ORIGIN, **bearer(ALICE)}, text=""),
    ):
        assert response.is_error
        assert response.headers["access-control-allow-origin"] == ORIGIN
        assert response.headers["access-control-allow-credentials"] == "true"
        exposed = response.headers["access-control-expose-headers"].lower()
        assert "www-authenticate" in exposed
        assert "retry-after" in exposed


def test_page_of_another_origin_may_not(server: ServerProcess) -> None:
    for headers in ({}, bearer(ALICE)):
        response = embed(server, {"Origin": "https://evil.example", **headers})
        assert "access-control-allow-origin" not in response.headers
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    assert httpx.options(f"{server.url}/embed", headers=asked).status_code == 400


def test_page_may_read_that_the_service_is_draining(models_dir: Path) -> None:
    """It is told outside of Litestar, which adds such headers within itself only."""
    settings = {"MODELS_DIR": str(models_dir), "REQUIRED_MODELS": MODEL}
    with (
        running_server(**settings) as server,
        socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), 20) as held,
    ):
        # A request whose body is not there yet keeps the service from ending.
        held.sendall(b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: 15\r\n\r\n")
        embed(server)
        server.process.terminate()
        server.wait_for("drain_started")
        response = embed(server, {"Origin": ORIGIN})
        held.sendall(b'{"text": "one"}')
        assert held.recv(12) == b"HTTP/1.1 200"
    assert response.json()["code"] == "draining"
    assert response.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in response.headers


# --- What gets out ------------------------------------------------------------------------------------------------


def test_start_of_an_open_service_is_warned_of_once_and_keys_silence_it(models_dir: Path) -> None:
    settings = {"MODELS_DIR": str(models_dir), "REQUIRED_MODELS": MODEL, "HOST": "0.0.0.0"}  # noqa: S104 - on purpose
    with running_server(**settings) as server:
        assert embed(server).status_code == 200
        assert [event["level"] for event in server.events if event["event"] == "service_open"] == ["warning"]
    with running_server(**settings, API_KEYS=KEYS) as server:
        assert "service_open" not in server.log


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"API_KEYS": f"alice:{ALICE}:everything"}, id="scope unknown"),
        pytest.param({"API_KEYS": f"{ALICE},{ALICE}"}, id="key twice"),
        pytest.param({"API_KEYS": f'["{ALICE}'}, id="broken JSON"),
        pytest.param({"JWT_SECRET": ALICE}, id="short secret"),
        pytest.param({"API_KEYS": ALICE, "PORT": "0"}, id="another setting"),
        pytest.param({"API_KEYS": ALICE, "JWT_JWKS_URL": f"https://x:{ALICE}@y/"}, id="password in an address"),
    ],
)
def test_bad_setting_stops_the_start_without_showing_a_key(settings: dict[str, str]) -> None:
    with started_server(**settings) as server:
        assert server.wait_for_end() == 1
    assert len(server.lines) == 1
    assert server.log.startswith("Bad settings: ")
    assert ALICE not in server.log


def test_client_takes_its_key_from_the_environment(server: ServerProcess) -> None:
    def tour(**more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "example_client.py", "--base-url", server.url]
        variables = {**environment({}), **more}
        return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)

    assert "Send a key as" in tour().stderr
    assert "in memory" in tour(FAST_EMBEDDING_API_KEY=ALICE).stdout


def test_no_key_and_no_token_is_in_the_log_or_in_an_answer(server: ServerProcess, key_file: Path) -> None:
    """After all of the above, and some more."""
    stranger, good = "stranger-key-0123456789", issued()
    bad = issued(exp=1)
    sent = [ALICE, METER, ADMIN, FILED, stranger, good, bad]
    answers = [embed(server, headers) for key in sent for headers in (bearer(key), {"X-API-Key": key})]
    answers += [
        httpx.get(f"{server.url}/nothing", headers=bearer(ALICE)),
        httpx.put(f"{server.url}/embed", headers=bearer(ALICE)),
        embed(server, {"Authorization": f"Basic {ALICE}"}),
        httpx.get(f"{server.url}/metrics", headers=bearer(ADMIN)),
        embed(server, {**bearer(ADMIN), "X-Request-ID": "the-last-one"}),
    ]
    server.wait_for_request("the-last-one")
    secrets = [*sent, SECRET, *(part for part in (*good.split("."), *bad.split(".")) if part), str(key_file)]
    told = server.log + "".join(f"{answer.headers}{answer.text}" for answer in answers)
    assert [secret for secret in secrets if secret in told] == []
    assert os.fspath(ROOT) not in server.log
