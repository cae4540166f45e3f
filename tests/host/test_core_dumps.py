"""A process that dies leaves no core file, and its memory is hidden from other processes of the same user."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.support.servers import ROOT, running_server

pytestmark = [
    pytest.mark.timeout(90),
    pytest.mark.skipif(sys.platform != "linux", reason="/proc, and flags of Linux"),
]

CORE_PATTERN = Path("/proc/sys/kernel/core_pattern")
PROTECTED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
from host.core_dumps import forbid_core_dumps
{protect}
os.chdir(sys.argv[1])
os.abort()
"""


@pytest.mark.skipif(CORE_PATTERN.exists() and CORE_PATTERN.read_text().strip() != "core", reason="cores go elsewhere")
def test_process_that_dies_leaves_no_core_file(tmp_path: Path) -> None:
    command = "from serving.process_start import prepare_command; prepare_command()"
    protections = {"plain": "", "protected": "forbid_core_dumps()", "command": command}
    for name, protect in protections.items():
        folder = tmp_path / name
        folder.mkdir()
        script = PROTECTED.format(protect=protect)
        done = subprocess.run([sys.executable, "-c", script, str(folder)], cwd=ROOT, check=False)
        assert done.returncode == -signal.SIGABRT
        assert [path.name.partition(".")[0] for path in folder.iterdir()] == ([] if protect else ["core"])


def test_server_may_write_no_core_file_and_ends_by_the_signal(tiny_models: Path) -> None:
    with running_server(MODELS_DIR=str(tiny_models), REQUIRED_MODELS="tiny/one") as server:
        limits = Path(f"/proc/{server.process.pid}/limits").read_text(encoding="utf-8")
        [line] = [line for line in limits.splitlines() if line.startswith("Max core file size")]
        assert line.split()[4:6] == ["0", "0"]
        server.process.send_signal(signal.SIGSEGV)
        assert server.wait_for_end() == -signal.SIGSEGV


READ_ALL = """
import sys
for name in ("environ", "mem", "maps"):
    path = f"/proc/{sys.argv[1]}/{name}"
    try:
        open(path, "rb").read(1)
    except PermissionError:
        print(name, "hidden")
    else:
        print(name, "readable")
open(f"/proc/{sys.argv[1]}/stat").read()
"""
WITHOUT_PRIVILEGES = ("setpriv", "--inh-caps=-all", "--bounding-set=-all")


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root may read everything")
def test_memory_and_environment_are_hidden_from_other_processes_of_the_same_user(tiny_models: Path) -> None:
    with running_server(MODELS_DIR=str(tiny_models), REQUIRED_MODELS="tiny/one") as server:
        prefix = WITHOUT_PRIVILEGES if os.geteuid() == 0 else ()
        command = [*prefix, sys.executable, "-c", READ_ALL, str(server.process.pid)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines() == ["environ hidden", "mem hidden", "maps hidden"]
        text = httpx.get(f"{server.url}/metrics", headers={"Accept": "text/plain"}).text
        assert "\nprocess_open_fds " in text
        assert "\nprocess_resident_memory_bytes " in text
