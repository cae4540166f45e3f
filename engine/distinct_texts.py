"""The distinct texts of a request, so that each is looked up, tokenised and computed once."""

from collections.abc import Sequence


class DistinctTexts:
    """Numbers the distinct texts of a request, in the order in which they first appear.

    Attributes:
        texts: the distinct texts.
        numbers: per text of the request, the number of its distinct text.
        first: per distinct text, its first index in the request.
        last: per distinct text, its last index in the request.
        counts: per distinct text, how often it appears; None: each does once.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        """Compare *texts*."""
        self.texts = texts
        self.numbers: Sequence[int] = range(len(texts))
        self.first: Sequence[int] = self.numbers
        self.last: Sequence[int] = self.numbers
        self.counts: list[int] | None = None
        distinct = dict.fromkeys(texts, 0)
        if len(distinct) < len(texts):
            self.texts = list(distinct)
            for number, text in enumerate(distinct):
                distinct[text] = number
            self.numbers = [distinct[text] for text in texts]
            first, last, counts = [-1] * len(distinct), [0] * len(distinct), [0] * len(distinct)
            for index, number in enumerate(self.numbers):
                if not counts[number]:
                    first[number] = index
                last[number] = index
                counts[number] += 1
            self.first, self.last, self.counts = first, last, counts
