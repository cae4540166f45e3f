"""nginx.conf by itself: limits, addresses of callers, streams, TLS. test_replicas.py puts real replicas behind it."""

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
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from assembly.app import EXPOSED_HEADERS
from config import Settings
from tests.support.proxies import (
    BALANCER,
    CONFIGURATION,
    ProxyProcess,
    changed,
    nginx,
    patience,
    problem,
    running_proxy,
    to_replicas,
)
from tests.support.servers import ROOT, free_port
from tests.support.signing_keys import ec_key, private_pem
from tests.support.upstreams import Gated, echoing, serving

pytestmark = [pytest.mark.nginx, pytest.mark.timeout(60)]

SECONDS = {"s": 1, "m": 60}
OUTSIDE = "127.0.0.2"
"""An address of this machine that nginx.conf does not take for the inside."""
FEW = {r"rate=1000r/s": "rate=1r/m", r"burst=2000 nodelay": "burst=2 nodelay"}


def stated(directive: str) -> str:
    """What nginx.conf says for it, once."""
    [value] = re.findall(rf"^ *{directive} +([^;]+);", CONFIGURATION.read_text(encoding="utf-8"), re.MULTILINE)
    return str(value)


def seconds(directive: str) -> int:
    value = stated(directive)
    return int(value[:-1]) * SECONDS[value[-1]]


@contextmanager
def few_open_files(most: int) -> Iterator[None]:
    """Processes that are started meanwhile may have so many open, and as many as before if they ask for it."""
    before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, hard))


