"""An answer that is sent again is the one that the request would get if it were answered anew, in every respect."""

import ast
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assembly.app import parts_of
from telemetry.answered_request import AnsweredRequest
from tests.api.test_cache_headers import LONE_ROUTES, MODEL, ROUTES, cached, new_texts, without_times
from tests.support.apps import running_app
from tests.support.servers import ROOT
from tests.support.tiny import TinyModel
from tests.support.watched_log import WatchedLog, watched_log
from web.answer_reuse import COMPARED, EXCLUDING, AnswerReuse
from web.json_bodies import receive_body
from web.request_context import RequestContext
from web.request_lines import RequestLines
from web.span_attributes import of_work

ANEW = {"Cache-Control": "max-age=60"}
"""Allows cached results, but excludes cached answers."""
NOT_REPEATED = {"/v1/embed", "/v2/embed"}
"""Answers with the texts themselves, and with an id."""
PATHS = [path for path in (*ROUTES, *LONE_ROUTES) if not path.endswith("/similarity")]
CHANGING = {"x-request-id", "content-length", "server-timing", "date"}
JSON = {"Content-Type": "application/json"}
READERS = ("api", "main.py", "web/json_bodies.py", "web/direct_calls.py")
"""Where handlers read request headers."""


@pytest.fixture(scope="module")
def variables(tiny_models: Path) -> dict[str, str]:
    return {"MODELS_DIR": str(tiny_models), "REQUIRED_MODELS": MODEL, "RESULT_CACHE_MB": "8"}


@pytest.fixture(scope="module")
def client(variables: dict[str, str]) -> Iterator[httpx.Client]:
    with running_app(**variables) as client:
        yield client


@contextmanager
def repeats() -> Iterator[list[bool]]:
    """Collect, for each request that might get a cached answer, whether it does."""
    found, find = list[bool](), AnswerReuse.find

    def watched(*arguments: Any) -> Any:
        answer = find(*arguments)
        found.append(answer is not None)
        return answer

    with patch.object(AnswerReuse, "find", watched):
        yield found


def body_of(path: str, text: str) -> dict[str, Any]:
    return {**ROUTES, **LONE_ROUTES}[path]([text])


def facts(response: httpx.Response) -> tuple[object, ...]:
    """Return all of an answer but what differs between any two."""
    is_json = response.headers["content-type"] == "application/json"
    headers = [(name, value) for name, value in response.headers.multi_items() if name not in CHANGING]
    return response.status_code, without_times(response) if is_json else response.content, headers


def shape(response: httpx.Response) -> object:
    """Return the members of a JSON answer in their order, with the types of their values."""
    content = response.json()
    return [(name, type(value)) for name, value in content.items()] if isinstance(content, dict) else type(content)


@pytest.mark.parametrize("path", PATHS)
def test_kept_answer_of_each_route_is_the_same(path: str, client: httpx.Client) -> None:
    body = body_of(path, *new_texts(1))
    with repeats() as found:
        _, kept, again, last = (client.post(path, json=body) for _ in range(4))
        anew = client.post(path, json=body, headers=ANEW)
    assert found == [False, False, *([path not in NOT_REPEATED] * 2), False]
    assert cached(kept) == cached(again) == (1, 0, 0)
    assert facts(kept) == facts(again) == facts(last) == facts(anew)
    assert shape(again) == shape(anew)


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("/embed", {"dtype": "float16", "encoding": "base64"}),
        ("/embed/batch", {}),
        ("/v1/embeddings", {"encoding_format": "base64"}),
        ("/tei/embed", {}),
    ],
)
def test_traces_say_the_same_of_a_kept_answer(path: str, options: dict[str, str], client: httpx.Client) -> None:
    attributes, write = list[dict[str, Any]](), RequestLines.write

    def watched(lines: RequestLines, answered: AnsweredRequest, context: RequestContext, *others: Any) -> None:
        attributes.append(of_work(context, embeds=True))
        write(lines, answered, context, *others)

    body = body_of(path, *new_texts(1)) | options
    with patch.object(RequestLines, "write", watched), repeats() as found:
        for headers in ({}, {}, {}, ANEW):
            client.post(path, json=body, headers=headers)
    assert found == [False, False, True, False]
    assert attributes[1] == attributes[2] == attributes[3]


OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "dimensions": st.sampled_from([1, 2, 4, 99, "2"]),
        "normalize": st.sampled_from([True, False, None, "yes"]),
        "dtype": st.sampled_from(["float32", "float16", "int8", "ubinary"]),
        "encoding": st.sampled_from(["list", "base64"]),
        "input_type": st.sampled_from(["query", "document"]),
        "truncate": st.sampled_from(["start", "end", "none"]),
        "long_text": st.sampled_from(["truncate", "mean", "chunks"]),
        "model_name": st.sampled_from([MODEL, MODEL.upper(), "no/such"]),
        "unknown": st.just(1),
    },
)
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "Accept": st.sampled_from(
            ["application/octet-stream", "*/*", "application/json;q=0, application/octet-stream"]
        ),
        "Content-Type": st.sampled_from(["application/json; charset=utf-8", "text/plain", "application/merge+json"]),
        "Content-Encoding": st.sampled_from(["identity", "gzip"]),
        "If-Model-Fingerprint": st.sampled_from(["right", "0" * 16, "bad"]),
        "X-Request-Timeout": st.sampled_from(["5", "-1", "x"]),
        "Origin": st.just("https://app.example"),
        "X-Other": st.just("1"),
    },
)
TEXTS = st.sampled_from(["one", "one two", "zero " * 100, " ", "", "é", r"\u00e9", r"\ud800", r"\"", r"one\ttwo", '"'])
"""As they stand in JSON; some are no JSON."""
BODIES = {"/embed": '{"text":"%s"%s}', "/embed/batch": '{"texts":["%s"]%s}', "/v1/embeddings": ' { "input" : "%s"%s} '}


@settings(deadline=None)
@given(text=TEXTS, options=OPTIONS, headers=HEADERS, path=st.sampled_from([*BODIES]))
def test_any_request_has_the_same_answer_when_it_comes_again(
    client: httpx.Client, text: str, options: dict[str, Any], headers: dict[str, str], path: str
) -> None:
    if headers.get("If-Model-Fingerprint") == "right":
        headers["If-Model-Fingerprint"] = client.post("/embed", json={"text": "one"}).headers["X-Model-Fingerprint"]
    headers = {"Content-Type": "application/json", "X-Request-ID": "of-all", **headers}
    body = BODIES[path] % (text, "".join(f",{json.dumps({name: value})[1:-1]}" for name, value in options.items()))
    first, *others = (client.post(path, content=body, headers=headers) for _ in range(4))
    anew = client.post(path, content=body, headers={**headers, **ANEW})
    assert first.status_code == anew.status_code
    assert [facts(other) for other in others] == [facts(anew)] * 3


def test_time_in_a_kept_answer_does_not_contain_that_of_a_slow_client(client: httpx.Client) -> None:
    body, now_s = body_of("/embed", *new_texts(1)), 0.0

    async def receive_late(*arguments: Any) -> bytes:
        nonlocal now_s
        now_s += 60
        return await receive_body(*arguments)

    for _ in range(2):
        client.post("/embed", json=body)
    late = patch("web.direct_calls.receive_body", receive_late)
    clock = patch("web.direct_calls.time", SimpleNamespace(perf_counter=lambda: now_s))
    with late, clock, repeats() as found:
        answer = client.post("/embed", json=body)
    assert found == [True]
    assert answer.json()["processing_time_ms"] == 0


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "OPTIONS", "DELETE"])
def test_other_methods_get_no_kept_answer(method: str, client: httpx.Client) -> None:
    body = body_of("/embed", *new_texts(1))
    for _ in range(3):
        client.post("/embed", json=body)
    assert cached(client.post("/embed", json=body)) == (1, 0, 0)
    assert "x-cache" not in client.request(method, "/embed", json=body).headers


def test_requests_that_differ_have_answers_of_their_own(client: httpx.Client) -> None:
    """Also if the bytes of one header, moved to another place, would make the same request."""
    [text] = new_texts(1)
    body = f'{{"text":"{text}"}}'.encode()
    variants: list[tuple[str, bytes, dict[str, str]]] = [
        ("/embed", body, {}),
        ("/embed", body, {"Accept": "application/octet-stream"}),
        ("/embed", body, {"Accept": ""}),
        ("/embed?accept=application/octet-stream", body, {}),
        ("/embed", body.replace(b"}", b',"encoding":"base64"}'), {}),
        ("/embed", body.replace(b"}", b',"normalize":false}'), {}),
        ("/embed/", body, {}),
        ("/api/embeddings", body.replace(b"text", b"prompt"), {}),
    ]
    with repeats() as found:
        answers = [
            [client.post(path, content=content, headers={**JSON, **headers}) for path, content, headers in variants]
            for _ in range(3)
        ]
    assert found[-len(variants) :] == [True] * len(variants)
    assert [facts(answer) for answer in answers[2]] == [facts(answer) for answer in answers[1]]
    assert len({answer.content[:200] for answer in answers[2]}) >= len(variants) - 3


