"""Queue for large request bodies: decodes one at a time, fairly, with pauses in which other requests are served."""

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

from engine.fair_gate import FairGate
from engine.fair_queue import Caller
from engine.ledger import Account, Reservation

Result = TypeVar("Result")

PAUSE_FACTOR = 4
"""A pause is this many times as long as the work before it, so large bodies take at most a fifth of the event loop."""
MAX_WAITING_S = 10.0
"""Limit on the work that waits, pauses included. One caller may hold 80 % of it: about 160 bodies of 10 MB."""
FIRST_SECONDS_PER_BYTE = 1e-9
"""Estimate before the first measurement: 10 MB take about 10 ms."""
SMOOTHING = 0.9
"""Weight of the previous estimate in the exponential moving average, as in `engine.duration_estimator`."""


class LargeBodyQueue:
    """Runs one function at a time on the event loop. A thread would not help: decoding holds the GIL.

    Attributes:
        account: the seconds of work that wait, in all and per caller; pauses are included.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.account = Account("decode", MAX_WAITING_S)
        self._clock = clock
        self._gate = FairGate()
        self._seconds_per_byte = FIRST_SECONDS_PER_BYTE

    async def run(self, work: Callable[[], Result], *, caller: Caller, size_bytes: int) -> Result:
        """Wait until it is the caller's turn, and for the pause; then call *work* and return its result.

        Raises:
            OverloadedError: too much of the caller's work waits already.
        """
        with self._reserve(caller, size_bytes) as reservation:
            await self._gate.enter(caller, reservation.amount)
        started = self._clock()
        try:
            return work()
        finally:
            seconds = self._clock() - started
            self._seconds_per_byte = SMOOTHING * self._seconds_per_byte + (1 - SMOOTHING) * seconds / size_bytes
            asyncio.get_running_loop().call_later(PAUSE_FACTOR * seconds, self._gate.leave)

    def _reserve(self, caller: Caller, size_bytes: int) -> Reservation:
        seconds = size_bytes * self._seconds_per_byte * (1 + PAUSE_FACTOR)
        if self.account.held:  # the limit holds for bodies of any size, but one alone is always accepted
            self.account.check(caller, seconds)
        reservation = Reservation((self.account,), caller)
        reservation.resize(seconds)
        return reservation
