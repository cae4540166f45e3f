"""Sends a cached answer if the same request is repeated and the only result in the answer is still cached.

That skips the validation of the body, the lookup of the text, and writing the answer. Everything else happens as for
any request: it is authenticated, counted, charged and logged. Requests are not stored, only their keyed hashes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from litestar.types import HTTPScope

from engine.request_terms import RequestTerms
from engine.single_hit import SingleHit
from web.dialects import Dialect
from web.request_context import RequestContext
from web.responses import Duration, PlainAnswer, encoded_headers
from web.security_headers import Header

MAX_BODY_BYTES = 65_536
"""Requests with larger bodies are not compared: one text is rarely so long, and hashing blocks the event loop."""
COMPARED: Final = frozenset({b"content-type", b"accept", b"if-model-fingerprint"})
"""Request headers on which an answer depends: requests that differ in one are not the same."""
EXCLUDING: Final = frozenset({b"content-encoding", b"cache-control", b"x-request-timeout"})
"""Request headers that are rare, or mean that nothing may be reused: these requests are always answered anew."""


@dataclass(frozen=True, slots=True, eq=False)
class CachedAnswer:
    """An answer that may be sent again.

    Attributes:
        single_hit: the only result in it.
        duration: as `PlainAnswer.duration`.
        headers: its own, without those that every answer has.
        parts: the body before the duration, and after it; one part if it has no duration.
        dialect: the API that the caller speaks, which may depend on the body.
        encoding_formats: as `RequestContext.encoding_formats`, which the body states.
    """

    single_hit: SingleHit
    duration: Duration | None
    headers: tuple[Header, ...]
    parts: tuple[bytes, ...]
    dialect: Dialect | None
    encoding_formats: tuple[str, ...]

    def body(self, seconds: float) -> bytes:
        """Return the body for a request that took *seconds*."""
        return self.parts[0] if self.duration is None else self.duration.write(seconds).join(self.parts)


class Answers(Protocol):
    """Caches answers by key, within the memory of the result cache."""

    def __len__(self) -> int: ...

    def get(self, key: bytes) -> CachedAnswer | None:
        """Return the answer with this key; None: it is not cached."""

    def may_keep(self, result_key: bytes) -> bool:
        """Return whether an answer that contains the result with this key may be cached."""

    def put(self, key: bytes, answer: CachedAnswer, body_bytes: int, *, result_key: bytes) -> None:
        """Cache *answer*, whose body has *body_bytes*, and which contains the result with *result_key*."""


class AnswerReuse:
    """Finds cached answers, and caches new ones.

    Attributes:
        answers: the cached answers to all requests.
    """

    def __init__(
        self,
        answers: Answers,
        key_of: Callable[..., bytes],
        repeat: Callable[[SingleHit, RequestTerms], bool],
    ) -> None:
        """Connect the parts.

        Args:
            answers: see the class.
            key_of: returns the key for a caller and the parts of a request, a keyed hash.
            repeat: counts and charges a request like one that is answered anew; returns whether its answer is right.
        """
        self.answers = answers
        self._key_of = key_of
        self._repeat = repeat

    def find(self, scope: HTTPScope, context: RequestContext, body: bytes) -> CachedAnswer | None:
        """Return the answer to the request, which is then counted as answered; None: it must be answered anew."""
        if not self.answers or context.answer_key is not None:  # the server has looked for it (`EarlyReuse`)
            return None
        if (key := self._key(scope, context, body)) is None or (answer := self.answers.get(key)) is None:
            return None
        terms = RequestTerms(caller=context.caller, on_tokens=context.charge_tokens, work=context.work)
        if not self._repeat(answer.single_hit, terms):
            return None
        context.dialect, context.encoding_formats = answer.dialect, answer.encoding_formats
        return answer

    def keep(self, scope: HTTPScope, context: RequestContext, body: bytes, answer: PlainAnswer) -> None:
        """Cache *answer* to the request if it may be sent again."""
        if (hit := answer.single_hit) is None or not self.answers.may_keep(hit.key):
            return
        if (key := context.answer_key or self._key(scope, context, body)) is None:
            return
        duration = answer.duration
        parts = (answer.body,) if duration is None else duration.split(answer.body)
        headers = (*encoded_headers(answer.answer_headers), (b"content-type", answer.media_type.encode()))
        cached = CachedAnswer(hit, duration, headers, parts, context.dialect, context.encoding_formats)
        self.answers.put(key, cached, len(answer.body), result_key=hit.key)

    def _key(self, scope: HTTPScope, context: RequestContext, body: bytes) -> bytes | None:
        """Return the key of the request, and keep it in its *context*; None: it is not compared with others."""
        if len(body) > MAX_BODY_BYTES or "\0" in scope["path"]:  # a header cannot contain it
            return None
        compared = [scope["path"].encode("utf-8", "surrogatepass"), scope["query_string"]]
        for name, value in scope["headers"]:
            if name in COMPARED:
                compared += (name, value)
            elif name in EXCLUDING:
                return None
        context.answer_key = key = self._key_of(context.caller, *compared, body)
        return key
