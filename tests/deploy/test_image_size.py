"""deploy/image_size.py with a script in place of the engine; tests/deploy/test_image.py builds real images."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.servers import ROOT

ENGINE = """#!/bin/sh
case $1 in
    info) exit 0 ;;
    inspect) [ "$4" = known ] || { echo "no such image: $4" >&2; exit 1; }; echo 150000000 ;;
    history)
        printf '45.6MB\\tCOPY models/ models/ # buildkit\\n0B\\tENV A=b\\n'
        printf '100 MB\\t/bin/sh -c #(nop) ADD file:abc in / \\n' ;;
    run) cat >/dev/null; printf '12000000 /opt/small\\n99000000 /usr/large\\n' ;;
esac
"""


def measure(image: str, *, engine: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "deploy/image_size.py", image],
        cwd=ROOT,
        env={**os.environ, "CONTAINER_ENGINE": str(engine), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "engine"
    path.write_text(ENGINE, encoding="utf-8")
    path.chmod(0o755)
    return path


def test_layers_are_listed_in_order_and_parts_by_size(engine: Path) -> None:
    done = measure("known", engine=engine)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "known: 150 MB",
        "",
        "MB by layer",
        "  100.0  ADD in /",
        "   45.6  COPY models/ models/ # buildkit",
        "",
        "MB by part, largest first",
        "   99.0  /usr/large",
        "   12.0  /opt/small",
    ]


def test_unknown_image_is_reported_in_one_line(engine: Path) -> None:
    done = measure("unknown", engine=engine)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"image_size.py: {engine} inspect failed: no such image: unknown\n"
