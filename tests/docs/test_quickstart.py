"""Starts the service as the pages say, and runs docs/QUICKSTART.md from the first command to the last."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.support.logged_process import LoggedProcess
from tests.support.servers import ROOT, environment, free_port

pytestmark = pytest.mark.timeout(120)

INSTALLED = ROOT / ".venv" / ".installed-runtime.txt"
FAILING_CURL = 'curl() { command curl --fail --silent --show-error "$@"; }\n'


def blocks_of(page: str, kind: str) -> list[str]:
    """Return the page's code blocks of this kind."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [code for found, code in blocks if found == kind]


START, *COMMANDS = [block for block in blocks_of("docs/QUICKSTART.md", "bash") if "docker" not in block]


@contextmanager
def started_by(script: str, *, folder: Path = ROOT, timeout_s: float = 60) -> Iterator[tuple[str, LoggedProcess]]:
    """Start the service with the script's last command; yield its address, to use instead of the one in the pages."""
    port = str(free_port())
    given = environment({"HOST": "127.0.0.1", "PORT": port, "LOG_FORMAT": "json"})
    process = LoggedProcess(["bash", "-euc", script], folder=folder, environment=given)
    try:
        process.wait_until(lambda: "service_ready" in process.log, "'service_ready'", timeout_s=timeout_s)
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.stop()
    assert process.process.returncode == 0


@contextmanager
def started_by_run_sh(script: str) -> Iterator[tuple[str, LoggedProcess]]:
    """The same for a script that ends with `./run.sh`; everything is installed already."""
    if not (INSTALLED.exists() or os.environ.get("CI")):
        pytest.skip("./run.sh has not set up .venv, and this test installs nothing")
    with started_by("export PIP_NO_INDEX=1\n" + script.replace("./run.sh", "exec ./run.sh")) as started:
        yield started


def run(script: str, url: str, *, folder: Path = ROOT) -> str:
    """Run the script with *url* instead of the address in the pages, and return its output."""
    command = ["bash", "-euc", FAILING_CURL + script.replace("http://localhost:8000", url)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    """The address of the service, started as docs/QUICKSTART.md says."""
    with started_by_run_sh(START) as (url, process):
        assert url in process.log
        yield url


@pytest.mark.parametrize("command", [command for command in COMMANDS if "curl" in command])
def test_commands_of_the_page_work_as_written(service: str, command: str) -> None:
    assert run(command, service).startswith("{")


def test_search_finds_what_the_page_shows(service: str, tmp_path: Path) -> None:
    [program] = blocks_of("docs/QUICKSTART.md", "python")
    [shown] = blocks_of("docs/QUICKSTART.md", "")
    (tmp_path / "search.py").write_text(program.replace("http://localhost:8000", service), encoding="utf-8")
    [command] = [command for command in COMMANDS if "search.py" in command]
    assert run(command.replace("python3", f'"{sys.executable}"'), service, folder=tmp_path) == shown


def test_service_requires_the_key_that_the_page_makes() -> None:
    start, call = blocks_of("docs/API.md", "bash")[-2:]
    with_echo = start.replace("API_KEYS=", 'echo "made: $KEY"\nAPI_KEYS=')
    with started_by_run_sh(with_echo) as (url, process):
        [key] = re.findall(r"^made: (.+)$", process.log, re.MULTILINE)
        assert httpx.post(f"{url}/embed", json={"text": "Hello"}).status_code == 401
        assert run(f"export KEY={key}\n{call}", url).startswith('{"embedding"')


@pytest.mark.network
@pytest.mark.timeout(1000)
def test_service_can_be_set_up_by_hand(tmp_path: Path) -> None:
    """In a copy of the tracked files, with packages from the index."""
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S607
    for file in files.stdout.splitlines():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    [commands] = [block for block in blocks_of("README.md", "bash") if "pip install" in block]
    steps, _, rest = commands.partition("python main.py ")
    assert "example_client.py" in rest
    script = steps.replace("python", f'"{sys.executable}"', 1) + "exec python main.py"
    with started_by(script, folder=tmp_path, timeout_s=900) as (url, _):
        tour = run(f"source venv/bin/activate; python example_client.py --base-url={url}", url, folder=tmp_path)
        assert "healthy" in tour
