"""The pages' ways to start the service work as written, and QUICKSTART.md works from its first command to its last."""

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

FAILING_CURL = 'curl() { command curl --fail --silent --show-error "$@"; }\n'


def code_blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text("utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [code for found, code in blocks if found == language]


START, *COMMANDS = [block for block in code_blocks("docs/QUICKSTART.md", "bash") if "docker" not in block]


@contextmanager
def started_by(script: str, *, folder: Path = ROOT, timeout_s: float = 60) -> Iterator[tuple[str, LoggedProcess]]:
    """Run the script, whose last command starts the service, and yield the service's URL and process."""
    port = str(free_port())
    settings = environment({"HOST": "127.0.0.1", "PORT": port, "LOG_FORMAT": "json"})
    process = LoggedProcess(["bash", "-euc", script], folder=folder, environment=settings)
    try:
        process.wait_until(lambda: "service_ready" in process.log, "'service_ready'", timeout_s=timeout_s)
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.stop()
    assert process.process.returncode == 0


@contextmanager
def started_by_run_sh(script: str) -> Iterator[tuple[str, LoggedProcess]]:
    """Do the same for a script that ends with `./run.sh`, which must find everything installed."""
    if not ([*ROOT.glob(".venv/.installed-*")] or os.environ.get("CI")):
        pytest.skip("./run.sh has not set up .venv, and a test installs nothing")
    with started_by("export PIP_NO_INDEX=1\n" + script.replace("./run.sh", "exec ./run.sh")) as started:
        yield started


def output_of(script: str, url: str, *, folder: Path = ROOT) -> str:
    """Run the script with *url* in place of the pages' address."""
    command = ["bash", "-euc", FAILING_CURL + script.replace("http://localhost:8000", url)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    """Start the service as docs/QUICKSTART.md does, and yield its URL."""
    with started_by_run_sh(START) as (url, process):
        assert url in process.log
        yield url


@pytest.mark.parametrize("command", [command for command in COMMANDS if "curl" in command])
def test_curl_commands_of_the_quickstart_work_as_written(service: str, command: str) -> None:
    assert output_of(command, service).startswith("{")


def test_search_of_the_quickstart_prints_what_the_page_shows(service: str, tmp_path: Path) -> None:
    [program] = code_blocks("docs/QUICKSTART.md", "python")
    [shown] = code_blocks("docs/QUICKSTART.md", "")
    (tmp_path / "search.py").write_text(program.replace("http://localhost:8000", service), "utf-8")
    [command] = [command for command in COMMANDS if "search.py" in command]
    assert output_of(command.replace("python3", f'"{sys.executable}"'), service, folder=tmp_path) == shown


def test_python_program_of_the_readme_works_as_written(service: str, tmp_path: Path) -> None:
    [program] = code_blocks("README.md", "python")
    (tmp_path / "program.py").write_text(program.replace("http://localhost:8000", service), "utf-8")
    lines = output_of(f'"{sys.executable}" program.py', service, folder=tmp_path).splitlines()
    assert [line.partition(" -> ")[2] for line in lines] == [f"384 numbers from {n} tokens" for n in (9, 8)]


def test_service_requires_the_key_that_the_api_page_makes() -> None:
    blocks = code_blocks("docs/API.md", "bash")
    first = next(index for index, block in enumerate(blocks) if "API_KEYS=" in block)
    start, call = blocks[first : first + 2]
    printing = start.replace("API_KEYS=", 'echo "made: $KEY"\nAPI_KEYS=')
    with started_by_run_sh(printing) as (url, process):
        [key] = re.findall(r"^made: (.+)$", process.log, re.MULTILINE)
        assert httpx.post(f"{url}/embed", json={"text": "Hello"}).status_code == 401
        assert output_of(f"export KEY={key}\n{call}", url).startswith('{"embedding"')


@pytest.mark.network
@pytest.mark.timeout(1000)
def test_service_can_be_set_up_without_run_sh(tmp_path: Path) -> None:
    """In a copy of the files that git tracks, with packages from the index."""
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S607
    for file in files.stdout.splitlines():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    [commands] = [command for command in COMMANDS if "pip install" in command]
    script = commands.replace("python3", f'"{sys.executable}"', 1).replace("python main.py", "exec python main.py")
    with started_by(script, folder=tmp_path, timeout_s=900) as (url, _):
        tour = f"source venv/bin/activate; python example_client.py --base-url={url}"
        assert "healthy" in output_of(tour, url, folder=tmp_path)
