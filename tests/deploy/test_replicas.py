"""Two replicas behind a real nginx: whatever happens to one of them, no request is lost."""

import http.client
import json
import shutil
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path

import httpx
import pytest

from tests.support.callers import calling
from tests.support.proxies import Event, ProxyProcess, nginx, problem, read_timeout, running_proxy
from tests.support.replicas import Pair, Replica, two_replicas
from tests.support.servers import running_server
from tests.support.tiny import TinyModel
from tests.support.upstreams import HEADERS_OF_STATUS, echoing
from web.problems import VALID_REQUEST_ID
from web.security_headers import security_headers_for

pytestmark = [pytest.mark.nginx, pytest.mark.timeout(240)]

BUNDLED = "sentence-transformers/all-MiniLM-L6-v2"
FROZEN_S = 10
"""How long nginx waits for a frozen replica: far longer than an answer takes, even on a busy machine."""
SOME = 20
"""Number of answers after which a fault has affected requests in progress and new ones."""
MAX_REQUEST_SIZE = 10_000_000
MAX_TEXT = 8192
MAX_TEXTS = 32
LONG_TEXT = "the old river runs slowly past green hills and quiet towns " * 30  # more tokens than the model takes

Record = Callable[[str, object], None]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    nginx()  # skips the tests before anything is started
    folder = tmp_path_factory.mktemp("models")
    TinyModel("tiny/wide", dim=128).write(folder)
    with two_replicas(MODELS_DIR=str(folder), REQUIRED_MODELS=f"{BUNDLED},tiny/wide") as pair:
        yield pair


@pytest.fixture
def pair(both: Pair) -> Pair:
    for replica in both:
        replica.heal()
    return both


@pytest.fixture
def proxy(pair: Pair, tmp_path: Path) -> Iterator[ProxyProcess]:
    addresses = [replica.address for replica in pair]
    with running_proxy(tmp_path, addresses) as started:
        yield started


