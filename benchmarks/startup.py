"""Times the start of the server up to its first answer, and that of a process that loads the model with FastEmbed."""

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import MAX_START_S, BenchError, Server, spawned, spawned_server
from benchmarks.workloads import MODEL

FIRST_TEXT = "How long until the first answer?"
LOAD = f"import sys; from fastembed import TextEmbedding; TextEmbedding({MODEL!r}, specific_model_path=sys.argv[1])"


@dataclass(frozen=True, slots=True)
class Start:
    """Wall-clock seconds of one start each."""

    server_s: float
    load_s: float
    import_s: float


def measure_start(folder: Path, *, lanes: int) -> tuple[Start, list[float]]:
    """Measure each once; return the vector of the server's first answer, too."""
    import_s = _time_script("import fastembed", folder)
    load_s = _time_script(LOAD, folder)
    began_at = time.perf_counter()
    with spawned_server(lanes=lanes) as server:
        vector = first_vector(server)
        start = Start(time.perf_counter() - began_at, load_s, import_s)
    return start, vector


def _time_script(script: str, folder: Path) -> float:
    began_at = time.perf_counter()
    with spawned(["-c", script, str(folder)], stdin=subprocess.DEVNULL) as process:
        code = process.wait(MAX_START_S)
        took_s = time.perf_counter() - began_at
    if code:
        raise BenchError("FastEmbed cannot load the bundled model. Its output is above.")
    return took_s


def first_vector(server: Server) -> list[float]:
    """Ask for a vector every 10 ms until there is one."""
    vector: list[float] = []

    def has_answered() -> bool:
        answer = server.post("/embed", {"text": FIRST_TEXT})
        vector[:] = answer.json["embedding"] if answer.status == 200 else []
        return bool(vector)

    server.wait_for(has_answered, pause_s=0.01)
    return vector
