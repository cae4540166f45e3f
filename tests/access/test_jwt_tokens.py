"""Signed tokens: whose they are, and each way in which one is not good."""

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
OTHER_SECRET = "another-secret-of-at-least-32-bytes-length"  # noqa: S105 - of the tests


def tokens(**more: Any) -> JwtVerifier:
    sources = {
        "HS256": OneKey(secret_key(SECRET)),
        "RS256": OneKey(RSA.public_key()),
        "ES256": OneKey(EC.public_key()),
    }
    return JwtVerifier(sources, **more)


async def refusal(given: str | bytes, reader: JwtVerifier | None = None) -> UnauthenticatedError:
    with pytest.raises(UnauthenticatedError) as refused:
        await (reader or tokens()).verify(given.encode() if isinstance(given, str) else given)
    return refused.value


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [pytest.param(SECRET, "HS256", id="HS256"), pytest.param(RSA, "RS256", id="RS256"), (EC, "ES256")],
)
async def test_good_token_tells_whose_it_is(key: Any, algorithm: str) -> None:
    caller = await tokens().verify(token(key, algorithm).encode())
    assert caller is not None
    assert caller == Principal("token", "alice", permissions=frozenset({"embed"}))


@pytest.mark.parametrize("given", [b"", b"abc", b"a.b", b"a.b.c.d", b"....."])
async def test_what_does_not_look_like_a_token_is_left_to_others(given: bytes) -> None:
    assert await tokens().verify(given) is None


@pytest.mark.parametrize(
    ("claims", "told"),
    [
        pytest.param({"exp": int(time.time()) - 60}, "expired", id="expired"),
        pytest.param({"exp": None}, "'exp'", id="without end"),
        pytest.param({"exp": "soon"}, "malformed", id="end in words"),
        pytest.param({"nbf": int(time.time()) + 86_400}, "not valid yet", id="too early"),
        pytest.param({"iat": int(time.time()) + 86_400}, "not valid yet", id="from the future"),
        pytest.param({"sub": None}, "'sub'", id="nobody's"),
        pytest.param({"sub": ""}, "'sub'", id="of an empty name"),
        pytest.param({"sub": "a\nb"}, "'sub'", id="of a name with a line break"),
        pytest.param({"sub": "a\x1b[31mb"}, "'sub'", id="of a name with an escape sequence"),
        pytest.param({"sub": "a" * 201}, "'sub'", id="of a long name"),
        pytest.param({"aud": "somebody-else"}, "another audience", id="for somebody else"),
    ],
)
async def test_token_that_tells_something_wrong_is_refused(claims: dict[str, Any], told: str) -> None:
    error = await refusal(token(**claims))
    assert (error.status, error.error) == (401, "invalid_token")
    assert told in error.detail


async def test_subject_that_is_no_text_is_refused() -> None:
    claims = {"sub": 5, "exp": int(time.time()) + 600}
    assert "malformed" in (await refusal(signed(claims))).detail


@pytest.mark.parametrize(("late_s", "is_good"), [(100, True), (400, False)])
async def test_leeway_spares_clocks_that_differ(late_s: int, *, is_good: bool) -> None:
    reader, expired = tokens(leeway_s=300), token(exp=int(time.time()) - late_s)
    if is_good:
        assert await reader.verify(expired.encode())
    else:
        await refusal(expired, reader)


@pytest.mark.parametrize("audience", ["here", ["there", "here"]])
async def test_token_for_one_of_the_audiences_is_good(audience: object) -> None:
    assert await tokens(audiences=["x", "here"]).verify(token(aud=audience).encode())


@pytest.mark.parametrize(
    ("audience", "told"),
    [("there", "another audience"), (["there"], "another audience"), (None, "'aud'"), (5, "audience")],
)
async def test_token_for_none_of_the_audiences_is_refused(audience: object, told: str) -> None:
    assert told in (await refusal(token(aud=audience), tokens(audiences=["here"]))).detail


@pytest.mark.parametrize(("issuer", "told"), [("https://else", "another issuer"), (None, "'iss'")])
async def test_token_of_another_issuer_is_refused(issuer: str | None, told: str) -> None:
    reader = tokens(issuers=["https://login"])
    assert await reader.verify(token(iss="https://login").encode())
    assert told in (await refusal(token(iss=issuer), reader)).detail


@pytest.mark.parametrize(
    ("claims", "scopes"),
    [
        pytest.param({}, {"embed"}, id="none"),
        pytest.param({"scope": "embed metrics"}, {"embed", "metrics"}, id="scope"),
        pytest.param({"scope": "openid admin"}, {"admin"}, id="those of others are ignored"),
        pytest.param({"scope": "openid profile"}, set(), id="only those of others"),
        pytest.param({"scope": ""}, set(), id="empty"),
        pytest.param({"scp": ["metrics", "x", 5]}, {"metrics"}, id="scp as a list"),
        pytest.param({"scp": "metrics embed"}, {"metrics", "embed"}, id="scp as a text"),
        pytest.param({"scope": "embed", "scp": "admin"}, {"embed"}, id="scope wins"),
        pytest.param({"scope": 5}, set(), id="a number"),
        pytest.param({"scope": "embedmetrics EMBED"}, set(), id="like ours but not ours"),
    ],
)
async def test_scopes_are_those_of_ours_that_the_token_states(claims: dict[str, Any], scopes: set[str]) -> None:
    caller = await tokens().verify(token(**claims).encode())
    assert caller is not None
    assert caller.permissions == scopes


