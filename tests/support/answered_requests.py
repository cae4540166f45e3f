"""Makes answered requests from an endpoint such as `POST /embed`."""

from typing import Any

from telemetry.answered_request import NATIVE, NO_ROUTE, AnsweredRequest


def answered(
    endpoint: str,
    seconds: float,
    problem_code: str | None = None,
    dialect: str = NATIVE,
    *,
    status: int = 200,
    **others: Any,
) -> AnsweredRequest:
    """Return a request that was answered at *endpoint*; *others* are further fields of it."""
    method, _, route = ("", "", NO_ROUTE) if endpoint == NO_ROUTE else endpoint.rpartition(" ")
    return AnsweredRequest(
        method=method, route=route, status=status, seconds=seconds, problem_code=problem_code, dialect=dialect, **others
    )
