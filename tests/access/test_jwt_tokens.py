"""Signed tokens: the principal of a valid one, and each way in which one is invalid."""

import base64
import json
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from access.jwt_tokens import JwtVerifier, OneKey, SigningKeyError, read_public_key, secret_key
from access.principals import Principal, UnauthenticatedError
from tests.support.signing_keys import SECRET, ec_key, private_pem, public_pem, rsa_key, token

RSA, EC = rsa_key(), ec_key()
OTHER_SECRET = "another-secret-of-at-least-32-bytes-length"  # noqa: S105 - used by tests only


def tokens(**more: Any) -> JwtVerifier:
    sources = {
        "HS256": OneKey(secret_key(SECRET)),
        "RS256": OneKey(RSA.public_key()),
        "ES256": OneKey(EC.public_key()),
    }
    return JwtVerifier(sources, **more)


async def rejection(given: str | bytes, reader: JwtVerifier | None = None) -> UnauthenticatedError:
    with pytest.raises(UnauthenticatedError) as rejected:
        await (reader or tokens()).verify(given.encode() if isinstance(given, str) else given)
    return rejected.value


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [pytest.param(SECRET, "HS256", id="HS256"), pytest.param(RSA, "RS256", id="RS256"), (EC, "ES256")],
)
async def test_valid_token_identifies_its_principal(key: Any, algorithm: str) -> None:
    caller = await tokens().verify(token(key, algorithm).encode())
    assert caller is not None
    assert caller == Principal("token", "alice", permissions=frozenset({"embed"}))


@pytest.mark.parametrize("given", [b"", b"abc", b"a.b", b"a.b.c.d", b"....."])
async def test_what_does_not_look_like_a_token_is_not_judged(given: bytes) -> None:
    assert await tokens().verify(given) is None


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        pytest.param({"exp": int(time.time()) - 60}, "expired", id="expired"),
        pytest.param({"exp": None}, "'exp'", id="without expiry"),
        pytest.param({"exp": "soon"}, "malformed", id="expiry as text"),
        pytest.param({"nbf": int(time.time()) + 86_400}, "not valid yet", id="not valid yet"),
        pytest.param({"iat": int(time.time()) + 86_400}, "not valid yet", id="issued in the future"),
        pytest.param({"sub": None}, "'sub'", id="without a subject"),
        pytest.param({"sub": ""}, "'sub'", id="empty subject"),
        pytest.param({"sub": "a\nb"}, "'sub'", id="subject with a line break"),
        pytest.param({"sub": "a\x1b[31mb"}, "'sub'", id="subject with an escape sequence"),
        pytest.param({"sub": "a" * 201}, "'sub'", id="long subject"),
        pytest.param({"iss": "a\nb"}, "'iss'", id="issuer with a line break"),
        pytest.param({"iss": "a\ud800"}, "'iss'", id="issuer with half a character"),
        pytest.param({"iss": "a" * 201}, "'iss'", id="long issuer"),
        pytest.param({"aud": "somebody-else"}, "another audience", id="for another audience"),
    ],
)
async def test_token_with_an_invalid_claim_is_rejected(claims: dict[str, Any], reason: str) -> None:
    error = await rejection(token(**claims))
    assert (error.status, error.error) == (401, "invalid_token")
    assert reason in error.detail


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        pytest.param({"sub": 5}, "malformed", id="subject"),
        pytest.param({"sub": "alice", "iss": 5}, "'iss'", id="issuer"),
        pytest.param({"sub": "alice", "iss": None}, "'iss'", id="no issuer"),
        pytest.param({"sub": "alice", "iss": ["a"]}, "'iss'", id="issuers"),
    ],
)
async def test_name_that_is_not_a_string_is_rejected(claims: dict[str, Any], reason: str) -> None:
    assert reason in (await rejection(signed({**claims, "exp": int(time.time()) + 600}))).detail


@pytest.mark.parametrize(("late_s", "is_good"), [(100, True), (400, False)])
async def test_leeway_allows_for_different_clocks(late_s: int, *, is_good: bool) -> None:
    reader, expired = tokens(leeway_s=300), token(exp=int(time.time()) - late_s)
    if is_good:
        assert await reader.verify(expired.encode())
    else:
        await rejection(expired, reader)


