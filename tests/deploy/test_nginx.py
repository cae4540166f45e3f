"""nginx.conf in front of a simple upstream: limits, addresses, streams, TLS. test_replicas.py uses real replicas."""

import json
import re
import resource
import select
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import httpx
import pytest
import yaml

from assembly.app import EXPOSED_HEADERS
from config import Settings
from tests.support.certificates import certified
from tests.support.proxies import (
    BALANCER,
    CONFIGURATION,
    ProxyProcess,
    changed,
    nginx,
    problem,
    read_timeout,
    running_proxy,
    to_replicas,
)
from tests.support.servers import ROOT, free_port
from tests.support.upstreams import Gated, Quiet, echoing, serving

pytestmark = [pytest.mark.nginx, pytest.mark.timeout(60)]

SECONDS = {"s": 1, "m": 60}
OUTSIDE = "127.0.0.2"
"""A local address that nginx.conf does not treat as internal."""
LOW_LIMITS = {r"rate=1000r/s": "rate=1r/m", r"burst=2000 nodelay": "burst=2 nodelay"}


def directive_value(directive: str) -> str:
    """Return the value of a directive that occurs once in nginx.conf."""
    [value] = re.findall(rf"^ *{directive} +([^;]+);", CONFIGURATION.read_text(encoding="utf-8"), re.MULTILINE)
    return str(value)


def directive_seconds(directive: str) -> int:
    value = directive_value(directive)
    return int(value[:-1]) * SECONDS[value[-1]]


@contextmanager
def open_file_limit(limit: int) -> Iterator[None]:
    """Set the soft limit of open files for processes that start in the block; the hard limit stays."""
    before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, hard))


