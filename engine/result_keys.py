"""Keys of results: a keyed hash of everything that makes the result of a text. Texts cannot be found from keys."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from engine.fair_queue import Caller
from engine.fingerprint import ModelFingerprint
from engine.model_cards import ModelCard
from engine.options import EmbedOptions
from engine.tokenizer import Side

KEY_BYTES = 16
"""Bytes of a key. With 2^32 results, two have the same key with a probability of 2^-65."""
MAX_SECRET_BYTES = 64
"""BLAKE2b takes keys of at most this length."""
MAX_STARTED = 1_024
"""Hashes that are kept for the next request, which begin with the facts that are common to many keys."""


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
        self._answers = hashlib.blake2b(digest_size=KEY_BYTES, key=self._secret, person=b"answers")
        self._started: dict[tuple[object, ...], Any] = {}

    def keys(
        self,
        fingerprint: ModelFingerprint,
        card: ModelCard,
        texts: Sequence[str],
        options: EmbedOptions,
        caller: Caller,
        *,
        default_side: Side = "end",
        max_characters: int | None = None,
    ) -> list[bytes]:
        """Return the key of each of *texts* for the model with this *fingerprint* and *card*, cut as *options* say.

        Requests that forbid truncation, or blank texts, have the keys of those that do not: other texts have the same
        results. They must not use the result of a text that was cut, or is blank.

        Args:
            fingerprint: of the model.
            card: of the model.
            texts: a request's texts.
            options: the request's options.
            caller: who sent them.
            default_side: the end at which the model's tokenizer cuts texts.
            max_characters: `EmbedOptions.clip` drops what comes after them; None: nothing.
        """
        side = options.truncate if options.truncate in ("start", "end") else default_side
        start = self._start(fingerprint, card, options, caller, side, is_clipped=False)
        limit = max_characters if options.clip else None
        keys = []
        for text in texts:
            if limit is not None and len(text) > limit:
                key = self._start(fingerprint, card, options, caller, side, is_clipped=True).copy()
            else:
                key = start.copy()
            key.update(text.encode("utf-8", "surrogatepass"))
            keys.append(key.digest())
        return keys

    def answer_key(self, caller: Caller, *parts: bytes) -> bytes:
        """Return the key of the answer to a request of *caller* that consists of these *parts*.

        Only the last part may contain zero bytes.
        """
        key = self._answers.copy()
        if self._per_caller:
            name = caller[0].encode("utf-8", "surrogatepass")
            key.update(b"%d\0%b" % (len(name), name))
        key.update(b"%d\0%b" % (len(parts), b"\0".join(parts)))
        return key.digest()

    def _start(
        self,
        fingerprint: ModelFingerprint,
        card: ModelCard,
        options: EmbedOptions,
        caller: Caller,
        side: Side,
        *,
        is_clipped: bool,
    ) -> Any:
        """Return a hash of everything but the text."""
        facts = (
            fingerprint.namespace,
            card.prompt_for(options.input_type),
            options.input_type if card.uses_tasks else None,
            options.long_text,
            side,
            options.max_tokens,
            is_clipped,
            caller[0] if self._per_caller else "",
        )
        if (start := self._started.get(facts)) is None:
            if len(self._started) == MAX_STARTED:
                self._started.clear()
            encoded = json.dumps(facts).encode()
            start = hashlib.blake2b(len(encoded).to_bytes(4) + encoded, digest_size=KEY_BYTES, key=self._secret)
            self._started[facts] = start
        return start


def window_keys(key: bytes, windows: int) -> list[bytes]:
    """Return the keys of the *windows* of the text with this *key*; those of a whole text are the text's own."""
    return [key + number.to_bytes(4) for number in range(windows)]
