"""The lock files pin every package by version and hash, agree with each other and with what we ask for."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.servers import ROOT

REQUIREMENTS = ROOT / "requirements"
CLIENT_LOCKS = {f"lock-{file.name}": (file.name,) for file in REQUIREMENTS.glob("clients-*.txt")}
"""Each is an environment of its own, whose versions need not be those of the others."""
LOCKS = {
    "lock.txt": ("runtime.txt", "test.txt", "arrow.txt", "tracing.txt", "lint.txt"),
    "lock-runtime.txt": ("runtime.txt",),
    "lock-test.txt": ("runtime.txt", "test.txt", "arrow.txt", "tracing.txt"),
    "lock-arrow.txt": ("arrow.txt",),
    "lock-tracing.txt": ("tracing.txt",),
    "lock-ray.txt": ("ray.txt", "arrow.txt"),
    **CLIENT_LOCKS,
}
HASH = r"    --hash=sha256:[0-9a-f]{64}"
ENTRY = re.compile(rf"^(\S.*==.*) \\\n({HASH}(?: \\\n{HASH})*)$", re.MULTILINE)
"""A requirement, and its hashes in the lines below."""


def entries(lock: str) -> dict[str, tuple[Requirement, str]]:
    """Return the packages of a lock file with their hashes, by name."""
    found = [(Requirement(line), hashes) for line, hashes in ENTRY.findall((REQUIREMENTS / lock).read_text("utf-8"))]
    return {canonicalize_name(requirement.name): (requirement, hashes) for requirement, hashes in found}


def asked_for(file: str) -> list[Requirement]:
    lines = [line.split(" #")[0].strip() for line in (REQUIREMENTS / file).read_text("utf-8").splitlines()]
    return [Requirement(line) for line in lines if line and line[0] not in "#-"]


def test_every_lock_file_is_tested() -> None:
    assert {file.name for file in REQUIREMENTS.glob("lock*")} == LOCKS.keys()


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_file_has_only_versions_with_hashes_and_names_no_index(lock: str) -> None:
    text = (REQUIREMENTS / lock).read_text("utf-8")
    rest = [line for line in ENTRY.sub("", text).splitlines() if line and not re.match(r" *#", line)]
    assert rest == []
    assert "://" not in text


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_file_has_every_version_that_is_asked_for(lock: str) -> None:
    """Fails if a version was changed without `make lock`."""
    locked = entries(lock)
    for wanted in (requirement for file in LOCKS[lock] for requirement in asked_for(file)):
        requirement, _ = locked[canonicalize_name(wanted.name)]
        assert (requirement.specifier, requirement.extras) == (wanted.specifier, wanted.extras | requirement.extras)


@pytest.mark.parametrize("lock", [lock for lock in LOCKS if lock not in {"lock.txt", *CLIENT_LOCKS}])
def test_parts_have_the_versions_and_hashes_of_the_whole(lock: str) -> None:
    whole, part = entries("lock.txt"), entries(lock)
    assert part.keys() <= whole.keys() or lock == "lock-ray.txt"
    for name in part.keys() & whole.keys():
        (requirement, hashes), (other, other_hashes) = part[name], whole[name]
        assert (requirement.specifier, hashes) == (other.specifier, other_hashes), name


@pytest.mark.network
@pytest.mark.timeout(600)
def test_locking_again_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / ".venv/bin").mkdir(parents=True)
    python = tmp_path / ".venv/bin/python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    shutil.copytree(REQUIREMENTS, tmp_path / "requirements")
    shutil.copy(ROOT / "Makefile", tmp_path)
    done = subprocess.run(
        ["make", "--old-file=install", "lock"],  # noqa: S607
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for lock in LOCKS:
        assert (tmp_path / "requirements" / lock).read_text("utf-8") == (REQUIREMENTS / lock).read_text("utf-8")


@pytest.mark.network
@pytest.mark.timeout(1800)
def test_every_platform_and_python_has_all_locked_packages() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "deploy/locked_wheels.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
