"""What comes with the texts and options of a request: its caller, limits and conditions."""

from collections.abc import Callable
from dataclasses import dataclass, field

from engine.errors import ServiceError
from engine.fair_queue import ANYONE, Caller
from engine.result_store import CACHE_USE, CacheUse
from telemetry.request_work import RequestWork


@dataclass(slots=True, kw_only=True, eq=False)
class RequestTerms:
    """The terms of one request, which the embedder only reads; the defaults are those of a request without any.

    Attributes:
        caller: who sent it; the service is fair between callers.
        timeout_s: maximum seconds to wait; the service's own limit applies as well.
        on_tokens: called before the model runs, with the number of tokens that count against the caller's quota. If it
            raises, the request fails with that error.
        if_fingerprint: the fingerprint that the model must have; None: any.
        cache: how the request may use the result cache.
        miss_error: raised if a result is missing: the queue is full. None: what is missing is computed.
        work: gets what is done for the request.
    """

    caller: Caller = ANYONE
    timeout_s: float | None = None
    on_tokens: Callable[[int], None] | None = None
    if_fingerprint: str | None = None
    cache: CacheUse = CACHE_USE
    miss_error: ServiceError | None = None
    work: RequestWork = field(default_factory=RequestWork)

    def check_may_compute(self) -> None:
        """Raise `miss_error`, if there is one."""
        if self.miss_error is not None:
            raise self.miss_error

    def count_tokens(self, tokens: int, truncated: int) -> None:
        """Record the tokens of the texts, and how many of these are *truncated*; charge the tokens."""
        self.work.tokens, self.work.truncated = tokens, truncated
        if self.on_tokens is not None:
            self.on_tokens(tokens)
