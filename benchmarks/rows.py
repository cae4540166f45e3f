"""What is measured: the rows of the table, and the limits they are held against."""

from dataclasses import dataclass

from benchmarks.texts import Stream

MODEL = "sentence-transformers/all-MiniLM-L6-v2"

SHORT_CALLER = Stream("short", texts_per_request=1, clients=1)
BULK_CALLERS = Stream("mixed", texts_per_request=32, clients=2)

IDLE_ROW, BESIDE_ROW, CPU_ROW, START_ROW = 5, 6, 7, 8
ALL_ROWS = tuple(range(1, 9))

LATENCY_RATIO_LIMIT = 1.3
BESIDE_P50_LIMIT = 3.0
BESIDE_P99_LIMIT = 10.0
WORK_SHARE_LIMIT = 0.9
OVERHEAD_LIMIT = 0.15
RSS_LIMIT_MB = 450.0
START_RATIO_LIMIT = 1.5


@dataclass(frozen=True, slots=True)
class Row:
    """Some load for the server; with *least_ratio*, the texts/s asked for over FastEmbed's."""

    number: int
    title: str
    streams: tuple[Stream, ...]
    least_ratio: float | None = None

    @property
    def stream(self) -> Stream:
        """The stream whose requests FastEmbed is called with, too."""
        return self.streams[0]

    @property
    def texts_in_flight(self) -> int:
        return sum(stream.clients * stream.texts_per_request for stream in self.streams)


MIXED_WORDS = "4-300 words, log-normal around 45"

LOADS = {
    row.number: row
    for row in (
        Row(1, "single short texts (4-9 words), 16 clients", (Stream("short", 1, 16),), 2.0),
        Row(2, "batches of 32 short texts, 2 clients", (Stream("short", 32, 2),), 1.9),
        Row(3, f"batches of 32 mixed texts ({MIXED_WORDS}), 1 client", (Stream("mixed", 32, 1),), 3.3),
        Row(4, "single mixed texts, 16 clients", (Stream("mixed", 1, 16),), 1.2),
        Row(IDLE_ROW, "one client, one short text at a time", (SHORT_CALLER,)),
        Row(BESIDE_ROW, "one short-text client beside two mixed-batch clients", (SHORT_CALLER, BULK_CALLERS)),
    )
}
BULK_ALONE = Row(0, "two mixed-batch clients alone", (BULK_CALLERS,))
