"""Callers over their quota get 429 and when to retry: the middleware, the whole service, and replicas with a Redis."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
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
from tests.support.apps import running_app
from tests.support.clock import ManualClock
from tests.support.redis_servers import running_redis
from tests.support.servers import ServerProcess, running_server
from web.large_body_queue import LargeBodyQueue
from web.problems import problem_handlers
from web.rate_limits import RateLimitMiddleware
from web.request_context import context_of
from web.request_log import RequestLog

POLICY = '"requests";q=3;w=60, "tokens";q=600;qu="tokens";w=60'
LIMITED = {"ENABLE_RATE_LIMIT": "true", "RATE_LIMIT_WINDOW": "86400"}
"""Settings with rate limits; in a window of a day, no quota is refilled during a test."""


class NamedByHeader(ASGIMiddleware):
    """Identifies callers by the header X-Name, as authentication does by their keys."""

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


@post("/unmarked", status_code=200)
async def unmarked() -> None:
    """Has no option `permission`, so it requires `embed`, as every writing route does by default."""


@get("/models", opt={"permission": "models"})
async def models(request: Request[Any, Any, Any]) -> bool:
    return context_of(request.scope).charge_tokens is None


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def client(clock: ManualClock) -> Iterator[httpx.Client]:
    """A client of an app that accepts three requests and 600 tokens per minute from each caller."""
    quotas = MemoryQuotas(quotas_of(requests=3, tokens=600, window_s=60), clock=clock)
    app = Litestar(
        [work, overloaded, unmarked, models],
        middleware=[NamedByHeader(), RateLimitMiddleware(quotas)],
        exception_handlers=problem_handlers(),
        logging_config=None,
        openapi_config=None,
    )
    app.asgi_handler = RequestLog(app.asgi_handler, observe=lambda _: None, large_bodies=LargeBodyQueue())
    with TestClient(app) as client:
        yield client


def ask(client: httpx.Client, name: str | None = None, *, tokens: int = 1) -> httpx.Response:
    return client.post(f"/work?tokens={tokens}", headers={"x-name": name} if name else {})


def test_requests_over_the_quota_are_rejected_with_the_reason(client: httpx.Client) -> None:
    assert [ask(client).status_code for _ in range(4)] == [200, 200, 200, 429]
    rejected = ask(client)
    assert rejected.headers["content-type"] == "application/problem+json"
    assert rejected.headers["retry-after"] == "20"
    problem = rejected.json()
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


def test_request_is_accepted_after_retry_after(client: httpx.Client, clock: ManualClock) -> None:
    while (answer := ask(client)).status_code == 200:
        clock.now_s += 0.37
    clock.now_s += int(answer.headers["retry-after"])
    assert ask(client).status_code == 200


def test_tokens_over_the_quota_are_charged_afterwards_and_delay_the_next_request(
    client: httpx.Client, clock: ManualClock
) -> None:
    assert ask(client, tokens=1200).status_code == 200
    rejected = ask(client)
    assert (rejected.status_code, rejected.headers["retry-after"]) == (429, "61")
    assert rejected.json()["violated-policies"] == ["tokens"]
    clock.now_s = 61.0
    assert ask(client).status_code == 200


def test_answer_states_what_is_left_after_it(client: httpx.Client) -> None:
    answer = ask(client, tokens=100)
    assert answer.headers["ratelimit-policy"] == POLICY
    assert answer.headers["ratelimit"] == '"requests";r=2;t=40, "tokens";r=500;t=50'


def test_rejection_names_only_the_quota_that_caused_it_and_no_time_after_its_retry_after(client: httpx.Client) -> None:
    for _ in range(3):
        ask(client)
    rejected = ask(client)
    assert rejected.headers["ratelimit-policy"] == POLICY
    assert rejected.headers["ratelimit"] == '"requests";r=0;t=20'


def test_failed_requests_count_and_state_what_is_left(client: httpx.Client) -> None:
    answer = client.post("/overloaded")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")
    assert answer.headers["ratelimit"] == '"requests";r=2;t=40, "tokens";r=600;t=60'


def test_writing_route_without_a_permission_is_limited_too(client: httpx.Client) -> None:
    assert [client.post("/unmarked").status_code for _ in range(4)] == [200, 200, 200, 429]


def test_other_routes_are_not_limited(client: httpx.Client) -> None:
    for _ in range(10):
        answer = client.get("/models")
        assert answer.json() is True
        assert not {"ratelimit", "ratelimit-policy"} & answer.headers.keys()
        assert client.options("/work").status_code == 204
    assert ask(client).status_code == 200


def test_each_caller_has_a_quota_of_its_own(client: httpx.Client) -> None:
    for name in ("a", "b", None):
        assert [ask(client, name).status_code for _ in range(4)] == [200, 200, 200, 429]


def test_name_that_looks_like_an_address_does_not_share_its_quota(client: httpx.Client) -> None:
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


# --- The whole service --------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tiny_models: Path) -> dict[str, str]:
    return {"MODELS_DIR": str(tiny_models), "REQUIRED_MODELS": "tiny/one"}


def embed(client: httpx.Client, **headers: str) -> httpx.Response:
    return client.post("/embed", json={"text": "one"}, headers=headers)


def test_x_forwarded_for_of_a_peer_that_is_not_trusted_is_ignored(tiny: dict[str, str]) -> None:
    with running_app(**tiny, **LIMITED, RATE_LIMIT_REQUESTS="3") as client:
        answers = [embed(client, **{"X-Forwarded-For": f"203.0.113.{number}"}) for number in range(5)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
        assert client.get("/metrics").json()["limits"] == {"store": "memory", "fallbacks": 0}


def test_pages_of_other_origins_may_read_the_limits(tiny: dict[str, str]) -> None:
    with running_app(**tiny, **LIMITED, ENABLE_CORS="true") as client:
        exposed = embed(client, Origin="https://app.example").headers["access-control-expose-headers"].split(", ")
        assert {"RateLimit", "RateLimit-Policy", "Retry-After"} <= set(exposed)


def test_tokens_are_those_of_the_answer(tiny: dict[str, str]) -> None:
    with running_app(**tiny, **LIMITED, RATE_LIMIT_TOKENS="1000") as client:
        first = client.post("/embed/batch", json={"texts": ["one two three", "four"]})
        tokens = sum(first.json()["tokens"])
        assert f'"tokens";r={1000 - tokens};' in first.headers["ratelimit"]
        counted = client.post("/tokenize", json={"texts": ["one two three", "four"]})
        assert f'"tokens";r={1000 - 2 * tokens};' in counted.headers["ratelimit"]  # tokenising them is work as well
        big = client.post("/embed/batch", json={"texts": ["one " * 1600] * 8})
        assert (big.status_code, '"tokens";r=0;' in big.headers["ratelimit"]) == (200, True)
        assert embed(client).json()["violated-policies"] == ["tokens"]


def test_without_limits_there_are_no_headers_of_them(tiny: dict[str, str]) -> None:
    with running_app(**tiny) as client:
        assert "ratelimit" not in embed(client).headers
        assert client.get("/metrics").json()["limits"] == {"store": "off", "fallbacks": 0}


def test_openapi_document_describes_the_headers_of_limits(base_url: str) -> None:
    paths = httpx.get(f"{base_url}/schema/openapi.json").json()["paths"]
    for path in ("/embed", "/embed/batch", "/tokenize"):
        answers = paths[path]["post"]["responses"]
        assert {"RateLimit", "RateLimit-Policy", "Retry-After"} == set(answers["429"]["headers"])
        for status in ("200", "400", "503"):
            assert {"RateLimit", "RateLimit-Policy"} <= set(answers[status]["headers"])


def statuses(urls: list[str], requests: int, **headers: str) -> Counter[int]:
    """Send *requests* to the servers in turn, eight at a time, and count the statuses."""

    def send(number: int) -> int:
        url = urls[number % len(urls)]
        return httpx.post(f"{url}/embed", json={"text": "one"}, headers=headers, timeout=60).status_code

    with ThreadPoolExecutor(8) as threads:
        return Counter(threads.map(send, range(requests)))


@pytest.fixture
def proxied(server_with: Callable[..., ServerProcess], tiny: dict[str, str]) -> str:
    """The address of a server that trusts a proxy on this machine, and accepts three requests per caller."""
    settings = {**tiny, **LIMITED, "RATE_LIMIT_REQUESTS": "3", "TRUSTED_PROXIES": "127.0.0.1, 10.0.0.0/8"}
    return server_with(**settings).url


def test_callers_behind_a_trusted_proxy_have_quotas_of_their_own(proxied: str) -> None:
    for caller in ("203.0.113.1", "203.0.113.2", "2001:db8:1::1"):
        forwarded = {"X-Forwarded-For": f"198.51.100.9, {caller}, 10.1.2.3"}
        assert statuses([proxied], 5, **forwarded) == {200: 3, 429: 2}


def test_networks_of_one_site_share_a_larger_quota(proxied: str) -> None:
    """The quota of a caller is three requests, so that of its /48 is 48."""

    def ask(address: str) -> httpx.Response:
        return httpx.post(f"{proxied}/embed", json={"text": "one"}, headers={"X-Forwarded-For": address}, timeout=60)

    assert [ask(f"2001:db8:2:{number:x}::1").status_code for number in range(48)] == [200] * 48
    rejected = ask("2001:db8:2:ffff::1")
    assert (rejected.status_code, rejected.json()["violated-policies"]) == (429, ["network-requests"])
    assert 1000 < int(rejected.headers["retry-after"]) <= 86_400 // 48
    policies = '"requests";q=3;w=86400, "network-requests";q=48;w=86400'
    assert rejected.headers["ratelimit-policy"] == policies
    assert ask("2001:db8:3::1").headers["ratelimit"].startswith('"requests";r=2;')
    assert "network" not in ask("203.0.113.77").headers["ratelimit"]


def test_caller_cannot_raise_its_quota_by_a_header(proxied: str) -> None:
    """The proxy appends the caller's address to the header that the caller sends."""
    sent = [statuses([proxied], 1, **{"X-Forwarded-For": f"198.51.100.{last}, 203.0.113.7"}) for last in range(5)]
    assert sum(sent, Counter()) == {200: 3, 429: 2}


