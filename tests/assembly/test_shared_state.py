"""What the supervisor keeps for all workers."""

import json
import subprocess
import sys
from collections.abc import Mapping

import pytest

from assembly.shared_state import SharedState
from tests.support.apps import settings_of
from tests.support.servers import ROOT, environment

HEAVY = ("litestar", "numpy", "onnxruntime", "fastembed", "tokenizers", "prometheus_client", "redis", "jwt")


def test_supervisor_imports_neither_the_framework_nor_what_runs_models() -> None:
    code = f"import json, sys, assembly.workers; print(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment({}), capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize(
    ("settings", "counts"),
    [
        pytest.param({}, False, id="off"),
        pytest.param({"ENABLE_RATE_LIMIT": "true"}, True, id="in-memory"),
        pytest.param({"ENABLE_RATE_LIMIT": "true", "REDIS_URL": "redis://127.0.0.1"}, False, id="redis"),
        pytest.param({"ENABLE_RATE_LIMIT": "true", "REDIS_URL_FILE": "/no/such/file"}, False, id="redis-file"),
    ],
)
def test_supervisor_counts_quotas_only_if_nothing_else_does(settings: Mapping[str, str], *, counts: bool) -> None:
    shared = SharedState(settings_of(**settings), slots=2, workers=list, restarts=dict)
    assert ("quota.take" in shared.handlers(1)) is counts
    assert "report.push" in shared.handlers(1)
