"""Schemathesis asks a real server whatever its OpenAPI document allows, and much that it does not.

`SCHEMATHESIS_EXAMPLES=2000 pytest tests/api/test_schemathesis.py` asks for longer.
"""

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.support.servers import ROOT, ServerProcess, running_server

EXAMPLES = os.environ.get("SCHEMATHESIS_EXAMPLES", "60")
"""Requests per route that are made up, besides those that are derived from the document."""
NO_HUB = "http://127.0.0.1:9"


def asked(server: ServerProcess, folder: Path) -> subprocess.CompletedProcess[str]:
    config = ROOT / "tests" / "schemathesis.toml"
    return subprocess.run(
        [
            sys.executable,
            *("-m", "schemathesis.cli", "--config-file", config),
            *("run", f"{server.url}/schema/openapi.json", "--max-examples", EXAMPLES),
        ],
        cwd=folder,  # it leaves files where it stands
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.timeout(300 + 2 * int(EXAMPLES))
def test_each_answer_is_as_documented_and_none_tells_of_a_failure(tmp_path: Path) -> None:
    """No 5xx, each status and body as the document has it, what is invalid refused, what is valid accepted."""
    with running_server(HF_ENDPOINT=NO_HUB, HUB_CACHE_DIR=str(tmp_path / "hub")) as server:
        done = asked(server, tmp_path)
        assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
        answered = httpx.get(f"{server.url}/metrics").json()
        log = server.log
    assert answered["total_requests"] > 500
    assert set(answered["errors"]) <= {
        "bad-request",
        "deadline-exceeded",
        "invalid-input",
        "malformed-request",  # keys with characters that no header may have
        "method-not-allowed",
        "not-found",
        "not-json",
        "unknown-model",
    }
    assert "request_failed" not in log
    assert "Traceback" not in log
