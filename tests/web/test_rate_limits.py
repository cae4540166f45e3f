"""Who asks too much is told when to come again: at the door of one app, and of real replicas that share a Redis."""

import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from litestar import Litestar, Request, get, post
from litestar.middleware import ASGIMiddleware
from litestar.params import FromQuery
from litestar.testing import TestClient
from litestar.types import ASGIApp, Receive, Scope, Send

from access.principals import Principal
from access.quotas import MemoryQuotas, quotas_of
from engine.errors import OverloadedError
from tests.support.clock import ManualClock
from tests.support.redis_servers import RedisServer, running_redis
from tests.support.servers import ServerProcess, running_server
from web.problems import problem_handlers
from web.rate_limits import RateLimitMiddleware
from web.request_context import context_of
from web.request_log import RequestLog

POLICY = '"requests";q=3;w=60, "tokens";q=600;qu="tokens";w=60'
LIMITED = {"ENABLE_RATE_LIMIT": "true", "RATE_LIMIT_WINDOW": "86400"}  # so that nothing comes back during a test


class Named(ASGIMiddleware):
    """Knows callers by a header, as authentication does by their keys."""

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        headers = dict(scope["headers"])
        if b"x-name" in headers:
            context_of(scope).principal = Principal("key", headers[b"x-name"].decode())
        else:
            context_of(scope).principal = Principal("address", network="192.0.2.1")
        await next_app(scope, receive, send)


@post("/work", status_code=200, opt={"permission": "embed"})
async def work(request: Request[Any, Any, Any], tokens: FromQuery[int] = 1) -> int:
    charge = context_of(request.scope).charge_tokens
    assert charge
    charge(tokens)
    return tokens


@post("/overloaded", opt={"permission": "embed"})
async def overloaded() -> None:
    raise OverloadedError("Too much.", retry_after_s=7)


@get("/models", opt={"permission": "models"})
async def models(request: Request[Any, Any, Any]) -> bool:
    return context_of(request.scope).charge_tokens is None


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def client(clock: ManualClock) -> Iterator[httpx.Client]:
    """An app that takes three requests and 600 tokens per minute from each caller."""
    allowances = MemoryQuotas(quotas_of(requests=3, tokens=600, window_s=60), clock=clock)
    limits = RateLimitMiddleware(allowances)
    app = Litestar(
        [work, overloaded, models],
        middleware=[Named(), limits],
        exception_handlers=problem_handlers(),
        logging_config=None,
        openapi_config=None,
    )
    app.asgi_handler = RequestLog(app.asgi_handler, count=lambda *_: None)
    with TestClient(app) as client:
        yield client


def ask(client: httpx.Client, name: str | None = None, *, tokens: int = 1) -> httpx.Response:
    return client.post(f"/work?tokens={tokens}", headers={"x-name": name} if name else {})


def test_requests_above_the_quota_are_refused_and_told_why(client: httpx.Client) -> None:
    assert [ask(client).status_code for _ in range(4)] == [200, 200, 200, 429]
    refused = ask(client)
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.headers["retry-after"] == "20"
    problem = refused.json()
    assert problem.pop("request_id")
    assert problem == {
        "type": "urn:fast-embedding:problem:rate-limited",
        "title": "Too many requests",
        "status": 429,
        "detail": "No more than 3 requests per 60 s are allowed per caller; the next request is admitted in 20 s.",
        "code": "rate-limited",
        "status_code": 429,
        "limit": 3,
        "window_seconds": 60,
        "violated-policies": ["requests"],
    }


def test_request_is_taken_after_the_time_that_was_told(client: httpx.Client, clock: ManualClock) -> None:
    while (answer := ask(client)).status_code == 200:
        clock.now_s += 0.37
    clock.now_s += int(answer.headers["retry-after"])
    assert ask(client).status_code == 200


def test_tokens_are_charged_and_the_next_request_waits_until_they_are_paid(
    client: httpx.Client, clock: ManualClock
) -> None:
    assert ask(client, tokens=1200).status_code == 200
    refused = ask(client)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "61")
    assert refused.json()["violated-policies"] == ["tokens"]
    clock.now_s = 61.0
    assert ask(client).status_code == 200


def test_answer_tells_what_is_left_after_it(client: httpx.Client) -> None:
    answer = ask(client, tokens=100)
    assert answer.headers["ratelimit-policy"] == POLICY
    assert answer.headers["ratelimit"] == '"requests";r=2;t=40, "tokens";r=500;t=50'


