"""`DELETE /cache`: who may delete the results, over real connections to a real server."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from api.result_cache_admin import ClearedResults, NoResultCache, ResultCacheAdmin
from tests.support.apps import running_app
from tests.support.proxies import running_proxy
from tests.support.raw_http import CLIENT, Answer, connected, receive_answer, send
from tests.support.servers import ServerProcess
from tests.support.signing_keys import SECRET, token

STRANGER = "203.0.113.7"
NOTHING = {"entries": 0, "bytes": 0, "redis": "off", "workers_unreachable": 0}
BARE_PROXY = """
worker_processes 1;
error_log stderr notice;
events { worker_connections 64; }
http {
    access_log off;
    server {
        listen 8080;
        listen [::]:8080;
        location / { proxy_pass http://REPLICA; HEADERS }
    }
}
"""
"""An nginx on the same machine, as people write it in a minute."""

Servers = Callable[..., ServerProcess]


@pytest.fixture
def server(server_with: Servers, tiny_models: Path) -> ServerProcess:
    """A server without keys, and without trusted proxies."""
    return server_with(MODELS_DIR=str(tiny_models), REQUIRED_MODELS="tiny/one")


@pytest.fixture
def behind_proxy(server_with: Servers, tiny_models: Path) -> ServerProcess:
    """A server without keys that trusts the proxies on this machine, and in a network with clients."""
    trusted = "127.0.0.1,10.0.0.0/8"
    return server_with(MODELS_DIR=str(tiny_models), REQUIRED_MODELS="tiny/one", TRUSTED_PROXIES=trusted)


def delete(server: ServerProcess, *headers: str, host: str = "127.0.0.1", line: str = "DELETE /cache") -> Answer:
    """Send a request with these *headers*, as the server's program sends it and not as a library does."""
    version = "" if " HTTP/" in line else " HTTP/1.1"
    with connected(server) as connection:
        send(connection, "\r\n".join([f"{line}{version}", f"Host: {host}", *headers, "", ""]).encode())
        return receive_answer(connection)


def is_refused(answer: Answer) -> bool:
    """Return whether *answer* says that only this machine may; anything but a success or that fails the test."""
    status, headers, body = answer
    document = json.loads(body)
    if status == 200:
        assert document == NOTHING
        return False
    assert (status, document["code"]) == (403, "local-only")
    assert "http://127.0.0.1" in document["detail"]
    assert "permission 'admin'" in document["detail"]
    assert headers["content-type"] == "application/problem+json"
    return True


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "LocalHost.:80", "[::1]:8000", "127.0.1.1"])
def test_program_on_this_machine_may_delete_the_results_as_often_as_it_likes(server: ServerProcess, host: str) -> None:
    for _ in range(2):
        assert not is_refused(delete(server, host=host))


@pytest.mark.parametrize(
    "header",
    [
        f"X-Forwarded-For: {STRANGER}",
        "X-Forwarded-For: 127.0.0.1",
        "X-Forwarded-For:",
        "X-Forwarded-Host: embedding.example",
        "X-Forwarded-Proto: https",
        f"Forwarded: for={STRANGER}",
        "Via: 1.1 proxy",
        f"X-Real-IP: {STRANGER}",
        f"CF-Connecting-IP: {STRANGER}",
        f"True-Client-IP: {STRANGER}",
        f"X-Cluster-Client-IP: {STRANGER}",
        f"X-Envoy-External-Address: {STRANGER}",
        f"X-Original-Forwarded-For: {STRANGER}",
        f"Fastly-Client-IP: {STRANGER}",
    ],
)
def test_request_through_a_proxy_that_is_not_trusted_is_a_403(server: ServerProcess, header: str) -> None:
    assert is_refused(delete(server, header))


@pytest.mark.parametrize(
    ("headers", "may_delete"),
    [
        pytest.param([], False, id="no header"),
        pytest.param([f"X-Forwarded-For: {STRANGER}"], False, id="stranger"),
        pytest.param([f"X-Forwarded-For: 127.0.0.1, {STRANGER}"], False, id="stranger who writes an address"),
        pytest.param(["X-Forwarded-For: 127.0.0.1", f"X-Forwarded-For: {STRANGER}"], False, id="two headers"),
        pytest.param(["X-Forwarded-For: 127.0.0.1, 10.1.2.3"], False, id="client in a trusted network"),
        pytest.param(["X-Forwarded-For: 10.1.2.3"], False, id="trusted proxy of another machine"),
        pytest.param(["X-Forwarded-For: 127.0.0.1, x"], False, id="no address"),
        pytest.param(["X-Forwarded-For: " + "127.0.0.1," * 40 + "127.0.0.1"], False, id="too many hops"),
        pytest.param(["X-Forwarded-For: 127.0.0.1"], True, id="this machine"),
        pytest.param(["X-Forwarded-For: ::1, 127.0.0.1"], True, id="this machine, by two proxies"),
    ],
)
def test_through_a_trusted_proxy_every_hop_must_be_on_this_machine(
    behind_proxy: ServerProcess, headers: list[str], *, may_delete: bool
) -> None:
    assert is_refused(delete(behind_proxy, *headers)) is not may_delete