@contextmanager
def calling_from(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(transport=httpx.HTTPTransport(local_address=address), timeout=30) as client:
        yield client


def wait_for_worker(worker: str) -> None:
    """Wait until an nginx worker has set its process title, which it does at the end of its setup."""
    while b"worker process" not in Path(f"/proc/{worker}/cmdline").read_bytes():
        time.sleep(0.01)


# --- Values that depend on the service ----------------------------------------------------------------------------


def test_workers_may_open_two_files_per_connection(tmp_path: Path) -> None:
    """Docker's default of 1,024 would allow only half as many requests, whatever worker_connections says."""
    with open_file_limit(1024), running_proxy(tmp_path, ["127.0.0.1:9"]) as proxy:
        assert "exceed open file resource limit" not in proxy.log
        for worker in re.findall(r"start worker process (\d+)", proxy.log):
            wait_for_worker(worker)
            limits = Path(f"/proc/{worker}/limits").read_text(encoding="utf-8")
            [limit] = re.findall(r"^Max open files +(\d+)", limits, re.MULTILINE)
            assert (
                int(limit)
                == int(directive_value("worker_rlimit_nofile"))
                >= 2 * int(directive_value("worker_connections"))
            )


def test_limits_fit_the_settings_of_the_service() -> None:
    settings = Settings.model_construct()  # the defaults, without the environment
    assert directive_value("client_max_body_size") == str(int(settings.max_request_size))
    assert f"""413     ',"limit":{int(settings.max_request_size)}';""" in CONFIGURATION.read_text(encoding="utf-8")
    assert directive_seconds("proxy_read_timeout") == settings.request_timeout + 5
    assert directive_seconds("proxy_next_upstream_timeout") == settings.request_timeout + 10
    assert directive_seconds("keepalive_timeout") < settings.keep_alive_timeout
    # Otherwise the service would close the connection while nginx sends a body.
    assert directive_seconds("proxy_send_timeout") < settings.body_timeout
    [exposed] = re.findall(r'default "(RateLimit[^"]+)";', CONFIGURATION.read_text(encoding="utf-8"))
    assert exposed == ", ".join(sorted(EXPOSED_HEADERS))


def test_change_that_matches_nothing_fails() -> None:
    with pytest.raises(AssertionError, match="nothing like"):
        changed("listen 8080;", {"listen 8081;": ""})


def test_command_of_the_guide_makes_the_configuration_that_the_tests_use() -> None:
    guide = (CONFIGURATION.parent / "docs" / "production" / "nginx.md").read_text(encoding="utf-8")
    [command] = re.findall(r"(?m)^(sed (?:.+\\\n)+.+nginx\.conf) > proxy\.conf$", guide)
    made = subprocess.run(command, shell=True, cwd=CONFIGURATION.parent, check=True, capture_output=True, text=True)  # noqa: S602
    wanted = {**to_replicas(["127.0.0.1:8001", "127.0.0.1:8002"]), **read_timeout(65)}
    assert made.stdout == changed(CONFIGURATION.read_text(encoding="utf-8"), wanted)


# --- Limits per client --------------------------------------------------------------------------------------------


def test_flood_of_one_client_gets_429_problems_and_other_clients_are_served(tmp_path: Path) -> None:
    with echoing(tmp_path, LOW_LIMITS) as proxy, calling_from(OUTSIDE) as other:
        responses = [
            httpx.post(f"{proxy.url}/200", json={}, headers={"Origin": "https://app.example"}) for _ in range(4)
        ]
        assert [response.status_code for response in responses] == [200, 200, 200, 429]
        assert problem(responses[-1], 429, "rate-limited")["title"] == "Too many requests"
        assert responses[-1].headers["retry-after"] == "1"
        assert responses[-1].headers["access-control-allow-origin"] == "*"  # so that pages of other origins can read it
        assert other.post(f"{proxy.url}/200", json={}).status_code == 200
        [logged] = proxy.wait_for_requests("refused request", lambda request: request["status"] == 429)
        assert logged["replica"] == ""


def test_concurrent_requests_of_one_client_are_limited_and_other_clients_are_served(
    gated: type[Gated], tmp_path: Path
) -> None:
    with (
        serving(gated) as address,
        running_proxy(tmp_path, [address], {"limit_conn connections 256;": "limit_conn connections 1;"}) as proxy,
        ThreadPoolExecutor(1) as pool,
        calling_from(OUTSIDE) as other,
    ):
        url = f"{proxy.url}/stream?text/plain"
        first = pool.submit(httpx.get, url, timeout=30)
        assert gated.begun.wait(30)
        problem(httpx.get(url), 429, "rate-limited")
        assert other.get(f"{proxy.url}/much").status_code == 200
        gated.gate.set()
        assert first.result().status_code == 200


def test_addresses_of_one_ipv6_network_are_one_client(tmp_path: Path) -> None:
    def ask(address: str) -> int:
        return httpx.post(f"{proxy.url}/200", json={}, headers={"X-Forwarded-For": address}).status_code

    with echoing(tmp_path, {**LOW_LIMITS, **BALANCER, r"10\.0\.0\.0/24": "127.0.0.1"}) as proxy:
        assert [ask(f"2001:db8::{number}") for number in range(1, 5)] == [200, 200, 200, 429]
        assert ask("2001:db8:0:1::1") == 200
        assert ask("203.0.113.7") == 200


@pytest.mark.parametrize("header", ["Content-Length: 9000000", "Transfer-Encoding: chunked"])
def test_slow_uploads_of_one_client_do_not_fill_the_body_folder(header: str, tmp_path: Path) -> None:
    limit = int(re.findall(r"limit_conn large_bodies (\d+);", CONFIGURATION.read_text(encoding="utf-8"))[0])
    assert (
        limit * int(directive_value("client_max_body_size")) < 256_000_000
    )  # the size of the folder in docker-compose.yml
    patient = {r"client_body_timeout   15s": "client_body_timeout 60s"}
    with running_proxy(tmp_path, ["127.0.0.1:9"], patient) as proxy, ExitStack() as opened:
        address = (urlsplit(proxy.url).hostname, urlsplit(proxy.url).port)
        uploads = [
            opened.enter_context(socket.create_connection(address, source_address=(OUTSIDE, 0)))
            for _ in range(limit + 1)
        ]
        for upload in uploads:
            upload.sendall(f"POST /embed HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n".encode())
        [refused], _, _ = select.select(uploads, [], [], 10)
        assert refused.recv(100).startswith(b"HTTP/1.1 429 ")
        with calling_from(OUTSIDE) as same, calling_from("127.0.0.3") as another:
            # 502: this proxy has no replica.
            assert same.post(proxy.url, content=b"x" * 299_999).status_code == 502
            assert same.post(proxy.url, content=b"x" * 300_000).status_code == 429
            assert same.get(proxy.url).status_code == 502
            assert another.post(proxy.url, content=b"x" * 300_000).status_code == 502


# --- Client addresses and origins ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def balanced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyProcess]:
    """An nginx that trusts 127.0.0.1 as a load balancer."""
    with echoing(tmp_path_factory.mktemp("balanced"), {**BALANCER, r"10\.0\.0\.0/24": "127.0.0.1"}) as proxy:
        yield proxy


@pytest.mark.parametrize(
    ("header", "client"),
    [
        pytest.param("203.0.113.7", "203.0.113.7", id="balancer"),
        pytest.param("198.51.100.1, 203.0.113.7", "203.0.113.7", id="forged"),
        pytest.param("203.0.113.7, 127.0.0.1", "203.0.113.7", id="two-balancers"),
        pytest.param("no address", "127.0.0.1", id="invalid"),
    ],
)
def test_behind_a_load_balancer_the_client_is_the_last_untrusted_address(
    balanced: ProxyProcess, *, header: str, client: str
) -> None:
    headers = {"X-Forwarded-For": header}
    got = httpx.post(f"{balanced.url}/200", json={}, headers=headers).json()
    assert got["x-forwarded-for"] == got["x-real-ip"] == [client]


def test_x_forwarded_for_of_other_clients_is_ignored(balanced: ProxyProcess) -> None:
    with calling_from(OUTSIDE) as stranger:
        got = stranger.post(f"{balanced.url}/200", json={}, headers={"X-Forwarded-For": "203.0.113.7"}).json()
    assert got["x-forwarded-for"] == got["x-real-ip"] == [OUTSIDE]


def test_only_pages_of_allowed_origins_can_read_errors_of_nginx(tmp_path: Path) -> None:
    named = {r'(?s)("";\n +)default "\*";': r'\1"https://app.example" $http_origin; default "";'}
    with echoing(tmp_path, {**named, **LOW_LIMITS}) as proxy:
        for origin, allowed in (("https://app.example", True), ("https://else.example", False), (None, False)):
            headers = {"Origin": origin} if origin else {}
            response = httpx.request("TRACE", f"{proxy.url}/health", headers=headers)
            problem(response, 405, "method-not-allowed")
            assert response.headers.get("access-control-allow-origin") == (origin if allowed else None)
            assert response.headers.get("access-control-allow-credentials") == ("true" if allowed else None)
            assert response.headers.get("vary") == ("Origin" if allowed else None)
            assert ("access-control-expose-headers" in response.headers) is allowed


# --- Dialects -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "media_type", "members"),
    [
        ("/v1/embeddings", "application/json", {"error": {"type": "server_error", "param": None}}),
        ("/v1/models/a%2Fb", "application/json", {"error": {"code": "bad-gateway"}}),
        ("/embeddings", "application/json", {"error": {"type": "server_error"}}),
        ("/openai/deployments/x/embeddings?api-version=1", "application/json", {"error": {"type": "server_error"}}),
        ("/api/embed", "application/json", {"error": "No replica of the service answers. Try again."}),
        ("/v1/embed", "application/json", {"message": "No replica of the service answers. Try again."}),
        ("/v2/embed/", "application/json", {"message": "No replica of the service answers. Try again."}),
        ("/", "application/json", {"error_type": "Unhealthy"}),
        ("/tei/a/b/embed", "application/json", {"error_type": "Unhealthy"}),
        ("/similarity", "application/json", {"error_type": "Unhealthy"}),
        ("/embed", "application/problem+json", {"error_type": "Unhealthy"}),
        ("/embed/batch", "application/problem+json", {}),
        ("/v1x", "application/problem+json", {}),
    ],
)
def test_errors_of_nginx_have_the_members_of_the_callers_dialect(
    refusing: ProxyProcess, path: str, media_type: str, members: dict[str, Any]
) -> None:
    body = problem(httpx.post(refusing.url + path, json={}), 502, "bad-gateway", media_type=media_type)
    for name, expected in members.items():
        if isinstance(expected, dict):
            assert body[name]["message"] == body["detail"]
            assert body[name] | expected == body[name]
        else:
            assert body[name] == expected
    assert {"error", "error_type", "message"} & body.keys() == (
        {"error", "error_type"} if "error_type" in members else members.keys()
    )


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyProcess]:
    """Yield a proxy whose only replica refuses connections."""
    nginx()
    with running_proxy(tmp_path_factory.mktemp("refusing"), ["127.0.0.1:9"]) as proxy:
        yield proxy


