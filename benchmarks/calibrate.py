"""Measure what one model run costs, to check the planner's cost model and its constant on this machine.

Run `python benchmarks/calibrate.py`. It times runs of many shapes on a session of one thread, round by round, and fits
`cpu_ms = a + b * texts * longest` by least squares of the relative error. `a / b` is `RUN_COST_TOKENS`.
"""

import statistics
import sys
from pathlib import Path

if not __package__:  # run as a script: let `benchmarks` be found
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np

from benchmarks.bare_loop import BareLoop
from benchmarks.machine import ROOT
from engine.planner import RUN_COST_TOKENS

SHAPES = [(n, length) for length in (8, 16, 32, 64, 128) for n in (1, 2, 4, 8, 16) if n * length <= 512]
ROUNDS = 15


def main() -> None:
    """Print the cost of each shape, and the fit."""
    bare_loop = BareLoop(str(ROOT / "models" / "all-MiniLM-L6-v2"))
    measured: dict[tuple[int, int], list[float]] = {shape: [] for shape in SHAPES}
    for _ in range(ROUNDS):
        for shape in SHAPES:
            measured[shape].append(bare_loop.replay(shapes=[shape], threads=1)["cpu_s"] * 1e3)
    cpu_ms = {shape: statistics.median(values) for shape, values in measured.items()}
    tokens = np.array([n * length for n, length in SHAPES], dtype=float)
    values = np.array([cpu_ms[shape] for shape in SHAPES])
    rows = np.stack([np.ones_like(tokens), tokens], axis=1) / values[:, None]
    (call_ms, token_ms), *_ = np.linalg.lstsq(rows, np.ones_like(values), rcond=None)
    for (n, length), value in cpu_ms.items():
        fitted = call_ms + token_ms * n * length
        per_token = value / n / length
        print(f"{n:3d} x {length:3d} tokens {value:7.2f} ms, fitted {fitted:7.2f} ms, {per_token:.3f} ms per token")
    print(f"a = {call_ms:.2f} ms, b = {token_ms:.3f} ms per token, a / b = {call_ms / token_ms:.1f} tokens")
    print(f"the planner's RUN_COST_TOKENS is {RUN_COST_TOKENS}")


if __name__ == "__main__":
    main()
