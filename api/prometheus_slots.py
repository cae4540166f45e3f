"""Slots: what runs in the place of each worker, for Prometheus."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from api.metric_types import MetricsAnswer
from api.process_reports import WorkerPart
from telemetry.merging import merge


@dataclass(frozen=True, slots=True)
class Slot:
    """What runs in the place of one worker: one process, or one that drains and its replacement.

    Attributes:
        label: the value of the label `worker`.
        latest: the report of the process that was started last.
        answer: the sum of the processes; its counters are not used.
    """

    label: str
    latest: WorkerPart
    answer: MetricsAnswer
    is_ready: bool
    fingerprints: Mapping[str, str]


def slot_of(label: str, parts: Sequence[WorkerPart]) -> Slot:
    """Return the slot in which the processes of *parts* run."""
    reports = [part.report for part in parts]
    return Slot(
        label=label,
        latest=max(parts, key=lambda part: (part.report.usage and part.report.usage.started_s) or 0),
        answer=merge([report.counts.answer for report in reports]),
        is_ready=any(report.phase == "healthy" for report in reports),
        fingerprints={name: found for report in reports for name, found in report.fingerprints.items()},
    )