@pytest.mark.redis
@pytest.mark.timeout(120)
def test_replicas_that_share_a_redis_admit_exactly_the_limit_together_and_survive_its_loss(
    tiny: dict[str, str],
) -> None:
    with running_redis() as redis:
        settings = {
            **tiny,
            **LIMITED,
            "RATE_LIMIT_REQUESTS": "30",
            "REDIS_URL": redis.url,
            "REDIS_TIMEOUT": "10",  # long, so that a busy machine causes no fallback
        }
        with running_server(**settings) as server, running_server(**settings) as other:
            urls = [server.url, other.url]
            assert statuses(urls, 80) == {200: 30, 429: 50}
            for url in urls:
                assert httpx.get(f"{url}/metrics").json()["limits"] == {"store": "redis", "fallbacks": 0}
            redis.kill()
            assert statuses([server.url], 35) == {200: 30, 429: 5}  # the quotas in memory are still full
            assert httpx.get(f"{server.url}/metrics").json()["limits"] == {"store": "memory", "fallbacks": 1}
            redis.start()
            server.wait_for("limits_recovered")
            assert statuses([server.url], 35) == {200: 30, 429: 5}  # and so are those of the new Redis
            assert httpx.get(f"{server.url}/metrics").json()["limits"] == {"store": "redis", "fallbacks": 1}
            assert [line["event"] for line in server.events].count("limits_fell_back") == 1
