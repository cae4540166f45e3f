"""Sealed values: only a service with the same secret can make one, and only for one place."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from result_cache.value_seals import SEAL_BYTES, VERSION, ValueSeal, derived_secret

SECRET = b"a secret of the test" * 2
KEY = b"k" * 16
SEAL = ValueSeal(SECRET, b"service:model")


@given(result=st.binary(max_size=200), key=st.binary(max_size=20))
def test_result_comes_back(result: bytes, key: bytes) -> None:
    value = SEAL.seal(key, result)
    assert SEAL.open(key, value) == result
    assert len(value) == SEAL_BYTES + len(result)


@given(result=st.binary(max_size=50), where=st.integers(0, 10_000), change=st.integers(1, 255))
def test_changed_byte_is_found(result: bytes, where: int, change: int) -> None:
    value = bytearray(SEAL.seal(KEY, result))
    value[where % len(value)] ^= change
    assert SEAL.open(KEY, bytes(value)) is None


@given(result=st.binary(min_size=1, max_size=50), length=st.integers(0, 10_000), more=st.binary(min_size=1))
def test_value_of_another_length_is_found(result: bytes, length: int, more: bytes) -> None:
    value = SEAL.seal(KEY, result)
    assert SEAL.open(KEY, value[: length % len(value)]) is None
    assert SEAL.open(KEY, value + more) is None


@pytest.mark.parametrize(
    ("other", "key"),
    [
        pytest.param(SEAL, b"x" * 16, id="another key"),
        pytest.param(ValueSeal(SECRET, b"service:another"), KEY, id="another place"),
        pytest.param(ValueSeal(SECRET, b"service:mode"), b"l" + KEY, id="other bounds of place and key"),
        pytest.param(ValueSeal(b"another", b"service:model"), KEY, id="another secret"),
    ],
)
def test_value_of_another_place_is_not_used(other: ValueSeal, key: bytes) -> None:
    assert SEAL.open(KEY, other.seal(key, b"result")) is None


def test_bounds_of_key_and_result_are_part_of_the_seal() -> None:
    assert SEAL.open(KEY, SEAL.seal(KEY[:-1], KEY[-1:] + b"result")[:SEAL_BYTES] + b"result") is None


def test_values_of_another_version_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("result_cache.value_seals.VERSION", VERSION + 1)
    newer = ValueSeal(SECRET, b"service:model").seal(KEY, b"result")
    monkeypatch.undo()
    assert SEAL.open(KEY, newer) is None
    assert SEAL.open(KEY, bytes([VERSION]) + newer[1:]) is None, "the version is part of the seal"


def test_derived_secrets_differ() -> None:
    assert derived_secret(SECRET, b"one") != derived_secret(SECRET, b"two") != derived_secret(b"other", b"two")
    assert SECRET not in derived_secret(SECRET, b"one")
