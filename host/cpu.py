"""The class of the CPU, and those of its instruction sets by which numeric libraries choose their code."""

import ctypes
import platform
import re
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
FEATURES = ("amx_int8", "avx512_vnni", "avx512f", "avx_vnni", "avx2", "i8mm", "asimddp")
"""Instruction sets for which ONNX Runtime has kernels of its own, the most capable of each architecture first.

Float32 kernels differ by the last digits, those for int8 by more: without VNNI, sums of products can saturate.
"""

INSTRUCTION_SETS = re.compile(r"(?:s?sse|pni|avx|amx|fma|f16c|vnni|asimd|neon|sve|sme|i8mm|bf16)[\w.]*|fp(?:hp)?")
"""Names of vector and matrix instruction sets in /proc/cpuinfo. The other flags change with the kernel, too."""
MACOS_NAMES = (b"machdep.cpu.brand_string", b"hw.cpufamily")
"""What macOS calls the CPU. Each Mac's processor is one product, so its name implies its instruction sets."""
MAX_NAME_BYTES = 256


def cpu_class(*, cpuinfo: Path = CPUINFO) -> str:
    """Return architecture and best instruction set, such as `x86_64 avx512_vnni`; only the former where unknown."""
    found = _flags(cpuinfo)
    return " ".join([platform.machine(), *[name for name in FEATURES if name in found][:1]])


def instruction_sets(*, cpuinfo: Path = CPUINFO) -> tuple[str, ...] | None:
    """Return the architecture and all vector instruction sets; None where they are unknown.

    Two machines with equal results run the same kernels of a numeric library.
    """
    if found := sorted(filter(INSTRUCTION_SETS.fullmatch, _flags(cpuinfo))):
        return (platform.machine(), *found)
    named = [name for name in map(_macos_value, MACOS_NAMES) if name]
    return (platform.machine(), *named) if named else None


def _flags(cpuinfo: Path) -> set[str]:
    """Return what Linux lists for the first core."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    listed = next((line for line in lines if line.partition(":")[0].strip() in ("flags", "Features")), "")
    return set(listed.partition(":")[2].split())


def _macos_value(name: bytes) -> str | None:
    """Return a value of macOS's sysctl as text; None on other systems."""
    try:
        read = ctypes.CDLL(None).sysctlbyname
    except (AttributeError, OSError, TypeError):  # TypeError: on Windows, None names no library
        return None
    buffer, size = ctypes.create_string_buffer(MAX_NAME_BYTES), ctypes.c_size_t(MAX_NAME_BYTES)
    if read(name, buffer, ctypes.byref(size), None, ctypes.c_size_t(0)):
        return None
    return buffer.raw[: size.value].hex()
