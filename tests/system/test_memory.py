"""What the service reports about the memory of its models, in a process of its own with the bundled model."""

import sys
from pathlib import Path

import httpx
import pytest

from tests.support.servers import ServerProcess, running_server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.processes,
    pytest.mark.timeout(120),
    pytest.mark.skipif(sys.platform != "linux", reason="memory is measured by /proc"),
]

NAME = "sentence-transformers/all-MiniLM-L6-v2"


def memory_of_model(server: ServerProcess) -> tuple[int, bool]:
    details = httpx.get(f"{server.url}/models/{NAME}", timeout=60).json()
    return details["memory_bytes"], details["memory_measured"]


def wait_until_measured(server: ServerProcess, *, below_bytes: int) -> int:
    """Return what the model takes once it was measured; the time limit of the test ends the wait."""
    while True:
        memory_bytes, is_measured = memory_of_model(server)
        if is_measured and memory_bytes < below_bytes:
            return memory_bytes


def test_memory_of_a_model_is_what_its_sessions_take_and_less_once_their_weights_are_mapped(tmp_path: Path) -> None:
    settings = {"HUB_CACHE_DIR": str(tmp_path), "THREAD_POOL_WORKERS": "2"}
    with running_server(**settings, OPTIMISED_MODELS_MAX_SIZE="1GB") as server:
        loaded_bytes = wait_until_measured(server, below_bytes=1_000_000_000)
        server.wait_for("optimised_copy_adopted")
        adopted_bytes = wait_until_measured(server, below_bytes=loaded_bytes)
    assert 50_000_000 < loaded_bytes < 250_000_000
    assert adopted_bytes < 0.7 * loaded_bytes
    with running_server(**settings, OPTIMISED_MODELS_MAX_SIZE="1GB") as server:
        mapped_bytes = wait_until_measured(server, below_bytes=1_000_000_000)
        rollup = Path(f"/proc/{server.process.pid}/smaps_rollup").read_text()
    assert mapped_bytes < 0.7 * loaded_bytes
    [pss_kb] = [int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")]
    assert 1024 * pss_kb < 200_000_000
