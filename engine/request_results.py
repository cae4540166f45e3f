"""The results of a request's texts: what is kept is found, the rest is computed, and each distinct text only once.

A request asks `ResultCache` for its `RequestResults`. Then it tokenises and admits the texts that are missing, and
gives their tokens to `adopt`. For each slice of its texts, `take` returns what the model must run, `add` accepts the
vectors of that, and `vectors` returns the vectors of all texts of the slice.
"""

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engine.encoder import Encoder
from engine.fair_queue import Caller
from engine.options import EmbedOptions
from engine.pipeline import Chunk, ModelInputs, clip_limit, pool
from engine.result_keys import ResultKeys, namespace_of, window_keys
from engine.result_store import CacheCounts, CacheUse, ResultStore
from engine.text_results import TextResult, are_usable, pack, unpack
from engine.tokenizer import TokenizedText
from engine.vectors import Matrix

LOOKUP_TEXTS = 256
LOOKUP_CHARACTERS = 500_000
"""Texts whose results are looked up at once, and their characters: 1 to 2 ms of the event loop. Other requests are
served in between."""


_Facts = tuple[int, int, bool, bool]
"""Of a text: its tokens before truncation, those that the model runs, whether it is cut, and whether it is blank."""


class ResultCache:
    """Finds and keeps results for all requests.

    Attributes:
        store: keeps them.
        changes: grows when there are more results in memory; then a text that was missing may be found.
    """

    def __init__(self, store: ResultStore, keys: ResultKeys) -> None:
        self.store = store
        self.changes = 0
        self._keys = keys

    async def results_of(
        self, encoder: Encoder, texts: Sequence[str], options: EmbedOptions, caller: Caller, use: CacheUse
    ) -> "RequestResults":
        """Return the results of *texts* for *encoder*: those that are in memory, and room for the others.

        Args:
            encoder: a model in memory; it may be evicted meanwhile.
            texts: at least one.
            options: how they are embedded.
            caller: who sent them.
            use: what the request allows.
        """
        results = RequestResults(self, encoder, texts, options, use)
        fingerprint, distinct, tokenizer = encoder.fingerprint, results.missing_texts, encoder.tokenizer
        if fingerprint is not None and (use.may_read or use.may_keep):
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


@dataclass(frozen=True, slots=True)
class MissingSlice:
    """The texts of a slice whose results are missing.

    Attributes:
        numbers: of these distinct texts.
        inputs: what the model must run.
        keys: per item of *inputs*; None: the vectors are shared with no other request.
        found: items that need not run any more: their results were kept since the request was admitted.
    """

    numbers: list[int]
    inputs: ModelInputs
    keys: list[bytes] | None
    found: list[TokenizedText]