@pytest.fixture
def record(record_property: Record, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> Record:
    """Record a number in the test report; with `pytest -s`, print it, too."""

    def note(name: str, value: object) -> None:
        record_property(name, value)
        if request.config.getoption("capture") == "no":
            with capsys.disabled():
                print(f"  {name}={value}", end="", flush=True)  # noqa: T201 - for docs/RELIABILITY.md

    return note


def served_by(replica: Replica) -> Callable[[Event], bool]:
    """Match requests that were sent to this replica first, and that it answered."""
    return lambda request: (request["replica"], request["replica_status"]) == (replica.address, "200")


def retried_after(replica: Replica, status: str) -> Callable[[Event], bool]:
    """Match requests that the other replica answered after nginx got this status from *replica*."""
    return lambda request: (
        request["replica"].startswith(f"{replica.address}, ") and request["replica_status"] == f"{status}, 200"
    )


def wait_for_work_at(replica: Replica, proxy: ProxyProcess, count: int = 5) -> None:
    """Wait until *replica* has answered *count* more requests."""
    before = sum(map(served_by(replica), proxy.requests))
    proxy.wait_for_requests(f"work of {replica.address}", served_by(replica), times=before + count)


def cut_off(proxy: ProxyProcess) -> int:
    """Return the number of requests that were in progress in a replica when it ended."""
    lines = [line for line in proxy.lines if "while reading response header from upstream" in line]
    return sum("timed out" not in line for line in lines)


def record_retries(proxy: ProxyProcess, record: Record) -> None:
    """Record how many requests nginx sent to the other replica, and why."""
    record("retried", sum("," in request["replica"] for request in proxy.requests))
    record("refused", proxy.count("Connection refused"))
    record("timed_out", proxy.count("timed out"))
    record("cut_off", cut_off(proxy))
    record("draining", sum(request["replica_status"] == "503, 200" for request in proxy.requests))


# --- Faults of one replica ----------------------------------------------------------------------------------------


def test_replicas_share_the_work(pair: Pair, proxy: ProxyProcess, record: Record) -> None:
    with calling(proxy.url, record=record) as callers:
        callers.wait_for_answers(100)
    assert len(proxy.wait_for_requests("request", lambda _: True, times=callers.sent)) == callers.sent
    shares = [sum(map(served_by(replica), proxy.requests)) / callers.sent for replica in pair]
    record("shares", [round(share, 2) for share in shares])
    assert sum(shares) == pytest.approx(1)  # no request was sent twice
    assert min(shares) > 0.1


def test_killed_replica_loses_no_request_and_serves_again_after_its_restart(
    pair: Pair, proxy: ProxyProcess, record: Record
) -> None:
    victim, _ = pair
    with calling(proxy.url, record=record) as callers:
        callers.wait_for_answers(SOME)
        victim.hold()
        victim.wait_until_held()  # so that a request is in progress at the moment of the kill
        victim.kill()
        callers.wait_for_answers(SOME)
        victim.restart()
        wait_for_work_at(victim, proxy)
    assert cut_off(proxy) >= 1
    record_retries(proxy, record)


def test_stopping_a_replica_loses_no_request(pair: Pair, proxy: ProxyProcess, record: Record) -> None:
    leaver, _ = pair
    with calling(proxy.url, record=record) as callers:
        callers.wait_for_answers(SOME)
        leaver.hold()
        leaver.wait_until_held()
        leaver.drain()
        problem(httpx.post(f"{leaver.url}/embed", json={"text": "one"}, timeout=60), 503, "draining")
        leaver.release()
        assert leaver.server.wait_for_end() == 0
        callers.wait_for_answers(SOME)
    assert cut_off(proxy) == 0  # it answers what it has accepted
    assert leaver.server.wait_for("drain_ended")["unanswered"] == 0
    assert "Traceback" not in leaver.server.log
    record_retries(proxy, record)


def test_rolling_restart_loses_no_request(pair: Pair, proxy: ProxyProcess, record: Record) -> None:
    with calling(proxy.url, record=record) as callers:
        for replica in pair:
            callers.wait_for_answers(SOME)
            assert replica.end() == 0
            replica.restart()
            wait_for_work_at(replica, proxy)
    record_retries(proxy, record)


def test_requests_to_a_frozen_replica_are_answered_by_the_other_one_until_it_is_thawed(
    pair: Pair, tmp_path: Path, record: Record
) -> None:
    victim, _ = pair
    addresses = [replica.address for replica in pair]
    with (
        running_proxy(tmp_path, addresses, read_timeout(FROZEN_S)) as proxy,
        calling(proxy.url, record=record) as callers,
    ):
        callers.wait_for_answers(SOME)
        victim.freeze()
        proxy.wait_for_requests("retried request", retried_after(victim, "504"))
        callers.wait_for_answers(SOME)
        victim.thaw()
        wait_for_work_at(victim, proxy)
    assert callers.longest_s >= FROZEN_S
    record_retries(proxy, record)


def test_without_replicas_callers_get_a_502_at_once_until_one_is_back(pair: Pair, proxy: ProxyProcess) -> None:
    for replica in pair:
        replica.kill()
    for _ in range(3):
        response = httpx.post(f"{proxy.url}/embed", json={"text": "one"}, headers={"X-Request-ID": "no-replica"})
        assert problem(response, 502, "bad-gateway")["request_id"] == "no-replica"
        assert response.headers["retry-after"] == "1"
    rejected = proxy.wait_for_requests("rejected request", lambda request: request["status"] == 502, times=3)
    assert {request["replica_status"] for request in rejected} == {"502, 502"}  # both are tried each time
    pair[0].restart()
    assert httpx.post(f"{proxy.url}/embed", json={"text": "one"}).status_code == 200


# --- Too much work ------------------------------------------------------------------------------------------------


NUMBERS = count()


def work() -> dict[str, list[str]]:
    """Return as much as an interactive request may contain: bulk has another limit. No text comes twice."""
    return {"texts": [f"{next(NUMBERS)} {LONG_TEXT}" for _ in range(3)]}


@contextmanager
def overloaded(replica: Replica) -> Iterator[None]:
    """Send a replica, past nginx, more requests than it accepts; those accepted do not end within the block."""
    replica.hold()
    with ThreadPoolExecutor(20) as callers:

        def send() -> Future[httpx.Response]:
            return callers.submit(httpx.post, f"{replica.url}/embed/batch", json=work(), timeout=60)

        sent: list[Future[httpx.Response]] = []
        try:
            for _ in range(2):  # twice: once the lane has taken a part of the first requests, there is room again
                sent += [send() for _ in range(10)]
                assert next(as_completed(sent[-10:])).result().status_code == 503
                replica.wait_until_held()
            yield
        finally:
            replica.release()
    assert 200 in {request.result().status_code for request in sent}


def test_requests_to_an_overloaded_replica_go_to_the_other_unless_both_are_overloaded(
    tmp_path: Path,
) -> None:
    nginx()
    with (
        two_replicas(THREAD_POOL_WORKERS="1", MAX_QUEUE_SECONDS="0.02") as pair,
        running_proxy(tmp_path, [replica.address for replica in pair]) as proxy,
        overloaded(pair[0]),
    ):
        url = f"{proxy.url}/embed/batch"
        assert [httpx.post(url, json=work(), timeout=60).status_code for _ in range(3)] == [200] * 3
        proxy.wait_for_requests("retried request", retried_after(pair[0], "503"))
        with overloaded(pair[1]):
            answers = [httpx.post(url, json=work(), timeout=60) for _ in range(6)]
        for response in answers:
            problem(response, 503, "overloaded")
            assert int(response.headers["retry-after"]) >= 1
            assert len(response.headers.get_list("x-request-id")) == 1
        rejected = proxy.wait_for_requests("rejected request", lambda request: request["status"] == 503, times=6)
        assert {request["replica_status"] for request in rejected} == {"503, 503"}  # nginx keeps using both


def test_when_all_replicas_drain_accepted_work_is_answered_and_new_work_is_rejected_by_them(
    pair: Pair, proxy: ProxyProcess
) -> None:
    with ThreadPoolExecutor(2) as callers:
        for replica in pair:
            replica.hold()
        sent = [callers.submit(httpx.post, f"{proxy.url}/embed", json={"text": "one"}, timeout=60) for _ in pair]
        for replica in pair:
            replica.wait_until_held()
            replica.drain()
        response = httpx.post(f"{proxy.url}/embed", json={"text": "one"})
        problem(response, 503, "draining")
        assert response.headers["retry-after"] == "1"
        for replica in pair:
            replica.release()
        assert [request.result().status_code for request in sent] == [200, 200]
    assert [replica.server.wait_for_end() for replica in pair] == [0, 0]


# --- What nginx passes on and what not------------------------------------------------------------------------------

SAME_HEADERS = (
    "content-type",
    "allow",
    "vary",
    "etag",
    "x-request-id",
    "access-control-allow-origin",
    "access-control-allow-credentials",
    "access-control-expose-headers",
)


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        pytest.param("POST", "/embed", b'{"text": "one"', 400, id="not-json"),
        pytest.param("POST", "/embed", b'{"text": ""}', 400, id="empty-text"),
        pytest.param("POST", "/embed", json.dumps({"text": "a" * (MAX_TEXT + 1)}).encode(), 400, id="long-text"),
        pytest.param("POST", "/embed", b'{"text": "one", "model_name": "no/such"}', 400, id="unknown-model"),
        pytest.param("PUT", "/embed", b"", 405, id="method"),
        pytest.param("GET", "/nothing%2Fhere?x=1", b"", 404, id="no-route"),
        pytest.param("GET", "/models/sentence-transformers%2Fall-MiniLM-L6-v2", b"", 200, id="escaped-slash"),
        pytest.param("POST", "/embed", b'{"text": "one"}'.ljust(MAX_REQUEST_SIZE), 200, id="largest-body"),
        pytest.param("POST", "/embed", b'{"text": "one"}'.ljust(MAX_REQUEST_SIZE + 1), 413, id="body-too-large"),
    ],
)
def test_answer_through_nginx_equals_that_of_the_service(
    pair: Pair, proxy: ProxyProcess, *, method: str, path: str, content: bytes, status: int
) -> None:
    headers = {"Content-Type": "application/json", "X-Request-ID": "the-same", "Origin": "https://app.example"}
    through, direct = (
        httpx.request(method, base + path, content=content, headers=headers, timeout=60)
        for base in (proxy.url, pair[0].url)
    )
    assert (through.status_code, direct.status_code) == (status, status)
    for name in SAME_HEADERS:
        assert through.headers.get(name) == direct.headers.get(name)
    if status != 200:
        assert through.json() == direct.json()


