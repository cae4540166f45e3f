"""From nothing to the first right answer, beside importing FastEmbed and loading the model."""

import http.client
import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import HEALTHY_WITHIN_S, BenchError, Server, refuse_if_over, spawned, spawned_server
from benchmarks.rows import MODEL

POLLED_EVERY_S = 0.01
FIRST_TEXT = "How long until the first answer?"
LOAD = f"import sys; from fastembed import TextEmbedding; TextEmbedding({MODEL!r}, specific_model_path=sys.argv[1])"


@dataclass(frozen=True, slots=True)
class Start:
    """One turn, wall-clock seconds each."""

    server_s: float
    load_s: float
    import_s: float


def measure_start(folder: Path, *, lanes: int) -> tuple[Start, list[float]]:
    """Time each once; give the vector of the server's first answer, too."""
    import_s = time_script("import fastembed", folder)
    load_s = time_script(LOAD, folder)
    began_at = time.perf_counter()
    with spawned_server(log_level="INFO", lanes=lanes) as server:
        first = first_answer(server)
        start = Start(time.perf_counter() - began_at, load_s, import_s)
    return start, json.loads(first)["embedding"]


def time_script(script: str, folder: Path) -> float:
    began_at = time.perf_counter()
    with spawned(["-c", script, str(folder)], stdin=subprocess.DEVNULL) as process:
        code = process.wait(HEALTHY_WITHIN_S)
        took_s = time.perf_counter() - began_at
    if code:
        raise BenchError("FastEmbed cannot load the bundled model (its last words are above).")
    return took_s


def first_answer(server: Server) -> bytes:
    """Ask for a vector every 10 ms until there is one."""
    deadline = time.monotonic() + HEALTHY_WITHIN_S
    while (answer := embed_once(server, {"text": FIRST_TEXT}, "/embed")) is None:
        refuse_if_over(server, deadline)
        time.sleep(POLLED_EVERY_S)
    return answer


def embed_once(server: Server, body: dict[str, object], path: str) -> bytes | None:
    """POST once on a connection of its own; None unless the answer is a 200."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return content if answer.status == http.client.OK else None
