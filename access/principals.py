"""Who calls, and what they may do: what keys and tokens tell, and how a refusal reads."""

from dataclasses import dataclass
from typing import Protocol

from engine.errors import ServiceError

SCOPES = ("embed", "metrics", "admin")
"""What a key or a token may be good for; `admin` is good for everything."""
DEFAULT_SCOPES = frozenset({"embed"})
"""What a key or a token is good for that does not say."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Someone whose key or token is good.

    Attributes:
        name: the key's name, or the token's `sub`; it stands in the log.
        scopes: those of `SCOPES` that the key or token has.
    """

    name: str
    scopes: frozenset[str]

    def may(self, scope: str) -> bool:
        return scope in self.scopes or "admin" in self.scopes


class UnauthenticatedError(ServiceError):
    """It is not known who calls.

    Attributes:
        error: the error code of RFC 6750 (section 3.1); None: no credentials were sent.
    """

    status, code, title = 401, "unauthenticated", "A valid key is needed"

    def __init__(self, detail: str, *, error: str | None = "invalid_token") -> None:
        super().__init__(detail)
        self.error = error


class MissingScopeError(ServiceError):
    """It is known who calls, but they may not do this."""

    status, code, title = 403, "missing-scope", "This key is not good for this"

    def __init__(self, scope: str) -> None:
        super().__init__(f"This needs a key with the scope '{scope}'.", facts={"scope": scope})
        self.scope = scope


class KeysUnavailableError(ServiceError):
    """A token may be good, but the public keys that would tell cannot be fetched now."""

    status, code, title = 503, "keys-unavailable", "The token cannot be checked now"

    def __init__(self, *, retry_after_s: float) -> None:
        super().__init__(
            "The token is signed with a key that is not known here yet, and new keys cannot be fetched now.",
            retry_after_s=retry_after_s,
        )


class TokenReader(Protocol):
    """Tells whose a token is."""

    async def read(self, token: bytes) -> Principal | None:
        """Whose *token* it is; None: it does not look like one.

        Raises:
            UnauthenticatedError: it is not good.
            KeysUnavailableError: it cannot be told now.
        """

    async def aclose(self) -> None:
        """End what is under way."""


class NoTokens:
    """Takes no token."""

    async def read(self, token: bytes) -> Principal | None:
        del token
        return None

    async def aclose(self) -> None:
        pass
