"""Problem details: every error, of the service, of Litestar or of a bug, and every malformed body."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from litestar import Litestar, get, post
from litestar.exceptions import HTTPException, NotAuthorizedException, ServiceUnavailableException
from litestar.params import FromPath, FromQuery, JSONBody
from litestar.testing import TestClient
from structlog.testing import capture_logs

from access import principals
from access.quotas import QuotaState, RateLimitedError, quotas_of
from api import answer_formats
from api.request_types import EmbedBatchRequest, EmbedRequest
from engine import errors
from engine.catalog import Catalog
from serving import protocol_errors
from tests.support.servers import ROOT
from web import json_bodies, problems
from web.json_bodies import NotJsonError, StrictRequest
from web.large_body_queue import LargeBodyQueue
from web.problems import InternalError, problem_answer, problem_handlers
from web.request_log import RequestLog

SOURCES = {
    "access.quotas",
    *(module.__name__ for module in (principals, answer_formats, problems, errors, protocol_errors)),
}
"""Modules that define errors of the service."""
QUOTED = "what-a-caller-has-sent"
MAX_BODY_BYTES = 300_000
KINDS: list[errors.ServiceError] = [
    errors.ServiceError("Something."),
    errors.InvalidInputError("text: too long.", extensions={"field": "text", "limit": 3}),
    errors.UnknownModelError("tin", ["tiny"]),
    errors.ModelNotFoundError("tin", []),
    errors.ModelNotAllowedError("a/b"),
    errors.ModelUnavailableError("a/b", "the hub cannot be reached", retry_after_s=29.2),
    errors.OverloadedError("Too much.", retry_after_s=0.4),
    errors.DrainingError(),
    errors.DeadlineError(),
    errors.InferenceError(),
    errors.LaneLostError("The thread that ran the model has died."),
    errors.FingerprintMismatchError("acme/tiny", expected="0123456789abcdef", actual="fedcba9876543210"),
    errors.InvalidVectorError(3, "contains NaN or infinity"),
    errors.MetricsDisabledError(),
    NotJsonError("Send JSON."),
    RateLimitedError(QuotaState(quotas_of(requests=1, tokens=None, window_s=9), (9_000_000,), is_admitted=False)),
]
each_kind = pytest.mark.parametrize("error", [pytest.param(error, id=type(error).__name__) for error in KINDS])


class Failing:
    """Holds what the route raises next."""

    error: Exception = ValueError()


@get("/fail")
async def fail() -> None:
    raise Failing.error


@get("/caused")
async def caused() -> None:
    raise Failing.error from ValueError(QUOTED)


@post("/embed", status_code=200)
async def embed(data: JSONBody[EmbedRequest]) -> str:
    return data.text


@post("/batch", status_code=200)
async def batch(data: JSONBody[EmbedBatchRequest]) -> int:
    return len(data.texts)


@get("/count/{number:int}")
async def count(number: FromPath[int], limit: FromQuery[int]) -> int:
    return number + limit


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    app = Litestar(
        [fail, caused, embed, batch, count],
        request_class=StrictRequest,
        request_max_body_size=MAX_BODY_BYTES,
        exception_handlers=problem_handlers(),
        logging_config=None,
        openapi_config=None,
    )
    app.asgi_handler = RequestLog(app.asgi_handler, observe=lambda _: None, large_bodies=LargeBodyQueue())
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def problem_of(response: httpx.Response) -> dict[str, Any]:
    """Return the body of a problem, after checking what all of them must have."""
    problem: dict[str, Any] = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["status"] == problem["status_code"] == response.status_code
    assert problem["type"] == f"urn:fast-embedding:problem:{problem['code']}"
    assert problem["request_id"] == response.headers["x-request-id"]
    assert problem["title"]
    assert problem["detail"]
    return problem


def raised(client: httpx.Client, error: Exception, path: str = "/fail") -> httpx.Response:
    Failing.error = error
    return client.get(path)


@each_kind
def test_error_of_the_service_is_answered_with_all_its_facts(error: errors.ServiceError, client: httpx.Client) -> None:
    response = raised(client, error)
    problem = problem_of(response)
    assert response.status_code == error.status
    stated = {key: problem[key] for key in ("code", "title", "detail")}
    assert stated == {"code": error.code, "title": error.title, "detail": error.detail}
    assert {key: problem[key] for key in error.extensions} == error.extensions


@each_kind
def test_errors_that_may_go_away_have_retry_after(error: errors.ServiceError, client: httpx.Client) -> None:
    retry_after = raised(client, error).headers.get("Retry-After")
    expected = {
        errors.ModelUnavailableError: "30",
        errors.OverloadedError: "1",
        errors.DrainingError: "1",
        errors.LaneLostError: "1",
        RateLimitedError: "9",
    }
    assert retry_after == expected.get(type(error))


def test_each_error_has_its_own_code() -> None:
    codes = {error.code for error in KINDS if not isinstance(error, errors.ModelNotFoundError)}
    assert len(codes) == len(KINDS) - 1
    assert errors.ModelNotFoundError.code == errors.UnknownModelError.code


def test_every_error_of_the_engine_is_in_the_list_of_this_file() -> None:
    kinds = {kind for kind in errors.ServiceError.__subclasses__() if kind.__module__ == errors.__name__}
    assert {type(error) for error in KINDS} >= {errors.ServiceError, *kinds}


def kinds_below(kind: type[errors.ServiceError]) -> Iterator[type[errors.ServiceError]]:
    for below in kind.__subclasses__():
        yield below
        yield from kinds_below(below)


def test_errors_page_lists_each_error_with_its_status() -> None:
    documented = set(
        re.findall(r"^\| (\d{3}) \| `([a-z-]+)` \|", (ROOT / "docs/ERRORS.md").read_text("utf-8"), re.MULTILINE)
    )
    # Failures of tests, and those of the framework in api/openapi_examples.py, are no kinds of the service.
    kinds = [kind for kind in kinds_below(errors.ServiceError) if kind.__module__ in SOURCES]
    assert {(str(kind.status), kind.code) for kind in kinds} - {("404", "unknown-model")} <= documented
    assert {kind.__module__ for kind in kinds} == SOURCES


def test_unknown_model_with_a_long_name_is_answered_briefly(client: httpx.Client) -> None:
    with pytest.raises(errors.UnknownModelError) as rejection:
        Catalog([]).get("x" * 10_000)
    detail = problem_of(raised(client, rejection.value))["detail"]
    assert len(detail) < 200
    assert "GET /models lists all" in detail


def test_cause_of_an_error_is_logged_and_not_answered(client: httpx.Client) -> None:
    with capture_logs() as events:
        response = raised(client, errors.InferenceError(), "/caused")
    problem = problem_of(response)
    assert QUOTED not in response.text
    [event] = [event for event in events if event["event"] == "request_failed"]
    assert (event["code"], event["request_id"]) == ("inference-failed", problem["request_id"])
    assert isinstance(event["exc_info"], ValueError)


@pytest.mark.parametrize("error", [errors.DeadlineError(), errors.ModelNotAllowedError("a")])
def test_error_without_a_cause_is_not_logged_as_a_failure(error: errors.ServiceError, client: httpx.Client) -> None:
    with capture_logs() as events:
        raised(client, error)
    assert [event["event"] for event in events] == ["request_answered"]


@pytest.mark.parametrize("error", [ValueError(QUOTED), KeyError(QUOTED), RecursionError(QUOTED), TimeoutError(QUOTED)])
def test_bug_is_answered_with_a_neutral_sentence_and_logged_in_full(error: Exception, client: httpx.Client) -> None:
    with capture_logs() as events:
        response = raised(client, error)
    problem = problem_of(response)
    assert (problem["status"], problem["code"]) == (500, "internal-error")
    assert QUOTED not in response.text
    [event] = [event for event in events if event["event"] == "request_failed"]
    assert event["exc_info"] is error
    assert event["request_id"] == problem["request_id"]


def test_bug_outside_of_litestar_has_the_same_answer(client: httpx.Client) -> None:
    with capture_logs():
        inside = problem_of(raised(client, ValueError()))
    assert json.loads(problem_answer(InternalError(), inside["request_id"])[2]) == inside


def test_unknown_path_is_a_problem(client: httpx.Client) -> None:
    problem = problem_of(client.get("/nowhere"))
    assert (problem["status"], problem["code"]) == (404, "not-found")
    assert "/docs" in problem["detail"]


def test_wrong_method_is_a_problem_that_names_the_allowed_one(client: httpx.Client) -> None:
    response = client.get("/embed")
    assert problem_of(response)["code"] == "method-not-allowed"
    assert problem_of(response)["detail"] == "This address does not accept GET. Use POST."
    assert "POST" in response.headers["Allow"]


@pytest.mark.parametrize("is_chunked", [pytest.param(False, id="stated"), pytest.param(True, id="chunked")])
def test_large_body_is_a_problem_that_names_the_limit(client: httpx.Client, *, is_chunked: bool) -> None:
    body = json.dumps({"text": "x" * MAX_BODY_BYTES}).encode()
    parts = (body[start : start + 1000] for start in range(0, len(body), 1000))
    problem = problem_of(client.post("/embed", content=parts if is_chunked else body))
    assert (problem["status"], problem["code"], problem["limit"]) == (413, "content-too-large", MAX_BODY_BYTES)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        pytest.param(NotAuthorizedException("No key.", headers={"WWW-Authenticate": "Bearer"}), 401, "unauthorized"),
        pytest.param(HTTPException("No coffee.", status_code=418), 418, "i'm-a-teapot", id="teapot"),
        pytest.param(ServiceUnavailableException(QUOTED), 503, "service-unavailable"),
    ],
)
def test_error_of_litestar_is_a_problem(error: HTTPException, status: int, code: str, client: httpx.Client) -> None:
    response = raised(client, error)
    problem = problem_of(response)
    assert (problem["status"], problem["code"]) == (status, code)
    assert QUOTED not in response.text
    assert dict(error.headers or {}).items() <= {"WWW-Authenticate": "Bearer"}.items()
    assert all(response.headers[name] == value for name, value in (error.headers or {}).items())


@pytest.mark.parametrize(
    ("path", "body", "place", "words"),
    [
        pytest.param("/embed", {}, ("text", None), "missing required field", id="field missing"),
        pytest.param("/embed", {"text": "a", "txt": 1}, ("txt", None), "unknown field", id="field unknown"),
        pytest.param("/embed", {"text": 1}, ("text", None), "a string", id="number for a text"),
        pytest.param("/embed", {"text": None}, ("text", None), "a string", id="null for a text"),
        pytest.param("/embed", {"text": ["a"]}, ("text", None), "a string", id="list for a text"),
        pytest.param(
            "/embed", {"text": "a", "model_name": 3}, ("model_name", None), "a string", id="number for a name"
        ),
        pytest.param("/batch", {"texts": "a"}, ("texts", None), "array", id="text for a list"),
        pytest.param("/batch", {"texts": ["a", 1]}, ("texts", 1), "a string", id="number in a list"),
        pytest.param("/batch", {"texts": [None]}, ("texts", 0), "a string", id="null in a list"),
        pytest.param("/batch", {"texts": {"0": "a"}}, ("texts", None), "array", id="object for a list"),
    ],
)
def test_wrong_body_is_a_problem_that_says_where_and_what(
    path: str, body: object, place: tuple[str, int | None], words: str, client: httpx.Client
) -> None:
    problem = problem_of(client.post(path, json=body))
    assert (problem["status"], problem["code"]) == (400, "invalid-input")
    assert (problem["field"], problem.get("index")) == place
    assert words in problem["detail"].lower()
    assert place[0] in problem["detail"]
    assert "`" not in problem["detail"]


@pytest.mark.parametrize("value", ["a", "Object contains unknown field"])
def test_answer_to_an_unknown_field_or_value_lists_the_allowed_ones(value: str, client: httpx.Client) -> None:
    field = problem_of(client.post("/embed", json={"text": "a", "dimension": value}))
    word = problem_of(client.post("/embed", json={"text": "a", "dtype": value}))
    assert (field["field"], word["field"]) == ("dimension", "dtype")
    assert {"text", "model_name", "dimensions", "dtype"} <= set(field["choices"])
    assert set(word["choices"]) == {"float32", "float16", "int8", "uint8", "binary", "ubinary"}
    assert all(choice in problem["detail"] for problem in (field, word) for choice in problem["choices"])


@pytest.mark.parametrize("body", [b"[]", b'"a"', b"1", b"null", b"true"], ids=lambda body: str(body, "ascii"))
def test_json_that_is_not_an_object_is_a_problem(body: bytes, client: httpx.Client) -> None:
    problem = problem_of(client.post("/embed", content=body))
    assert (problem["status"], problem["code"]) == (400, "invalid-input")
    assert "object" in problem["detail"].lower()


def test_missing_body_is_a_problem_that_says_so(client: httpx.Client) -> None:
    problem = problem_of(client.post("/embed"))
    assert (problem["status"], problem["code"]) == (400, "invalid-input")
    assert "empty" in problem["detail"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        pytest.param(b'{"text": "a"', "not JSON", id="cut short"),
        pytest.param(b'{"text": "a"} x', "not JSON", id="trailing text"),
        pytest.param(b"text=a", "not JSON", id="a form"),
        pytest.param(b'{"text": "\xff\xfe"}', "UTF-8", id="not UTF-8"),
        pytest.param('{"text": "a"}'.encode("utf-16"), "not JSON", id="UTF-16"),
        pytest.param(b'{"text": NaN}', "NaN", id="NaN"),
        pytest.param(b'{"text": "\\x"}', "not JSON", id="wrong escape"),
        pytest.param(b'{"text": "a\nb"}', "JSON", id="bare line break"),
        pytest.param(b"[" * 100_000, "an object", id="unclosed arrays"),
        pytest.param(b'{"text": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", "a string", id="nested deeply"),
    ],
)
def test_body_that_is_not_json_is_a_problem_that_says_why(body: bytes, words: str, client: httpx.Client) -> None:
    problem = problem_of(client.post("/embed", content=body))
    assert (problem["status"], problem["code"]) == (400, "invalid-input")
    assert words in problem["detail"]
    assert len(problem["detail"]) < 300


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        pytest.param(b'{"text": "%s"}', 200, "aaa", id="right"),
        pytest.param(b'{"text": "%s", "other": 1}', 400, "other", id="unknown field"),
        pytest.param(b'{"text": "%s\\ud800"}', 400, "surrogate", id="lone surrogate"),
        pytest.param(b'{"text": "%s\xff"}', 400, "UTF-8", id="not UTF-8"),
    ],
)
def test_large_body_is_decoded_in_the_queue(
    content: bytes, status: int, words: str, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_bodies, "LARGE_BYTES", 1_000)
    answer = client.post("/embed", content=content % (b"a" * 1_000))
    assert answer.status_code == status
    assert words in answer.text


@pytest.mark.parametrize(
    ("path", "body", "field", "index"),
    [
        pytest.param("/embed", b'{"text": "a\\ud800b"}', "text", None, id="first half"),
        pytest.param("/embed", b'{"text": "\\udfff"}', "text", None, id="second half"),
        pytest.param("/embed", b'{"text": "\\udc00\\ud800"}', "text", None, id="halves in wrong order"),
        pytest.param("/batch", b'{"texts": ["a", "\\ud83d"]}', "texts", 1, id="in a list"),
        pytest.param("/embed", b'{"text": "a", "model_name": "\\ud800"}', "model_name", None, id="in a name"),
    ],
)
def test_lone_surrogate_is_a_problem_that_says_where(
    path: str, body: bytes, field: str, index: int | None, client: httpx.Client
) -> None:
    problem = problem_of(client.post(path, content=body))
    assert (problem["status"], problem["code"], problem["field"]) == (400, "invalid-input", field)
    assert problem.get("index") == index
    assert "surrogate" in problem["detail"]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"\\ud800": "a"}', id="in a field's name"),
        pytest.param(b'{"text": {"a": "\\ud800"}}', id="deeper in the body"),
        pytest.param(b'["\\ud800"]', id="in a list alone"),
    ],
)
def test_lone_surrogate_elsewhere_is_a_problem_too(body: bytes, client: httpx.Client) -> None:
    problem = problem_of(client.post("/embed", content=body))
    assert (problem["status"], problem["code"]) == (400, "invalid-input")


def test_surrogate_pair_is_a_character(client: httpx.Client) -> None:
    response = client.post("/embed", content=b'{"text": "\\ud83d\\ude42"}')
    assert (response.status_code, response.text) == (200, "🙂")


@pytest.mark.parametrize(
    "media_type",
    ["application/json", "application/json; charset=utf-8", "Application/JSON", "application/vnd.api+json", None],
)
def test_media_type_of_json_is_accepted(media_type: str | None, client: httpx.Client) -> None:
    headers = {} if media_type is None else {"Content-Type": media_type}
    assert client.post("/embed", content=b'{"text": "a"}', headers=headers).status_code == 200


@pytest.mark.parametrize(
    "media_type",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/jsonp", "json"],
)
def test_other_media_type_is_rejected(media_type: str, client: httpx.Client) -> None:
    response = client.post("/embed", content=b'{"text": "a"}', headers={"Content-Type": media_type})
    assert (problem_of(response)["status"], response.json()["code"]) == (415, "not-json")


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda name: {"text": "a", name: 1}, id="unknown field"),
        pytest.param(lambda name: {name: "\ud800"}, id="field with a lone surrogate"),
    ],
)
def test_long_field_name_is_shortened_in_the_answer(make: Callable[[str], object], client: httpx.Client) -> None:
    body = json.dumps(make("x" * 100_000)).encode()
    response = client.post("/embed", content=body)
    assert problem_of(response)["status"] == 400
    assert len(response.content) < 1500


def test_value_is_never_repeated(client: httpx.Client) -> None:
    bodies = [{"text": [QUOTED]}, {"text": {QUOTED: QUOTED}}, {"text": "a", "model_name": [QUOTED]}]
    assert not [body for body in bodies if QUOTED in client.post("/embed", json=body).text]


@pytest.mark.parametrize(
    ("address", "word"),
    [("/count/1", "limit"), ("/count/1?limit=many", "limit")],
)
def test_wrong_parameter_is_a_problem_that_names_it(address: str, word: str, client: httpx.Client) -> None:
    problem = problem_of(client.get(address))
    assert (problem["status"], problem["code"]) == (400, "invalid-input")
    assert word in problem["detail"]