def test_refusal_tells_of_the_limit_that_caused_it_and_no_time_after_its_retry_after(client: httpx.Client) -> None:
    for _ in range(3):
        ask(client)
    refused = ask(client)
    assert refused.headers["ratelimit-policy"] == POLICY
    assert refused.headers["ratelimit"] == '"requests";r=0;t=20'


def test_failures_count_and_tell_what_is_left(client: httpx.Client) -> None:
    answer = client.post("/overloaded")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")
    assert answer.headers["ratelimit"] == '"requests";r=2;t=40, "tokens";r=600;t=60'


def test_other_routes_are_not_limited(client: httpx.Client) -> None:
    for _ in range(10):
        answer = client.get("/models")
        assert answer.json() is True
        assert not {"ratelimit", "ratelimit-policy"} & answer.headers.keys()
        assert client.options("/work").status_code == 204
    assert ask(client).status_code == 200


def test_names_have_allowances_of_their_own(client: httpx.Client) -> None:
    for name in ("a", "b", None):
        assert [ask(client, name).status_code for _ in range(4)] == [200, 200, 200, 429]


def test_name_that_reads_like_an_address_is_not_that_address(client: httpx.Client) -> None:
    while ask(client, "192.0.2.1").status_code == 200:
        pass
    assert ask(client).status_code == 200


def test_headers_are_structured_fields(client: httpx.Client) -> None:
    """RFC 9651: a list of strings, their parameters whole numbers or strings."""
    member = r'"[a-z]+"(;[a-z]+=(\d{1,15}|"[a-z]+"))+'
    for _ in range(5):
        answer = ask(client, tokens=150)
        for name in ("ratelimit", "ratelimit-policy"):
            assert re.fullmatch(f"{member}(, {member})*", answer.headers[name])


def embed(url: str, text: str = "hello", **headers: str) -> httpx.Response:
    return httpx.post(f"{url}/embed", json={"text": text}, headers=headers, timeout=60)


def statuses(urls: list[str], times: int, **headers: str) -> Counter[int]:
    """Of so many requests, spread over the servers, eight at a time."""
    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(embed, urls[number % len(urls)], **headers) for number in range(times)]
        return Counter(future.result().status_code for future in asked)


PATIENT = "10"
"""Seconds for a Redis that is there: no busy machine makes a server fall back."""


def limits_of(url: str) -> Any:
    return httpx.get(f"{url}/metrics").json()["limits"]


@pytest.fixture(scope="module")
def proxied() -> Iterator[ServerProcess]:
    """A server that believes a proxy on this machine, and takes three requests per address."""
    with running_server(**LIMITED, RATE_LIMIT_REQUESTS="3", TRUSTED_PROXIES="127.0.0.1, 10.0.0.0/8") as server:
        yield server


def test_callers_behind_a_trusted_proxy_are_told_apart(proxied: ServerProcess) -> None:
    for caller in ("203.0.113.1", "203.0.113.2", "2001:db8:1::1"):
        forwarded = {"X-Forwarded-For": f"198.51.100.9, {caller}, 10.1.2.3"}
        assert statuses([proxied.url], 5, **forwarded) == {200: 3, 429: 2}


def test_caller_cannot_get_more_by_what_it_sends(proxied: ServerProcess) -> None:
    """The proxy adds the caller's address to whatever the caller has sent."""
    answers = [embed(proxied.url, **{"X-Forwarded-For": f"198.51.100.{number}, 203.0.113.7"}) for number in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]


