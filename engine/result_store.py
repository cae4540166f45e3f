"""What the embedder needs of a result cache: results by key, in memory and perhaps in a store that processes share.

A key is a keyed hash of everything that makes a result (`engine.result_keys`). A result is a few bytes that
`engine.text_results` packs and unpacks: the model's float32 vector before dimensions, normalisation and dtype, and what
answers report of the text's tokens. The store does not look into it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class CacheUse:
    """How a request may use the cache.

    Attributes:
        may_read: results that were kept may be used, and those of equal texts in flight (else: `no-cache`).
        may_keep: results of this request may be kept (else: `no-store`).
    """

    may_read: bool = True
    may_keep: bool = True


CACHE_USE = CacheUse()
"""The default: read and keep."""


@dataclass(slots=True)
class CacheCounts:
    """Where the results of a request's texts come from; together they are the number of its texts.

    Attributes:
        hit: cached results.
        miss: computed for this request.
        coalesced: computed once for several equal texts, of this request or of others in flight.
    """

    hit: int = 0
    miss: int = 0
    coalesced: int = 0

    def add(self, others: "CacheCounts") -> None:
        """Add those of a request that was answered."""
        self.hit += others.hit
        self.miss += others.miss
        self.coalesced += others.coalesced


class ResultStore(Protocol):
    """Keeps results. Nothing here raises because of a store that is full, slow or gone: then there are fewer hits."""

    @property
    def generation(self) -> int:
        """Changes when all results are deleted. Results of texts that came before must not be kept afterwards."""

    @property
    def changes(self) -> int:
        """Grows when there are more results in memory: a text that was missing may be found then."""

    @property
    def is_off(self) -> bool:
        """Whether nothing is ever kept."""

    @property
    def has_shared_tier(self) -> bool:
        """Whether `fetch` may find what `get` does not."""

    @property
    def is_empty(self) -> bool:
        """Whether no result can be found, in memory or elsewhere."""

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return what is in memory, in the order of *keys*, and count each as used."""

    async def fetch(self, namespace: str, keys: Sequence[bytes], *, may_keep: bool) -> list[bytes | None]:
        """Return what the shared store has. *namespace* is that of the model (`result_keys`).

        What is found is kept in memory, too, if the request *may_keep* it.
        """

    def put(self, namespace: str, results: Mapping[bytes, bytes], *, generation: int) -> None:
        """Keep results: in memory at once, in the shared store later. Nothing is kept if *generation* has passed."""


class NoResults:
    """The store of a service without a result cache."""

    generation = 0
    changes = 0
    is_off = True
    has_shared_tier = False
    is_empty = True

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [None] * len(keys)

    async def fetch(self, namespace: str, keys: Sequence[bytes], *, may_keep: bool) -> list[bytes | None]:
        del namespace, may_keep
        return [None] * len(keys)

    def put(self, namespace: str, results: Mapping[bytes, bytes], *, generation: int) -> None:
        del namespace, results, generation
