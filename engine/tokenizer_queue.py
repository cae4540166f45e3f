"""Tokenises long texts on one thread, in slices: fair between callers, and limited in the work that may wait.

A short text waits for a slice of another request, never for a whole request.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import TypeVar

from engine.errors import OverloadedError
from engine.fair_gate import FairGate
from engine.fair_queue import Caller
from engine.ledger import SHARE_OF_FREE, Account, Reservation

T = TypeVar("T")

SLICE_BYTES = 8_192
"""Texts are tokenised together until they have this many bytes of UTF-8, which takes about 5 ms. A single text is never
split, so a longer one is a slice of its own."""
MIN_TEXT_BYTES = 16
"""A shorter text counts as many: its special tokens, and perhaps a prompt, are work even if it is empty."""
FIRST_SECONDS_PER_BYTE = 6e-7
"""Estimate before the first measurement: the bundled model's tokenizer, on the machine of `benchmarks/`."""
SMOOTHING = 0.9
"""Weight of the previous estimate in the exponential moving average, as in `engine.duration_estimator`."""


def size_of(text: str) -> int:
    """Return the bytes of *text* in UTF-8. They predict its tokens and the time to find them better than characters."""
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))


def sizes_of(texts: Sequence[str]) -> list[int]:
    """Return `size_of` of each text."""
    return list(map(len, texts)) if all(map(str.isascii, texts)) else list(map(size_of, texts))


def _work_bytes(texts: Sequence[str]) -> list[int]:
    """Return, per text, the bytes that predict the time to tokenise it."""
    return [max(size, MIN_TEXT_BYTES) for size in sizes_of(texts)]


class TokenizerQueue:
    """Owns the texts that wait for the tokenizer thread.

    Attributes:
        account: the seconds of work that wait, in all and per caller.
    """

    def __init__(self, thread: Executor, *, max_queue_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Start empty.

        Args:
            thread: runs one slice at a time.
            max_queue_s: limit on the work that waits, in seconds of the thread.
            clock: seconds, monotonic.
        """
        self.account = Account("tokenize", max_queue_s)
        self._thread = thread
        self._clock = clock
        self._gate = FairGate()
        self._seconds_per_byte = FIRST_SECONDS_PER_BYTE

    def reserve(self, texts: Sequence[str], caller: Caller, *, passes: int = 1) -> Reservation:
        """Reserve the thread for *texts*, which are tokenised *passes* times. `run` uses it up.

        Raises:
            OverloadedError: too much of the caller's work waits already.
        """
        seconds = sum(_work_bytes(texts)) * self._seconds_per_byte * passes
        counted_s = min(seconds, self.account.limit / SHARE_OF_FREE / 2)  # a huge request is not rejected for ever
        self.account.check(caller, counted_s)
        reservation = Reservation((self.account,), caller)
        reservation.resize(counted_s)
        return reservation

    def is_tight(self) -> bool:
        """Return whether `overload` may return an error for some caller. It does not, as long as much room is free."""
        return self.account.held >= self.account.limit / 2

    def overload(self, caller: Caller) -> OverloadedError | None:
        """Return the error that any long text of *caller* would get now; None: some are accepted."""
        return self.account.error(caller, SLICE_BYTES * self._seconds_per_byte)

    async def run(
        self,
        work: Callable[[Sequence[str], int], T],
        texts: Sequence[str],
        reservation: Reservation,
        *,
        passes: int = 1,
    ) -> list[T]:
        """Call *work* with each slice of *texts* and the index of its first text; return the results in order.

        The *passes* are those of the reservation.
        """
        slices = _slices(texts)
        order = self._clock() + reservation.amount
        per_byte_s = reservation.amount / max(1, sum(size for _, _, size in slices))
        results = []
        for first, some, size in slices:
            seconds = size * per_byte_s
            await self._gate.enter(reservation.caller, seconds, order=order)
            results.append(await self._run_slice(partial(work, some, first), size * passes))
            reservation.resize(max(0.0, reservation.amount - seconds))
        return results

    async def _run_slice(self, work: Callable[[], T], size: int) -> T:
        started = self._clock()
        try:
            result = await asyncio.get_running_loop().run_in_executor(self._thread, work)
            self._record(size, self._clock() - started)  # not if the caller leaves: the thread has not finished then
        finally:
            self._gate.leave()
        return result

    def _record(self, size: int, seconds: float) -> None:
        if size:
            self._seconds_per_byte = SMOOTHING * self._seconds_per_byte + (1 - SMOOTHING) * seconds / size


def _slices(texts: Sequence[str]) -> list[tuple[int, Sequence[str], int]]:
    """Split *texts*: per slice, the index of its first text, its texts, and the bytes that they count as."""
    slices: list[tuple[int, Sequence[str], int]] = []
    first, total = 0, 0
    for index, size in enumerate(_work_bytes(texts)):
        total += size
        if total >= SLICE_BYTES or index == len(texts) - 1:
            slices.append((first, texts[first : index + 1], total))
            first, total = index + 1, 0
    return slices
