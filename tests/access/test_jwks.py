"""An issuer's keys: when and how often they are fetched, and what happens if they cannot be."""

import asyncio
import json
from typing import Any

import pytest
from structlog.testing import capture_logs

from access.jwks import MAX_BYTES, REFRESH_S, RETRY_PAUSE_S, Jwks, JwksError, fetch_document
from access.jwt_tokens import algorithm_of
from access.principals import KeysUnavailableError, UnauthenticatedError
from tests.support.signing_keys import ec_key, issuing, public_jwk, rsa_key

ONE, TWO, CURVE = rsa_key("one"), rsa_key("two"), ec_key("curve")


class Source:
    """The document to fetch, and the number of fetches; fetches wait while the gate is closed."""

    def __init__(self, *keys: dict[str, Any]) -> None:
        self.now_s = 1000.0
        self.fetches = 0
        self.failure: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.offer(*keys)

    def offer(self, *keys: object) -> None:
        self.document = json.dumps({"keys": keys}).encode()

    async def fetch(self) -> bytes:
        self.fetches += 1
        await self.gate.wait()
        if self.failure:
            raise self.failure
        return self.document

    def jwks(self) -> Jwks:
        return Jwks(self.fetch, algorithm_of=algorithm_of, clock=lambda: self.now_s)


async def is_known(jwks: Jwks, key_id: str | None, algorithm: str = "RS256") -> bool:
    try:
        await jwks.find(key_id, algorithm)
    except UnauthenticatedError:
        return False
    return True


async def test_keys_are_fetched_when_first_needed_and_kept() -> None:
    source = Source(public_jwk(ONE, "one"), public_jwk(CURVE, "curve"))
    jwks = source.jwks()
    assert source.fetches == 0
    for _ in range(3):
        assert await jwks.find("one", "RS256") == ONE.public_key()
        assert await jwks.find("curve", "ES256") == CURVE.public_key()
    assert source.fetches == 1


async def test_key_is_used_for_its_own_algorithm_only() -> None:
    jwks = Source(public_jwk(ONE, "one"), public_jwk(CURVE, "curve")).jwks()
    assert not await is_known(jwks, "one", "ES256")
    assert not await is_known(jwks, "curve", "RS256")
    assert not await is_known(jwks, "one", "HS256")


async def test_unknown_key_ids_cause_one_fetch_per_pause() -> None:
    source = Source(public_jwk(ONE, "one"))
    jwks = source.jwks()
    assert await is_known(jwks, "one")
    for number in range(50):
        assert not await is_known(jwks, f"forged-{number}")
    assert source.fetches == 2
    source.now_s += RETRY_PAUSE_S
    assert not await is_known(jwks, "forged")
    assert source.fetches == 3


async def test_new_key_of_the_issuer_is_fetched_at_once() -> None:
    source = Source(public_jwk(ONE, "one"))
    jwks = source.jwks()
    assert await is_known(jwks, "one")
    source.offer(public_jwk(TWO, "two"))
    assert await is_known(jwks, "two")
    assert not await is_known(jwks, "one")


async def test_new_key_is_fetched_after_the_pause_while_ids_are_forged() -> None:
    source = Source(public_jwk(ONE, "one"))
    jwks = source.jwks()
    assert not await is_known(jwks, "forged")
    source.offer(public_jwk(TWO, "two"))
    assert not await is_known(jwks, "two")
    source.now_s += RETRY_PAUSE_S
    assert await is_known(jwks, "two")


