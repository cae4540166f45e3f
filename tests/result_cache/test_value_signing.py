"""Signed values: only a service with the same secret can make one, and only for one place."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from result_cache.value_signing import SIGNATURE_BYTES, VERSION, ValueSigner, derived_secret

SECRET = b"a secret of the test" * 2
KEY = b"k" * 16
SIGNER = ValueSigner(SECRET, b"service:model")


@given(result=st.binary(max_size=200), key=st.binary(max_size=20))
def test_result_comes_back(result: bytes, key: bytes) -> None:
    value = SIGNER.sign(key, result)
    assert SIGNER.verify(key, value) == result
    assert len(value) == SIGNATURE_BYTES + len(result)


@given(result=st.binary(max_size=50), where=st.integers(0, 10_000), change=st.integers(1, 255))
def test_changed_byte_is_found(result: bytes, where: int, change: int) -> None:
    value = bytearray(SIGNER.sign(KEY, result))
    value[where % len(value)] ^= change
    assert SIGNER.verify(KEY, bytes(value)) is None


@given(result=st.binary(min_size=1, max_size=50), length=st.integers(0, 10_000), more=st.binary(min_size=1))
def test_value_of_another_length_is_found(result: bytes, length: int, more: bytes) -> None:
    value = SIGNER.sign(KEY, result)
    assert SIGNER.verify(KEY, value[: length % len(value)]) is None
    assert SIGNER.verify(KEY, value + more) is None


@pytest.mark.parametrize(
    ("other", "key"),
    [
        pytest.param(SIGNER, b"x" * 16, id="another key"),
        pytest.param(ValueSigner(SECRET, b"service:another"), KEY, id="another place"),
        pytest.param(ValueSigner(SECRET, b"service:mode"), b"l" + KEY, id="other bounds of place and key"),
        pytest.param(ValueSigner(b"another", b"service:model"), KEY, id="another secret"),
    ],
)
def test_value_of_another_place_is_not_used(other: ValueSigner, key: bytes) -> None:
    assert SIGNER.verify(KEY, other.sign(key, b"result")) is None


def test_bounds_of_key_and_result_are_part_of_the_signature() -> None:
    assert SIGNER.verify(KEY, SIGNER.sign(KEY[:-1], KEY[-1:] + b"result")[:SIGNATURE_BYTES] + b"result") is None


def test_values_of_another_version_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("result_cache.value_signing.VERSION", VERSION + 1)
    newer = ValueSigner(SECRET, b"service:model").sign(KEY, b"result")
    monkeypatch.undo()
    assert SIGNER.verify(KEY, newer) is None
    assert SIGNER.verify(KEY, bytes([VERSION]) + newer[1:]) is None, "the version is part of the signature"


def test_derived_secrets_differ() -> None:
    assert derived_secret(SECRET, b"one") != derived_secret(SECRET, b"two") != derived_secret(b"other", b"two")
    assert SECRET not in derived_secret(SECRET, b"one")
