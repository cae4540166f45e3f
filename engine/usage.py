"""What each model has done since the start."""

from dataclasses import dataclass, field

from engine.result_store import CacheCounts


@dataclass(slots=True)
class Usage:
    """What one model has done since the start, and where the results came from; *truncated*: texts that were cut."""

    requests: int = 0
    texts: int = 0
    tokens: int = 0
    truncated: int = 0
    cache: CacheCounts = field(default_factory=CacheCounts)

    def count(self, texts: int, tokens: int, truncated: int, cache: CacheCounts) -> None:
        """Count an answered request."""
        self.requests += 1
        self.texts += texts
        self.tokens += tokens
        self.truncated += truncated
        self.cache.add(cache)
