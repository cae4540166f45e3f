"""Errors that callers can receive. Each class has an HTTP status, a stable code and a title."""

from collections.abc import Mapping, Sequence

NO_MEMORY = "there is not enough memory for it"
"""The cause in `ModelUnavailableError` when memory runs out; several modules detect that."""

MAX_SHOWN_NAME_CHARACTERS = 100
"""Characters of an unknown model's name that the error repeats; a name can be as long as the request body."""


class ServiceError(Exception):
    """An error that is reported to the caller on purpose.

    Attributes:
        status: the HTTP status.
        code: a stable name for programs.
        title: describes the kind of error; the same for every error of this code.
        extensions: further members of the problem document (RFC 9457), such as the field and the limit.
        retry_after_s: when a retry makes sense, in seconds; None: a retry changes nothing.
        detail: a full sentence for the caller, with *hint*.
        plain_detail: the same without *hint*.
    """

    status: int = 500
    code: str = "internal-error"
    title: str = "Something went wrong in the service"

    def __init__(
        self,
        detail: str,
        *,
        hint: str = "",
        retry_after_s: float | None = None,
        extensions: Mapping[str, object] | None = None,
    ) -> None:
        """Describe the error.

        Args:
            detail: what is wrong, where, and what is allowed.
            hint: a sentence about fields or addresses of the native API, which callers of another dialect cannot use.
            retry_after_s: see the class.
            extensions: see the class.
        """
        self.plain_detail = detail
        self.detail = f"{detail} {hint}" if hint else detail
        super().__init__(self.detail)
        self.retry_after_s = retry_after_s
        self.extensions = dict(extensions or {})


class InvalidInputError(ServiceError):
    """The request's body or a header breaks a rule."""

    status, code, title = 400, "invalid-input", "The request is not valid"


class TextTooLongError(InvalidInputError):
    """A text is longer than the model's input, and the request forbids truncation."""


class UnknownModelError(ServiceError):
    """The request body names a model that is not in the catalogue.

    Attributes:
        name: the unknown name.
        closest: up to three similar names.
        summary: the detail without a pointer to a route, for messages of a start or a command: no service runs then.
    """

    status, code, title = 400, "unknown-model", "There is no such model"

    def __init__(self, name: str, closest: Sequence[str]) -> None:
        self.name = name
        self.closest = closest
        hint = f" Did you mean {' or '.join(map(repr, closest))}?" if closest else ""
        self.summary = f"No model named {name[:MAX_SHOWN_NAME_CHARACTERS]!r} is offered.{hint}"
        hint = "" if closest else "GET /models lists all."
        super().__init__(self.summary, hint=hint, extensions={"closest": list(closest)})


class ModelNotFoundError(UnknownModelError):
    """The URL names a model that is not in the catalogue."""

    status = 404


class ModelNotAllowedError(ServiceError):
    """The model exists, but the operator does not offer it."""

    status, code, title = 403, "model-not-allowed", "This model may not be used here"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"ALLOWED_MODELS does not include the model {name!r}.", hint="GET /models lists what may be used."
        )


class FingerprintMismatchError(ServiceError):
    """The caller requires another fingerprint than that of the model: its index has vectors of another model."""

    status, code, title = 412, "fingerprint-mismatch", "The model has another fingerprint"

    def __init__(self, name: str, *, expected: str, actual: str) -> None:
        super().__init__(
            f"The model {name!r} has the fingerprint {actual}, but the request requires {expected}. Nothing was "
            "computed: its vectors do not belong in the same index.",
            extensions={"expected": expected, "actual": actual},
        )


class ModelUnavailableError(ServiceError):
    """A model of the catalogue cannot be loaded now; other models are not affected.

    Attributes:
        cause: the reason, without a capital letter and a full stop.
    """

    status, code, title = 503, "model-unavailable", "The model cannot be loaded now"

    def __init__(self, name: str, cause: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(f"The model {name!r} cannot be loaded now: {cause}.", retry_after_s=retry_after_s)
        self.name = name
        self.cause = cause


class OverloadedError(ServiceError):
    """Too much work is queued to finish this request in time; no part of it was computed."""

    status, code, title = 503, "overloaded", "Too much work is waiting"


class DrainingError(ServiceError):
    """The service is shutting down and accepts no new work."""

    status, code, title = 503, "draining", "The service is shutting down"

    def __init__(self) -> None:
        super().__init__("The service is shutting down and accepts no new work.", retry_after_s=1)


class CutOffError(DrainingError):
    """The request was accepted, but the service's shutdown time ended before the answer was ready."""

    def __init__(self) -> None:
        ServiceError.__init__(
            self, "The service had to stop before this request was answered. Send it again.", retry_after_s=1
        )


class DeadlineError(ServiceError):
    """The request's deadline passed before its answer was ready, or will pass: nothing of it is computed any more."""

    status, code, title = 504, "deadline-exceeded", "The request took too long"

    def __init__(
        self, detail: str = "The request's deadline passed before the answer was ready. Its queued work was dropped."
    ) -> None:
        super().__init__(detail)


class InferenceError(ServiceError):
    """The model failed during a run."""

    status, code, title = 500, "inference-failed", "The model failed"

    def __init__(self) -> None:
        super().__init__("The model failed on this input. The service's log contains the error.")


class LaneLostError(ServiceError):
    """The thread of a model run died, or none could be started; the next run gets a new one."""

    status, code, title = 503, "lane-lost", "The model run lost its thread"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, retry_after_s=1)


class InvalidVectorError(ServiceError):
    """The model returned an unusable vector: one that is not finite, or has length zero.

    Attributes:
        index: the text's position in the request.
    """

    status, code, title = 500, "invalid-vector", "The model returned an unusable vector"

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(f"The vector of text {index} {reason}, so it is not returned.", extensions={"index": index})
        self.index = index


class MetricsDisabledError(ServiceError):
    """The operator has disabled the metrics."""

    status, code, title = 403, "metrics-disabled", "Metrics are disabled"

    def __init__(self) -> None:
        super().__init__("ENABLE_METRICS disables the metrics.")


class ModelMisbehavedError(Exception):
    """A model returned vectors of a wrong shape. Callers get `InferenceError`; the message contains no text."""