@pytest.mark.parametrize("audience", ["here", ["there", "here"]])
async def test_token_for_one_of_the_audiences_is_valid(audience: object) -> None:
    assert await tokens(audiences=["x", "here"]).verify(token(aud=audience).encode())


@pytest.mark.parametrize(
    ("audience", "reason"),
    [("there", "another audience"), (["there"], "another audience"), (None, "'aud'"), (5, "audience")],
)
async def test_token_for_none_of_the_audiences_is_rejected(audience: object, reason: str) -> None:
    assert reason in (await rejection(token(aud=audience), tokens(audiences=["here"]))).detail


@pytest.mark.parametrize(("issuer", "reason"), [("https://else", "another issuer"), (None, "'iss'")])
async def test_token_of_another_issuer_is_rejected(issuer: str | None, reason: str) -> None:
    reader = tokens(issuers=["https://login"])
    assert await reader.verify(token(iss="https://login").encode())
    assert reason in (await rejection(token(iss=issuer), reader)).detail


@pytest.mark.parametrize(
    ("claims", "permissions"),
    [
        pytest.param({}, {"embed"}, id="none"),
        pytest.param({"scope": "embed metrics"}, {"embed", "metrics"}, id="scope"),
        pytest.param({"scope": "openid admin"}, {"admin"}, id="unknown ones are ignored"),
        pytest.param({"scope": "openid profile"}, set(), id="only unknown ones"),
        pytest.param({"scope": ""}, set(), id="empty"),
        pytest.param({"scp": ["metrics", "x", 5]}, {"metrics"}, id="scp as a list"),
        pytest.param({"scp": "metrics embed"}, {"metrics", "embed"}, id="scp as a text"),
        pytest.param({"scope": "embed", "scp": "admin"}, {"embed"}, id="scope wins"),
        pytest.param({"scope": 5}, set(), id="a number"),
        pytest.param({"scope": "embedmetrics EMBED"}, set(), id="similar to known ones"),
    ],
)
async def test_permissions_are_the_known_scopes_of_the_token(claims: dict[str, Any], permissions: set[str]) -> None:
    caller = await tokens().verify(token(**claims).encode())
    assert caller is not None
    assert caller.permissions == permissions


# --- Signatures ---------------------------------------------------------------------------------------------------


def part(content: object) -> bytes:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=")


def by_hand(header: dict[str, object], signature: bytes = b"", claims: Mapping[str, object] | None = None) -> bytes:
    """Return a token with any header."""
    payload = claims or {"sub": "alice", "exp": int(time.time()) + 600}
    return part(header) + b"." + part(payload) + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")


def signed(claims: Mapping[str, object], secret: bytes = SECRET.encode(), **header: object) -> bytes:
    """Return a correctly signed token with any claims and header."""
    unsigned = by_hand({"alg": "HS256", **header}, claims=claims).rpartition(b".")[0]
    algorithm = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    signature = algorithm.sign(unsigned, secret)
    return unsigned + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [(OTHER_SECRET, "HS256"), pytest.param(rsa_key("other"), "RS256", id="RS256"), (ec_key("other"), "ES256")],
)
async def test_signature_of_another_key_is_rejected(key: Any, algorithm: str) -> None:
    assert "signature" in (await rejection(token(key, algorithm))).detail


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "HS384", "RS512", "EdDSA", "", None, 5, ["HS256"]])
async def test_other_algorithm_is_rejected(algorithm: object) -> None:
    error = await rejection(by_hand({"alg": algorithm, "typ": "JWT"}))
    assert "HS256 or RS256 or ES256" in error.detail or "malformed" in error.detail


async def test_missing_signature_is_rejected() -> None:
    for algorithm in ("HS256", "RS256", "ES256"):
        await rejection(by_hand({"alg": algorithm}))


@pytest.mark.parametrize("key", [pytest.param(RSA, id="RSA"), pytest.param(EC, id="EC")])
async def test_public_key_is_never_used_as_a_secret(key: Any) -> None:
    """Anyone knows the public key and can sign by HMAC with it."""
    claims = {"sub": "alice", "exp": int(time.time()) + 600}
    for encoding in (Encoding.PEM, Encoding.DER):
        public = key.public_key().public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo)
        forged = signed(claims, public)
        await rejection(forged)
        await rejection(forged, JwtVerifier({"RS256": OneKey(RSA.public_key()), "ES256": OneKey(EC.public_key())}))


