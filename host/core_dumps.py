"""Keeps the memory of this process, which contains texts and secrets, out of core files and from other processes."""

import sys

if sys.platform != "win32":
    import resource

PR_SET_DUMPABLE = 4
"""From `linux/prctl.h`."""


def forbid_core_dumps() -> None:
    """Write no core file whatever happens; on Linux, also hide memory and environment from processes of the same user.

    Without the second part, the limit would not apply to systems that pipe core dumps to a program. It also forbids
    debuggers and profilers to attach, except for root.
    """
    if sys.platform != "win32":
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415 - needed here only

        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
