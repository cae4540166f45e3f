"""Request metrics: answers by route and status, errors by code, latencies, and what the engine did for requests."""

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, Literal, get_args

from telemetry.answered_request import AnsweredRequest, known_method
from telemetry.histograms import DURATIONS_S, SHORT_DURATIONS_S, TEXTS, TOKENS, Buckets, Histogram
from telemetry.log_output import dropped_lines
from telemetry.loop_lag import LoopLag
from telemetry.request_work import RequestWork, StageName

MAX_RECENT_LATENCIES = 2048
"""Latencies of served requests kept per endpoint for percentiles. They describe recent requests, and memory stays
bounded. With 2048 of them, about 20 are above the 99th percentile."""
PERCENTILES = (50, 95, 99)
CALLER_LEFT_STATUS: Final = 499
STATUSES: Final = {status.value: str(status.value) for status in HTTPStatus} | {CALLER_LEFT_STATUS: "499"}
OTHER_STATUS: Final = "other"
OVERLOAD_STATUSES: Final = frozenset({HTTPStatus.TOO_MANY_REQUESTS.value, HTTPStatus.SERVICE_UNAVAILABLE.value})
STAGE_BOUNDS: Final[dict[StageName, Sequence[float]]] = {
    "load": DURATIONS_S,
    "cache": SHORT_DURATIONS_S,
    "tokenize": SHORT_DURATIONS_S,
    "queue": DURATIONS_S,
    "run": DURATIONS_S,
}

