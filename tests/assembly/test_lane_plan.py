"""How many lanes run, which cores stay unused, and how many threads a lone text gets."""

import json

import pytest

from assembly import lane_plan
from assembly.lane_plan import LanePlan, plan_lanes
from engine.catalog import Model
from tests.support.apps import running_app, settings_of


def plan(monkeypatch: pytest.MonkeyPatch, workers: str, *, cores: int, has_quota: bool = False) -> LanePlan:
    """Plan on a machine of *cores*, or with a CPU quota of *cores* on a larger machine."""
    monkeypatch.setattr(lane_plan, "usable_cores", lambda: cores)
    monkeypatch.setattr(lane_plan, "is_quota_tight", lambda: has_quota)
    return plan_lanes(settings_of(THREAD_POOL_WORKERS=workers))


@pytest.mark.parametrize(
    ("workers", "cores", "has_quota", "lanes", "unused"),
    [
        pytest.param("auto", 1, False, 1, 0, id="auto, one core"),
        pytest.param("auto", 64, False, 64, 0, id="auto, many cores"),
        pytest.param("auto", 2, True, 2, 0, id="auto, small quota"),
        pytest.param("auto", 3, True, 2, 0, id="auto, quota with one core for other threads"),
        pytest.param("4", 8, False, 4, 4, id="default, more cores"),
        pytest.param("4", 2, False, 2, 0, id="default, fewer cores"),
        pytest.param("4", 5, True, 4, 0, id="default, one core of the quota for other threads"),
        pytest.param("3", 5, True, 3, 1, id="fewer lanes than the quota allows"),
    ],
)
def test_lanes_and_unused_cores(
    workers: str, cores: int, lanes: int, unused: int, monkeypatch: pytest.MonkeyPatch, *, has_quota: bool
) -> None:
    found = plan(monkeypatch, workers, cores=cores, has_quota=has_quota)
    assert (found.lanes, found.unused_cores) == (lanes, unused)
    assert (found.advice() is not None) == (unused > 0)


def test_replica_uses_its_share_of_the_cores_whatever_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_plan, "is_quota_tight", lambda: True)
    plans = [plan_lanes(settings_of(THREAD_POOL_WORKERS=workers), cores=6) for workers in ("auto", "8", "2")]
    assert [(found.lanes, found.unused_cores) for found in plans] == [(6, 0), (6, 0), (2, 4)]


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 2), (8, 8), (64, 8)])
def test_lone_text_gets_only_the_threads_that_help(cores: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert plan(monkeypatch, "auto", cores=cores).lone_text_threads == threads


@pytest.mark.parametrize(("workers", "is_warned"), [("1", True), ("auto", False)])
def test_start_warns_of_unused_cores(
    workers: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, is_warned: bool
) -> None:
    monkeypatch.setattr(lane_plan, "usable_cores", lambda: 2)
    with running_app(THREAD_POOL_WORKERS=workers):
        pass
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["advice"] for event in events if event["event"] == "cores_unused"] == (
        ["1 usable core stays unused; set THREAD_POOL_WORKERS=auto"] if is_warned else []
    )


@pytest.mark.parametrize(
    ("lanes", "limit_mb", "is_mapped", "expected"),
    [
        pytest.param(2, 256, False, True, id="small"),
        pytest.param(2, 10, False, False, id="too large"),
        pytest.param(2, 10, True, True, id="too large, but mapped"),
        pytest.param(2, 0, True, False, id="none wanted"),
        pytest.param(1, 256, True, False, id="one lane uses the only core already"),
    ],
)
def test_second_session_is_for_small_models_and_for_those_whose_weights_are_mapped(
    lanes: int, limit_mb: int, *, is_mapped: bool, expected: bool
) -> None:
    model = Model("a", 4, None, 1, 100_000_000, description="", license="", source="local")
    given = LanePlan(cores=2, lanes=lanes, lone_text_bytes=limit_mb * 1_000_000)
    assert given.has_lone_text_session(model, is_mapped=is_mapped) is expected
