"""A smoke run of benchmarks/soak.py: most leaks that it looks for show within seconds."""

import subprocess
import sys

import pytest

from tests.support.servers import ROOT, environment


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_mixed_work_leaves_nothing_behind_and_all_counts_agree() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/soak.py", "--seconds", "8"],
        cwd=ROOT,
        env=environment({}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
