"""The soak test of benchmarks/soak.py, for a moment: what it looks for is found after seconds, too, if it is there."""

import os
import subprocess
import sys

import pytest

from tests.support.servers import ROOT, environment

SECONDS = 60 if os.environ.get("CI") == "true" else 10


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_nothing_is_left_over_after_mixed_work_and_all_books_balance() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/soak.py", "--seconds", str(SECONDS)],
        cwd=ROOT,
        env=environment({}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
