"""The class of the CPU, as far as numeric libraries choose their code by it."""

import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
FEATURES = ("amx_int8", "avx512_vnni", "avx512f", "avx_vnni", "avx2", "i8mm", "asimddp")
"""Instruction sets for which ONNX Runtime has kernels of its own, the most capable of each architecture first.

Float32 kernels differ by the last digits, those for int8 by more: without VNNI, sums of products can saturate.
"""


def cpu_class(*, cpuinfo: Path = CPUINFO) -> str:
    """Return architecture and best instruction set, such as `x86_64 avx512_vnni`; only the former where unknown."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    listed = next((line for line in lines if line.partition(":")[0].strip() in ("flags", "Features")), "")
    found = set(listed.partition(":")[2].split())
    return " ".join([platform.machine(), *[name for name in FEATURES if name in found][:1]])