async def test_callers_share_one_fetch_and_a_caller_that_leaves_does_not_stop_it() -> None:
    source = Source(public_jwk(ONE, "one"))
    source.gate.clear()
    jwks = source.jwks()
    waiting = [asyncio.create_task(jwks.find("one", "RS256")) for _ in range(5)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting[0].cancel()
    source.gate.set()
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(found[0], asyncio.CancelledError)
    assert found[1:] == [ONE.public_key()] * 4
    assert source.fetches == 1


async def test_known_keys_work_while_the_issuer_is_down_and_other_tokens_get_a_503() -> None:
    source = Source(public_jwk(ONE, "one"))
    jwks = source.jwks()
    assert await is_known(jwks, "one")
    source.failure = JwksError("the answer is 502, not 200")
    with capture_logs() as events:
        for _ in range(20):
            with pytest.raises(KeysUnavailableError) as rejection:
                await jwks.find("two", "RS256")
            assert await is_known(jwks, "one")
    assert source.fetches == 2
    assert (rejection.value.status, rejection.value.retry_after_s) == (503, RETRY_PAUSE_S)
    assert [(event["event"], event["reason"]) for event in events] == [
        ("jwks_fetch_failed", "the answer is 502, not 200")
    ]


async def test_long_failure_and_its_end_are_logged_once_each() -> None:
    source = Source(public_jwk(ONE, "one"))
    source.failure = OSError("secret-host")
    jwks = source.jwks()
    with capture_logs() as events:
        for _ in range(3):
            with pytest.raises(KeysUnavailableError):
                await jwks.find("one", "RS256")
            source.now_s += RETRY_PAUSE_S
        source.failure = None
        assert await is_known(jwks, "one")
    assert source.fetches == 4
    assert [event["event"] for event in events] == ["jwks_fetch_failed", "jwks_fetched"]
    assert "secret-host" not in str(events)


async def loop_iterations(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def test_old_keys_are_refreshed_in_the_background() -> None:
    source = Source(public_jwk(ONE, "one"))
    jwks = source.jwks()
    assert await is_known(jwks, "one")
    source.offer(public_jwk(TWO, "two"))
    source.now_s += REFRESH_S
    source.gate.clear()
    assert await is_known(jwks, "one")
    source.gate.set()
    await loop_iterations(5)
    assert source.fetches == 2
    assert not await is_known(jwks, "one")


async def test_key_withdrawn_long_ago_is_not_accepted() -> None:
    source = Source(public_jwk(ONE, "one"))
    jwks = source.jwks()
    assert await is_known(jwks, "one")
    source.offer(public_jwk(TWO, "two"))
    source.now_s += 2 * REFRESH_S
    assert not await is_known(jwks, "one")


async def test_old_keys_work_while_they_cannot_be_refreshed() -> None:
    source = Source(public_jwk(ONE, "one"))
    jwks = source.jwks()
    assert await is_known(jwks, "one")
    source.failure = OSError()
    for _ in range(5):
        source.now_s += 2 * REFRESH_S
        assert await is_known(jwks, "one")
        await loop_iterations(5)
    assert source.fetches == 6


async def test_token_without_a_key_id_uses_the_only_key_of_its_algorithm() -> None:
    source = Source(public_jwk(ONE), public_jwk(CURVE, "curve"))
    jwks = source.jwks()
    assert await is_known(jwks, None)
    source.offer(public_jwk(ONE, "one"), public_jwk(TWO, "two"))
    assert not await is_known(source.jwks(), None)


@pytest.mark.parametrize(
    "key",
    [
        pytest.param({"kty": "oct", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA", "kid": "x"}, id="secret"),
        pytest.param({"kty": "oct", "k": "c2Vj", "kid": "x", "alg": "RS256"}, id="secret that claims to be RSA"),
        pytest.param(public_jwk(ONE, "x", use="enc"), id="for encryption"),
        pytest.param(public_jwk(ONE, "x", alg="RS512"), id="for another algorithm"),
        pytest.param(public_jwk(ONE, "x", alg="HS256"), id="RSA that claims to be a secret"),
        pytest.param(public_jwk(rsa_key(bits=1024), "x"), id="short"),
        pytest.param({"kty": "RSA", "kid": "x", "n": "?", "e": "AQAB"}, id="broken"),
        pytest.param({"kty": "RSA", "kid": "x"}, id="empty"),
        pytest.param({"kty": "EC", "kid": "x", "crv": "P-999", "x": "AA", "y": "AA"}, id="unknown curve"),
        pytest.param({"kid": "x"}, id="without a type"),
        pytest.param({**public_jwk(ONE), "kid": ["x"]}, id="id of another type"),
        pytest.param("x", id="not an object"),
        pytest.param(None, id="null"),
        pytest.param({**public_jwk(ONE, "x"), "kty": ["RSA"]}, id="type of another type"),
        pytest.param(public_jwk(ONE, "x", alg=["RS256"]), id="algorithm of another type"),
        pytest.param(public_jwk(ONE, "x", use=["sig"]), id="use of another type"),
        pytest.param(public_jwk(ONE, "x", key_ops=["encrypt"]), id="other operations"),
        pytest.param(public_jwk(ONE, "x", n=7), id="number of another type"),
        pytest.param(public_jwk(ONE, "x", n="\ud800"), id="not encodable"),
        pytest.param(public_jwk(ONE, "x", e="AA"), id="even exponent"),
        pytest.param(public_jwk(ONE, "x", n="_" * 200_000), id="a million bits"),
        pytest.param({**public_jwk(CURVE, "x"), "x": public_jwk(CURVE)["y"]}, id="point outside of the curve"),
        pytest.param({**public_jwk(CURVE, "x"), "crv": ["P-256"]}, id="curve of another type"),
        pytest.param(public_jwk(ONE, "x", d="AQAB"), id="private"),
    ],
)
async def test_unusable_key_is_ignored_and_the_others_are_used(key: Any) -> None:
    source = Source()
    source.offer(key, public_jwk(CURVE, "curve"))
    jwks = source.jwks()
    assert await is_known(jwks, "curve", "ES256")
    for algorithm in ("RS256", "ES256", "HS256"):
        assert not await is_known(jwks, "x", algorithm)


BROKEN = {"kty": "RSA", "kid": "x", "n": "?", "e": "AQAB"}


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        pytest.param([BROKEN], "key 2 is malformed", id="malformed"),
        pytest.param([None], "key 2 is not an object", id="null"),
        pytest.param([{"kid": "x"}], "key 2 has no type (kty)", id="no type"),
        pytest.param([public_jwk(ONE, "x", d="AQAB")], "key 2 is a private key, which its issuer should", id="private"),
        pytest.param([public_jwk(ONE, "one")], "key 2 has the id (kid) of another key", id="id twice"),
        pytest.param([BROKEN] * 5, "key 4 is malformed, and 2 more", id="many"),
        pytest.param([public_jwk(TWO, "one")] * 100, "only the first 100 of 101 keys are used", id="too many"),
    ],
)
async def test_faulty_keys_are_logged_once(keys: list[Any], reason: str) -> None:
    source = Source()
    source.offer(public_jwk(TWO, "one"), *keys)
    jwks = source.jwks()
    with capture_logs() as events:
        for _ in range(3):
            assert await jwks.find("one", "RS256") == TWO.public_key()
            source.now_s += 2 * REFRESH_S
    assert source.fetches == 3
    [skipped] = [event for event in events if event["event"] == "jwks_keys_skipped"]
    assert reason in skipped["reason"]
    assert (skipped["log_level"], skipped["keys"]) == ("warning", 1)


@pytest.mark.parametrize(
    "key",
    [
        pytest.param({"kty": "oct", "k": "c2Vj"}, id="secret"),
        pytest.param({"kty": "OKP", "crv": "Ed25519", "x": "AA"}, id="other kind"),
        pytest.param(public_jwk(ONE, "x", use="enc", alg="RSA-OAEP"), id="for encryption"),
        pytest.param(public_jwk(ONE, "x", alg="PS256"), id="for another algorithm"),
        pytest.param(public_jwk(CURVE, "curve"), id="the same key twice"),
    ],
)
async def test_keys_for_other_purposes_are_no_fault(key: Any) -> None:
    source = Source()
    source.offer(public_jwk(CURVE, "curve"), key)
    with capture_logs() as events:
        assert await is_known(source.jwks(), "curve", "ES256")
    assert [event["event"] for event in events] == ["jwks_fetched"]


@pytest.mark.parametrize("field", ["alg", "use", "key_ops"])
async def test_field_that_is_null_counts_as_missing(field: str) -> None:
    source = Source()
    source.offer(public_jwk(ONE, "one", **{field: None}))
    assert await is_known(source.jwks(), "one")


async def test_document_of_faulty_keys_only_leaves_the_cached_keys() -> None:
    source = Source(public_jwk(ONE, "one"))
    jwks = source.jwks()
    assert await is_known(jwks, "one")
    source.offer(BROKEN)
    source.now_s += REFRESH_S
    with capture_logs() as events:
        assert await is_known(jwks, "one")
        await loop_iterations(5)
        assert await is_known(jwks, "one")
    [failed] = events
    assert failed["reason"] == "the answer contains no key that can be used: key 1 is malformed"


@pytest.mark.parametrize("document", [b"", b"[]", b"{}", b'{"keys": {}}', b"<html>", b"\xff", b"[" * 100_000])
async def test_document_that_is_not_a_jwks_is_a_failed_fetch(document: bytes) -> None:
    source = Source()
    source.document = document
    with pytest.raises(KeysUnavailableError):
        await source.jwks().find("one", "RS256")


async def test_fetch_in_progress_is_cancelled_at_shutdown() -> None:
    source = Source()
    source.gate.clear()
    jwks = source.jwks()
    waiting = asyncio.create_task(jwks.find("one", "RS256"))
    await loop_iterations(3)
    await jwks.aclose()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await jwks.aclose()


async def test_document_is_fetched_over_http() -> None:
    with issuing(public_jwk(ONE, "one")) as issuer:
        assert await fetch_document(issuer.url) == issuer.body


@pytest.mark.parametrize("status", [302, 404, 500])
async def test_status_other_than_200_is_a_failure(status: int) -> None:
    with issuing(public_jwk(ONE, "one")) as issuer:
        issuer.status = status
        with pytest.raises(JwksError, match=str(status)):
            await fetch_document(issuer.url)
        assert issuer.asked == 1


async def test_endless_answer_is_a_failure() -> None:
    with issuing() as issuer:
        issuer.body = b" " * (MAX_BYTES + 1)
        with pytest.raises(JwksError, match="large"):
            await fetch_document(issuer.url)