@pytest.mark.parametrize(("path", "expected"), [("/tei", 200), ("/", 200), ("/similarity", 200), ("/v1/models", 429)])
def test_tei_request_that_one_replica_rejects_goes_to_another(tmp_path: Path, path: str, expected: int) -> None:
    """Elsewhere a 429 is a quota, which applies to all replicas, and overload is a 503."""

    class Replica(Quiet):
        statuses: ClassVar[list[int]] = [429, 200]

        def do_POST(self) -> None:  # noqa: N802 - the name of the base class
            self.rfile.read(int(self.headers["Content-Length"]))
            self.begin(self.statuses.pop(0), {"Content-Length": "0"})

    nginx()
    with serving(Replica) as first, serving(Replica) as second, running_proxy(tmp_path, [first, second]) as proxy:
        assert httpx.post(proxy.url + path, json={}).status_code == expected


# --- Streams ------------------------------------------------------------------------------------------------------


@pytest.fixture
def gated() -> type[Gated]:
    class Own(Gated):
        gate, begun, written = threading.Event(), threading.Event(), threading.Event()

    return Own


@pytest.mark.parametrize("media_type", ["text/event-stream", "application/x-ndjson"])
def test_streams_are_not_buffered(gated: type[Gated], tmp_path: Path, *, media_type: str) -> None:
    nginx()
    with (
        serving(gated) as address,
        running_proxy(tmp_path, [address]) as proxy,
        httpx.stream("GET", f"{proxy.url}/stream?{media_type}", timeout=30) as response,
    ):
        lines = response.iter_lines()
        assert next(lines) == "first"  # the second one is sent after the gate opens
        gated.gate.set()
        assert list(lines) == ["second"]
        assert response.headers["content-type"] == media_type
        assert "x-accel-buffering" not in response.headers


