"""What the supervisor keeps for all workers."""

import json
import subprocess
import sys

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


def test_each_new_worker_gets_handlers_for_its_quotas_and_reports_and_to_delete_results() -> None:
    shared = SharedState(settings_of(), slots=2, workers=list, restarts=dict)
    handlers = {"quota.take", "quota.charge", "report.push", "report.collect", "results.clear"}
    assert handlers <= set(shared.handlers(1))
