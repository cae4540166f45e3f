"""The command line as a whole: usage, help, version, exit codes and Ctrl-C."""

import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.commands import COMMANDS, run
from config import BUNDLED_MODEL
from main import VERSION
from tests.support.commands import HUB_MODEL, command
from tests.support.hubs import hub_environment
from tests.support.processes import END_S, killed_at_the_end, without_coverage
from tests.support.servers import ROOT

pytestmark = pytest.mark.timeout(60)  # it starts processes, on a machine that may be busy


@pytest.mark.parametrize(
    "argv",
    [
        pytest.param([], id="no command"),
        pytest.param(["nonsense"], id="unknown command"),
        pytest.param(["comp"], id="abbreviated command"),
        pytest.param(["--port", "80"], id="unknown option"),
        pytest.param(["compare", "a", "b"], id="missing option"),
        pytest.param(["check", "more"], id="surplus argument"),
        pytest.param(["serve", "more"], id="surplus argument of serve"),
    ],
)
def test_wrong_usage_exits_with_2_and_prints_the_usage(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run(argv, version=VERSION)
    written = capsys.readouterr()
    assert end.value.code == 2
    assert written.out == ""
    assert written.err.startswith("usage: python main.py")


@pytest.mark.parametrize("argv", [["-h"], *([name, "-h"] for name in COMMANDS)], ids=" ".join)
def test_help_is_readable(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run(argv)
    lines = capsys.readouterr().out.splitlines()
    assert end.value.code == 0
    assert max(map(len, lines)) <= 100
    assert len(lines) > 5


def test_main_prints_its_version_and_every_command() -> None:
    assert command("--version", variables={}).out == f"fast-embedding {VERSION}\n"
    usage = command("--help", variables={}).out
    assert [name for name in ("serve", *COMMANDS) if f"    {name} " not in usage] == []


def test_bad_settings_are_reported_in_one_line() -> None:
    outcome = command("download", "a", variables={"MICRO_BATCH_TOKENS": "many"})
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith("Bad settings: MICRO_BATCH_TOKENS='many' is not allowed")
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["serve"]], ids=["by default", "serve"])
def test_main_serves(arguments: list[str]) -> None:
    """A model that does not exist ends the start with one line, which makes no mention of a running service."""
    outcome = command(*arguments, variables={"REQUIRED_MODELS": "nothing-like-it"})
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err == "Bad settings: REQUIRED_MODELS: No model named 'nothing-like-it' is offered.\n"


def test_question_of_a_message_ends_it() -> None:
    outcome = command(variables={"REQUIRED_MODELS": "sentence-transformers/all-MiniLM-L6-V3"})
    assert outcome.err.endswith("?\n")


@pytest.fixture
def sigint_is_not_ignored() -> Iterator[None]:
    """Shells start background jobs with SIGINT ignored, and our child processes would inherit that."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.usefixtures("sigint_is_not_ignored")
def test_ctrl_c_ends_a_command_without_a_traceback(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        process = subprocess.Popen(
            [sys.executable, "main.py", "download", HUB_MODEL],
            cwd=ROOT,
            env=hub_environment(HF_ENDPOINT=f"http://127.0.0.1:{silent.getsockname()[1]}", HUB_CACHE_DIR=str(tmp_path)),
            stderr=subprocess.PIPE,
            text=True,
        )
        with killed_at_the_end(process), silent.accept()[0] as connection:
            assert connection.recv(1)  # the command now waits for an answer
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=END_S)
    assert process.returncode == 130
    assert "Traceback" not in errors


@pytest.mark.usefixtures("sigint_is_not_ignored")
@pytest.mark.skipif(sys.platform == "win32", reason="a terminal there signals its processes in another way")
def test_ctrl_c_also_ends_the_processes_that_run_models(tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("one\ntwo\n")
    process = subprocess.Popen(
        [sys.executable, "main.py", "compare", BUNDLED_MODEL, BUNDLED_MODEL, "--texts", str(texts)],
        cwd=ROOT,
        env=without_coverage(hub_environment()),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with killed_at_the_end(process):
        assert process.stderr
        assert process.stderr.readline().startswith("Loading")  # its processes have started
        os.killpg(process.pid, signal.SIGINT)  # to the whole process group, as a terminal does
        _, errors = process.communicate(timeout=END_S)
    assert process.returncode == 130
    assert "Traceback" not in errors


def test_closed_pipe_ends_a_command_without_a_traceback() -> None:
    process = subprocess.Popen(
        [sys.executable, "main.py", "check"],
        cwd=ROOT,
        env=hub_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with killed_at_the_end(process):
        assert process.stdout
        process.stdout.close()
        assert process.stderr
        assert (process.stderr.read(), process.wait(END_S)) == ("", 1)


def test_process_that_a_command_starts_does_not_build_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "PORT", "no port")  # building it would fail
    assert "app" not in runpy.run_path(str(ROOT / "main.py"), run_name="__mp_main__")


def test_commands_can_run_without_the_service() -> None:
    """The image is built this way, so that a change of the service does not download the models again."""
    done = subprocess.run(
        [sys.executable, "-m", "cli", "download", "-h"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "HUB_CACHE_DIR" in done.stdout