def test_slow_reader_does_not_occupy_a_replica(gated: type[Gated], tmp_path: Path) -> None:
    nginx()
    with (
        serving(gated) as address,
        running_proxy(tmp_path, [address]) as proxy,
        httpx.stream("GET", f"{proxy.url}/much", timeout=30) as response,
    ):
        assert gated.written.wait(30)
        assert len(response.read()) == 8_000_000


# --- TLS ----------------------------------------------------------------------------------------------------------


class Secured:
    """An nginx with TLS enabled as nginx.conf describes, and with a self-signed certificate."""

    def __init__(self, proxy: ProxyProcess, url: str, certificate: Path) -> None:
        self.plain_url, self.url, self.certificate = proxy.url, url, certificate

    def context(self, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.certificate)
        context.set_alpn_protocols(["h2", "http/1.1"])
        if version:
            context.set_ciphers("ALL:@SECLEVEL=0")  # otherwise the client itself would refuse old versions
            context.minimum_version = context.maximum_version = version
        return context

    def shake_hands(self, version: ssl.TLSVersion) -> ssl.SSLSocket:
        address = urlsplit(self.url)
        context = self.context(version)
        return context.wrap_socket(
            socket.create_connection((str(address.hostname), address.port or 443), 30), server_hostname="localhost"
        )


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    nginx()
    folder = tmp_path_factory.mktemp("tls")
    [command] = re.findall(r"(?m)^#   (sed -i .*) nginx\.conf$", CONFIGURATION.read_text(encoding="utf-8"))
    source = folder / "switched_on.conf"
    source.write_bytes(CONFIGURATION.read_bytes())
    subprocess.run(f"{command} {source}", shell=True, check=True)  # noqa: S602 - the documented command
    challenges = folder / "acme" / ".well-known" / "acme-challenge"
    challenges.mkdir(parents=True)
    (challenges / "token").write_text("token.thumbprint", encoding="utf-8")
    address = f"127.0.0.1:{free_port()}"
    here = {
        r"listen 8443 ssl": f"listen {address} ssl",
        r"/etc/nginx/tls/": f"{folder}/",
        r"root /var/www/acme;": f"root {folder}/acme;",
    }
    certificate = certified(folder)
    with echoing(folder, here, source=source) as proxy:
        yield Secured(proxy, f"https://{address}", certificate)


