"""Time that stands until a test moves it."""


class ManualClock:
    """Called like `time.monotonic`; a test turns the hand."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s
