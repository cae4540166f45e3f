"""Smoke runs of the drills, about 20 seconds each, without targets that depend on the machine's speed."""

import subprocess
import sys

import pytest

from tests.support.servers import ROOT, environment


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "drill",
    [
        pytest.param("soak", id="mixed-work-leaves-nothing-behind-and-all-counts-agree"),
        pytest.param("soak --repeats", id="results-that-come-again-leave-nothing-behind-either"),
        pytest.param("overload", id="overload-is-answered-with-200-429-or-503-and-health-stays-200"),
        pytest.param("abuse", id="abusers-leave-no-sockets-and-other-clients-are-served"),
    ],
)
def test_smoke_run_of_the_drill_finds_no_fault(drill: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *f"drills.{drill} --smoke".split()],
        cwd=ROOT,
        env=environment({}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
