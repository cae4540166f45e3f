"""Signed tokens (JWT): verifies their signatures and claims, and returns their principals.

PyJWT is used directly. Litestar's own tools (`litestar.security.jwt`) support one secret and one algorithm, pass the
claims to a handler that looks up a user, require `iat`, allow no leeway, and answer every error alike.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from cryptography.x509 import load_pem_x509_certificate

from access.principals import DEFAULT_PERMISSIONS, PERMISSIONS, Principal, UnauthenticatedError
from host.small_files import SmallFileError, read_small_file

MIN_RSA_BITS, MAX_RSA_BITS = 2048, 16_384
"""Sizes of RSA keys: below, they are not safe; above, OpenSSL does not verify signatures (its OPENSSL_RSA_MAX_…)."""
MAX_FILE_BYTES = 100_000
SUBJECT = re.compile(r"\S(?:.{0,198}\S)?")
"""A valid `sub`: it is logged, so it is one line and not too long."""
ISSUER = re.compile(r".{0,200}")
"""A valid `iss`, for the same reason."""
REQUIRED = ["exp", "sub"]
REASONS: Mapping[type[Exception], str] = {
    jwt.ExpiredSignatureError: "The token has expired.",
    jwt.ImmatureSignatureError: "The token is not valid yet.",
    jwt.InvalidAudienceError: "The token is for another audience.",
    jwt.InvalidIssuerError: "The token is from another issuer.",
    jwt.InvalidSignatureError: "The token's signature is wrong.",
}
MALFORMED = "The token is malformed."


class SigningKeyError(ValueError):
    """A configured secret or public key cannot be used; the message says why."""


class KeySource(Protocol):
    """Finds the key that verifies tokens of one algorithm."""

    async def find(self, key_id: str | None, algorithm: str) -> Any:
        """Return the key, as PyJWT takes it.

        Raises:
            UnauthenticatedError: there is no such key.
            KeysUnavailableError: the keys cannot be fetched now.
        """

    async def aclose(self) -> None:
        """Cancel fetches in flight."""


class OneKey:
    """Returns the same key for every token, whatever key id the token names."""

    def __init__(self, key: Any) -> None:
        self._key = key

    async def find(self, key_id: str | None, algorithm: str) -> Any:
        del key_id, algorithm
        return self._key

    async def aclose(self) -> None:
        pass


class JwtVerifier:
    """Verifies tokens and returns their principals.

    Each algorithm has its own source of keys, so a token cannot choose how it is verified: a public key is never used
    as the secret of an HMAC, and an algorithm without a source, such as `none`, is rejected.
    """

    def __init__(
        self,
        sources: Mapping[str, KeySource],
        *,
        audiences: Sequence[str] = (),
        issuers: Sequence[str] = (),
        leeway_s: float = 0,
    ) -> None:
        """Accept tokens of the algorithms of *sources*.

        Args:
            sources: by algorithm, `HS256`, `RS256` or `ES256`.
            audiences: a token must name one of them; if empty, a token must not name an audience.
            issuers: a token must be from one of them; if empty, any issuer is accepted.
            leeway_s: seconds by which the issuer's clock may differ.
        """
        self._sources = sources
        self._audiences = list(audiences) or None
        self._issuers = list(issuers) or None
        self._leeway_s = leeway_s

    async def verify(self, token: bytes) -> Principal | None:
        if token.count(b".") != 2:  # noqa: PLR2004 - header, claims, signature
            return None
        try:
            header = jwt.get_unverified_header(token)
        except jwt.InvalidTokenError:
            raise UnauthenticatedError(MALFORMED) from None
        algorithm = header.get("alg")
        source = self._sources.get(algorithm) if isinstance(algorithm, str) else None
        if source is None:
            raise UnauthenticatedError(f"Tokens must be signed by {' or '.join(self._sources)}.")
        key = await source.find(header.get("kid"), str(algorithm))
        return _principal(self._claims(token, key, str(algorithm)))

    async def aclose(self) -> None:
        for source in set(self._sources.values()):
            await source.aclose()

    def _claims(self, token: bytes, key: Any, algorithm: str) -> Mapping[str, Any]:
        try:
            claims: Mapping[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=self._audiences,
                issuer=self._issuers,
                leeway=self._leeway_s,
                options={"require": REQUIRED, "enforce_minimum_key_length": True},
            )
        except jwt.MissingRequiredClaimError as error:
            raise UnauthenticatedError(f"The token lacks the claim '{error.claim}'.") from None
        except jwt.PyJWTError as error:
            raise UnauthenticatedError(REASONS.get(type(error), MALFORMED)) from None
        return claims


def secret_key(secret: str) -> jwt.PyJWK:
    """Return the key that verifies HS256 tokens signed with *secret*.

    Raises:
        SigningKeyError: *secret* is a public key, which is not a secret.
    """
    try:
        octets = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).prepare_key(secret)
    except jwt.InvalidKeyError:
        raise SigningKeyError("it is a key of another kind, not a secret") from None
    encoded = jwt.utils.base64url_encode(octets).decode()
    return jwt.PyJWK({"kty": "oct", "k": encoded}, "HS256")


def read_public_key(file: Path) -> tuple[str, RSAPublicKey | EllipticCurvePublicKey]:
    """Return the algorithm of the public key in *file*, and the key.

    Raises:
        SigningKeyError: it contains no key that can be used.
        OSError: it cannot be read.
    """
    try:
        content = read_small_file(file, max_bytes=MAX_FILE_BYTES)
    except SmallFileError as error:
        raise SigningKeyError(str(error)) from None
    if b"PRIVATE KEY" in content:
        raise SigningKeyError("it contains a private key, which only the issuer should have; use the public key")
    try:
        key = (
            load_pem_x509_certificate(content).public_key()
            if b"BEGIN CERTIFICATE" in content
            else load_pem_public_key(content)
        )
    except (ValueError, UnsupportedAlgorithm):
        raise SigningKeyError("it contains no public key in PEM form") from None
    algorithm = algorithm_of(key)
    if algorithm is None:
        raise SigningKeyError(
            f"it must contain an RSA key of at least {MIN_RSA_BITS} bits, and at most {MAX_RSA_BITS}, "
            "or one of the curve P-256"
        )
    return algorithm, key  # type: ignore[return-value]  # only these two types have an algorithm


def algorithm_of(key: object) -> str | None:
    """Return the algorithm whose signatures *key* verifies; None: it is not supported or not safe."""
    if isinstance(key, RSAPublicKey) and MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
        return "RS256"
    if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
        return "ES256"
    return None


def _principal(claims: Mapping[str, Any]) -> Principal:
    subject = claims["sub"]
    if not SUBJECT.fullmatch(subject) or not subject.isprintable():
        raise UnauthenticatedError("The token's claim 'sub' is not a name of 1 to 200 printable characters.")
    issuer = claims.get("iss", "")
    if not isinstance(issuer, str) or not ISSUER.fullmatch(issuer) or not issuer.isprintable():
        raise UnauthenticatedError("The token's claim 'iss' is not a text of at most 200 printable characters.")
    return Principal("token", subject, issuer=issuer, permissions=_permissions(claims))


def _permissions(claims: Mapping[str, Any]) -> frozenset[str]:
    """Read the claim `scope` (RFC 8693 and 9068), or `scp` as some issuers name it. Unknown permissions are ignored."""
    claim = claims.get("scope", claims.get("scp"))
    if claim is None:
        return DEFAULT_PERMISSIONS
    names = claim.split() if isinstance(claim, str) else claim if isinstance(claim, list) else ()
    return frozenset(PERMISSIONS).intersection(name for name in names if isinstance(name, str))
