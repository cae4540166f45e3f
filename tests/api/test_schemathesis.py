"""Schemathesis sends a real server requests that its OpenAPI document allows, and many that it does not.

`SCHEMATHESIS_EXAMPLES=2000 pytest -m slow tests/api/test_schemathesis.py` sends more.
"""

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.support.servers import NO_HUB, ROOT, ServerProcess, running_server

EXAMPLES = os.environ.get("SCHEMATHESIS_EXAMPLES", "60")
"""Random requests per route, in addition to those derived from the document."""

BUNDLED = "sentence-transformers/all-MiniLM-L6-v2"
"""The only model of the server: schemathesis also sends names that it finds in answers, and the others need a hub."""


def run_schemathesis(server: ServerProcess, folder: Path) -> subprocess.CompletedProcess[str]:
    config = ROOT / "tests" / "support" / "schemathesis.toml"
    return subprocess.run(
        [
            sys.executable,
            *("-m", "schemathesis.cli", "--config-file", config),
            *("run", f"{server.url}/schema/openapi.json", "--max-examples", EXAMPLES),
        ],
        cwd=folder,  # it writes files into its working folder
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.timeout(300 + 2 * int(EXAMPLES))
def test_each_answer_is_as_documented_and_none_is_a_failure_of_the_service(tmp_path: Path) -> None:
    """No 5xx; each status and body is documented; invalid requests are rejected, and valid ones accepted."""
    settings = {"HF_ENDPOINT": NO_HUB, "HUB_CACHE_DIR": str(tmp_path / "hub"), "ALLOWED_MODELS": BUNDLED}
    with running_server(**settings) as server:
        done = run_schemathesis(server, tmp_path)
        assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
        metrics = httpx.get(f"{server.url}/metrics").json()
        log = server.log
    assert metrics["total_requests"] > 500
    assert set(metrics["errors"]) <= {
        "bad-request",
        "deadline-exceeded",
        "empty-input",
        "fingerprint-mismatch",
        "invalid-input",
        "model-not-allowed",
        "malformed-request",  # keys with characters that no header may have
        "method-not-allowed",
        "model-unavailable",  # a 424 on TEI's routes
        "not-found",
        "not-json",
        "unknown-model",
    }
    assert "request_failed" not in log
    assert "Traceback" not in log
