"""Makes answered requests from an endpoint such as `POST /embed`."""

from telemetry.answered_request import NATIVE, AnsweredRequest


def answered(
    endpoint: str, seconds: float, problem_code: str | None = None, dialect: str = NATIVE, *, status: int = 200
) -> AnsweredRequest:
    """Return a request that was answered at *endpoint*."""
    method, _, route = endpoint.rpartition(" ")
    return AnsweredRequest(
        method=method, route=route, status=status, seconds=seconds, problem_code=problem_code, dialect=dialect
    )