# --- Signatures ---------------------------------------------------------------------------------------------------


def part(content: object) -> bytes:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=")


def by_hand(header: dict[str, object], signature: bytes = b"", claims: Mapping[str, object] | None = None) -> bytes:
    """A token with any header."""
    told = claims or {"sub": "alice", "exp": int(time.time()) + 600}
    return part(header) + b"." + part(told) + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")


def signed(claims: Mapping[str, object], secret: bytes = SECRET.encode(), **header: object) -> bytes:
    """A token that is signed rightly, whatever it says."""
    unsigned = by_hand({"alg": "HS256", **header}, claims=claims).rpartition(b".")[0]
    algorithm = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    signature = algorithm.sign(unsigned, secret)
    return unsigned + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [(OTHER_SECRET, "HS256"), pytest.param(rsa_key("other"), "RS256", id="RS256"), (ec_key("other"), "ES256")],
)
async def test_signature_of_another_key_is_refused(key: Any, algorithm: str) -> None:
    assert "signature" in (await refusal(token(key, algorithm))).detail


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "HS384", "RS512", "EdDSA", "", None, 5, ["HS256"]])
async def test_other_algorithm_is_refused(algorithm: object) -> None:
    error = await refusal(by_hand({"alg": algorithm, "typ": "JWT"}))
    assert "HS256 or RS256 or ES256" in error.detail or "malformed" in error.detail


async def test_signature_left_out_is_refused() -> None:
    for algorithm in ("HS256", "RS256", "ES256"):
        await refusal(by_hand({"alg": algorithm}))


@pytest.mark.parametrize("key", [pytest.param(RSA, id="RSA"), pytest.param(EC, id="EC")])
async def test_public_key_is_never_taken_for_a_secret(key: Any) -> None:
    """Who knows the public key, as all do, signs by HMAC with it."""
    claims = {"sub": "alice", "exp": int(time.time()) + 600}
    for encoding in (Encoding.PEM, Encoding.DER):
        public = key.public_key().public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo)
        forged = signed(claims, public)
        await refusal(forged)
        await refusal(forged, JwtVerifier({"RS256": OneKey(RSA.public_key()), "ES256": OneKey(EC.public_key())}))


async def test_token_is_not_taken_for_one_of_another_algorithm() -> None:
    only = JwtVerifier({"RS256": OneKey(RSA.public_key())})
    for other in (token(), token(EC, "ES256")):
        assert "RS256" in (await refusal(other, only)).detail


async def test_key_within_the_token_is_not_used() -> None:
    header = {
        "alg": "RS256",
        "jwk": {"kty": "oct", "k": "eA"},
        "jku": "http://127.0.0.1:9/",
        "x5u": "http://127.0.0.1:9/",
    }
    own = rsa_key("other")
    assert "signature" in (await refusal(jwt.encode({"sub": "a", "exp": 9**10}, own, "RS256", headers=header))).detail


async def test_extension_that_must_be_understood_is_refused() -> None:
    claims = {"sub": "alice", "exp": int(time.time()) + 600}
    assert await tokens().verify(signed(claims))
    await refusal(signed(claims, crit=["exp"]))


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
async def test_malformed_token_is_refused(given: bytes) -> None:
    await refusal(given)


@given(st.binary(max_size=40), st.binary(max_size=40), st.binary(max_size=40))
@settings(deadline=None)
async def test_any_three_parts_are_refused(header: bytes, claims: bytes, signature: bytes) -> None:
    given = b".".join(piece.replace(b".", b"") for piece in (header, claims, signature))
    await refusal(given)


async def test_token_is_never_repeated_in_its_refusal() -> None:
    for sent in (token(OTHER_SECRET), token(exp=1), token(aud="secret-audience"), "abcdefgh.ijklmnop.qrstuvwx"):
        detail = (await refusal(sent)).detail
        assert not [piece for piece in sent.split(".") if piece in detail]
        assert '"' not in detail  # it stands within quotes in a header
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
def test_public_key_says_by_its_kind_what_it_checks(
    content: Callable[[], bytes], algorithm: str, tmp_path: Path
) -> None:
    (tmp_path / "key.pem").write_bytes(content())
    assert read_public_key(tmp_path / "key.pem")[0] == algorithm


def ed25519_pem() -> bytes:
    key = ed25519.Ed25519PrivateKey.generate().public_key()
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        pytest.param(lambda: private_pem(RSA), "private key", id="private"),
        pytest.param(lambda: public_pem(rsa_key(bits=1024)), "2048 bits", id="short RSA"),
        pytest.param(lambda: public_pem(ec.generate_private_key(ec.SECP384R1())), "P-256", id="other curve"),
        pytest.param(ed25519_pem, "P-256", id="other kind"),
        pytest.param(lambda: b"", "PEM", id="empty"),
        pytest.param(SECRET.encode, "PEM", id="no key"),
        pytest.param(lambda: b"-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n", "PEM", id="broken"),
    ],
)
def test_other_key_file_is_refused(content: Callable[[], bytes], told: str, tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_bytes(content())
    with pytest.raises(SigningKeyError, match=told):
        read_public_key(tmp_path / "key.pem")


def test_public_key_is_no_secret() -> None:
    with pytest.raises(SigningKeyError, match="another kind"):
        secret_key(public_pem(RSA).decode())
