"""What the model must run for a slice of a request, and which of its texts are complete already."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from engine.pipeline import ModelInputs
from engine.tokenizer import TokenizedText
from engine.vectors import Matrix


class PendingWindows:
    """Counts, per text that is split, the windows that are not computed yet."""

    def __init__(self, inputs: ModelInputs) -> None:
        """Count all of *inputs*, whose texts are split into windows."""
        counts = inputs.window_counts or ()
        self._items = inputs.items
        self._left = list(counts)
        self._starts = [0, *accumulate(counts)]

    def complete(self, items: Sequence[int]) -> list[int]:
        """Count *items* as computed; return the places in the slice of the texts that are complete with them."""
        places, left = list[int](), self._left
        for item in items:
            place = bisect_right(self._starts, item) - 1
            left[place] -= 1
            if not left[place]:
                places.append(place)
        return places

    def windows_of(self, places: Sequence[int]) -> tuple[ModelInputs, list[int]]:
        """Return the windows of the texts at these *places*, and their indexes in the slice."""
        starts = self._starts
        indexes = [index for place in places for index in range(starts[place], starts[place + 1])]
        counts = [starts[place + 1] - starts[place] for place in places]
        return ModelInputs([self._items[index] for index in indexes], counts), indexes


@dataclass(slots=True, eq=False)
class MissingSlice:
    """The texts of a slice whose results are missing.

    Attributes:
        numbers: of these distinct texts.
        inputs: what the model must run.
        keys: per item of *inputs*; None: the vectors are shared with no other request.
        found: items that need not run any more: their results were kept since the request was admitted.
        usable: number of items that are computed, with usable vectors, unless texts are split into windows.
        pending: the windows that are not computed yet; None: texts are not split.
        pooled: the vectors of complete texts, by their places in *numbers*, as `pool` returns them.
    """

    numbers: Sequence[int]
    inputs: ModelInputs
    keys: Sequence[bytes] | None
    found: Sequence[TokenizedText]
    usable: int = 0
    pending: PendingWindows | None = None
    pooled: dict[int, Matrix] = field(default_factory=dict)
