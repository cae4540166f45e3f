"""Results as values in a store that others may write to: what others write there is never used."""

import hashlib
import hmac

VERSION = 1
"""First byte of each value. Raise it when the layout of values changes."""
TAG_BYTES = 32
"""Bytes of the keyed hash in each value."""
SIGNATURE_BYTES = 1 + TAG_BYTES
"""Bytes of a value before the result."""


def derived_secret(secret: bytes, purpose: bytes) -> bytes:
    """Return 32 bytes for *purpose*, from which neither *secret* nor those of other purposes can be found."""
    return hmac.digest(secret, purpose, "sha256")


class ValueSigner:
    """Signs the values of one namespace: version, keyed hash, result.

    The hash covers the place of the value, too, so a value cannot be moved to another key, namespace or service.
    """

    def __init__(self, secret: bytes, place: bytes) -> None:
        """Sign with *secret* (up to 64 bytes) for the keys of *place*."""
        context = bytes([VERSION]) + len(place).to_bytes(4) + place
        self._start = hashlib.blake2b(context, digest_size=TAG_BYTES, key=secret)

    def sign(self, key: bytes, result: bytes) -> bytes:
        """Return the value that keeps *result* at *key*."""
        return bytes([VERSION]) + self._tag(key, result) + result

    def verify(self, key: bytes, value: bytes) -> bytes | None:
        """Return the result in *value*, or None if it was not signed for *key*."""
        result = value[SIGNATURE_BYTES:]
        is_ours = value[:1] == bytes([VERSION]) and hmac.compare_digest(
            value[1:SIGNATURE_BYTES], self._tag(key, result)
        )
        return result if is_ours else None

    def _tag(self, key: bytes, result: bytes) -> bytes:
        keyed_hash = self._start.copy()
        keyed_hash.update(len(key).to_bytes(4) + key)
        keyed_hash.update(result)
        return keyed_hash.digest()
