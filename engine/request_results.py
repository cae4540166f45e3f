"""The results of one request's texts: what is kept is found, the rest is computed, and each distinct text only once.

A request asks `engine.result_lookup` for its `RequestResults`. Then it tokenises and admits the texts that are missing,
and gives their tokens to `adopt`. For each slice of its texts, `take` returns what the model must run, `add` accepts
the vectors of that, and `vectors` returns the vectors of all texts of the slice.
"""

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from engine.distinct_texts import DistinctTexts
from engine.encoder import Encoder
from engine.errors import InvalidVectorError
from engine.missing_slice import MissingSlice, PendingWindows
from engine.options import EmbedOptions
from engine.pipeline import Chunk, ModelInputs, pool
from engine.result_keys import window_keys
from engine.result_store import CacheCounts, CacheUse, ResultStore
from engine.text_results import IS_BLANK, IS_TRUNCATED, Facts, TextResult, pack, pack_rows, read_facts, rows_of, unpack
from engine.tokenizer import TokenizedText
from engine.vectors import Matrix, are_usable

NO_INPUTS = ModelInputs([])


class RequestResults:
    """The results of one request.

    Attributes:
        encoder: the model.
        keys: of the distinct texts; empty: they have none.
        counts: where the results come from; a missing text counts as computed for this request.
        tokens: per text, the number of its tokens before truncation.
        used_tokens: the number of tokens that the model runs, of all texts.
        truncated: per text, whether the model sees only a part of it.
    """

    def __init__(
        self, store: ResultStore, encoder: Encoder, texts: Sequence[str], options: EmbedOptions, use: CacheUse
    ) -> None:
        """Number *texts*. Nothing is looked up."""
        self.encoder = encoder
        self.keys: list[bytes] = []
        self.tokens: list[int] = []
        self.used_tokens = 0
        self.truncated: list[bool] = []
        self._store, self._options, self._use = store, options, use
        self._has_windows, self._has_chunks = options.long_text != "truncate", options.long_text == "chunks"
        self._generation, self._seen_changes = store.generation, store.changes
        self._texts = DistinctTexts(texts)
        number = len(self._texts.texts)
        self._all = range(number)
        self._packed: dict[int, bytes] = {}  # cache hits, if texts have no chunks
        self._unpacked: dict[int, TextResult] = {}  # all other results
        self._slice: Matrix | None = None  # the vectors of the next slice, if they are complete
        self._facts: dict[int, Facts] = {}
        self._missing: Sequence[int] = self._all
        self._taken = 0  # of those that are missing
        self._inputs = NO_INPUTS
        self._items: dict[int, list[TokenizedText]] = {}
        self.counts = CacheCounts(miss=number, coalesced=len(texts) - number)

    @property
    def is_complete(self) -> bool:
        """Whether no result is missing that has not been taken."""
        return self._taken == len(self._missing)

    @property
    def single_hit(self) -> tuple[bytes, bytes] | None:
        """Key and bytes of the only result of the request, if it was found in the cache; else None."""
        is_alone = len(self._texts.numbers) == 1 and 0 in self._packed
        return (self.keys[0], self._packed[0]) if is_alone else None

    @property
    def missing_texts(self) -> Sequence[str]:
        texts = self._texts.texts
        return texts if self._missing is self._all else [texts[number] for number in self._missing]

    @property
    def missing_indexes(self) -> Sequence[int]:
        """Per missing text, its first index in the request."""
        first = self._texts.first
        return first if self._missing is self._all else [first[number] for number in self._missing]

    @property
    def may_keep_rows(self) -> bool:
        """Whether `keep_rows` keeps anything."""
        return bool(self.keys) and self._use.may_keep and not self._store.is_off

    def look_up(self, numbers: Sequence[int]) -> bool:
        """Take the results of some missing texts from memory; return whether there is one."""
        store, keys = self._store, self.keys
        if store.is_empty or not keys or not self._use.may_read:
            return False
        wanted = keys if len(numbers) == len(keys) else [keys[number] for number in numbers]
        return self._receive(numbers, store.get(wanted))

    async def fetch(self) -> None:
        """Take the results of missing texts from the shared store, if there is one."""
        if self._use.may_read and self.keys and self._store.has_shared_tier:
            numbers = self._missing
            keys = [self.keys[number] for number in numbers]
            found = await self._store.fetch(self._namespace, keys, may_keep=self._use.may_keep)
            if self._receive(numbers, found):
                self.forget_found()

    def forget_found(self) -> None:
        """Let the texts whose results were found no longer be missing."""
        if self._packed or self._unpacked:
            self._missing = [number for number in self._missing if not self._has(number)]

    def adopt(self, inputs: ModelInputs) -> None:
        """Accept the tokens of all missing texts."""
        if inputs.window_counts is None:
            facts = [
                (item.tokens, item.length, item.is_truncated * IS_TRUNCATED | item.is_blank * IS_BLANK)
                for item in inputs.items
            ]
        else:  # windows together contain all of the text
            facts = [
                (items[0].tokens, sum([item.length for item in items]), items[0].is_blank * IS_BLANK)
                for items in inputs.by_text
            ]
        self._facts.update(zip(self._missing, facts, strict=True))
        inputs.indexes = self.missing_indexes
        self._inputs = inputs

    def count_tokens(self) -> None:
        """Set the numbers of tokens. Each text has a result, or its tokens were adopted."""
        facts = self._facts
        of_texts = [facts[number] for number in self._texts.numbers]
        self.tokens = [tokens for tokens, _, _ in of_texts]
        self.used_tokens = sum([used for _, used, _ in of_texts])
        self.truncated = [bool(flags & IS_TRUNCATED) for _, _, flags in of_texts]

    def take(self, texts: range) -> MissingSlice | None:
        """Return what the model must run for a slice of *texts*, after those that were taken before; None: nothing."""
        missing, start, found = self._missing, self._taken, list[TokenizedText]()
        self._taken = bisect_left(missing, texts.stop, start, key=self._texts.first.__getitem__)
        numbers = missing[start : self._taken]
        if not numbers:
            return None
        if self._store.changes != self._seen_changes and self.look_up(numbers):
            found = [item for number in numbers if self._has(number) for item in self._items_of(number)]
            numbers = [number for number in numbers if not self._has(number)]
        if len(numbers) == len(missing):
            inputs = self._inputs
        else:
            by_text = [self._items_of(number) for number in numbers]
            counts = [len(items) for items in by_text] if self._has_windows else None
            items = [item for items in by_text for item in items]
            inputs = ModelInputs(items, counts, [self._texts.first[number] for number in numbers])
        self._inputs = NO_INPUTS
        pending = PendingWindows(inputs) if self._has_windows else None
        return MissingSlice(numbers, inputs, self._keys_of(numbers, inputs), found, pending=pending)

    def keep_rows(self, part: MissingSlice, raw: Matrix, items: Sequence[int]) -> None:
        """Keep the model's vectors of some *items* of a slice at once, so that no request computes them again.

        A text that is split is kept with its last window. What `add` will reject is not kept.
        """
        if (pending := part.pending) is not None:
            if places := pending.complete(items):
                self._keep_complete(part, pending, raw, places)
            return
        if len(items) == len(raw):
            vectors, numbers = raw, part.numbers
        else:
            vectors, numbers = raw[items], [part.numbers[item] for item in items]
        if are_usable(vectors):
            part.usable += len(numbers)
        else:
            usable = [row for row in range(len(vectors)) if are_usable(vectors[row : row + 1])]
            vectors, numbers = vectors[usable], [numbers[row] for row in usable]
        self._keep(numbers, pack_rows(vectors, [self._facts[number] for number in numbers]))

    def add(self, part: MissingSlice, raw: Matrix, *, coalesced_items: int, texts: range) -> None:
        """Accept the model's vectors of a slice that was taken.

        Args:
            part: the slice.
            raw: one row per item.
            coalesced_items: number of the items whose vectors were computed for an equal text as well.
            texts: the slice; later ones may contain its texts again.

        Raises:
            InvalidVectorError: a vector is unusable.
        """
        numbers, inputs, facts = part.numbers, part.inputs, self._facts
        if part.usable == len(inputs.items):
            vectors = raw
        elif len(part.pooled) == len(numbers):  # the very rows that are kept
            vectors = np.concatenate([part.pooled[place] for place in range(len(numbers))])
        else:
            vectors = pool(raw, inputs, self._options)
        if self._has_chunks:
            self._unpacked.update(zip(numbers, self._with_windows(numbers, inputs, vectors), strict=True))
        elif len(numbers) == len(texts) and self._texts.counts is None:
            self._slice = vectors
        else:
            last = self._texts.last
            for row, number in enumerate(numbers):
                own = vectors[row : row + 1]
                # Of a slice that has been read, no more stays in memory than later slices need.
                self._unpacked[number] = TextResult(own if last[number] < texts.stop else own.copy(), facts[number])
        if coalesced_items:  # an item is a text, or one of its windows: then this is an estimate
            coalesced = coalesced_items * len(numbers) // len(inputs.items)
            self.counts.miss -= coalesced
            self.counts.coalesced += coalesced

    def vectors(self, texts: range) -> tuple[Matrix, Sequence[int]]:
        """Return the vectors of a slice of *texts*, before dimensions and dtype, and per row the index of its text."""
        ready, self._slice = self._slice, None
        if ready is not None and len(ready) == len(texts):  # else they are those of several slices
            return ready, texts
        numbers, packed = self._texts.numbers[texts.start : texts.stop], self._packed
        if not self._unpacked:
            return rows_of([packed[number] for number in numbers], self.encoder.dim), texts
        rows = [
            result.vectors
            if (result := self._unpacked.get(number)) is not None
            else rows_of([packed[number]], self.encoder.dim)
            for number in numbers
        ]
        if self._has_chunks:
            indexes: Sequence[int] = [index for index, some in zip(texts, rows, strict=True) for _ in some]
        else:
            indexes = texts
        return rows[0] if len(rows) == 1 else np.concatenate(rows), indexes

    def release(self, texts: range) -> None:
        """Drop the results that no text after these *texts* needs."""
        if self._packed or self._unpacked:
            for number in self._texts.numbers[texts.start : texts.stop]:
                if self._texts.last[number] < texts.stop:
                    self._packed.pop(number, None)
                    self._unpacked.pop(number, None)

    @property
    def chunks(self) -> list[Chunk] | None:
        """Per row of the vectors of all texts, its text and its place there; None: each text has one row."""
        if not self._has_chunks:
            return None
        return [
            Chunk(index, *window)
            for index, number in enumerate(self._texts.numbers)
            for window in self._unpacked[number].windows
        ]

    @property
    def _namespace(self) -> str:
        return self.encoder.fingerprint.namespace if self.encoder.fingerprint else ""

    def _has(self, number: int) -> bool:
        """Return whether there is a result of this distinct text."""
        return number in self._packed or number in self._unpacked

    def _items_of(self, number: int) -> list[TokenizedText]:
        """Return the items of a missing text, once: they are dropped here."""
        if self._inputs.items:
            self._items = dict(zip(self._missing, self._inputs.by_text, strict=True))
            self._inputs = NO_INPUTS
        return self._items.pop(number)

    def _keep(self, numbers: Sequence[int], packed: Sequence[bytes]) -> None:
        """Keep the results of distinct texts."""
        keys = self.keys
        results = dict(zip([keys[number] for number in numbers], packed, strict=True))
        self._store.put(self._namespace, results, generation=self._generation)

    def _receive(self, numbers: Sequence[int], kept: Sequence[bytes | None]) -> bool:
        """Accept cached results of texts with these *numbers*; return whether there is one.

        The result of a text that was cut, or is blank, is none for a request that forbids that: its tokenisation
        rejects the text.
        """
        found = [(number, packed) for number, packed in zip(numbers, kept, strict=True) if packed is not None]
        if not found:
            return False
        forbidden = (self._options.truncate == "none") * IS_TRUNCATED | (not self._options.allow_blank) * IS_BLANK
        facts, dim = dict[int, Facts](), self.encoder.dim
        if self._has_chunks:
            for number, packed in found:
                if (result := unpack(packed, dim)) is not None and not result.facts[2] & forbidden:
                    self._unpacked[number], facts[number] = result, result.facts
        else:
            of_texts, rows = read_facts([packed for _, packed in found], dim)
            for (number, packed), of_text in zip(found, of_texts, strict=True):
                if of_text is not None and not of_text[2] & forbidden:
                    self._packed[number], facts[number] = packed, of_text
            if len(facts) == len(self._texts.numbers):
                self._slice = rows
        self._facts |= facts
        counts = self._texts.counts
        texts = len(facts) if counts is None else sum([counts[number] for number in facts])
        self.counts.hit += texts
        self.counts.miss -= len(facts)
        self.counts.coalesced -= texts - len(facts)
        return bool(facts)

    def _keep_complete(self, part: MissingSlice, pending: PendingWindows, raw: Matrix, places: Sequence[int]) -> None:
        """Keep the results of the texts at these *places* of a slice, all of whose windows are computed."""
        inputs, indexes = pending.windows_of(places)
        try:
            vectors = pool(raw[indexes], inputs, self._options)
        except InvalidVectorError:
            for place in places if len(places) > 1 else ():
                self._keep_complete(part, pending, raw, [place])
            return
        numbers = [part.numbers[place] for place in places]
        results = self._with_windows(numbers, inputs, vectors)
        part.pooled |= zip(places, [result.vectors for result in results], strict=True)
        self._keep(numbers, [pack(result) for result in results])

    def _with_windows(self, numbers: Sequence[int], inputs: ModelInputs, vectors: Matrix) -> list[TextResult]:
        """Return the results of distinct texts that were split into the windows *inputs*; *vectors* are pooled."""
        row, results = 0, list[TextResult]()
        for number, items in zip(numbers, inputs.by_text, strict=True):
            windows = [(*(item.span or (0, 0)), item.length) for item in items] if self._has_chunks else ()
            rows = len(windows) or 1
            results.append(TextResult(vectors[row : row + rows], self._facts[number], windows))
            row += rows
        return results

    def _keys_of(self, numbers: Sequence[int], inputs: ModelInputs) -> Sequence[bytes] | None:
        """Return the keys of the items of these distinct texts."""
        if not self.keys or not self._use.may_read:
            return None
        keys = self.keys if len(numbers) == len(self.keys) else [self.keys[number] for number in numbers]
        if inputs.window_counts is None:
            return keys
        return [key for text, count in zip(keys, inputs.window_counts, strict=True) for key in window_keys(text, count)]
