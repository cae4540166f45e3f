"""Looks up the results of requests: makes the keys of their texts, and finds what is kept in memory."""

import asyncio
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from engine.encoder import Encoder
from engine.errors import OverloadedError
from engine.fair_queue import Caller
from engine.ledger import Account, Reservation
from engine.options import EmbedOptions
from engine.pipeline import clip_limit
from engine.request_results import RequestResults
from engine.result_keys import ResultKeys
from engine.result_store import CacheUse, ResultStore

LOOKUP_TEXTS = 256
LOOKUP_CHARACTERS = 500_000
"""Texts whose results are looked up at once, and their characters: 1 to 2 ms of the event loop. Other requests are
served in between."""
MAX_HELD_TEXTS = 200_000
"""Limit on the texts with cached results in all long answers that are not sent yet. Each takes about 1 KB until it is
sent; texts without results are limited by the queue of the lanes. One caller may hold 80 %."""
RETRY_AFTER_S = 1.0
NOTHING_HELD = nullcontext()


class ResultLookup:
    """Finds results for all requests.

    Attributes:
        account: the texts that `hold` counts, not seconds.
    """

    def __init__(self, store: ResultStore, keys: ResultKeys) -> None:
        """Find them in *store*, under *keys*."""
        self.store = store
        self._keys = keys
        self.account = Account("results", MAX_HELD_TEXTS)

    def hold(self, results: RequestResults, caller: Caller, *, is_long: bool) -> AbstractContextManager[object]:
        """Count the texts of a request whose answer *is_long* and that need no run, until the block ends.

        Raises:
            OverloadedError: the answers that *caller* has not received yet contain too many texts already.
        """
        texts = results.counts.hit + results.counts.coalesced
        if not is_long or not texts:
            return NOTHING_HELD
        if self.account.held and self.account.excess(caller, texts) > 0:
            raise OverloadedError(
                f"Long answers that are not received yet contain {self.account.held:.0f} texts with cached results; "
                f"{self.account.held_by(caller):.0f} of them are yours. With this request you would exceed your share "
                f"of {MAX_HELD_TEXTS}. Read the answers to your other requests first.",
                retry_after_s=RETRY_AFTER_S,
            )
        reservation = Reservation((self.account,), caller)
        reservation.resize(texts)
        return reservation

    async def results_of(
        self, encoder: Encoder, texts: Sequence[str], options: EmbedOptions, caller: Caller, use: CacheUse
    ) -> RequestResults:
        """Return the results of *texts* for *encoder*: those that are in memory, and room for the others.

        Args:
            encoder: a model in memory; it may be evicted meanwhile.
            texts: at least one.
            options: how they are embedded.
            caller: who sent them.
            use: what the request allows.
        """
        results = RequestResults(self.store, encoder, texts, options, use)
        fingerprint, distinct, tokenizer = encoder.fingerprint, results.missing_texts, encoder.tokenizer
        if fingerprint is not None and (use.may_read or (use.may_keep and not self.store.is_off)):
            for part in _lookup_slices(distinct):
                if part.start:
                    await asyncio.sleep(0)
                some = distinct[part.start : part.stop]
                results.keys += self._keys.keys(
                    fingerprint,
                    encoder.model.card,
                    some,
                    options,
                    caller,
                    default_side=tokenizer.default_side,
                    max_characters=clip_limit(tokenizer, options),
                )
                results.look_up(part)
            results.forget_found()
        return results


def _lookup_slices(texts: Sequence[str]) -> list[range]:
    """Split *texts* by `LOOKUP_TEXTS` and `LOOKUP_CHARACTERS`."""
    if len(texts) <= LOOKUP_TEXTS and sum(map(len, texts)) <= LOOKUP_CHARACTERS:
        return [range(len(texts))]
    slices, start, characters = list[range](), 0, 0
    for stop, text in enumerate(texts, 1):
        characters += len(text)
        if stop - start == LOOKUP_TEXTS or characters >= LOOKUP_CHARACTERS or stop == len(texts):
            slices.append(range(start, stop))
            start, characters = stop, 0
    return slices
