"""The dashboards of deploy/grafana, their queries, and the names of metrics in any PromQL."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.support.servers import ROOT

FOLDER = ROOT / "deploy/grafana/dashboards"
DASHBOARDS: dict[str, dict[str, Any]] = {
    file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(FOLDER.glob("*.json"))
}
METRIC = re.compile(r"(?<![\w:])(?:fast_embedding_\w+|process_\w+|up)(?![\w:])")
"""A metric of the service or of Prometheus; not a recorded series, whose name has a colon."""


@dataclass(frozen=True, slots=True)
class Query:
    """A query of a panel.

    Attributes:
        dashboard: its name.
        panel: the names of dashboard and panel, and the panel's type.
        place: these and the letter of the query.
        expr: PromQL, with variables of Grafana.
        legend: the names of its series, with `{{label}}`.
    """

    dashboard: str
    panel: str
    place: str
    expr: str
    legend: str

    def substituted(self, *, job: str, instance: str = ".+", rate_interval: str, dashboard_range: str) -> str:
        """Return PromQL as Grafana would send it; of models, all are chosen."""
        values = {"job": job, "instance": instance, "model": ".+"}
        values |= {"__rate_interval": rate_interval, "__range": dashboard_range}
        return re.sub(r"\$(\w+)", lambda found: values[found[1]], self.expr)

    @property
    def legend_labels(self) -> set[str]:
        return set(re.findall(r"\{\{(\w+)\}\}", self.legend))


def panels(name: str) -> list[dict[str, Any]]:
    """Return the panels of a dashboard, without rows."""
    return [panel for panel in DASHBOARDS[name]["panels"] if panel["type"] != "row"]


def queries() -> Iterator[Query]:
    """Yield the queries of all panels."""
    for name in DASHBOARDS:
        for panel in panels(name):
            for target in panel["targets"]:
                title = f"{name}: {panel['title']} ({panel['type']})"
                place = f"{title}, {target['refId']}"
                yield Query(name, title, place, target["expr"], target["legendFormat"])


def metrics_in(text: str) -> set[str]:
    """Return the names of metrics in PromQL, without text in quotes."""
    return set(METRIC.findall(re.sub(r'"[^"]*"', '""', text)))
