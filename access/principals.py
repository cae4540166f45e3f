"""Principals (identified callers), their permissions, and the errors of authentication and authorization."""

from dataclasses import dataclass, field
from typing import Literal, Protocol

from engine.errors import ServiceError

ADMIN = "admin"
"""The permission that includes all others."""
PERMISSIONS = ("embed", "metrics", ADMIN)
"""The permissions a key or token can have."""
DEFAULT_PERMISSIONS = frozenset({"embed"})
"""The permissions of a key or token that lists none."""


@dataclass(frozen=True, slots=True)
class Principal:
    """The identified caller of a request. Authorization, quotas and the request log all use this one object.

    Attributes:
        kind: how the caller was identified: by an API key, by a token, or only by their network address.
        name: the key's name or the token's `sub`; empty for an address.
        issuer: the token's `iss`; empty if it has none, and for other kinds.
        network: for an address: the network prefix that counts as one caller; empty for other kinds.
        wide_network: for an address: a wider prefix around `network`, whose callers also share a quota; empty: none.
        permissions: those of `PERMISSIONS` that the key or token has; none for an address.
        share_keys: the keys under which quotas and fair queueing count this principal, narrowest first: the caller's
            own, and for an address the one of its wide network. With kind and issuer in them, no two principals have
            the same key of their own, whatever characters their names contain.
    """

    kind: Literal["key", "token", "address"]
    name: str = ""
    issuer: str = ""
    network: str = ""
    wide_network: str = ""
    permissions: frozenset[str] = frozenset()
    share_keys: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.kind == "address":
            wide = (f"address {self.wide_network}",) if self.wide_network else ()
            keys: tuple[str, ...] = (f"address {self.network}", *wide)
        else:
            keys = (f"{self.kind} {self.issuer!r} {self.name}",)
        object.__setattr__(self, "share_keys", keys)  # the class is frozen

    def has(self, permission: str) -> bool:
        """Return whether the principal has *permission*, directly or as `admin`."""
        return permission in self.permissions or ADMIN in self.permissions


class UnauthenticatedError(ServiceError):
    """The caller sent no credentials, or credentials that are not valid.

    Attributes:
        error: the error code of RFC 6750 (section 3.1); None: no credentials were sent.
    """

    status, code, title = 401, "unauthenticated", "A valid key is needed"

    def __init__(self, detail: str, *, error: str | None = "invalid_token") -> None:
        super().__init__(detail)
        self.error = error


class MissingPermissionError(ServiceError):
    """The caller is authenticated but lacks the permission that the route requires."""

    status, code, title = 403, "missing-scope", "The key lacks a permission"

    def __init__(self, permission: str) -> None:
        super().__init__(f"This needs a key with the permission '{permission}'.", extensions={"scope": permission})
        self.permission = permission


class KeysUnavailableError(ServiceError):
    """The token cannot be verified, because the issuer's public keys cannot be fetched now."""

    status, code, title = 503, "keys-unavailable", "The token cannot be checked now"

    def __init__(self, *, retry_after_s: float) -> None:
        super().__init__(
            "The token is signed with a key that is not known here yet, and the issuer's keys cannot be fetched now.",
            retry_after_s=retry_after_s,
        )


class TokenVerifier(Protocol):
    """Verifies tokens and returns their principals. Defined here so that only `JwtVerifier` needs the JWT libraries."""

    async def verify(self, token: bytes) -> Principal | None:
        """Return the principal of *token*; None if it does not look like a token.

        Raises:
            UnauthenticatedError: the token is not valid.
            KeysUnavailableError: the public keys that verify it cannot be fetched now.
        """

    async def aclose(self) -> None:
        """Cancel fetches in flight."""


class NoTokens:
    """Verifies no tokens: every string is treated as an API key."""

    async def verify(self, token: bytes) -> Principal | None:
        del token
        return None

    async def aclose(self) -> None:
        pass
