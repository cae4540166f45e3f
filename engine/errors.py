"""The failures a caller may see: each has a status, a code that stays the same, and its facts."""

from collections.abc import Mapping, Sequence

NO_MEMORY = "there is not enough memory for it"
"""Why a model cannot be loaded; whoever finds it says it in these words."""


class ServiceError(Exception):
    """A failure that is reported on purpose.

    Attributes:
        status: the HTTP status that fits.
        code: a name for programs; it never changes.
        title: what this kind of failure is, the same in every answer of its code.
        facts: further members of the answer, such as the field and the limit.
        retry_after_s: when trying again makes sense, in seconds; None: trying again changes nothing.
    """

    status: int = 500
    code: str = "internal-error"
    title: str = "Something went wrong in the service"

    def __init__(
        self, detail: str, *, retry_after_s: float | None = None, facts: Mapping[str, object] | None = None
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.facts = dict(facts or {})


class InvalidInputError(ServiceError):
    """The request's body or a header breaks a rule."""

    status, code, title = 400, "invalid-input", "The request is not valid"


class UnknownModelError(ServiceError):
    """The caller named a model that is not in the catalogue.

    Attributes:
        summary: the detail without a pointer to a route: at a start, no service answers yet.
    """

    status, code, title = 400, "unknown-model", "There is no such model"

    def __init__(self, name: str, closest: Sequence[str]) -> None:
        hint = f" Did you mean {' or '.join(map(repr, closest))}?" if closest else ""
        self.summary = f"No model named {name[:100]!r} is offered.{hint}"
        detail = self.summary if closest else f"{self.summary} GET /models lists all."
        super().__init__(detail, facts={"closest": list(closest)})
        self.name = name
        self.closest = closest


class ModelNotFoundError(UnknownModelError):
    """The address names a model that is not in the catalogue."""

    status = 404


class ModelNotAllowedError(ServiceError):
    """The model exists, but the operator does not offer it."""

    status, code, title = 403, "model-not-allowed", "This model may not be used here"

    def __init__(self, name: str) -> None:
        super().__init__(f"The model {name!r} is outside ALLOWED_MODELS. GET /models lists what may be used.")


class ModelUnavailableError(ServiceError):
    """A model of the catalogue cannot be loaded now; other models are not affected."""

    status, code, title = 503, "model-unavailable", "The model cannot be loaded now"

    def __init__(self, name: str, cause: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(f"The model {name!r} cannot be loaded now: {cause}.", retry_after_s=retry_after_s)
        self.name = name
        self.cause = cause


class OverloadedError(ServiceError):
    """More work waits than the service promises to do in time; nothing of this request was done."""

    status, code, title = 503, "overloaded", "Too much work is waiting"


class DrainingError(ServiceError):
    """The service is going down and takes no new work."""

    status, code, title = 503, "draining", "The service is shutting down"

    def __init__(self) -> None:
        super().__init__("The service is shutting down and takes no new work.", retry_after_s=1)


class CutOffError(DrainingError):
    """The request was accepted, but the service's time to end was over before its answer was there."""

    def __init__(self) -> None:
        super().__init__()
        self.detail = "The service had to end before this was answered. Nothing is kept of it; send it again."


class DeadlineError(ServiceError):
    """The request's time was over before its answer was there; its waiting work was dropped."""

    status, code, title = 504, "deadline-exceeded", "The request took too long"

    def __init__(self) -> None:
        super().__init__("The request's time was over before the answer was there; what still waited was dropped.")


class InferenceError(ServiceError):
    """The model failed while it ran."""

    status, code, title = 500, "inference-failed", "The model failed"

    def __init__(self) -> None:
        super().__init__("The model failed on this input. The failure is in the service's log.")


class LaneLostError(ServiceError):
    """The thread of a model run has died, or none could be started; the next run gets a new one."""

    status, code, title = 503, "lane-lost", "The model run lost its thread"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, retry_after_s=1)


class InvalidVectorError(ServiceError):
    """The model gave a vector that no caller should use: not finite, or of length zero."""

    status, code, title = 500, "invalid-vector", "The model gave an unusable vector"

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(f"The vector of text {index} {reason}, so it is not passed on.", facts={"index": index})
        self.index = index


class MetricsDisabledError(ServiceError):
    """The operator has switched the metrics off."""

    status, code, title = 403, "metrics-disabled", "The metrics are switched off"

    def __init__(self) -> None:
        super().__init__("The metrics are switched off by ENABLE_METRICS.")


class ModelMisbehavedError(Exception):
    """A model did not do what models do; it names shapes and counts, never texts. Callers get `InferenceError`."""
