"""Model runs: what is counted of them."""

from engine.run_counters import RunCounters
from telemetry.histograms import RATIOS


def test_runs_are_counted_with_their_padding() -> None:
    counters = RunCounters()
    counters.record("one", [4, 4], 0.5)
    counters.record("one", [8, 2], 0.25)
    counters.record("two", [5], 2.0)
    assert (counters.runs, counters.texts, counters.padded_tokens) == (3, 5, 8 + 16 + 5)
    found = counters.read()
    assert {name: (one.count, one.total) for name, one in found.seconds.items()} == {"one": (2, 0.75), "two": (1, 2.0)}
    assert (found.texts.count, found.texts.total) == (3, 5)
    assert found.padding.total == 6 / 16
    without_padding, quarter_to_half = RATIOS.index(0.0), RATIOS.index(0.4)
    assert (found.padding.counts[without_padding], found.padding.counts[quarter_to_half]) == (2, 1)