@pytest.mark.timeout(60)
def test_header_of_a_peer_that_is_not_trusted_says_nothing() -> None:
    with running_server(**LIMITED, RATE_LIMIT_REQUESTS="3", ENABLE_CORS="true") as server:
        answers = [embed(server.url, **{"X-Forwarded-For": f"203.0.113.{number}"}) for number in range(5)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
        assert limits_of(server.url) == {"store": "memory", "fallbacks": 0}
        exposed = embed(server.url, Origin="https://app.example").headers["access-control-expose-headers"].split(", ")
        assert {"RateLimit", "RateLimit-Policy", "Retry-After"} <= set(exposed)


@pytest.mark.timeout(60)
def test_tokens_are_those_of_the_answer() -> None:
    with running_server(**LIMITED, RATE_LIMIT_TOKENS="1000") as server:
        first = httpx.post(f"{server.url}/embed/batch", json={"texts": ["one two three", "four"]})
        tokens = sum(first.json()["tokens"])
        assert f'"tokens";r={1000 - tokens};' in first.headers["ratelimit"]
        counted = httpx.post(f"{server.url}/tokenize", json={"texts": ["one two three", "four"]})
        assert f'"tokens";r={1000 - tokens};' in counted.headers["ratelimit"]  # no model runs: only the request counts
        big = httpx.post(f"{server.url}/embed/batch", json={"texts": ["word " * 1600] * 8})
        assert (big.status_code, '"tokens";r=0;' in big.headers["ratelimit"]) == (200, True)
        assert embed(server.url).json()["violated-policies"] == ["tokens"]


@pytest.mark.parametrize("path", ["/embed", "/embed/batch", "/tokenize"])
def test_api_document_tells_of_limits(base_url: str, path: str) -> None:
    answers = httpx.get(f"{base_url}/schema/openapi.json").json()["paths"][path]["post"]["responses"]
    assert {"RateLimit", "RateLimit-Policy", "Retry-After"} == set(answers["429"]["headers"])
    for status in ("200", "400", "503"):
        assert {"RateLimit", "RateLimit-Policy"} <= set(answers[status]["headers"])


def test_without_limits_nothing_is_told(base_url: str) -> None:
    assert "ratelimit" not in embed(base_url).headers
    assert limits_of(base_url) == {"store": "off", "fallbacks": 0}


@contextmanager
def replicas(redis: RedisServer, count: int, **settings: str) -> Iterator[list[ServerProcess]]:
    shared = {**LIMITED, "REDIS_URL": redis.url, "REDIS_TIMEOUT": PATIENT, **settings}
    if not count:
        yield []
        return
    with running_server(**shared) as server, replicas(redis, count - 1, **settings) as others:
        yield [server, *others]


@pytest.mark.redis
@pytest.mark.timeout(120)
def test_replicas_that_share_a_redis_admit_exactly_the_limit_together() -> None:
    with running_redis() as redis, replicas(redis, 2, RATE_LIMIT_REQUESTS="30") as servers:
        assert statuses([server.url for server in servers], 80) == {200: 30, 429: 50}
        for server in servers:
            assert limits_of(server.url) == {"store": "redis", "fallbacks": 0}
            assert "limits_fell_back" not in server.log


@pytest.mark.redis
@pytest.mark.timeout(120)
def test_redis_that_is_killed_fails_no_request_and_is_used_again_when_it_is_back() -> None:
    with running_redis() as redis, replicas(redis, 1, RATE_LIMIT_REQUESTS="20") as [server]:
        assert statuses([server.url], 20) == {200: 20}
        redis.kill()
        assert statuses([server.url], 30) == {200: 20, 429: 10}  # memory counts from its own beginning
        assert limits_of(server.url) == {"store": "memory", "fallbacks": 1}
        redis.start()
        server.wait_for("limits_recovered")
        assert statuses([server.url], 30) == {200: 20, 429: 10}  # as does a Redis that keeps nothing on disk
        assert limits_of(server.url) == {"store": "redis", "fallbacks": 1}
        assert [line["event"] for line in server.events].count("limits_fell_back") == 1


@pytest.mark.redis
@pytest.mark.timeout(120)
def test_frozen_redis_fails_no_request_and_is_used_again_when_it_is_thawed() -> None:
    with running_redis() as redis, replicas(redis, 1, RATE_LIMIT_REQUESTS="20", REDIS_TIMEOUT="0.5") as [server]:
        redis.freeze()
        assert statuses([server.url], 30) == {200: 20, 429: 10}
        assert server.wait_for("limits_fell_back")["reason"] == "TimeoutError"
        redis.thaw()
        server.wait_for("limits_recovered")


@pytest.mark.redis
@pytest.mark.timeout(120)
def test_service_starts_without_its_redis_and_ends_in_order() -> None:
    with running_redis() as redis:
        redis.freeze()
        with replicas(redis, 1, RATE_LIMIT_REQUESTS="3", REDIS_TIMEOUT="0.25") as [server]:
            assert server.wait_for("limits_fell_back")["level"] == "warning"
            assert statuses([server.url], 5) == {200: 3, 429: 2}
            server.process.terminate()
            assert server.wait_for_end() == 0
            assert "Traceback" not in server.log
