"""Lays out the figures of `top` for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from telemetry.answered_request import NO_ROUTE

UNKNOWN = "-"
BYTES_PER_MB = 1e6
BAR_CELLS = 20
WARN_SHARE = 0.8
"""Bars above this share are drawn in yellow, full ones in red."""
MAX_ERRORS = 5


def view_of(figures: Mapping[str, Any], *, url: str, hint: str = "") -> RenderableType:
    """Return what the terminal shows of *figures*, which `figures_of` returns, of the service at *url*.

    *hint* follows the first line: keys that the person may press.
    """
    parts: list[RenderableType] = [_head(figures, url), Text(hint, style="dim"), _amounts(figures)]
    errors = sorted(((rate, code) for code, rate in figures["errors"].items() if rate), reverse=True)
    if errors:  # above the tables, whose ends a small terminal cuts off
        named = ", ".join(f"{code} {_rate(rate)}" for rate, code in errors[:MAX_ERRORS])
        parts.append(Text(f"Errors per second: {named}", style="yellow"))
    parts += [Text(), _routes(figures["routes"])]
    if figures["models"]:
        parts += [Text(), _models(figures["models"])]
    if figures["workers"]:
        parts += [Text(), _workers(figures["workers"])]
    return Group(*parts)


def failure_of(message: str, *, url: str, hint: str) -> RenderableType:
    """Return what the terminal shows while the service at *url* cannot be read."""
    head = Text(f"Fast Embedding API at {url}", style="bold")
    return Group(head, Text(hint, style="dim"), Text(message, style="red"))


def _head(figures: Mapping[str, Any], url: str) -> Text:
    status = str(figures["status"] or "unknown")
    style = "green" if status == "healthy" else "yellow"
    head = Text.assemble(("Fast Embedding API", "bold"), f" at {url}   ", (status, style))
    if figures["uptime_seconds"] is not None:
        head.append(f"   up {_duration(figures['uptime_seconds'])}")
    if figures["restarted"]:
        head.append("   restarted", style="yellow")
    return head


def _amounts(figures: Mapping[str, Any]) -> Table:
    queue, lanes, cache, lag_s = (figures[name] for name in ("queue", "lanes", "cache", "event_loop_lag_seconds"))
    used, limit = cache["bytes"], cache["limit_bytes"]
    full_share = used / limit if limit and used is not None else None
    texts, requests = _number(queue["texts"]), _number(queue["requests"])
    lag = _number(None if lag_s is None else lag_s * 1e3, 1)
    left = [
        ("Requests/s", _rate(figures["requests_per_second"])),
        ("Texts/s", _rate(figures["texts_per_second"])),
        ("Tokens/s", _rate(figures["tokens_per_second"])),
        ("Errors/s", _rate(figures["errors_per_second"])),
        ("Refused/s", _rate(figures["refused_per_second"])),
        ("In flight", _number(figures["in_flight"])),
    ]
    right: list[tuple[str, str | Text]] = [
        ("Queue", f"{_number(queue['seconds'], 2)} s, {texts} texts of {requests} requests"),
        ("Lanes", _bar(lanes["busy_share"], f"of {_number(lanes['number'])} busy")),
        ("Cache hits", _bar(cache["hit_share"], "of texts", is_good=True)),
        ("Cache memory", "none" if limit == 0 else _bar(full_share, f"of {_megabytes(limit)}", is_good=True)),
        ("Event loop", f"{lag} ms late at most"),
        ("Connections", _number(figures["connections"])),
    ]
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    for (name, value), (other_name, other_value) in zip(left, right, strict=True):
        table.add_row(name, value, other_name, other_value)
    if lanes["stuck"]:
        table.add_row("", "", "Stuck lanes", Text(_number(lanes["stuck"]), style="red"))
    return table


def _routes(routes: Mapping[str, Mapping[str, float | None]]) -> Table:
    rows = [
        (
            name if facts["p50"] is not None or name == NO_ROUTE else f"{name} (errors only)",
            _rate(facts["requests_per_second"]),
            *(_number(facts[percent], 1) for percent in ("p50", "p95", "p99")),
        )
        for name, facts in routes.items()
    ]
    return _table(["Route", "requests/s", "p50 ms", "p95 ms", "p99 ms"], rows or [("no request yet", *[""] * 4)])


def _models(models: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = [
        (
            name if facts["in_memory"] else f"{name} (evicted)",
            *(_rate(facts[kind]) for kind in ("requests_per_second", "texts_per_second", "tokens_per_second")),
            _megabytes(facts["memory_bytes"]) if facts["in_memory"] else "",
        )
        for name, facts in models.items()
    ]
    return _table(["Model", "requests/s", "texts/s", "tokens/s", "memory"], rows)


def _workers(workers: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        (
            str(worker.get("worker")),
            f"{worker.get('status')}{' (does not answer)' if worker.get('stale') else ''}",
            _number(worker["queue_seconds"], 2),
            _number(worker["connections"]),
            _megabytes(worker["proportional_bytes"]),
            _number(sum(number or 0 for number in worker["restarts"].values())),
        )
        for worker in workers
    ]
    return _table(["Worker", "status", "queue s", "connections", "memory", "restarts"], rows)


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(titles[0], overflow="ellipsis", no_wrap=True)
    for title in titles[1:]:
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _bar(share: float | None, words: str, *, is_good: bool = False) -> Text:
    """Return a bar of *share* from 0 to 1; a full one warns unless it *is_good*."""
    if share is None:
        return Text(f"{UNKNOWN} {words}")
    full = round(min(1.0, max(0.0, share)) * BAR_CELLS)
    style = "green" if is_good or share < WARN_SHARE else "yellow" if share < 1 else "red"
    return Text.assemble(("█" * full, style), ("░" * (BAR_CELLS - full), "dim"), f" {share:.0%} {words}")


def _rate(value: float | None) -> str:
    return _number(value, 0 if value is not None and value >= 100 else 1)  # noqa: PLR2004 - three digits say enough


def _number(value: float | None, digits: int = 0) -> str:
    return UNKNOWN if value is None else f"{value:,.{digits}f}"


def _megabytes(size_bytes: float | None) -> str:
    return UNKNOWN if size_bytes is None else f"{size_bytes / BYTES_PER_MB:,.0f} MB"


def _duration(seconds: float) -> str:
    days, rest = divmod(int(seconds), 86_400)
    hours, rest = divmod(rest, 3600)
    minutes, left = divmod(rest, 60)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes} min" if hours else f"{minutes} min {left} s"
