"""The settings of the lines about requests, in the whole app."""

from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.support.apps import running_app

KEY = "alice-key-0123456789"
CALLER = {"caller": "alice", "caller_kind": "key"}


def lines_of(tiny_models: Path, **settings: str) -> list[dict[str, Any]]:
    """Return the lines about a request of a caller with a key."""
    settings = {"MODELS_DIR": str(tiny_models), "REQUIRED_MODELS": "tiny/one", "API_KEYS": f"alice:{KEY}", **settings}
    with running_app(**settings) as client, capture_logs() as events:
        response = client.post("/embed/batch", json={"texts": ["one", "two"]}, headers={"X-API-Key": KEY})
        assert response.status_code == 200
    return [dict(event) for event in events if event["event"].startswith("request_")]


@pytest.mark.parametrize(
    ("settings", "caller"),
    [
        pytest.param({}, CALLER, id="default"),
        pytest.param({"LOG_CLIENT": "none"}, {}, id="none"),
        pytest.param({"LOG_CLIENT": "address"}, {}, id="address, which a client of the test does not have"),
        pytest.param({"LOG_CLIENT": "Both"}, CALLER, id="both"),
    ],
)
def test_setting_decides_whether_callers_are_named(
    settings: dict[str, str], caller: dict[str, str], tiny_models: Path
) -> None:
    [line] = lines_of(tiny_models, **settings)
    assert {name: value for name, value in line.items() if name.startswith(("caller", "client"))} == caller
    assert (line["model"], line["texts"], line["tokens"], line["cached"]) == ("tiny/one", 2, 6, 0)
    assert line["queue_ms"] + line["inference_ms"] <= line["ms"] + 0.02  # each of them is rounded


@pytest.mark.parametrize(("seconds", "slow"), [("0", 0), ("0.000001", 1), ("60", 0)])
def test_setting_decides_which_requests_are_slow(seconds: str, slow: int, tiny_models: Path) -> None:
    _, *more = lines_of(tiny_models, SLOW_REQUEST_SECONDS=seconds)
    assert [line["event"] for line in more] == ["request_slow"] * slow
