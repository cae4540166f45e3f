"""Computes the figures that `top` shows from two readings of a service."""

from collections.abc import Mapping
from typing import Any

from cli.top_reading import Reading

REFUSED_STATUSES = ("429", "503")
PERCENTILES = ("p50", "p95", "p99")
WORKER_NUMBERS = ("queue_seconds", "connections", "proportional_bytes")
MAX_ROUTES = 8
"""Routes with figures of their own, those that do work (POST) first, then by requests: more do not fit on a screen."""


def figures_of(before: Reading, now: Reading) -> dict[str, Any]:
    """Return the figures of the time between two readings, as `top --json` prints them.

    Rates are per second. What the service does not report is null. After a restart of the service between the two
    readings, rates are those since the restart.
    """
    counts = _Counts(before, now)
    metrics, status = now.metrics, now.health.get("status")
    return {
        "status": status if isinstance(status, str) else None,
        "uptime_seconds": _number(metrics, "uptime_seconds"),
        "interval_seconds": round(counts.seconds, 3),
        "restarted": counts.is_restarted,
        "requests_per_second": counts.rate("total_requests"),
        "texts_per_second": counts.rate("total_embeddings"),
        "tokens_per_second": counts.sum_rate("models", "tokens"),
        "errors_per_second": counts.sum_rate("errors"),
        "refused_per_second": counts.refused(),
        "in_flight": _number(metrics, "in_flight"),
        "connections": _number(metrics, "connections", "open"),
        "event_loop_lag_seconds": _number(metrics, "event_loop_lag_seconds"),
        "queue": {
            "requests": _number(metrics, "queue", "waiting_requests"),
            "texts": _number(metrics, "queue", "waiting_texts"),
            "seconds": _number(metrics, "queue", "waiting_seconds"),
        },
        "backlog": _entries(metrics, "backlog"),
        "lanes": _lanes(counts, metrics),
        "cache": _cache(counts, metrics),
        "routes": _routes(counts, metrics),
        "errors": {code: counts.rate("errors", code) for code in _entries(metrics, "errors")},
        "models": _models(counts, metrics),
        "workers": _workers(metrics),
    }


class _Counts:
    """Differences between two readings of counters."""

    def __init__(self, before: Reading, now: Reading) -> None:
        self._now = now.metrics
        uptimes = [_number(reading.metrics, "uptime_seconds") or 0.0 for reading in (before, now)]
        self.is_restarted = uptimes[1] < uptimes[0]
        self._before: Mapping[str, Any] = {} if self.is_restarted else before.metrics
        self.seconds = min(now.at_s - before.at_s, uptimes[1]) if self.is_restarted else now.at_s - before.at_s

    def added(self, *path: str) -> float | None:
        """Return by how much a counter has grown; None: it is not reported."""
        number = _number(self._now, *path)
        return None if number is None else max(0.0, number - (_number(self._before, *path) or 0.0))

    def rate(self, *path: str) -> float | None:
        added = self.added(*path)
        return None if added is None or self.seconds <= 0 else round(added / self.seconds, 3)

    def sum_rate(self, group: str, *path: str) -> float | None:
        """Return the rate of a counter of all members of *group* together; None: the group is not reported."""
        if not isinstance(self._now.get(group), Mapping):
            return None
        rates = [self.rate(group, name, *path) for name in _entries(self._now, group)]
        return round(sum((rate for rate in rates if rate is not None), 0.0), 3)

    def refused(self) -> float | None:
        """Return the rate of requests that were refused: over a quota (429), or overloaded and not ready (503)."""
        if not isinstance(self._now.get("statuses"), Mapping):
            return None
        return round(sum(self.rate("statuses", status) or 0.0 for status in REFUSED_STATUSES), 3)


def _lanes(counts: _Counts, metrics: Mapping[str, Any]) -> dict[str, float | None]:
    number, busy = _number(metrics, "queue", "lanes"), counts.rate("lanes_busy_seconds")
    return {
        "number": number,
        "busy_share": min(1.0, round(busy / number, 3)) if number and busy is not None else None,
        "stuck": _number(metrics, "queue", "lanes_stuck"),
    }


def _cache(counts: _Counts, metrics: Mapping[str, Any]) -> dict[str, float | None]:
    hits, *others = (counts.added("result_cache", source) for source in ("hits", "misses", "coalesced"))
    texts = sum(added or 0.0 for added in (hits, *others))
    return {
        "hit_share": round(hits / texts, 3) if hits is not None and texts else None,
        **{name: _number(metrics, "result_cache", name) for name in ("entries", "bytes", "limit_bytes")},
    }


def _routes(counts: _Counts, metrics: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Return, per route, its rate, and percentiles of its latest latencies in milliseconds."""
    routes = {
        name: {
            "requests_per_second": counts.rate("endpoints", name, "requests"),
            **{percent: _number(metrics, "endpoints", name, "latency_ms", percent) for percent in PERCENTILES},
        }
        for name in _entries(metrics, "endpoints")
    }
    most = sorted(
        routes,
        key=lambda name: (not name.startswith("POST "), -(_number(metrics, "endpoints", name, "requests") or 0.0)),
    )
    return {name: routes[name] for name in most[:MAX_ROUTES]}


def _models(counts: _Counts, metrics: Mapping[str, Any]) -> dict[str, dict[str, float | bool | None]]:
    """Return, per model that is in memory or was used, its rates and memory."""
    in_memory = [name for name in _items(metrics, "cache_info", "cached_models") if isinstance(name, str)]
    return {
        name: {
            "in_memory": name in in_memory,
            "requests_per_second": counts.rate("models", name, "requests") or 0.0,
            "texts_per_second": counts.rate("models", name, "texts") or 0.0,
            "tokens_per_second": counts.rate("models", name, "tokens") or 0.0,
            "memory_bytes": _number(metrics, "models", name, "memory_bytes"),
        }
        for name in dict.fromkeys([*reversed(in_memory), *_entries(metrics, "models")])
    }


def _workers(metrics: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Return what is reported of each worker process; None: there is only one process."""
    if _at(metrics, "workers", "processes") is None:
        return None
    return [
        {
            **worker,
            **{name: _number(worker, name) for name in WORKER_NUMBERS},
            "restarts": {reason: _number(worker, "restarts", reason) for reason in _entries(worker, "restarts")},
        }
        for worker in _items(metrics, "workers", "processes")
        if isinstance(worker, Mapping)
    ]


def _at(content: object, *path: str) -> Any:
    """Return what is at *path* in nested objects; None: nothing."""
    for name in path:
        if not isinstance(content, Mapping):
            return None
        content = content.get(name)
    return content


def _number(content: object, *path: str) -> float | None:
    found = _at(content, *path)
    return found if isinstance(found, int | float) and not isinstance(found, bool) else None


def _items(content: object, *path: str) -> list[Any]:
    found = _at(content, *path)
    return found if isinstance(found, list) else []


def _entries(content: object, *path: str) -> Mapping[str, Any]:
    found = _at(content, *path)
    return found if isinstance(found, Mapping) else {}