OUTSIDE = "127.0.0.2"


def raw_get(proxy: ProxyProcess, target: str, *, caller: str, header: str = "A: b") -> tuple[int, str]:
    """Send a request line exactly as given, from the address *caller*; return the status and media type."""
    connection = http.client.HTTPConnection(proxy.url.removeprefix("http://"), timeout=60, source_address=(caller, 0))
    with closing(connection):
        connection.putrequest("GET", target)
        connection.putheader(*header.split(": "))
        connection.endheaders()
        answer = connection.getresponse()
        answer.read()
        return answer.status, answer.headers["content-type"]


WAYS = {
    "/metrics": "plain",
    "/metrics/": "slash",
    "/metrics//": "slashes",
    "//metrics": "slashes-before",
    "/metrics?a=b": "query",
    "/metrics#a": "fragment",
    "/%6detrics": "escaped-letter",
    "/metrics%2F": "escaped-slash",
    "/models/../metrics": "dots",
    "/models/..%2Fmetrics": "escaped-dots",
    "/./metrics/.": "dot",
    "http://elsewhere.example/metrics": "with-host",
}


@pytest.mark.parametrize("target", [pytest.param(target, id=name) for target, name in WAYS.items()])
def test_metrics_are_closed_to_other_machines_however_the_path_is_written(proxy: ProxyProcess, target: str) -> None:
    assert raw_get(proxy, target, caller=OUTSIDE) == (403, "application/problem+json")