@pytest.mark.nginx
@pytest.mark.parametrize(
    "headers",
    [
        pytest.param("", id="no headers"),
        pytest.param(
            "proxy_set_header X-Forwarded-For $remote_addr; proxy_http_version 1.1;", id="address of the client"
        ),
        pytest.param("proxy_set_header Host $host; proxy_set_header X-Real-IP $remote_addr;", id="another header"),
    ],
)
@pytest.mark.parametrize("forged", [{}, {"X-Forwarded-For": "127.0.0.1"}], ids=["plain", "forged"])
def test_nginx_on_the_same_machine_opens_nothing_to_its_clients(
    server: ServerProcess, headers: str, forged: dict[str, str], tmp_path: Path
) -> None:
    source = tmp_path / "bare.conf"
    address = server.url.removeprefix("http://")
    source.write_text(BARE_PROXY.replace("REPLICA", address).replace("HEADERS", headers), encoding="utf-8")
    with running_proxy(tmp_path, (), source=source) as proxy:
        answer = CLIENT.delete(f"{proxy.url}/cache", headers=forged)
    assert (answer.status_code, answer.json()["code"]) == (403, "local-only")


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param(["Origin: https://app.example"], id="page of another origin"),
        pytest.param(["Origin: http://127.0.0.1:8000"], id="page of this service"),
        pytest.param(["Origin: null"], id="page without an origin"),
    ],
)
def test_page_in_a_browser_on_this_machine_may_not_delete_them(server: ServerProcess, headers: list[str]) -> None:
    assert is_refused(delete(server, *headers))


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "192.0.2.1"])
def test_name_that_somebody_points_at_this_machine_is_a_403(server: ServerProcess, host: str) -> None:
    assert is_refused(delete(server, host=host))
    assert is_refused(delete(server, line=f"DELETE http://{host}/cache"))


def test_request_in_http_1_0_is_a_403(server: ServerProcess) -> None:
    assert is_refused(delete(server, line="DELETE /cache HTTP/1.0"))


@pytest.mark.parametrize("cors", [{}, {"CORS_ORIGINS": "https://app.example"}], ids=["any origin", "named origin"])
def test_pages_of_other_origins_get_no_permission_for_delete(cors: dict[str, str], tiny_models: Path) -> None:
    asked = {"Origin": "https://app.example", "Access-Control-Request-Method": "DELETE"}
    with running_app(MODELS_DIR=str(tiny_models), REQUIRED_MODELS="tiny/one", **cors) as client:
        for path in ("/cache", "/embed"):
            answer = client.options(path, headers=asked)
            assert answer.status_code == 400
            assert "DELETE" not in answer.headers.get("access-control-allow-methods", "")
            post = client.options(path, headers={**asked, "Access-Control-Request-Method": "POST"})
            assert post.status_code == 204
            assert post.headers["access-control-allow-methods"] == "GET, HEAD, OPTIONS, POST"


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH"])
def test_other_methods_are_a_405_that_names_delete(server: ServerProcess, method: str) -> None:
    answer = CLIENT.request(method, f"{server.url}/cache")
    assert answer.status_code == 405
    assert set(answer.headers["allow"].split(", ")) == {"DELETE", "OPTIONS"}
    if method != "HEAD":
        assert answer.json()["detail"] == f"This address does not accept {method}. Use DELETE."


ALICE, METER, ADMIN = (f"{name}-key-0123456789" for name in ("alice", "meter", "admin"))


@pytest.fixture(scope="module")
def closed(tiny_models: Path) -> Iterator[httpx.Client]:
    """The client of an app with keys and tokens; its address is not that of a machine."""
    keys = f"alice:{ALICE},meter:{METER}:metrics,admin:{ADMIN}:admin"
    with running_app(
        MODELS_DIR=str(tiny_models), REQUIRED_MODELS="tiny/one", API_KEYS=keys, JWT_SECRET=SECRET
    ) as client:
        yield client


@pytest.mark.parametrize(
    ("credential", "status", "code"),
    [
        pytest.param("", 401, "unauthenticated", id="no key"),
        pytest.param("nobody", 401, "unauthenticated", id="unknown key"),
        pytest.param(ALICE, 403, "missing-scope", id="key with the default permissions"),
        pytest.param(METER, 403, "missing-scope", id="key for metrics"),
        pytest.param(token(SECRET, "HS256"), 403, "missing-scope", id="token with the default permissions"),
        pytest.param(token(SECRET, "HS256", scope="embed metrics"), 403, "missing-scope", id="token with others"),
        pytest.param(ADMIN, 200, None, id="key with admin"),
        pytest.param(token(SECRET, "HS256", scope="admin"), 200, None, id="token with admin"),
    ],
)
def test_with_keys_only_the_permission_admin_counts(
    closed: httpx.Client, credential: str, status: int, code: str | None
) -> None:
    headers = {"Authorization": f"Bearer {credential}"} if credential else {}
    answer = closed.delete("/cache", headers={**headers, "X-Forwarded-For": STRANGER, "Host": "embedding.example"})
    assert (answer.status_code, answer.json().get("code")) == (status, code)
    if status == 403:
        assert answer.json()["scope"] == "admin"


def test_caller_without_an_address_is_not_local(tiny_models: Path) -> None:
    """As one that is connected by a Unix socket, behind which is often a proxy."""
    with running_app(MODELS_DIR=str(tiny_models), REQUIRED_MODELS="tiny/one") as client:
        assert client.delete("/cache", headers={"Host": "localhost"}).json()["code"] == "local-only"


async def test_service_without_a_cache_has_nothing_to_delete() -> None:
    admin: ResultCacheAdmin = NoResultCache()
    assert await admin.clear() == ClearedResults(entries=0, bytes=0, redis="off")