class RequestResults:
    """The results of one request. Its distinct texts have numbers, in the order in which they first appear.

    Attributes:
        encoder: the model.
        keys: of the distinct texts; empty: they have none.
        counts: where the results come from; a missing text counts as computed for this request.
        tokens: per text, the number of its tokens before truncation.
        used_tokens: the number of tokens that the model runs, of all texts.
        truncated: per text, whether the model sees only a part of it.
    """

    def __init__(
        self, cache: ResultCache, encoder: Encoder, texts: Sequence[str], options: EmbedOptions, use: CacheUse
    ) -> None:
        """Number *texts*. Nothing is looked up."""
        self.encoder = encoder
        self.keys: list[bytes] = []
        self.tokens: list[int] = []
        self.used_tokens = 0
        self.truncated: list[bool] = []
        self._cache, self._options, self._use = cache, options, use
        self._has_windows, self._has_chunks = options.long_text != "truncate", options.long_text == "chunks"
        self._generation, self._seen_changes = cache.store.generation, cache.changes
        numbers: dict[str, int] = {}
        self._numbers = [numbers.setdefault(text, len(numbers)) for text in texts]
        self._texts = list(numbers)
        self._places: list[list[int]] = [[] for _ in self._texts]  # per distinct text, its indexes in the request
        for index, number in enumerate(self._numbers):
            self._places[number].append(index)
        self._found: dict[int, TextResult] = {}
        self._items: dict[int, list[TokenizedText]] = {}
        self._facts: list[_Facts] = []
        self._missing = deque(range(len(self._texts)))
        self._kept = set[int]()
        self.counts = CacheCounts(miss=len(self._texts), coalesced=len(texts) - len(self._texts))

    @property
    def is_complete(self) -> bool:
        """Whether no result is missing that has not been taken."""
        return not self._missing

    @property
    def missing_texts(self) -> list[str]:
        return [self._texts[number] for number in self._missing]

    @property
    def missing_indexes(self) -> list[int]:
        """Per missing text, its first index in the request."""
        return [self._places[number][0] for number in self._missing]

    def look_up(self, numbers: Sequence[int]) -> None:
        """Take the results of some missing texts from memory."""
        if self._use.may_read and self.keys:
            self._receive(numbers, self._cache.store.get([self.keys[number] for number in numbers]))

    async def fetch(self) -> None:
        """Take the results of missing texts from the slower store, if there is one."""
        if self._use.may_read and self.keys and self._cache.store.is_layered:
            numbers = list(self._missing)
            keys = [self.keys[number] for number in numbers]
            if self._receive(numbers, await self._cache.store.fetch(self._namespace, keys)):
                self._cache.changes += 1
                self.forget_found()

    def forget_found(self) -> None:
        """Let the texts whose results were found no longer be missing."""
        self._missing = deque(number for number in self._missing if number not in self._found)

    def adopt(self, inputs: ModelInputs) -> None:
        """Accept the tokens of all missing texts."""
        self._items = dict(zip(self._missing, inputs.by_text, strict=True))

    def count_tokens(self) -> None:
        """Set the numbers of tokens. Each text has a result, or its tokens were adopted."""
        found, items, has_windows = self._found, self._items, self._has_windows
        self._facts = [
            (result.tokens, result.used_tokens, result.is_truncated, result.is_blank)
            if (result := found.get(number)) is not None
            else _facts_of(items[number], has_windows=has_windows)
            for number in range(len(self._texts))
        ]
        of_texts = [self._facts[number] for number in self._numbers]
        self.tokens = [facts[0] for facts in of_texts]
        self.used_tokens = sum([facts[1] for facts in of_texts])
        self.truncated = [facts[2] for facts in of_texts]

    def take(self, texts: range) -> MissingSlice | None:
        """Return what the model must run for a slice of *texts*, after those that were taken before; None: nothing."""
        if not self._missing:
            return None
        numbers, missing = [], self._missing
        while missing and self._places[missing[0]][0] < texts.stop:
            numbers.append(missing.popleft())
        if not numbers:
            return None
        if self._cache.changes != self._seen_changes:
            self.look_up(numbers)
        left = [number for number in numbers if number not in self._found]
        found = [item for number in numbers if number in self._found for item in self._items.pop(number)]
        by_text = [self._items.pop(number) for number in left]
        inputs = ModelInputs(
            [item for items in by_text for item in items],
            [len(items) for items in by_text] if self._has_windows else None,
            [self._places[number][0] for number in left],
        )
        return MissingSlice(left, inputs, self._keys_of(left, by_text) if self._use.may_read else None, found)

    def keep_early(self, part: MissingSlice, raw: Matrix, items: Sequence[int]) -> None:
        """Keep the vectors of some *items* of a slice, while the others are computed, so that other requests find them.

        Texts that are split into windows wait for `add`. What that will reject is not kept.
        """
        if self._has_windows or not (self.keys and self._use.may_keep):
            return
        vectors = raw[list(items)]
        self._keep(
            {
                part.numbers[item]: TextResult(vectors[row : row + 1], *self._facts[part.numbers[item]])
                for row, (item, usable) in enumerate(zip(items, are_usable(vectors), strict=True))
                if usable
            }
        )

    def add(self, part: MissingSlice, raw: Matrix, *, coalesced_items: int, texts: range) -> None:
        """Accept the model's vectors of a slice that was taken, and keep them.

        Args:
            part: the slice.
            raw: one row per item.
            coalesced_items: number of the items whose vectors were computed for an equal text as well.
            texts: the slice; later ones may contain its texts again.

        Raises:
            InvalidVectorError: a vector is unusable.
        """
        vectors, by_text = pool(raw, part.inputs, self._options), part.inputs.by_text
        has_chunks, row, results = self._has_chunks, 0, dict[int, TextResult]()
        for number, items in zip(part.numbers, by_text, strict=True):
            rows = vectors[row : row + (len(items) if has_chunks else 1)]
            row += len(rows)
            results[number] = TextResult(
                # Of a slice that has been read, no more stays in memory than later slices need.
                rows if self._places[number][-1] < texts.stop else rows.copy(),
                *self._facts[number],
                [(*(item.span or (0, 0)), item.length) for item in items] if has_chunks else (),
            )
        self._found |= results
        self._keep(results)
        # An item is a text, or one of its windows: then this is an estimate.
        coalesced = coalesced_items * len(by_text) // len(part.inputs.items)
        self.counts.miss -= coalesced
        self.counts.coalesced += coalesced

    def vectors(self, texts: range) -> tuple[Matrix, Sequence[int]]:
        """Return the vectors of a slice of *texts*, before dimensions and dtype, and per row the index of its text."""
        rows = [self._found[self._numbers[index]].vectors for index in texts]
        if self._has_chunks:
            indexes: Sequence[int] = [index for index, some in zip(texts, rows, strict=True) for _ in some]
        else:
            indexes = texts
        return rows[0] if len(rows) == 1 else np.concatenate(rows), indexes

    def release(self, texts: range) -> None:
        """Drop the results that no text after these *texts* needs."""
        for number in {self._numbers[index] for index in texts}:
            if self._places[number][-1] < texts.stop:
                del self._found[number]

    @property
    def chunks(self) -> list[Chunk] | None:
        """Per row of the vectors of all texts, its text and its place there; None: each text has one row."""
        if not self._has_chunks:
            return None
        return [
            Chunk(index, *window)
            for index, number in enumerate(self._numbers)
            for window in self._found[number].windows
        ]

    @property
    def _namespace(self) -> str:
        return namespace_of(self.encoder.fingerprint) if self.encoder.fingerprint else ""

    def _keep(self, results: Mapping[int, TextResult]) -> None:
        """Keep the results of texts with these numbers, once each."""
        if self.keys and self._use.may_keep:
            new = [number for number in results if number not in self._kept]
            if new:
                self._kept.update(new)
                packed = {self.keys[number]: pack(results[number]) for number in new}
                self._cache.changes += 1
                self._cache.store.put(self._namespace, packed, generation=self._generation)

    def _receive(self, numbers: Sequence[int], kept: Iterable[bytes | None]) -> bool:
        """Accept kept results of texts with these *numbers*; return whether there is one.

        The result of a text that was cut, or is blank, is none for a request that forbids that: its tokenisation
        rejects the text.
        """
        dim, has_windows, has_found = self.encoder.dim, self._has_chunks, False
        may_be_cut, may_be_blank = self._options.truncate != "none", self._options.allow_blank
        for number, packed in zip(numbers, kept, strict=True):
            result = None if packed is None else unpack(packed, dim, has_windows=has_windows)
            if result is not None and (may_be_cut or not result.is_truncated) and (may_be_blank or not result.is_blank):
                self._found[number], has_found = result, True
                repeated = len(self._places[number]) - 1
                self.counts.hit += 1 + repeated
                self.counts.miss -= 1
                self.counts.coalesced -= repeated
        return has_found

    def _keys_of(self, numbers: list[int], by_text: list[list[TokenizedText]]) -> list[bytes] | None:
        """Return the keys of the items of these distinct texts."""
        if not self.keys:
            return None
        if not self._has_windows:
            return [self.keys[number] for number in numbers]
        return [
            key
            for number, items in zip(numbers, by_text, strict=True)
            for key in window_keys(self.keys[number], len(items))
        ]


def _lookup_slices(texts: Sequence[str]) -> Iterator[range]:
    """Split *texts* by `LOOKUP_TEXTS` and `LOOKUP_CHARACTERS`."""
    start = characters = 0
    for stop, text in enumerate(texts, 1):
        characters += len(text)
        if stop - start == LOOKUP_TEXTS or characters >= LOOKUP_CHARACTERS or stop == len(texts):
            yield range(start, stop)
            start, characters = stop, 0


def _facts_of(items: Sequence[TokenizedText], *, has_windows: bool) -> _Facts:
    """Return the facts of a text that was tokenised."""
    first = items[0]
    if has_windows:  # together they contain all of the text
        return first.tokens, sum(item.length for item in items), False, first.is_blank
    return first.tokens, first.length, first.is_truncated, first.is_blank
