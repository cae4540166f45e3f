"""The options of conftest.py, each in a pytest process of its own."""

import subprocess
import sys

import pytest

from tests.support.servers import ROOT


def run_pytest(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-n", "auto", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("option", ["--help", "--markers"])
def test_options_that_only_inform_work_together_with_workers(option: str) -> None:
    assert run_pytest(option).returncode == 0


@pytest.mark.parametrize("address", ["127.0.0.1:9", "http://127.0.0.1:9/"])
def test_base_url_where_nothing_answers_ends_the_run_with_one_line(address: str) -> None:
    done = run_pytest("test_api.py", "--base-url", address)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert done.stdout == ""
    [line] = done.stderr.split("\n\n")[0].splitlines()
    assert line.startswith("ERROR: No server answers at --base-url http://127.0.0.1:9 (")


def test_default_run_states_what_it_leaves_out() -> None:
    done = run_pytest("tests/api/test_schemathesis.py")
    assert "-m slow, -m network or -m container" in done.stdout
    assert "1 deselected" in done.stdout
