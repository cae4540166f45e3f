"""Examples of problem documents that several routes may answer with, for OpenAPI."""

from litestar.openapi.spec import Example

from access.principals import KeysUnavailableError, MissingPermissionError, UnauthenticatedError
from access.quotas import QuotaState, RateLimitedError, quotas_of
from api.openapi import problem
from engine import errors
from web.json_bodies import NotJsonError

MODEL_NAME = "sentence-transformers/all-MiniLM-L6-v2"


class TooLargeError(errors.ServiceError):
    """Describes an error that Litestar raises itself."""

    status, code, title = 413, "content-too-large", "Content Too Large"


class BadRequestError(errors.ServiceError):
    """Describes Litestar's error for malformed headers, which any route may return."""

    status, code, title = 400, "bad-request", "Bad Request"


NOT_ALLOWED = problem(
    errors.ModelNotAllowedError,
    "ALLOWED_MODELS does not include the model 'thenlper/gte-base'. GET /models lists what may be used.",
)
_RATE_LIMITED = RateLimitedError(
    QuotaState(
        quotas_of(requests=100, tokens=None, window_s=60), used=(100 * 60_000_000 - 1_000_000,), is_admitted=False
    )
)
NOT_AUTHENTICATED = (
    problem(UnauthenticatedError, "Send a key as 'Authorization: Bearer KEY' or as 'X-API-Key: KEY'."),
    problem(UnauthenticatedError, "The token has expired."),
    problem(
        KeysUnavailableError,
        "The token is signed with a key that is not known here yet, and new keys cannot be fetched now.",
    ),
)
"""Problems of routes for which the settings require keys."""
WORK: tuple[tuple[int, Example], ...] = (
    *NOT_AUTHENTICATED,
    problem(MissingPermissionError, "This needs a key with the permission 'embed'.", scope="embed"),
    NOT_ALLOWED,
    problem(
        errors.FingerprintMismatchError,
        f"The model {MODEL_NAME!r} has the fingerprint 853622761c0bc2c3, but the request requires 0123456789abcdef. "
        "Nothing was computed: its vectors do not belong in the same index.",
        expected="0123456789abcdef",
        actual="853622761c0bc2c3",
    ),
    problem(TooLargeError, "The body is larger than MAX_REQUEST_SIZE allows.", limit=10_000_000),
    problem(NotJsonError, "Send the body as JSON, with the header 'Content-Type: application/json'."),
    problem(RateLimitedError, _RATE_LIMITED.detail, **_RATE_LIMITED.extensions),
    problem(
        errors.ModelUnavailableError,
        "The model 'thenlper/gte-base' cannot be loaded now: it is not in the cache, and the hub cannot be reached.",
    ),
    problem(
        errors.OverloadedError,
        "Queued work takes 8.9 s. With this request it could exceed the limit of 10 s, "
        "so no part of the request was computed.",
    ),
    problem(errors.LaneLostError, "The thread that ran the model has died."),
    problem(errors.DrainingError, "The service is shutting down and accepts no new work."),
    problem(errors.CutOffError, "The service had to stop before this request was answered. Send it again."),
    problem(
        errors.DeadlineError,
        "The request's deadline passed before the answer was ready. Its queued work was dropped.",
    ),
)
"""Problems of every route that uses a model, apart from what is wrong with the body."""
RUN: tuple[tuple[int, Example], ...] = (
    problem(errors.InferenceError, "The model failed on this input. The service's log contains the error."),
    problem(
        errors.InvalidVectorError, "The vector of text 3 contains NaN or infinity, so it is not returned.", index=3
    ),
)
"""Further problems of every route that runs a model."""
