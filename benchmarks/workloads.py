"""The rows of the result table: the load of each, and its target."""

from dataclasses import dataclass

from benchmarks.texts import Stream

MODEL = "sentence-transformers/all-MiniLM-L6-v2"

SHORT_CLIENT = Stream("short", texts_per_request=1, clients=1)
BULK_CLIENTS = Stream("mixed", texts_per_request=32, clients=2)

IDLE_ROW, SHARED_ROW, CPU_ROW, START_ROW, CACHE_ROW = 5, 6, 7, 8, 9
ALL_ROWS = tuple(range(1, 10))

MAX_LATENCY_RATIO = 1.3
MAX_SHARED_P50_RATIO = 3.0
MAX_SHARED_P99_RATIO = 10.0
MIN_WORK_SHARE = 0.9
MAX_OVERHEAD = 0.15
MAX_RSS_MB = 450.0
MAX_START_RATIO = 1.5


@dataclass(frozen=True, slots=True)
class Row:
    """A load for the server. *min_ratio* is the target for its texts/s, as a multiple of FastEmbed's."""

    number: int
    title: str
    streams: tuple[Stream, ...]
    min_ratio: float | None = None

    @property
    def stream(self) -> Stream:
        """The stream whose requests FastEmbed gets, too."""
        return self.streams[0]

    @property
    def concurrent_texts(self) -> int:
        return sum(stream.clients * stream.texts_per_request for stream in self.streams)


LOADS = {
    row.number: row
    for row in (
        Row(1, "single short texts (4-9 words), 16 clients", (Stream("short", 1, 16),), 2.0),
        Row(2, "batches of 32 short texts, 2 clients", (Stream("short", 32, 2),), 1.9),
        Row(
            3,
            "batches of 32 mixed texts (4-300 words, log-normal around 45), 1 client",
            (Stream("mixed", 32, 1),),
            3.3,
        ),
        Row(4, "single mixed texts, 16 clients", (Stream("mixed", 1, 16),), 1.2),
        Row(IDLE_ROW, "one client, one short text at a time", (SHORT_CLIENT,)),
        Row(SHARED_ROW, "one short-text client beside two mixed-batch clients", (SHORT_CLIENT, BULK_CLIENTS)),
    )
}
BULK_ALONE = Row(0, "two mixed-batch clients alone", (BULK_CLIENTS,))