Outcome = Literal["served", "refused", "failed"]
"""`served`: the status is below 400; `refused`: 429 or 503; `failed`: all others."""
OUTCOMES: Final[tuple[Outcome, ...]] = get_args(Outcome)
Exemplar = tuple[str, float, float]
"""An example of what a bucket has counted: its trace id, its seconds, and the time of day in seconds since 1970."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionCounts:
    """The connections that are open now, by what they do, and what they hold.

    Attributes:
        open: all of them.
        idle: without a request.
        receiving: the client has not sent all of a request, or not received all of an answer.
        processing: the service works on a request.
        body_bytes: of request bodies that have no answer yet.
        closed_for_others: closed since the start because others needed their place or memory.
    """

    open: int = 0
    idle: int = 0
    receiving: int = 0
    processing: int = 0
    body_bytes: int = 0
    closed_for_others: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestCounts:
    """What was counted of requests since the start, for the text.

    Attributes:
        answers: by method, route, status and dialect.
        durations: by method, route, dialect and outcome; of `DURATIONS_S`.
        stages: by stage; of `STAGE_BOUNDS`.
        texts: per request that the engine worked for; of `TEXTS`.
        tokens: the same, if they became known; of `TOKENS`.
    """

    answers: dict[tuple[str, str, str, str], int]
    durations: dict[tuple[str, str, str, str], Buckets]
    stages: dict[str, Buckets]
    texts: Buckets
    tokens: Buckets


@dataclass(slots=True)
class _Durations:
    """The answers of one endpoint and dialect with one outcome."""

    histogram: Histogram = field(default_factory=lambda: Histogram(DURATIONS_S))
    exemplars: dict[int, Exemplar] = field(default_factory=dict)


@dataclass(slots=True)
class _Series:
    """The answers with one method, route, status and dialect; the other parts are shared with other statuses.

    *recent_s* is None for requests that were not served: rejections take microseconds, and would make a busy service
    look fast.
    """

    durations: _Durations
    recent_s: deque[float] | None
    count: int = 0


class Metrics:
    """Owns the counters of one app. Labels come from closed sets: methods, routes, statuses, dialects, error codes.

    Attributes:
        loop_lag: measures the event loop while the app runs.
        on_change: called when something was counted.
    """

    def __init__(
        self, *, dropped_lines: Callable[[], int] = dropped_lines, time_of_day: Callable[[], float] = time.time
    ) -> None:
        """Count nothing yet; *dropped_lines* returns how many lines of the log could not be written."""
        self._dropped_lines = dropped_lines
        self._time_of_day = time_of_day
        self._errors: Counter[str] = Counter()
        self._errors_of: Counter[str] = Counter()  # by dialect
        self._rate_limited: Counter[str] = Counter()  # by policy
        self._series: dict[tuple[str, str, int, str], _Series] = {}
        self._durations: defaultdict[tuple[str, str, str, Outcome], _Durations] = defaultdict(_Durations)
        self._recent_s: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=MAX_RECENT_LATENCIES))
        self._stages = {name: Histogram(bounds) for name, bounds in STAGE_BOUNDS.items()}
        self._texts, self._tokens = Histogram(TEXTS), Histogram(TOKENS)
        self._connections: Callable[[], ConnectionCounts] = ConnectionCounts
        self._in_flight: Callable[[], int] = int
        self.loop_lag = LoopLag()
        self.on_change: Callable[[], None] = lambda: None

    def observe(self, answered: AnsweredRequest) -> None:
        """Count one answered request, and its error."""
        key = (answered.method, answered.route, answered.status, answered.dialect)
        series = self._series.get(key)
        if series is None:
            series = self._open_series(answered)
        seconds = answered.seconds
        series.count += 1
        if series.recent_s is not None:
            series.recent_s.append(seconds)
        bucket = series.durations.histogram.observe(seconds)
        if answered.trace_id:
            series.durations.exemplars[bucket] = (answered.trace_id, seconds, self._time_of_day())
        if answered.problem_code is not None:
            self._errors_of[answered.dialect] += 1
            self._errors[answered.problem_code] += 1
        if answered.work is not None and answered.work.texts:
            self._observe_work(answered.work)
        self.on_change()

    def count_error(self, problem_code: str) -> None:
        """Count an error only, for a connection that failed before it became a request."""
        self._errors[problem_code] += 1
        self.on_change()

    def count_rate_limited(self, policies: Iterable[str]) -> None:
        """Count a request that was rejected because of these quotas."""
        self._rate_limited.update(policies)

    def watch_connections(self, counts: Callable[[], ConnectionCounts]) -> None:
        """Report what *counts* returns; without it, as under another server, there are no connections to report."""
        self._connections = counts

    def watch_requests(self, in_flight: Callable[[], int]) -> None:
        """Report what *in_flight* returns: the requests that have begun and have no answer yet."""
        self._in_flight = in_flight

    @property
    def connections(self) -> ConnectionCounts:
        """The connections now."""
        return self._connections()

    @property
    def in_flight(self) -> int:
        """Requests that have begun and have no answer yet."""
        return self._in_flight()

    @property
    def requests(self) -> int:
        """Answered requests of all endpoints since the start."""
        return sum(series.count for series in self._series.values())

    @property
    def errors(self) -> dict[str, int]:
        """Errors since the start, by code."""
        return dict(self._errors)

    @property
    def rate_limited(self) -> dict[str, int]:
        """Rejections since the start because of quotas, by policy; one request may count for several."""
        return dict(self._rate_limited)

    @property
    def log_lines_dropped(self) -> int:
        """Lines of the log that could not be written since the start of the process."""
        return self._dropped_lines()

    def statuses(self) -> dict[str, int]:
        """Return, per status, the answers since the start."""
        return self._answers_by(lambda _, status, __: status)

    def endpoints(self) -> dict[str, int]:
        """Return, per endpoint, the answers since the start."""
        return self._answers_by(lambda endpoint, _, __: endpoint)

    def recent_s(self) -> dict[str, list[float]]:
        """Return the latest latencies of served requests of each endpoint, for `percentiles_ms`."""
        return {name: list(found) for name, found in self._recent_s.items()}

    def dialects(self) -> dict[str, tuple[int, int]]:
        """Return, per dialect, the answers since the start and how many of them were errors."""
        answers = self._answers_by(lambda _, __, dialect: dialect)
        return {dialect: (number, self._errors_of[dialect]) for dialect, number in answers.items()}

    def counts(self) -> RequestCounts:
        """Return what was counted for the text."""
        answers: Counter[tuple[str, str, str, str]] = Counter()
        for (method, route, status, dialect), series in self._series.items():
            answers[method, route, STATUSES.get(status, OTHER_STATUS), dialect] += series.count
        return RequestCounts(
            answers=dict(answers),
            durations={key: found.histogram.read() for key, found in self._durations.items()},
            stages=self.stages(),
            texts=self._texts.read(),
            tokens=self._tokens.read(),
        )

    def stages(self) -> dict[str, Buckets]:
        """Return how long each part of requests took."""
        return {name: found.read() for name, found in self._stages.items()}

    def exemplars(self) -> dict[tuple[str, str, str, str], dict[int, Exemplar]]:
        """Return the latest request with a trace in each bucket of the durations, by their labels."""
        return {key: dict(found.exemplars) for key, found in self._durations.items() if found.exemplars}

    def _open_series(self, answered: AnsweredRequest) -> _Series:
        """Return the series of a request; methods and statuses that are not ours share one each."""
        method = known_method(answered.method) if answered.method else ""  # it is empty if there is no route
        status = answered.status if answered.status in STATUSES else 0
        key = (method, answered.route, status, answered.dialect)
        if (series := self._series.get(key)) is None:
            endpoint = f"{method} {answered.route}" if method else answered.route
            outcome = outcome_of(status)
            series = self._series[key] = _Series(
                self._durations[method, answered.route, answered.dialect, outcome],
                self._recent_s[endpoint] if outcome == "served" else None,
            )
        return series

    def _observe_work(self, work: RequestWork) -> None:
        self._texts.observe(work.texts)
        if work.tokens:
            self._tokens.observe(work.tokens)
        for name, seconds in work.seconds_by_stage().items():
            self._stages[name].observe(seconds)

    def _answers_by(self, read: Callable[[str, str, str], str]) -> dict[str, int]:
        """Return the sum of answers by what *read* returns of their endpoint, status and dialect."""
        answers: Counter[str] = Counter()
        for (method, route, status, dialect), series in self._series.items():
            endpoint = f"{method} {route}" if method else route
            answers[read(endpoint, STATUSES.get(status, OTHER_STATUS), dialect)] += series.count
        return dict(answers)


def outcome_of(status: int) -> Outcome:
    """Return the outcome of an answer with *status*; 0: an unknown one."""
    if status in OVERLOAD_STATUSES:
        return "refused"
    return "served" if 0 < status < HTTPStatus.BAD_REQUEST else "failed"


def percentiles_ms(latencies_s: Sequence[float]) -> dict[str, float]:
    """Return the percentiles of at least one latency, in milliseconds. Between two latencies they are interpolated."""
    ordered = sorted(latencies_s)
    return {f"p{percent}": round(_percentile(ordered, percent) * 1e3, 3) for percent in PERCENTILES}


def _percentile(ordered: Sequence[float], percent: int) -> float:
    whole, rest = divmod((len(ordered) - 1) * percent, 100)
    low, high = ordered[whole], ordered[min(whole + 1, len(ordered) - 1)]
    return low + (high - low) * rest / 100
