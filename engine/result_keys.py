"""Keys of results: a keyed hash of everything that makes the result of a text. Texts cannot be found from keys."""

import hashlib
import json
from collections.abc import Sequence

from engine.fair_queue import Caller
from engine.fingerprint import ModelFingerprint
from engine.options import EmbedOptions

KEY_BYTES = 16
"""Bytes of a key. With 2^32 results, two have the same key with a probability of 2^-65."""
MAX_SECRET_BYTES = 64
"""BLAKE2b takes keys of at most this length."""


def namespace_of(fingerprint: ModelFingerprint) -> str:
    """Return what is common to the keys of a model as this machine runs it; a new model never finds old results."""
    return f"{fingerprint.digest}:{fingerprint.runtime.id}"


class ResultKeys:
    """Makes the keys of one service."""

    def __init__(self, secret: bytes, *, per_caller: bool) -> None:
        """Hash with *secret* (16 to 64 bytes).

        Args:
            secret: services with the same secret have the same keys.
            per_caller: no caller finds results of another.
        """
        self._secret = secret[:MAX_SECRET_BYTES]
        self._per_caller = per_caller

    def keys(
        self, fingerprint: ModelFingerprint, prompt: str, texts: Sequence[str], options: EmbedOptions, caller: Caller
    ) -> list[bytes]:
        """Return the key of each of *texts*, with *prompt* before it, for this model, cut as *options* say."""
        cut = (options.long_text, options.truncate, options.max_tokens, options.clip, options.allow_blank)
        whose = caller[0] if self._per_caller else ""
        facts = json.dumps([namespace_of(fingerprint), prompt, cut, whose]).encode()
        start = hashlib.blake2b(len(facts).to_bytes(4) + facts, digest_size=KEY_BYTES, key=self._secret)
        keys = []
        for text in texts:
            key = start.copy()
            key.update(text.encode())
            keys.append(key.digest())
        return keys