async def test_token_of_an_algorithm_without_a_key_is_rejected() -> None:
    only = JwtVerifier({"RS256": OneKey(RSA.public_key())})
    for other in (token(), token(EC, "ES256")):
        assert "RS256" in (await rejection(other, only)).detail


async def test_key_within_the_token_is_not_used() -> None:
    header = {
        "alg": "RS256",
        "jwk": {"kty": "oct", "k": "eA"},
        "jku": "http://127.0.0.1:9/",
        "x5u": "http://127.0.0.1:9/",
    }
    own = rsa_key("other")
    assert "signature" in (await rejection(jwt.encode({"sub": "a", "exp": 9**10}, own, "RS256", headers=header))).detail


async def test_critical_extension_is_rejected() -> None:
    claims = {"sub": "alice", "exp": int(time.time()) + 600}
    assert await tokens().verify(signed(claims))
    await rejection(signed(claims, crit=["exp"]))


@pytest.mark.parametrize(
    "given",
    [
        b"..",
        b"a.b.c",
        b"\xff.\xff.\xff",
        part([]) + b".e30.e30",
        part({"alg": "HS256", "kid": 5}) + b".e30.e30",
        base64.urlsafe_b64encode(b"[" * 5000) + b".e30.e30",
        part({"alg": "HS256"}) + b"." + base64.urlsafe_b64encode(b"[" * 5000) + b".e30",
    ],
)
async def test_malformed_token_is_rejected(given: bytes) -> None:
    await rejection(given)


@given(st.binary(max_size=40), st.binary(max_size=40), st.binary(max_size=40))
@settings(deadline=None)
async def test_any_three_parts_are_rejected(header: bytes, claims: bytes, signature: bytes) -> None:
    given = b".".join(piece.replace(b".", b"") for piece in (header, claims, signature))
    await rejection(given)


async def test_token_is_never_repeated_in_its_rejection() -> None:
    for sent in (token(OTHER_SECRET), token(exp=1), token(aud="secret-audience"), "abcdefgh.ijklmnop.qrstuvwx"):
        detail = (await rejection(sent)).detail
        assert not [piece for piece in sent.split(".") if piece in detail]
        assert '"' not in detail  # the header puts it in quotes
        assert "secret-audience" not in detail


# --- Keys ---------------------------------------------------------------------------------------------------------


def certificate() -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "issuer")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(RSA.public_key())
    now = datetime.now(UTC)
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(days=1))
    return builder.sign(RSA, hashes.SHA256()).public_bytes(Encoding.PEM)


@pytest.mark.parametrize(
    ("content", "algorithm"),
    [
        pytest.param(lambda: public_pem(RSA), "RS256", id="RSA"),
        pytest.param(lambda: public_pem(EC), "ES256", id="P-256"),
        pytest.param(certificate, "RS256", id="certificate"),
    ],
)
def test_type_of_a_public_key_decides_its_algorithm(
    content: Callable[[], bytes], algorithm: str, tmp_path: Path
) -> None:
    (tmp_path / "key.pem").write_bytes(content())
    assert read_public_key(tmp_path / "key.pem")[0] == algorithm


def ed25519_pem() -> bytes:
    key = ed25519.Ed25519PrivateKey.generate().public_key()
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(lambda: private_pem(RSA), "private key", id="private"),
        pytest.param(lambda: public_pem(rsa_key(bits=1024)), "2048 bits", id="short RSA"),
        pytest.param(lambda: public_pem(ec.generate_private_key(ec.SECP384R1())), "P-256", id="other curve"),
        pytest.param(ed25519_pem, "P-256", id="other type"),
        pytest.param(lambda: b"", "PEM", id="empty"),
        pytest.param(SECRET.encode, "PEM", id="no key"),
        pytest.param(lambda: b"-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n", "PEM", id="broken"),
    ],
)
def test_unusable_key_file_is_rejected(content: Callable[[], bytes], reason: str, tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_bytes(content())
    with pytest.raises(SigningKeyError, match=reason):
        read_public_key(tmp_path / "key.pem")


def test_public_key_as_a_secret_is_rejected() -> None:
    with pytest.raises(SigningKeyError, match="another kind"):
        secret_key(public_pem(RSA).decode())