def test_https_works_with_http_2_and_http_1_1(secured: Secured) -> None:
    command = ["curl", "-sS", "--http2", "--cacert", str(secured.certificate), "-w", "\n%{http_version}"]
    answer = subprocess.run(
        [*command, "-d", "{}", f"{secured.url}/200"], check=True, capture_output=True, text=True, timeout=30
    )
    body, version = answer.stdout.rsplit("\n", 1)
    assert version == "2"
    assert json.loads(body)["x-forwarded-proto"] == ["https"]
    response = httpx.post(f"{secured.url}/200", json={}, verify=secured.context())
    assert (response.status_code, response.http_version) == (200, "HTTP/1.1")


def test_tls_1_2_and_1_3_are_accepted_and_older_versions_are_not(secured: Secured) -> None:
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        with secured.shake_hands(version) as connection:
            assert connection.selected_alpn_protocol() == "h2"
            cipher = connection.cipher()
            assert cipher
            assert cipher[0].startswith(("TLS_", "ECDHE-"))  # forward secrecy
    with (
        pytest.warns(DeprecationWarning, match="TLSv1_1"),
        pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"),
    ):
        secured.shake_hands(ssl.TLSVersion.TLSv1_1)


@pytest.mark.parametrize(("path", "is_healthy"), [("/200", True), ("/503", False)])
def test_health_check_of_the_container_reaches_a_replica_with_tls(
    secured: Secured, path: str, *, is_healthy: bool
) -> None:
    """A check that accepts the redirect to HTTPS would report an nginx without replicas as healthy."""
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    words = compose["services"]["nginx"]["healthcheck"]["test"]
    here = {
        "http://127.0.0.1:8080": secured.plain_url,
        "127.0.0.1:8443": secured.url.removeprefix("https://"),
        "/health/ready": path,
    }
    command = [*(changed_words(word, here) for word in words[1:]), "-d", "{}"]  # the upstream accepts POST only
    assert (subprocess.run(command, check=False, capture_output=True, timeout=30).returncode == 0) is is_healthy


def changed_words(word: str, changes: dict[str, str]) -> str:
    for before, after in changes.items():
        word = word.replace(before, after)
    return word


def test_http_is_redirected_to_https_with_method_and_body(secured: Secured) -> None:
    response = httpx.post(f"{secured.plain_url}/embed?x=1", json={"text": "one"})
    assert response.status_code == 308
    assert response.headers["location"] == "https://127.0.0.1/embed?x=1"
    assert "strict-transport-security" not in response.headers  # ignored by browsers without TLS


def test_acme_challenges_are_answered_without_tls(secured: Secured) -> None:
    response = httpx.get(f"{secured.plain_url}/.well-known/acme-challenge/token")
    assert (response.status_code, response.text) == (200, "token.thumbprint")


def test_strict_transport_security_is_sent_with_tls_only(secured: Secured, tmp_path: Path) -> None:
    for method, status in (("POST", 200), ("TRACE", 405)):
        response = httpx.request(method, f"{secured.url}/200", content=b"", verify=secured.context())
        assert response.status_code == status
        assert response.headers.get_list("strict-transport-security") == ["max-age=63072000"]
    with echoing(tmp_path) as proxy:
        assert "strict-transport-security" not in httpx.post(f"{proxy.url}/200", json={}).headers