@contextmanager
def calling_from(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(transport=httpx.HTTPTransport(local_address=address), timeout=30) as client:
        yield client


def until_ready(worker: str) -> None:
    """A worker of nginx takes its title once it is set up; until then it is a copy of the master."""
    while b"worker process" not in Path(f"/proc/{worker}/cmdline").read_bytes():
        time.sleep(0.01)


# --- What must fit the service ------------------------------------------------------------------------------------


def test_workers_may_open_a_file_for_each_connection_and_for_each_body(tmp_path: Path) -> None:
    """Docker gives 1,024: enough for half as many requests, whatever worker_connections says."""
    with few_open_files(1024), running_proxy(tmp_path, ["127.0.0.1:9"]) as proxy:
        assert "exceed open file resource limit" not in proxy.log
        for worker in re.findall(r"start worker process (\d+)", proxy.log):
            until_ready(worker)
            limits = Path(f"/proc/{worker}/limits").read_text(encoding="utf-8")
            [most] = re.findall(r"^Max open files +(\d+)", limits, re.MULTILINE)
            assert int(most) == int(stated("worker_rlimit_nofile")) >= 2 * int(stated("worker_connections"))


def test_bounds_fit_the_settings_of_the_service() -> None:
    settings = Settings.model_construct()  # the defaults, whatever stands in the environment
    assert stated("client_max_body_size") == str(int(settings.max_request_size))
    assert f"""413     ',"limit":{int(settings.max_request_size)}';""" in CONFIGURATION.read_text(encoding="utf-8")
    assert seconds("proxy_read_timeout") == settings.request_timeout + 5
    assert seconds("proxy_next_upstream_timeout") == settings.request_timeout + 10
    assert seconds("keepalive_timeout") < settings.keep_alive_timeout
    # The service would be the one who closes, in the midst of a body that nginx passes on.
    assert seconds("proxy_send_timeout") < settings.body_timeout
    [exposed] = re.findall(r'default "(RateLimit[^"]+)";', CONFIGURATION.read_text(encoding="utf-8"))
    assert exposed == ", ".join(sorted(EXPOSED_HEADERS))


def test_change_that_matches_nothing_is_a_failure() -> None:
    with pytest.raises(AssertionError, match="nothing like"):
        changed("listen 8080;", {"listen 8081;": ""})


def test_change_of_the_guide_makes_what_the_tests_use() -> None:
    guide = (CONFIGURATION.parent / "docs" / "production" / "nginx.md").read_text(encoding="utf-8")
    [command] = re.findall(r"(?m)^(sed (?:.+\\\n)+.+nginx\.conf) > proxy\.conf$", guide)
    made = subprocess.run(command, shell=True, cwd=CONFIGURATION.parent, check=True, capture_output=True, text=True)  # noqa: S602
    wanted = {**to_replicas(["127.0.0.1:8001", "127.0.0.1:8002"]), **patience(65)}
    assert made.stdout == changed(CONFIGURATION.read_text(encoding="utf-8"), wanted)


# --- How much one caller may ask ----------------------------------------------------------------------------------


def test_flood_of_one_caller_is_refused_as_the_service_would_and_others_are_served(tmp_path: Path) -> None:
    with echoing(tmp_path, FEW) as proxy, calling_from(OUTSIDE) as other:
        asked = [httpx.post(f"{proxy.url}/200", json={}, headers={"Origin": "https://app.example"}) for _ in range(4)]
        assert [response.status_code for response in asked] == [200, 200, 200, 429]
        told = problem(asked[-1], 429, "rate-limited")
        assert told["title"] == "Too many requests"
        assert asked[-1].headers["retry-after"] == "1"
        assert asked[-1].headers["access-control-allow-origin"] == "*"  # so a page of another origin can read it
        assert other.post(f"{proxy.url}/200", json={}).status_code == 200
        [logged] = proxy.wait_for_requests("refused request", lambda request: request["status"] == 429)
        assert logged["replica"] == ""


def test_too_many_requests_at_a_time_of_one_caller_are_refused_and_others_are_served(
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


def test_addresses_of_one_ipv6_network_are_one_caller(tmp_path: Path) -> None:
    def ask(address: str) -> int:
        return httpx.post(f"{proxy.url}/200", json={}, headers={"X-Forwarded-For": address}).status_code

    with echoing(tmp_path, {**FEW, **BALANCER, r"10\.0\.0\.0/24": "127.0.0.1"}) as proxy:
        assert [ask(f"2001:db8::{number}") for number in range(1, 5)] == [200, 200, 200, 429]
        assert ask("2001:db8:0:1::1") == 200
        assert ask("203.0.113.7") == 200


# --- Who asks -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def balanced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyProcess]:
    """An nginx that takes 127.0.0.1 for a load balancer."""
    with echoing(tmp_path_factory.mktemp("balanced"), {**BALANCER, r"10\.0\.0\.0/24": "127.0.0.1"}) as proxy:
        yield proxy


@pytest.mark.parametrize(
    ("written", "caller"),
    [
        pytest.param("203.0.113.7", "203.0.113.7", id="balancer"),
        pytest.param("198.51.100.1, 203.0.113.7", "203.0.113.7", id="invented"),
        pytest.param("203.0.113.7, 127.0.0.1", "203.0.113.7", id="two-balancers"),
        pytest.param("no address", "127.0.0.1", id="junk"),
    ],
)
def test_behind_a_load_balancer_the_caller_is_who_came_to_it(
    balanced: ProxyProcess, *, written: str, caller: str
) -> None:
    headers = {"X-Forwarded-For": written}
    got = httpx.post(f"{balanced.url}/200", json={}, headers=headers).json()
    assert got["x-forwarded-for"] == got["x-real-ip"] == [caller]


def test_who_is_no_load_balancer_is_not_believed(balanced: ProxyProcess) -> None:
    with calling_from(OUTSIDE) as stranger:
        got = stranger.post(f"{balanced.url}/200", json={}, headers={"X-Forwarded-For": "203.0.113.7"}).json()
    assert got["x-forwarded-for"] == got["x-real-ip"] == [OUTSIDE]


def test_page_of_a_named_origin_may_read_what_nginx_says_and_no_other(tmp_path: Path) -> None:
    named = {r'(?s)("";\n +)default "\*";': r'\1"https://app.example" $http_origin; default "";'}
    with echoing(tmp_path, {**named, **FEW}) as proxy:
        for origin, allowed in (("https://app.example", True), ("https://else.example", False), (None, False)):
            headers = {"Origin": origin} if origin else {}
            response = httpx.request("TRACE", f"{proxy.url}/", headers=headers)
            problem(response, 405, "method-not-allowed")
            assert response.headers.get("access-control-allow-origin") == (origin if allowed else None)
            assert response.headers.get("access-control-allow-credentials") == ("true" if allowed else None)
            assert response.headers.get("vary") == ("Origin" if allowed else None)
            assert ("access-control-expose-headers" in response.headers) is allowed


# --- Streams ------------------------------------------------------------------------------------------------------


@pytest.fixture
def gated() -> type[Gated]:
    class Own(Gated):
        gate, begun, written = threading.Event(), threading.Event(), threading.Event()

    return Own


@pytest.mark.parametrize("media_type", ["text/event-stream", "application/x-ndjson"])
def test_stream_is_passed_on_as_it_comes(gated: type[Gated], tmp_path: Path, *, media_type: str) -> None:
    nginx()
    with (
        serving(gated) as address,
        running_proxy(tmp_path, [address]) as proxy,
        httpx.stream("GET", f"{proxy.url}/stream?{media_type}", timeout=30) as response,
    ):
        lines = response.iter_lines()
        assert next(lines) == "first"  # the second one is not there before the gate is open
        gated.gate.set()
        assert list(lines) == ["second"]
        assert response.headers["content-type"] == media_type
        assert "x-accel-buffering" not in response.headers


def test_caller_who_does_not_read_keeps_no_replica_waiting(gated: type[Gated], tmp_path: Path) -> None:
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
    """An nginx with TLS switched on as nginx.conf says, and a certificate that the test has made for it."""

    def __init__(self, proxy: ProxyProcess, url: str, certificate: Path) -> None:
        self.plain_url, self.url, self.certificate = proxy.url, url, certificate

    def context(self, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.certificate)
        context.set_alpn_protocols(["h2", "http/1.1"])
        if version:
            context.set_ciphers("ALL:@SECLEVEL=0")  # else the client itself would not speak the old ones
            context.minimum_version = context.maximum_version = version
        return context

    def shake_hands(self, version: ssl.TLSVersion) -> ssl.SSLSocket:
        address = urlsplit(self.url)
        context = self.context(version)
        return context.wrap_socket(
            socket.create_connection((str(address.hostname), address.port or 443), 30), server_hostname="localhost"
        )


def certified(folder: Path) -> Path:
    """A key and a certificate for this machine, signed by itself, under the names of nginx.conf."""
    key, now = ec_key("nginx"), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, SHA256())
    )
    (folder / "privkey.pem").write_bytes(private_pem(key))
    (folder / "fullchain.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    return folder / "fullchain.pem"


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    nginx()
    folder = tmp_path_factory.mktemp("tls")
    [command] = re.findall(r"(?m)^#   (sed -i .*) nginx\.conf$", CONFIGURATION.read_text(encoding="utf-8"))
    source = folder / "switched_on.conf"
    source.write_bytes(CONFIGURATION.read_bytes())
    subprocess.run(f"{command} {source}", shell=True, check=True)  # noqa: S602 - the command that people are told to run
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


def test_tls_is_spoken_by_http_2_and_1_1(secured: Secured) -> None:
    command = ["curl", "-sS", "--http2", "--cacert", str(secured.certificate), "-w", "\n%{http_version}"]
    answer = subprocess.run(
        [*command, "-d", "{}", f"{secured.url}/200"], check=True, capture_output=True, text=True, timeout=30
    )
    body, version = answer.stdout.rsplit("\n", 1)
    assert version == "2"
    assert json.loads(body)["x-forwarded-proto"] == ["https"]
    response = httpx.post(f"{secured.url}/200", json={}, verify=secured.context())
    assert (response.status_code, response.http_version) == (200, "HTTP/1.1")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_new_versions_of_tls_are_spoken(secured: Secured, version: ssl.TLSVersion) -> None:
    with secured.shake_hands(version) as connection:
        assert connection.selected_alpn_protocol() == "h2"
        cipher = connection.cipher()
        assert cipher
        assert cipher[0].startswith(("TLS_", "ECDHE-"))  # all of them keep old traffic secret when the key is lost


def test_old_versions_of_tls_are_not_spoken(secured: Secured) -> None:
    with (
        pytest.warns(DeprecationWarning, match="TLSv1_1"),
        pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"),
    ):
        secured.shake_hands(ssl.TLSVersion.TLSv1_1)


@pytest.mark.parametrize(("path", "is_healthy"), [("/200", True), ("/503", False)])
def test_health_check_of_the_container_asks_a_replica_with_tls_too(
    secured: Secured, path: str, *, is_healthy: bool
) -> None:
    """A check that is content to be sent to TLS would call an nginx healthy that has no replica."""
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    words = compose["services"]["nginx"]["healthcheck"]["test"]
    here = {
        "http://127.0.0.1:8080": secured.plain_url,
        "127.0.0.1:8443": secured.url.removeprefix("https://"),
        "/health/ready": path,
    }
    command = [*(changed_words(word, here) for word in words[1:]), "-d", "{}"]  # what stands behind takes a POST only
    assert (subprocess.run(command, check=False, capture_output=True, timeout=30).returncode == 0) is is_healthy


def changed_words(word: str, changes: dict[str, str]) -> str:
    for before, after in changes.items():
        word = word.replace(before, after)
    return word


def test_caller_without_tls_is_sent_there_with_method_and_body(secured: Secured) -> None:
    response = httpx.post(f"{secured.plain_url}/embed?x=1", json={"text": "one"})
    assert response.status_code == 308
    assert response.headers["location"] == "https://127.0.0.1/embed?x=1"
    assert "strict-transport-security" not in response.headers  # it counts by TLS only


def test_challenge_of_a_certificate_authority_is_answered_without_tls(secured: Secured) -> None:
    response = httpx.get(f"{secured.plain_url}/.well-known/acme-challenge/token")
    assert (response.status_code, response.text) == (200, "token.thumbprint")


@pytest.mark.parametrize(("method", "status"), [("POST", 200), ("TRACE", 405)])
def test_browser_is_told_to_come_back_by_tls(secured: Secured, *, method: str, status: int) -> None:
    response = httpx.request(method, f"{secured.url}/200", content=b"", verify=secured.context())
    assert response.status_code == status
    assert response.headers.get_list("strict-transport-security") == ["max-age=63072000"]


def test_without_tls_nothing_is_said_of_it(tmp_path: Path) -> None:
    with echoing(tmp_path) as proxy:
        assert "strict-transport-security" not in httpx.post(f"{proxy.url}/200", json={}).headers


@pytest.mark.parametrize("told", ["Content-Length: 9000000", "Transfer-Encoding: chunked"])
def test_slow_uploads_of_one_caller_leave_room_for_the_bodies_of_others(told: str, tmp_path: Path) -> None:
    most = int(re.findall(r"limit_conn large_bodies (\d+);", CONFIGURATION.read_text(encoding="utf-8"))[0])
    assert most * int(stated("client_max_body_size")) < 256_000_000  # the folder's size in docker-compose.yml
    patient = {r"client_body_timeout   15s": "client_body_timeout 60s"}
    with running_proxy(tmp_path, ["127.0.0.1:9"], patient) as proxy, ExitStack() as opened:
        address = (urlsplit(proxy.url).hostname, urlsplit(proxy.url).port)
        uploads = [
            opened.enter_context(socket.create_connection(address, source_address=(OUTSIDE, 0)))
            for _ in range(most + 1)
        ]
        for upload in uploads:
            upload.sendall(f"POST /embed HTTP/1.1\r\nHost: x\r\n{told}\r\n\r\n".encode())
        [refused], _, _ = select.select(uploads, [], [], 10)
        assert refused.recv(100).startswith(b"HTTP/1.1 429 ")
        with calling_from(OUTSIDE) as same, calling_from("127.0.0.3") as another:
            # 502: nobody is behind this proxy.
            assert same.post(proxy.url, content=b"x" * 299_999).status_code == 502
            assert same.post(proxy.url, content=b"x" * 300_000).status_code == 429
            assert same.get(proxy.url).status_code == 502
            assert another.post(proxy.url, content=b"x" * 300_000).status_code == 502
