"""Clocks that a test moves."""

import asyncio


class ManualClock:
    """Call it as `time.monotonic`; set `now_s` to move it."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def let_time_pass(seconds: float) -> None:
    """Move the clock of the running event loop, so that its timers of the next *seconds* end now."""
    loop = asyncio.get_running_loop()
    real_time = loop.time
    loop.time = lambda: real_time() + seconds  # type: ignore[method-assign]
