"""Signals at any moment of a server process: during its start, repeated, without a meaning, and as process 1."""

import os
import pty
import shutil
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import ioctl
from pathlib import Path

import pytest

from tests.support.held_hub import held_hub
from tests.support.processes import killed_at_the_end
from tests.support.raw_http import CLIENT, WHOLE, connected, receive_answer, send
from tests.support.servers import (
    ROOT,
    ServerProcess,
    environment,
    free_port,
    held_server,
    running_server,
    started_server,
    stopped_at_the_end,
)

pytestmark = [pytest.mark.timeout(90), pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")]

END_S = 30.0
HUB_MODEL = "BAAI/bge-small-en-v1.5"
KEY, OTHER_KEY = "first-key-of-the-file-0123456789", "other-key-of-the-file-0123456789"

STOPPED_DURING = """
import builtins, os, runpy, signal, sys
imports = builtins.__import__
def stop(name, *rest, **more):
    if name.partition(".")[0] == {library!r}:
        builtins.__import__ = imports
        os.kill(os.getpid(), signal.{name})
    return imports(name, *rest, **more)
builtins.__import__ = stop
sys.argv = ["main.py"]
runpy.run_path("main.py", run_name="__main__")
"""


@pytest.fixture
def tiny(tiny_models: Path) -> dict[str, str]:
    return {"MODELS_DIR": str(tiny_models), "REQUIRED_MODELS": "tiny/one"}


# --- Before and during the start ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("library", "name"),
    [("litestar", "SIGTERM"), ("fastembed", "SIGINT"), ("uvicorn", "SIGQUIT")],
)
def test_signal_during_the_imports_ends_the_process_with_code_0_and_a_line(library: str, name: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", STOPPED_DURING.format(library=library, name=name)],
        cwd=ROOT,
        env=environment({"PORT": str(free_port())}),
        capture_output=True,
        text=True,
        timeout=END_S,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (0, "")
    assert ended.stderr == f"Stopped by {name} before the service ran.\n"


@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1"])
def test_other_signals_during_the_imports_do_not_end_the_process(name: str, tiny: dict[str, str]) -> None:
    script = STOPPED_DURING.format(library="litestar", name=name)
    with stopped_at_the_end(ServerProcess(tiny, command=("-c", script))) as server:
        server.wait_for("service_ready")
        server.process.terminate()
        assert server.wait_for_end(timeout_s=END_S) == 0
    assert any(event["event"] == "reload_ended" for event in server.events) is (name == "SIGHUP")


def test_handlers_are_installed_before_anything_but_the_standard_library_is_imported() -> None:
    script = (
        "import sys; before = set(sys.modules);"
        "import host.standard_streams, serving.process_signals, serving.process_start;"
        "print(sorted({name.partition('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-S", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "['host', 'serving']\n"


def test_importing_main_changes_no_signal_and_no_output() -> None:
    script = """
import signal, sys
before = [signal.getsignal(number) for number in signal.valid_signals()], sys.stdout, sys.stderr
import main
assert before == ([signal.getsignal(number) for number in signal.valid_signals()], sys.stdout, sys.stderr)
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment({}), check=True)


def test_signal_while_a_model_loads_ends_the_process_and_never_reports_that_it_is_ready(
    tiny: dict[str, str], tmp_path: Path
) -> None:
    tiny |= {"REQUIRED_MODELS": HUB_MODEL, "HUB_CACHE_DIR": str(tmp_path)}
    with held_hub() as hub, started_server(HF_ENDPOINT=hub.url, **tiny) as server:
        assert hub.called.wait(END_S)
        server.process.terminate()
        server.wait_for("drain_started")
        assert server.wait_for_end(timeout_s=END_S) == 0
    assert "service_ready" not in server.log
    assert "Traceback" not in server.log


# --- While the service runs ---------------------------------------------------------------------------------------


def test_signal_that_arrives_twice_at_once_counts_once(tiny: dict[str, str]) -> None:
    """As `timeout` sends it: to the process, and to its group."""
    with held_server(**tiny) as server, connected(server) as at_work:
        server.send_line("hold")
        server.wait_for("command_done")
        send(at_work, WHOLE)
        server.wait_for("run_held")
        server.process.send_signal(signal.SIGTERM)
        server.process.send_signal(signal.SIGINT)
        assert server.wait_for("signal_repeated")["signal"] in {"SIGTERM", "SIGINT"}
        server.wait_for("drain_started")
        server.send_line("release")
        assert receive_answer(at_work)[0] == 200
        assert server.wait_for_end(timeout_s=END_S) == 0


def test_signals_without_a_meaning_are_logged_and_change_nothing(tiny: dict[str, str]) -> None:
    with running_server(**tiny) as server:
        for number, name in enumerate(["SIGUSR1", "SIGUSR2", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGIO"], 1):
            server.process.send_signal(getattr(signal, name))
            assert server.wait_for("signal_ignored", times=number)["signal"] == name
        server.process.send_signal(signal.SIGTTOU)
        assert CLIENT.post(f"{server.url}/embed", json={"text": "one"}).status_code == 200


def test_hangup_reads_the_keys_again_and_keeps_the_last_good_ones(tiny: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{KEY}\n")

    def status_with(key: str) -> int:
        return CLIENT.post(f"{server.url}/embed", json={"text": "one"}, headers={"X-API-Key": key}).status_code

    with running_server(API_KEYS_FILE=str(file), **tiny) as server:
        assert (status_with(KEY), status_with(OTHER_KEY)) == (200, 401)
        file.write_text(f"{KEY}\nother:{OTHER_KEY}\n")
        server.process.send_signal(signal.SIGHUP)
        assert server.wait_for("api_keys_read")["keys"] == 2
        server.wait_for("reload_ended")
        assert status_with(OTHER_KEY) == 200
        file.write_text("a:b:c:d\n")
        server.process.send_signal(signal.SIGHUP)
        kept = server.wait_for("api_keys_kept")
        assert (kept["keys"], "line 1" in kept["reason"]) == (2, True)
        server.wait_for("reload_ended", times=2)
        assert status_with(OTHER_KEY) == 200


# --- Where the process runs ---------------------------------------------------------------------------------------


def can_unshare() -> bool:
    unshare = shutil.which("unshare")
    return (
        bool(unshare)
        and not subprocess.run(
            [str(unshare), "--pid", "--fork", "--mount-proc", "true"], check=False, capture_output=True
        ).returncode
    )


IN_A_NAMESPACE = """
import os, sys
arguments = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, *sys.argv[1:]]
os.execvp(arguments[0], arguments)
"""


@pytest.mark.skipif(not can_unshare(), reason="needs the right to make a PID namespace")
@pytest.mark.parametrize("moment", ["litestar", "service_ready"])
def test_process_1_of_a_container_obeys_the_signal(moment: str, tiny: dict[str, str]) -> None:
    """The kernel does not deliver signals to process 1 that it has no handler for."""
    command = (
        ["main.py"] if moment == "service_ready" else ["-c", STOPPED_DURING.format(library=moment, name="SIGTERM")]
    )
    server = ServerProcess(tiny, command=("-c", IN_A_NAMESPACE, *command))
    with stopped_at_the_end(server):
        if moment == "service_ready":
            server.wait_for("service_ready")
            pid = server.process.pid  # of unshare; the server is its only child
            os.kill(int(Path(f"/proc/{pid}/task/{pid}/children").read_text()), signal.SIGTERM)
        assert server.wait_for_end(timeout_s=END_S) == 0


@pytest.mark.skipif(not can_unshare(), reason="needs the right to make a PID namespace")
def test_command_that_is_process_1_of_a_container_obeys_the_signal() -> None:
    script = STOPPED_DURING.format(library="cli", name="SIGTERM").replace('["main.py"]', '["main.py", "check"]')
    with stopped_at_the_end(ServerProcess({}, command=("-c", IN_A_NAMESPACE, "-c", script))) as server:
        assert server.wait_for_end(timeout_s=END_S) == 128 + signal.SIGTERM


@contextmanager
def in_a_terminal(tiny: dict[str, str], *, is_nohup: bool) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Start a server that a terminal controls; its log goes to a pipe. Yield it and the other side of the terminal."""
    controlling, terminal = pty.openpty()

    def take_terminal() -> None:
        ioctl(terminal, termios.TIOCSCTTY, 0)
        if is_nohup:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = subprocess.Popen(
        [sys.executable, "main.py"],
        cwd=ROOT,
        env=environment({"PORT": str(free_port()), "HOST": "127.0.0.1", "LOG_FORMAT": "json", **tiny}),
        start_new_session=True,
        preexec_fn=take_terminal,  # noqa: PLW1509 - this thread is the only one that starts processes
        stdin=terminal,
        stdout=subprocess.PIPE,
        text=True,
    )
    os.close(terminal)
    with killed_at_the_end(process):
        assert process.stdout
        for line in process.stdout:
            if "service_ready" in line:
                break
        yield process, controlling


def test_server_ends_in_order_when_its_terminal_closes(tiny: dict[str, str]) -> None:
    with in_a_terminal(tiny, is_nohup=False) as (process, controlling):
        os.close(controlling)
        assert process.stdout
        assert '"signal":"SIGHUP"' in process.stdout.read()
        assert process.wait(END_S) == 0


def test_server_started_by_nohup_outlives_its_terminal(tiny: dict[str, str]) -> None:
    with in_a_terminal(tiny, is_nohup=True) as (process, controlling):
        os.close(controlling)
        assert process.stdout
        assert "reload_started" in process.stdout.readline()
        process.terminate()
        assert '"signal":"SIGTERM"' in process.stdout.read()
        assert process.wait(END_S) == 0


def test_signals_that_the_parent_process_blocked_or_ignored_are_handled(tiny: dict[str, str]) -> None:
    script = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): signal.signal(number, signal.SIG_IGN)
os.execv(sys.executable, [sys.executable, "main.py"])
"""
    with stopped_at_the_end(ServerProcess(tiny, command=("-c", script))) as server:
        server.wait_for("service_ready")
        server.process.terminate()
        assert server.wait_for_end(timeout_s=END_S) == 0
