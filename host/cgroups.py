"""The control groups (cgroups) of this process: the folders in which the kernel states its limits."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
PROC = Path("/proc")


def folders_v2(*, proc: Path = PROC, cgroup: Path = CGROUP) -> Iterator[Path]:
    """Yield the process's cgroup of version 2 and all its parents, up to the root.

    A container sees its own cgroup as the root. A systemd unit sees the whole tree, and its own path in it.
    """
    for root in (cgroup, cgroup / "unified"):  # the second: beside version 1, as older distributions mount it
        yield from _upwards(root, [path for controllers, path in _own(proc) if not controllers])


def folders_v1(controller: str, *, proc: Path = PROC, cgroup: Path = CGROUP) -> Iterator[Path]:
    """Yield the process's cgroup of *controller* in version 1 and all its parents, up to the root."""
    own = [(controllers, path) for controllers, path in _own(proc) if controller in controllers.split(",")]
    for name in dict.fromkeys([controller, *(controllers for controllers, _ in own)]):  # such as `cpu,cpuacct`
        yield from _upwards(cgroup / name, [path for _, path in own])


def _own(proc: Path) -> list[tuple[str, str]]:
    """Return the process's cgroups: controllers (empty: version 2) and path. See `man 7 cgroups`."""
    with suppress(OSError, ValueError):
        lines = (proc / "self/cgroup").read_text().splitlines()
        return [(controllers, path) for _, controllers, path in (line.split(":", 2) for line in lines)]
    return []


def _upwards(root: Path, paths: list[str]) -> Iterator[Path]:
    """Yield *root*, and the folders between it and each of *paths*; outside of *root*, nothing is known."""
    found = {root: None}
    for path in paths:
        parts = [part for part in path.split("/") if part]
        if ".." not in parts:
            found |= {root.joinpath(*parts[:depth]): None for depth in range(1, len(parts) + 1)}
    yield from found