@pytest.mark.parametrize("target", [pytest.param(target, id=name) for target, name in WAYS.items()])
def test_result_cache_is_closed_to_everybody_however_the_path_is_written(proxy: ProxyProcess, target: str) -> None:
    path = target.replace("metrics", "cache").replace("%6detrics", "%63ache")
    assert raw_get(proxy, path, caller="127.0.0.1") == (403, "application/problem+json")


def test_metrics_are_open_to_the_machine_itself_but_not_through_another_proxy(
    proxy: ProxyProcess,
) -> None:
    assert raw_get(proxy, "/metrics", caller="127.0.0.1")[0] == 200
    for header in ("X-Forwarded-For: 127.0.0.1", "Forwarded: for=127.0.0.1", "Via: 1.1 another"):
        assert raw_get(proxy, "/metrics", caller="127.0.0.1", header=header)[0] == 403
    assert raw_get(proxy, "/health/ready", caller=OUTSIDE)[0] == 200  # for load balancers


def test_body_of_unknown_length_that_is_too_large_is_a_413(proxy: ProxyProcess) -> None:
    parts = iter([b" " * (MAX_REQUEST_SIZE // 2)] * 3)
    response = httpx.post(f"{proxy.url}/embed", content=parts, headers={"Content-Type": "application/json"})
    assert problem(response, 413, "content-too-large")["limit"] == MAX_REQUEST_SIZE


def test_largest_answer_arrives_whole(pair: Pair, proxy: ProxyProcess) -> None:
    text = "one two three " * (MAX_TEXT // 14)  # the window of the model has 14 words: more than a hundred chunks
    body = {"texts": [text] * MAX_TEXTS, "long_text": "chunks", "model_name": "tiny/wide"}
    through, direct = (httpx.post(f"{base}/embed/batch", json=body, timeout=60) for base in (proxy.url, pair[0].url))
    assert (through.status_code, direct.status_code) == (200, 200)
    assert len(through.content) > 4_000_000
    assert through.json()["embeddings"] == direct.json()["embeddings"]


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[ProxyProcess]:
    with echoing(tmp_path) as proxy:
        yield proxy


@pytest.mark.parametrize("status", HEADERS_OF_STATUS)
def test_answer_that_no_retry_would_change_is_passed_on_as_it_is(echo: ProxyProcess, status: int) -> None:
    response = httpx.post(f"{echo.url}/{status}", json={"text": "one"}, headers={"X-Request-ID": "as-it-is"})
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["x-request-id"] == ["as-it-is"]
    for name, value in HEADERS_OF_STATUS[status].items():
        assert response.headers[name] == value


def test_nginx_sets_the_address_of_the_caller_whatever_headers_it_sends(echo: ProxyProcess) -> None:
    forged = [
        ("X-Forwarded-For", "203.0.113.7"),
        ("X-Forwarded-For", "203.0.113.8, 203.0.113.9"),
        ("X-Real-IP", "203.0.113.7"),
        ("Forwarded", "for=203.0.113.7"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "elsewhere.example"),
        ("Connection", "close, X-Forwarded-For, X-Real-IP"),  # asks proxies to remove these headers
    ]
    received = httpx.post(f"{echo.url}/200", json={}, headers=forged).json()
    assert received["x-forwarded-for"] == received["x-real-ip"] == ["127.0.0.1"]
    assert received["x-forwarded-proto"] == ["http"]
    assert received["x-forwarded-host"] == ["127.0.0.1"]
    assert "forwarded" not in received


def test_caller_that_forges_addresses_has_one_quota_and_gets_its_429(tmp_path: Path) -> None:
    nginx()
    limits = {"ENABLE_RATE_LIMIT": "true", "RATE_LIMIT_REQUESTS": "2", "TRUSTED_PROXIES": "127.0.0.1"}
    forged = [{"X-Forwarded-For": f"203.0.113.{number}"} for number in range(3)]
    with running_server(**limits) as server, running_proxy(tmp_path, [server.url.removeprefix("http://")]) as proxy:
        for base, last in ((server.url, 200), (proxy.url, 429)):  # without nginx, each address would be another caller
            answers = [
                httpx.post(f"{base}/embed", json={"text": "one"}, headers=headers, timeout=60) for headers in forged
            ]
            assert [response.status_code for response in answers] == [200, 200, last]
        rejected = answers[-1]
        problem(rejected, 429, "rate-limited")
        assert int(rejected.headers["retry-after"]) >= 1
        assert "ratelimit" in rejected.headers


@pytest.mark.parametrize(
    ("given", "is_kept"),
    [
        pytest.param("a.b:c_d-9", True, id="valid"),
        pytest.param("x" * 128, True, id="longest"),
        pytest.param("x" * 129, False, id="too-long"),
        pytest.param('a"b', False, id="quote"),
        pytest.param("a b", False, id="space"),
        pytest.param("", False, id="empty"),
    ],
)
def test_request_id_is_kept_if_the_service_would_keep_it(echo: ProxyProcess, *, given: str, is_kept: bool) -> None:
    [received] = httpx.post(f"{echo.url}/200", json={}, headers={"X-Request-ID": given}).json()["x-request-id"]
    assert VALID_REQUEST_ID.fullmatch(received.encode())
    assert (received == given) is is_kept
    [logged] = echo.wait_for_requests("request", lambda _: True)
    assert logged["request_id"] == received


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        pytest.param("GARBAGE\r\n\r\n", 400, "bad-request", id="no-http"),
        pytest.param("GET /x HTTP/1.1\r\n\r\n", 400, "bad-request", id="no-host"),
        pytest.param(
            "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
            "bad-request",
            id="two-lengths",
        ),
        pytest.param("TRACE /x HTTP/1.1\r\nHost: a\r\n\r\n", 405, "method-not-allowed", id="trace"),
        pytest.param(f"GET /{'a' * 40_000} HTTP/1.1\r\nHost: a\r\n\r\n", 414, "uri-too-long", id="long-address"),
        pytest.param(
            f"GET /x HTTP/1.1\r\nHost: a\r\nX: {'a' * 40_000}\r\n\r\n",
            431,
            "request-header-fields-too-large",
            id="long-header",
        ),
        pytest.param("GET /_problem HTTP/1.1\r\nHost: a\r\n\r\n", 404, "not-found", id="internal-location"),
    ],
)
def test_request_that_nginx_rejects_gets_problem_details(echo: ProxyProcess, sent: str, status: int, code: str) -> None:
    host, _, port = echo.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), 60) as caller:
        caller.sendall(sent.encode())
        answer = http.client.HTTPResponse(caller)
        answer.begin()
        body = json.loads(answer.read())
    assert (answer.status, body["status"], body["code"]) == (status, status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert body["request_id"] == answer.headers["x-request-id"]
    for name, value in security_headers_for([]):
        assert answer.headers[name.decode()] == value.decode()
    assert set(body) == {"type", "title", "status", "detail", "code", "status_code", "request_id"}


def test_missing_nginx_fails_tests_in_ci_and_skips_them_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="not installed"):
        nginx()
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="not installed"):
        nginx()
