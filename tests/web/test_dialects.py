"""Dialects: the errors of a path are answered as the clients of another server expect them."""

from collections.abc import Mapping
from typing import Any

import pytest
from litestar import Litestar, get, post
from litestar.exceptions import HTTPException
from litestar.testing import TestClient

from access.principals import UnauthenticatedError
from access.quotas import QuotaState, RateLimitedError, quotas_of
from engine.errors import InferenceError, InvalidInputError, OverloadedError, ServiceError
from web.dialects import Dialect, DialectPaths, Rejection, label_of
from web.large_body_queue import LargeBodyQueue
from web.litestar_adapter import dialect_routes
from web.problems import problem_handlers
from web.request_log import RequestLog


def members(document: Mapping[str, object]) -> Mapping[str, object]:
    return {"error": {"message": document["detail"], "param": document.get("field"), "status": document["status"]}}


LOUD = Dialect(
    "loud",
    members,
    status=lambda code, status: 429 if status == 503 else 418 if code == "invalid-input" else status,
    fields={"texts": "input"},
    prefixes=("/loud/",),
)
QUIET = Dialect("quiet", lambda _: {}, prefixes=("/loud/quiet/",), media_type="application/problem+json")


QUOTA_USED_UP = RateLimitedError(
    QuotaState(quotas_of(requests=1, tokens=None, window_s=300), (300_000_000,), is_admitted=False)
)


class Failing:
    """An app whose routes raise `error`, and what it counted."""

    def __init__(self) -> None:
        self.error: Exception = InferenceError()
        self.counted: list[tuple[str, str | None, str]] = []

        @post("/loud/{name:str}/embed", opt={"dialect": LOUD})
        async def loud() -> None:
            raise self.error

        @get("/quiet", opt={"dialect": QUIET})
        async def quiet() -> None:
            raise self.error

        @get("/native")
        async def native() -> None:
            raise self.error

        app = Litestar(
            [loud, quiet, native], exception_handlers=problem_handlers(), openapi_config=None, logging_config=None
        )
        app.asgi_handler = RequestLog(
            app.asgi_handler,
            observe=lambda answered: self.counted.append((answered.endpoint, answered.problem_code, answered.dialect)),
            large_bodies=LargeBodyQueue(),
            find_dialect=DialectPaths(dialect_routes(app)).find,
        )
        self.client = TestClient(app, raise_server_exceptions=False)

    def ask(self, path: str = "/loud/x/embed", method: str = "POST") -> Any:
        with self.client as client:
            return client.request(method, path)


@pytest.fixture
def failing() -> Failing:
    return Failing()


def test_one_body_is_a_problem_document_and_the_error_of_the_dialect(failing: Failing) -> None:
    failing.error = InvalidInputError(
        "texts[3]: too long.", hint="Set long_text.", extensions={"field": "texts", "index": 3}
    )
    answer = failing.ask()
    body = answer.json()
    assert answer.status_code == body["status"] == body["status_code"] == 418
    assert answer.headers["content-type"] == "application/json"
    assert body["error"] == {"message": "input[3]: too long.", "param": "input", "status": 418}
    assert (body["detail"], body["field"], body["index"]) == ("input[3]: too long.", "input", 3)
    assert body["code"] == "invalid-input"
    assert body["request_id"] == answer.headers["x-request-id"]
    native = failing.ask("/native", "GET")
    assert (native.status_code, native.json()["detail"]) == (400, "texts[3]: too long. Set long_text.")
    assert native.headers["content-type"] == "application/problem+json"
    assert failing.counted == [
        ("POST /loud/{name}/embed", "invalid-input", "loud"),
        ("GET /native", "invalid-input", "native"),
    ]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        pytest.param(OverloadedError("Full.", retry_after_s=0.25), ("1", "250", "true"), id="short"),
        pytest.param(OverloadedError("Full.", retry_after_s=300), ("60", "60000", "true"), id="long, as a 429"),
        pytest.param(QUOTA_USED_UP, ("300", "300000", "false"), id="a long wait for a quota"),
        pytest.param(InferenceError(), (None, None, "false"), id="a retry changes nothing"),
        pytest.param(ValueError(), (None, None, "false"), id="a bug"),
        pytest.param(UnauthenticatedError("No key."), (None, None, None), id="not retried anyway"),
    ],
)
def test_clients_learn_whether_and_when_to_retry(
    failing: Failing, error: Exception, expected: tuple[str | None, ...]
) -> None:
    failing.error = error
    headers = failing.ask().headers
    assert (headers.get("retry-after"), headers.get("retry-after-ms"), headers.get("x-should-retry")) == expected


def test_wait_after_503_is_one_that_clients_obey(failing: Failing) -> None:
    failing.error = OverloadedError("Full.", retry_after_s=300)
    headers = failing.ask("/quiet", "GET").headers
    assert (headers["retry-after"], headers["x-should-retry"]) == ("60", "true")
    assert failing.ask("/native", "GET").headers["retry-after"] == "300"


@pytest.mark.parametrize(("path", "method", "status"), [("/loud/nothing", "GET", 404), ("/loud/x/embed/", "GET", 405)])
def test_errors_of_routing_are_in_the_dialect(failing: Failing, path: str, method: str, status: int) -> None:
    answer = failing.ask(path, method)
    assert (answer.status_code, answer.json()["error"]["status"]) == (status, status)


def test_other_errors_of_litestar_are_in_the_dialect(failing: Failing) -> None:
    failing.error = HTTPException(status_code=413)
    body = failing.ask().json()
    assert body["error"] == {"message": body["detail"], "param": None, "status": 413}
    assert body["limit"] == 10_000_000


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/loud/x/embed", LOUD),
        ("//loud//x/", LOUD),
        ("/loud", LOUD),
        ("/loud/quiet/x", QUIET),
        ("/quiet", QUIET),
        ("/quiet/", QUIET),
        ("/quiet?x=/loud/", QUIET),
        ("/loud/x?y=1", LOUD),
        ("/louder", None),
        ("/", None),
        ("", None),
        ("/native", None),
    ],
)
def test_dialect_is_found_by_the_path(path: str, dialect: Dialect | None) -> None:
    paths = DialectPaths([("/loud/{name}/embed", LOUD), ("/quiet", QUIET)])
    assert paths.find(path) is dialect
    assert label_of(dialect) == {LOUD: "loud", QUIET: "quiet", None: "native"}[dialect]


@pytest.mark.parametrize(("dialect", "status"), [(LOUD, 429), (QUIET, 503), (None, 503)])
def test_early_rejection_has_the_status_of_its_dialect(dialect: Dialect | None, status: int) -> None:
    assert Rejection(OverloadedError("Too much.", retry_after_s=7), dialect).status == status


def test_only_a_field_at_the_beginning_of_a_detail_is_renamed() -> None:
    for detail in ("text: x", "Text 3 has texts: many", "textsx[1]: y", "texts[a]: b"):
        assert LOUD.rename(detail) == detail
    assert LOUD.rename("texts: none") == "input: none"
    assert LOUD.rename("texts[12]: texts: x") == "input[12]: texts: x"


def test_hint_of_the_native_api_is_no_part_of_the_plain_detail() -> None:
    error = ServiceError("It is wrong.", hint="Set x.")
    assert (error.detail, error.plain_detail, str(error)) == ("It is wrong. Set x.", "It is wrong.", error.detail)
