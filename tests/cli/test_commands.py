import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.commands import run
from config import BUNDLED_MODEL
from tests.support.commands import HUB_MODEL, command
from tests.support.hubs import hub_environment
from tests.support.servers import ROOT

pytestmark = pytest.mark.timeout(60)  # it starts processes, on a machine that may be busy

COMMANDS = ("compare", "download", "check")


@pytest.mark.parametrize(
    "argv", [[], ["nonsense"], ["compare"], ["compare", "a", "b"], ["check", "more"], ["--port", "80"], ["comp"]]
)
def test_wrong_use_ends_with_2_and_tells_how_to_do_it(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run(argv)
    written = capsys.readouterr()
    assert end.value.code == 2
    assert written.out == ""
    assert written.err.startswith("usage: python main.py")


@pytest.mark.parametrize("argv", [["-h"], *([name, "-h"] for name in COMMANDS)])
def test_help_is_readable(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run(argv)
    lines = capsys.readouterr().out.splitlines()
    assert end.value.code == 0
    assert max(map(len, lines)) <= 100
    assert len(lines) > 5


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(["--help"])
    told = capsys.readouterr().out
    assert [name for name in COMMANDS if name not in told] == []


@pytest.mark.parametrize(
    "arguments", [("compare", "a", "b", "--texts", "-"), ("download", "a"), ("download", "--all-required")]
)
def test_bad_settings_are_told_in_one_line(arguments: tuple[str, ...]) -> None:
    outcome = command(*arguments, variables={"MICRO_BATCH_TOKENS": "many"})
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith("Bad settings: MICRO_BATCH_TOKENS='many' is not allowed")
    assert outcome.err.count("\n") == 1


@pytest.fixture
def hears_ctrl_c() -> Iterator[None]:
    """A shell starts what runs in the background deaf to SIGINT, and processes of ours would inherit that."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.usefixtures("hears_ctrl_c")
def test_ctrl_c_ends_a_command_without_a_traceback(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        process = subprocess.Popen(
            [sys.executable, "main.py", "download", HUB_MODEL],
            cwd=ROOT,
            env=hub_environment(HF_ENDPOINT=f"http://127.0.0.1:{silent.getsockname()[1]}", HUB_CACHE_DIR=str(tmp_path)),
            stderr=subprocess.PIPE,
            text=True,
        )
        asked, _ = silent.accept()  # the command now waits for an answer
        with asked:
            process.send_signal(signal.SIGINT)
            _, told = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in told


@pytest.mark.usefixtures("hears_ctrl_c")
@pytest.mark.skipif(sys.platform == "win32", reason="a terminal there tells its processes in another way")
def test_ctrl_c_ends_the_processes_of_the_models_too(tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("one\ntwo\n")
    process = subprocess.Popen(
        [sys.executable, "main.py", "compare", BUNDLED_MODEL, BUNDLED_MODEL, "--texts", str(texts)],
        cwd=ROOT,
        env=hub_environment(),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr
    assert process.stderr.readline().startswith("Loading")  # its processes have started
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    _, told = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in told


def test_reader_who_has_had_enough_gets_no_traceback() -> None:
    process = subprocess.Popen(
        [sys.executable, "main.py", "check"],
        cwd=ROOT,
        env=hub_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    process.stdout.close()
    assert process.stderr
    with process.stderr:
        assert process.stderr.read() == ""
    assert process.wait() == 1


def test_process_that_a_command_starts_builds_no_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "PORT", "no port")  # settings that would end it
    assert "app" not in runpy.run_path(str(ROOT / "main.py"), run_name="__mp_main__")


def test_commands_can_be_run_without_the_service() -> None:
    """As the image's build does, so that a change of the service downloads no model again."""
    done = subprocess.run(
        [sys.executable, "-m", "cli", "download", "-h"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "HUB_CACHE_DIR" in done.stdout
