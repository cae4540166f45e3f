"""Processes share the memory of an optimised copy."""

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from config import BUNDLED_MODEL, BUNDLED_MODELS_DIR
from tests.support.optimised import MAX_BYTES, Place
from tests.support.processes import killed_at_the_end
from tests.support.servers import ROOT, environment

SERVE = """
import sys
from pathlib import Path
from tests.support.optimised import Place
encoder = Place(Path(sys.argv[1]), Path(sys.argv[2])).load(sys.argv[3], max_bytes=int(sys.argv[4]))
encoder.open_lone_text_session(2)
print(encoder.copy_state.is_used, flush=True)
sys.stdin.read()
"""
SMAPS = Path("/proc/self/smaps_rollup")


def pss_of(pid: int) -> int:
    """Return the proportional memory of a process in bytes: shared pages count in parts."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def pss_of_two(place: Place, *, max_bytes: int) -> int:
    """Start two processes with the bundled model and both sessions, and return their proportional memory together."""
    expected = b"True\n" if max_bytes else b"False\n"
    arguments = [str(place.folder), str(place.models), BUNDLED_MODEL, str(max_bytes)]
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                killed_at_the_end(
                    subprocess.Popen(
                        [sys.executable, "-c", SERVE, *arguments],
                        cwd=ROOT,
                        env=environment({}),
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                    )
                )
            )
            for _ in range(2)
        ]
        for process in processes:
            assert process.stdout
            assert next(line for line in process.stdout if line in (b"True\n", b"False\n")) == expected
        return sum(pss_of(process.pid) for process in processes)


@pytest.mark.processes
@pytest.mark.slow  # three processes with the bundled model
@pytest.mark.skipif(not SMAPS.exists(), reason="only Linux says what processes share")
def test_two_processes_with_a_copy_take_less_memory_than_without(tmp_path: Path) -> None:
    place = Place(tmp_path / "copies", BUNDLED_MODELS_DIR)
    assert place.load_and_tend(BUNDLED_MODEL).copy_state.is_used
    without, with_copy = pss_of_two(place, max_bytes=0), pss_of_two(place, max_bytes=MAX_BYTES)
    assert with_copy < without - 200_000_000
