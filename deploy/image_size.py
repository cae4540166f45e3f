"""How large an image is, layer by layer, and what takes the room in it: `python deploy/image_size.py [IMAGE]`.

It asks CONTAINER_ENGINE, docker or podman, whichever answers, and looks into the image by a container without network.
"""

import os
import re
import shutil
import subprocess
import sys

MEGABYTE = 1_000_000
PARTS_SHOWN = 12
SMALLEST = 100_000
"""Bytes of a layer that is worth a line."""
UNITS = {"": 1, "B": 1, "KB": 1_000, "MB": MEGABYTE, "GB": 1_000_000_000}
LOOK_INSIDE = """
import os
parts = {}
for top in ("/usr", "/opt", "/app"):
    for folder, folders, files in os.walk(top):
        folders[:] = [name for name in folders if not os.path.islink(os.path.join(folder, name))]
        bytes_here = sum(os.lstat(os.path.join(folder, name)).st_size for name in files)
        words = folder.split("/")
        deep = words.index("site-packages") + 2 if "site-packages" in words else 3
        part = "/".join(words[:deep])
        parts[part] = parts.get(part, 0) + bytes_here
for part, size in parts.items():
    print(size, part)
"""


def main(image: str) -> int:
    """Print both tables.

    Returns:
        The exit code.
    """
    engine = next(filter(_answers, (os.environ.get("CONTAINER_ENGINE", "docker"), "podman")), None)
    if engine is None:
        sys.stderr.write("image_size.py: neither docker nor podman answers; start one, or set CONTAINER_ENGINE.\n")
        return 1
    try:
        total = int(_ask(engine, "inspect", "--format", "{{.Size}}", image))
        layers = _ask(engine, "history", "--no-trunc", "--format", "{{.Size}}\t{{.CreatedBy}}", image)
        inside = ["run", "--rm", "--interactive", "--network", "none", "--user", "0", "--entrypoint", "python"]
        parts = _ask(engine, *inside, image, "-", stdin=LOOK_INSIDE)
    except subprocess.CalledProcessError as error:
        sys.stderr.write(f"image_size.py: {engine} {error.cmd[1]} failed: {error.stderr.strip()}\n")
        return 1
    _say(f"{image}: {total / MEGABYTE:.0f} MB\n\nMB by layer")
    for line in reversed(layers.splitlines()):
        size, _, made_by = line.partition("\t")
        if (size_bytes := _bytes_of(size)) >= SMALLEST:
            _say(f"{size_bytes / MEGABYTE:7.1f}  {_short(made_by)}")
    _say("\nMB by part, the largest")
    sizes = sorted(((int(size), part) for size, part in map(str.split, parts.splitlines())), reverse=True)
    for size_bytes, part in sizes[:PARTS_SHOWN]:
        _say(f"{size_bytes / MEGABYTE:7.1f}  {part}")
    return 0


def _answers(engine: str) -> bool:
    if not shutil.which(engine):
        return False
    return subprocess.run([engine, "info"], capture_output=True, check=False).returncode == 0  # noqa: S603


def _bytes_of(size: str) -> float:
    """Both write sizes for people only: `45.6MB`, `761 kB`."""
    number, unit = re.fullmatch(r"([\d.]+)\s*([a-zA-Z]*)", size.strip()).groups()  # type: ignore[union-attr]  # never another
    return float(number) * UNITS[unit.upper()]


def _ask(engine: str, *arguments: str, stdin: str = "") -> str:
    done = subprocess.run([engine, *arguments], input=stdin, capture_output=True, text=True, check=True)  # noqa: S603
    return done.stdout.strip()


def _short(made_by: str) -> str:
    """What made a layer, without the shell around it."""
    told = made_by.removeprefix("/bin/sh -c ").removeprefix("#(nop) ").strip()
    words = [word for word in told.split() if not word.startswith(("file:", "dir:", "multi:"))]
    return " ".join(words)[:88]


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if sys.argv[1:] else "fast-embedding"))
