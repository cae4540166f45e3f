"""Load by `wrk`, which takes a fraction of the CPU of a generator in Python: for requests that cost less than 1 ms."""

import json
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load import RowError

SCRIPT = """
local count = 0
local words = {%(words)s}
local headers = {["Content-Type"] = "application/json"}
request = function()
  if "%(method)s" == "GET" then return wrk.format("GET", "%(path)s") end
  count = count + 1
  local text = words[count %% #words + 1] .. " " .. words[(count * 7) %% #words + 1] .. " %(seed)s " .. count
  return wrk.format("POST", "%(path)s", headers, string.format('%(body)s', text))
end
done = function(summary, latency, requests)
  local failed = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
  io.write(string.format('\\nRESULT {"requests": %%d, "seconds": %%f, "failed": %%d, "p50_ms": %%f, "p99_ms": %%f}\\n',
    summary.requests, summary.duration / 1e6, failed + summary.errors.status,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
"""
WORDS = ("invoice", "password", "delivery", "refund", "account", "holiday", "contract", "printer", "garden", "ticket")


@dataclass(frozen=True, slots=True)
class WrkResult:
    """What wrk measured. Every answer was a 200."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float


def is_installed() -> bool:
    return shutil.which("wrk") is not None


def run_wrk(url: str, *, body: str | None, connections: int, seconds: float, seed: str) -> WrkResult:
    """Send requests to *url* for *seconds*.

    Args:
        url: where to.
        body: JSON with `%s` for a text, which differs each time; None: GET.
        connections: as many requests are outstanding.
        seconds: rounded, as wrk takes whole ones only.
        seed: words in each text: runs with different ones have no text in common.

    Raises:
        RowError: an answer was not a 200, or none came.
    """
    host, _, path = url.removeprefix("http://").partition("/")
    words = ", ".join(f'"{word}"' for word in WORDS)
    script = SCRIPT % {
        "words": words,
        "method": "POST" if body else "GET",
        "path": f"/{path}",
        "body": body or "",
        "seed": seed,
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "requests.lua")
        file.write_text(script)
        # One thread: each would count from 1 on its own, and so send the texts of the others.
        command = [
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{max(1, round(seconds))}s",
            "--timeout",
            "10s",
            "-s",
            str(file),
            f"http://{host}",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 30, check=False)
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
    if line is None:
        raise RowError(f"wrk failed: {(done.stderr or done.stdout).strip()[-300:]}")
    found = json.loads(line.removeprefix("RESULT "))
    if found["failed"] or not found["requests"]:
        raise RowError(f"{found['failed']} of {found['requests']} requests failed")
    return WrkResult(found["requests"] / found["seconds"], found["p50_ms"], found["p99_ms"])
