"""A clock that changes only when a test moves it."""


class ManualClock:
    """Call it as `time.monotonic`; set `now_s` to move it."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s
