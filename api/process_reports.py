"""What the processes of one service report to each other. Imports little: the supervisor uses it, too."""

from dataclasses import dataclass
from typing import Literal

from api.metric_types import MetricsAnswer
from engine.run_counters import RunCounts
from host.process_usage import ProcessUsage
from telemetry.merging import Derived, Samples
from telemetry.metrics import Exemplar, RequestCounts

Phase = Literal["starting", "healthy", "draining"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What one process has counted, and its amounts of this moment; those of several merge by `telemetry.merging`.

    Attributes:
        answer: the answer of `GET /metrics`, without percentiles.
        requests: counters and histograms of requests.
        runs: histograms of model runs.
        busy_s: seconds in which each lane of the process ran models, by its name.
        recent_s: latest latencies of each endpoint; empty unless asked for.
        exemplars: examples of request durations, by their labels and bucket; empty unless asked for.
    """

    answer: MetricsAnswer
    requests: RequestCounts
    runs: RunCounts
    busy_s: Derived[dict[str, float]]
    recent_s: Samples[dict[str, list[float]]]
    exemplars: Derived[dict[tuple[str, str, str, str], dict[int, Exemplar]]]


@dataclass(frozen=True, slots=True)
class StuckModel:
    """A model run that has taken longer than LANE_STUCK_SECONDS: its model, and the seconds since it began."""

    model_name: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessReport:
    """The report of one process that serves requests.

    Attributes:
        stuck: its model runs that do not end.
        fingerprints: of the models in memory, by name.
        models: what it knows of the models in memory, by name, encoded for other workers; empty unless asked for.
        usage: None unless asked for.
    """

    pid: int
    phase: Phase
    stuck: list[StuckModel]
    counts: Counts
    fingerprints: dict[str, str]
    models: bytes = b""
    usage: ProcessUsage | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """A worker's question for the reports of all.

    Attributes:
        own: its own report.
        for_metrics: what each process takes, and its latest latencies are asked for, too; that takes milliseconds.
    """

    own: ProcessReport
    for_metrics: bool


@dataclass(frozen=True, slots=True)
class WorkerPart:
    """One worker process: the number of its slot, and its report; *is_stale*: it is an old one, the last that came."""

    number: int
    report: ProcessReport
    is_stale: bool = False


@dataclass(frozen=True, slots=True)
class Restarts:
    """How often the worker of a slot was replaced for one reason."""

    number: int
    reason: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceView:
    """What the supervisor knows of the whole. It sends this to each worker whenever it changes.

    Attributes:
        started_s: when the supervisor was started, on the monotonic clock that all processes of a machine share.
        workers: the number of slots.
        ready: slots in which a process accepts work.
        restarts: replacements so far, of all slots.
        stuck: model runs whose worker should have been replaced by now.
        cached_models: models in memory of any worker.
    """

    phase: Phase
    started_s: float
    workers: int
    ready: int
    restarts: int
    stuck: list[StuckModel]
    cached_models: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """The reports of all processes.

    Attributes:
        workers: those that run now. Several may have the same number: one that drains, and its replacement.
        ended: the sum of all processes that have ended.
        restarts: of each slot, by reason.
        supervisor: what the supervisor process takes; None: there is none.
        supervisor_lines_dropped: lines of its log that could not be written.
    """

    workers: list[WorkerPart]
    ended: Counts | None = None
    restarts: list[Restarts]
    supervisor: ProcessUsage | None = None
    supervisor_lines_dropped: int = 0
