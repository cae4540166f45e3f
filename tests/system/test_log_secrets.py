"""Nothing that callers send is in the log of a real server, at the lowest level; each line has the same form."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.log_page import COMMON, documented_events, documented_fields
from tests.support.raw_http import CLIENT, connected, receive_all, send
from tests.support.servers import ServerProcess, started_server, started_uvicorn, stopped_at_the_end

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

MARK = "hushhush"
NUMBERS = count(1000)
API_KEY = f"{MARK}-key-0123456789"
TEXTS = ("/embed", "text"), ("/embed/batch", "texts"), ("/tokenize", "texts"), ("/v1/embeddings", "input")
MORE_TEXTS = ("/api/embed", "input"), ("/api/embeddings", "prompt"), ("/v2/embed", "texts"), ("/", "inputs")
HEADERS = (
    *("Authorization", "X-API-Key", "api-key", "Proxy-Authorization", "Cookie", "X-Own", "User-Agent", "Referer"),
    *("If-Model-Fingerprint", "Cache-Control", "X-Request-Timeout", "Accept", "Content-Type", "Content-Encoding"),
    *("Host", "Origin", "traceparent", "tracestate", "baggage", "X-Forwarded-For", "Forwarded", "Expect", "From"),
    *("Connection", "Upgrade", "Transfer-Encoding", "Content-Length", "Access-Control-Request-Method", "Range"),
)
WEBSOCKET = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: YQ==\r\n\r\n"
PATHS = (
    *("/{}", "/embed/{}", "/models/{}", "/models/{}/{}", "/openai/deployments/{}/embeddings", "/tei/{}", "/page/{}"),
    *("/embed?api-key={}", "/metrics?{}={}", "//{}", "/%00{}", "/%0a{}", "/schema/{}", "/{}%0aevent=forged"),
)
MALFORMED = (
    *("{0} /embed HTTP/1.1\r\nHost: me\r\n\r\n", "POST {0}\r\n\r\n", "{0}\r\n\r\n", "GET /{0} HTTP/9.9\r\n\r\n"),
    *("GET / HTTP/1.1\r\n{0}\r\n\r\n", "GET / HTTP/1.1\r\nHost: me\r\n{0} : x\r\n\r\n", "\x00{0}\n\n", "PRI * {0}"),
    "GET /{0} HTTP/1.1\r\nHost: me\r\n" + WEBSOCKET,
    "POST /embed HTTP/1.1\r\nHost: me\r\nTransfer-Encoding: chunked\r\n\r\n5;{0}\r\nhello\r\n{0}\r\n",
    "POST /embed HTTP/1.1\r\nHost: me\r\nContent-Length: 900\r\n\r\n{0}",  # and leaves
    "GET / HTTP/1.1\r\nHost: me\r\nX: {0}" + "x" * 70_000 + "\r\n\r\n",
    "POST /embed HTTP/1.1\r\nHost: me\r\nContent-Length: 5\r\nContent-Length: {0}\r\n\r\n",
    "GET http://{0}/{0} HTTP/1.1\r\nHost: {0}\r\n\r\n",
)


def secret() -> str:
    """Return a word that no other place has, so that a failure shows which one it is."""
    return f"{MARK}{next(NUMBERS)}"


def ask(server: ServerProcess, method: str, path: str, **more: object) -> httpx.Response | None:
    key = {"Authorization": f"Bearer {API_KEY}"}
    headers = {**key, **dict(more.pop("headers", {}))}  # type: ignore[call-overload]  # a dict, if it is there
    with suppress(httpx.HTTPError):
        return CLIENT.request(method, f"{server.url}{path}", headers=headers, **more)  # type: ignore[arg-type]  # of httpx
    return None


def send_secrets(server: ServerProcess) -> None:
    """Send a secret in every place that a caller can write to."""
    for path, field in (*TEXTS, *MORE_TEXTS):
        value: object = [secret()] if field in ("texts", "inputs") else secret()
        for body in (
            {field: value},
            {field: value, "model": secret(), "model_name": secret()},
            {field: value, secret(): secret(), "dtype": secret(), "dimensions": secret(), "input_type": secret()},
            {field: {secret(): secret()}},
        ):
            ask(server, "POST", path, json=body)
        for content in (
            f'{{"{field}": "{secret()}',
            f"{secret()}",
            f'["{secret()}"]',
            f'{{"{field}": "{secret()}\xff"}}',
        ):
            ask(server, "POST", path, content=content.encode("latin-1"), headers={"Content-Type": "application/json"})
    for name in HEADERS:
        ask(server, "POST", "/embed", content=b'{"text": "one"}', headers={name: secret()})
        ask(server, "OPTIONS", "/embed", headers={"Origin": f"https://{secret()}.example", name: secret()})
    for scheme in ("Bearer", "Basic", "Bearer bearer"):
        ask(server, "GET", "/models", headers={"Authorization": f"{scheme} {secret()}.{secret()}.{secret()}"})
    for template in PATHS:
        for method in ("GET", "POST", "DELETE"):
            ask(server, method, template.format(secret(), secret()), content=b'{"text": "one"}')
    for template in MALFORMED:
        with connected(server) as connection:
            send(connection, template.format(secret()).encode("latin-1"))
            if "Content-Length: 900" not in template:
                connection.shutdown(1)
                receive_all(connection)


@contextmanager
def served(kind: str, log_format: str, models: Path) -> Iterator[ServerProcess]:
    settings = {"MODELS_DIR": str(models), "REQUIRED_MODELS": "tiny/one", "API_KEYS": f"alice:{API_KEY}:admin"}
    settings |= {"LOG_LEVEL": "DEBUG", "LOG_FORMAT": log_format, "LOG_CLIENT": "both", "CLOSED_ROUTES": "models"}
    if kind == "h11":
        command = ("-m", "uvicorn", "main:app", "--port", "{port}", "--http", "h11", "--log-level", "trace")
        with stopped_at_the_end(ServerProcess(settings, command=command)) as server:
            yield server
        return
    start = started_uvicorn if kind == "uvicorn" else started_server
    with start(**settings) as server:
        yield server


def check_fields(events: list[dict[str, Any]]) -> None:
    """Check that docs/MONITORING.md names all fields of these lines."""
    of_requests = documented_fields("Lines about requests")
    fields = {event: fields for events, fields in documented_events() for event in events}
    fields |= {"request_answered": of_requests, "request_slow": of_requests | documented_fields("Slow requests")}
    unknown = [line for line in events if line.keys() - COMMON - fields.get(line["event"], {"address"})]
    assert unknown == []
    assert {line["event"] for line in events if "logger" not in line} <= fields.keys()


@pytest.mark.parametrize(
    ("kind", "log_format"),
    [("main.py", "json"), ("main.py", "console"), ("uvicorn", "json"), ("uvicorn", "console"), ("h11", "json")],
)
def test_nothing_that_callers_send_is_in_the_log(kind: str, log_format: str, tiny_models: Path) -> None:
    with served(kind, log_format, tiny_models) as server:
        server.wait_until(lambda: "service_ready" in server.log, "service_ready")
        send_secrets(server)
        answer = ask(server, "POST", "/embed", json={"text": "one two"}, headers={"X-Request-ID": "the-last"})
        assert answer is not None
        numbers = re.findall(r"\d\.\d{5,}", json.dumps(answer.json()["embedding"]))
        server.wait_until(lambda: "the-last" in server.log, "the last request")
        server.process.terminate()
        server.wait_for_end()
    assert answer.status_code == 200
    lines = server.log.splitlines()
    assert [line for line in lines if MARK in line.lower()] == []
    assert numbers
    assert [line for line in lines if any(number in line for number in numbers)] == []
    assert len(lines) > len(HEADERS) * 2
    if log_format == "json":
        assert [line for line in lines if not line.startswith('{"')] == []
        names = {event.get("model") for event in server.events}
        assert names <= {"tiny/one", None}
        check_fields(server.events)
        last = server.wait_for_request("the-last")
        assert (last["caller"], last["caller_kind"], last["client"]) == ("alice", "key", "127.0.0.1")
    else:
        start = re.compile(r"(\x1b\[\d+m)*\d{4}-\d\d-\d\dT[\d:.]+Z")
        assert [line for line in lines if not start.match(line)] == []
