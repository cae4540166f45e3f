"""Show the size of an image by layer and by part: `python deploy/image_size.py [IMAGE]`.

Uses CONTAINER_ENGINE, docker or podman, whichever responds first. Reads the files in a container without network.
"""

import os
import re
import shutil
import subprocess
import sys

MEGABYTE = 1_000_000
PARTS_SHOWN = 12
MIN_LAYER_BYTES = 100_000
"""Smaller layers are not shown."""
UNITS = {"": 1, "B": 1, "KB": 1_000, "MB": MEGABYTE, "GB": 1_000_000_000}
MEASURE_PARTS = """
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
    engine = next(filter(_responds, (os.environ.get("CONTAINER_ENGINE", "docker"), "podman")), None)
    if engine is None:
        sys.stderr.write("image_size.py: neither docker nor podman responds. Start one, or set CONTAINER_ENGINE.\n")
        return 1
    try:
        total = int(_run(engine, "inspect", "--format", "{{.Size}}", image))
        layers = _run(engine, "history", "--no-trunc", "--format", "{{.Size}}\t{{.CreatedBy}}", image)
        command = ["run", "--rm", "--interactive", "--network", "none", "--user", "0", "--entrypoint", "python"]
        parts = _run(engine, *command, image, "-", stdin=MEASURE_PARTS)
    except subprocess.CalledProcessError as error:
        sys.stderr.write(f"image_size.py: {engine} {error.cmd[1]} failed: {error.stderr.strip()}\n")
        return 1
    _print(f"{image}: {total / MEGABYTE:.0f} MB\n\nMB by layer")
    for line in reversed(layers.splitlines()):
        size, _, made_by = line.partition("\t")
        if (size_bytes := _parse_bytes(size)) >= MIN_LAYER_BYTES:
            _print(f"{size_bytes / MEGABYTE:7.1f}  {_shorten(made_by)}")
    _print("\nMB by part, largest first")
    sizes = sorted(((int(size), part) for size, part in map(str.split, parts.splitlines())), reverse=True)
    for size_bytes, part in sizes[:PARTS_SHOWN]:
        _print(f"{size_bytes / MEGABYTE:7.1f}  {part}")
    return 0


def _responds(engine: str) -> bool:
    if not shutil.which(engine):
        return False
    return subprocess.run([engine, "info"], capture_output=True, check=False).returncode == 0  # noqa: S603


def _parse_bytes(size: str) -> float:
    """Parse the sizes that the engines print: `45.6MB`, `761 kB`."""
    number, unit = re.fullmatch(r"([\d.]+)\s*([a-zA-Z]*)", size.strip()).groups()  # type: ignore[union-attr]  # always matches
    return float(number) * UNITS[unit.upper()]


def _run(engine: str, *arguments: str, stdin: str = "") -> str:
    done = subprocess.run([engine, *arguments], input=stdin, capture_output=True, text=True, check=True)  # noqa: S603
    return done.stdout.strip()


def _shorten(made_by: str) -> str:
    """Shorten the command that created a layer."""
    command = made_by.removeprefix("/bin/sh -c ").removeprefix("#(nop) ").strip()
    words = [word for word in command.split() if not word.startswith(("file:", "dir:", "multi:"))]
    return " ".join(words)[:88]


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if sys.argv[1:] else "fast-embedding"))