def test_deleting_results_deletes_their_answers(variables: dict[str, str]) -> None:
    with running_app(**variables) as client, repeats() as found:
        body = body_of("/embed", *new_texts(1))
        answers = [client.post("/embed", json=body) for _ in range(3)]
        parts_of(client.app).service.results.store.clear_memory()  # type: ignore[attr-defined]
        answers += [client.post("/embed", json=body) for _ in range(3)]
    assert found == [False, False, True] * 2
    assert [cached(answer) for answer in answers] == [(0, 1, 0), (1, 0, 0), (1, 0, 0)] * 2


def test_answers_are_kept_anew_after_a_reload_in_which_a_name_may_get_another_model(tmp_path: Path) -> None:
    TinyModel(MODEL).write(tmp_path)
    settings = {"MODELS_DIR": str(tmp_path), "REQUIRED_MODELS": MODEL, "MODEL_ALIASES": f"ours={MODEL}"}
    with running_app(**settings) as client, repeats() as found:

        def ask(model: str) -> list[int]:
            answers = [client.post("/v1/embeddings", json={"input": "one", "model": model}) for _ in range(3)]
            return [len(answer.json()["data"][0]["embedding"]) for answer in answers]

        assert ask("ours") == [4] * 3
        TinyModel("ours", dim=6).write(tmp_path)
        client.blocking_portal.call(parts_of(client.app).service.reload)
        assert ask("ours") == [6] * 3
        assert ask(MODEL) == [4] * 3
    assert found == [False, False, True] * 2 + [False, True, True]


def test_callers_are_kept_apart_and_authenticated(variables: dict[str, str]) -> None:
    given = [letter * 40 for letter in "abc"]
    keys = "a:{},b:{},c:{}:metrics".format(*given)
    with running_app(**variables, API_KEYS=keys) as client, repeats() as found:
        body = body_of("/embed", *new_texts(1))

        def ask(key: str) -> httpx.Response:
            return client.post("/embed", json=body, headers={"X-API-Key": key})

        assert [cached(ask(given[0])) for _ in range(3)] == [(0, 1, 0), (1, 0, 0), (1, 0, 0)]
        assert [cached(ask(given[1])) for _ in range(3)] == [(0, 1, 0), (1, 0, 0), (1, 0, 0)]
        assert [ask(given[2]).status_code, ask("d" * 40).status_code, ask("").status_code] == [403, 401, 401]
    assert found == [False, False, True] * 2


def test_kept_answers_are_charged_counted_and_logged_as_all_others(variables: dict[str, str]) -> None:
    limits = {"ENABLE_RATE_LIMIT": "true", "RATE_LIMIT_WINDOW": "86400", "RATE_LIMIT_REQUESTS": "10"}
    with running_app(**variables, **limits, RATE_LIMIT_TOKENS="1000") as client, watched_log() as log:
        body = body_of("/embed", *new_texts(1))
        client.post("/embed", json=body)
        before = client.get("/metrics").json()
        kept, again, anew = (client.post("/embed", json=body, headers=headers) for headers in ({}, {}, ANEW))
        after = client.get("/metrics").json()
        left = [tokens_left(answer) for answer in (kept, again, anew)]
        assert left[0] - left[1] == left[1] - left[2] > 0
        assert lines(log)[-3:] == [lines(log)[-1]] * 3
        usage, usage_before = (report["models"][MODEL] for report in (after, before))
        tokens = left[0] - left[1]
        assert usage["requests"] - usage_before["requests"] == 3
        assert (usage["texts"] - usage_before["texts"], usage["tokens"] - usage_before["tokens"]) == (3, 3 * tokens)
        assert after["result_cache"]["hits"] - before["result_cache"]["hits"] == 3
        assert {client.post("/embed", json=body).status_code for _ in range(8)} == {200, 429}


def tokens_left(response: httpx.Response) -> int:
    [left] = re.findall(r'"tokens";r=(\d+)', response.headers["ratelimit"])
    return int(left)


def lines(log: WatchedLog) -> list[dict[str, Any]]:
    """Return the log lines of requests, without what differs between any two."""
    changing = {"request_id", "ms"}
    entries = log.of("request_answered", route="/embed")
    return [{k: v for k, v in entry.items() if k not in changing and not k.endswith("_ms")} for entry in entries]


def test_every_header_that_handlers_read_is_compared_or_excludes_a_request() -> None:
    files = [file for name in READERS for file in (sorted((ROOT / name).glob("*.py")) or [ROOT / name])]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    read = {
        ast.literal_eval(argument)
        for node in nodes
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "header_values"
        for argument in node.args
        if isinstance(argument, ast.Constant)
    }
    declared = {
        ast.literal_eval(keyword.value).lower().encode()
        for node in nodes
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "HeaderParameter"
        for keyword in node.keywords
        if keyword.arg == "name"
    }
    assert b"accept" in read
    assert b"x-request-timeout" in declared
    assert (read | declared) - {b"content-length"} == COMPARED | EXCLUDING
