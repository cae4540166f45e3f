"""The wheel: `pip install .` gives the command `fast-embedding`, with the bundled model."""

import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import httpx
import pytest

from main import VERSION
from tests.support.commands import NO_HUB
from tests.support.logged_process import LoggedProcess
from tests.support.servers import ROOT, environment, free_port

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
NOT_INSTALLED = {"conftest", "example_client", "test_api", "benchmarks", "drills"}
"""Modules and packages that are only for work on the repository."""


def test_wheel_lists_every_module_and_package_of_the_service() -> None:
    listed = PROJECT["tool"]["setuptools"]
    modules = {path.stem for path in ROOT.glob("*.py")} - NOT_INSTALLED
    packages = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for top in {path.parent.name for path in ROOT.glob("*/__init__.py")} - NOT_INSTALLED
        for path in (ROOT / top).rglob("__init__.py")
    }
    assert set(listed["py-modules"]) == modules
    files = [path for path in (ROOT / "static").rglob("*") if path.is_file()]
    static = {".".join(path.parent.relative_to(ROOT).parts) for path in files}
    assert set(listed["packages"]) == packages | static | {"models.all-MiniLM-L6-v2", "vocabularies"}
    patterns = listed["package-data"]["*"]
    assert [path for path in files if not any(fnmatch(path.name, pattern) for pattern in patterns)] == []


def run(*command: str | Path, folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, env=outside(folder), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def outside(home: Path, **settings: str) -> dict[str, str]:
    """Return an environment for programs that do not see this repository."""
    inherited = {name: value for name, value in environment({}).items() if name not in {"PYTHONPATH", "XDG_CACHE_HOME"}}
    return {**inherited, "HOME": str(home), "HF_ENDPOINT": NO_HUB, **settings}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The command `fast-embedding` in an environment that has nothing but the wheel and its dependencies."""
    folder = tmp_path_factory.mktemp("packaging")
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S607
    for file in files.stdout.rstrip("\0").split("\0"):
        (folder / "source" / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, folder / "source" / file)
    pip = ["-m", "pip", "--quiet", "--disable-pip-version-check"]
    python = folder / "venv" / "bin" / "python"
    run(sys.executable, *pip, "wheel", "--no-deps", "--wheel-dir", "wheels", "./source", folder=folder)
    run(sys.executable, "-m", "venv", "venv", folder=folder)
    [wheel] = (folder / "wheels").iterdir()
    locked = ROOT / "requirements" / "lock-runtime.txt"
    run(python, *pip, "install", "--require-hashes", "--requirement", locked, folder=folder)
    run(python, *pip, "install", "--no-deps", wheel, folder=folder)
    run(python, *pip, "check", folder=folder)
    shutil.rmtree(folder / "source")
    yield python.with_name("fast-embedding")
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_installed_command_has_the_version_and_the_commands(installed: Path, tmp_path: Path) -> None:
    assert run(installed, "--version", folder=tmp_path) == f"fast-embedding {VERSION}\n"
    usage = run(installed, "--help", folder=tmp_path)
    assert usage.startswith("usage: fast-embedding ")
    assert [name for name in ("serve", "check", "compare", "download") if f"    {name} " not in usage] == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_installed_command_checks_the_bundled_model_without_a_hub(installed: Path, tmp_path: Path) -> None:
    """The model is loaded in a process that the command starts."""
    report = run(installed, "check", folder=tmp_path)
    assert report.endswith("\nThe service would start.\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_installed_command_serves_with_the_env_file_of_the_working_directory(installed: Path, tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / ".env").write_text(f"PORT={port}\nHOST=127.0.0.1\nLOG_FORMAT=json\nMAX_BATCH_SIZE=1\n")
    server = LoggedProcess([str(installed), "serve"], folder=tmp_path, environment=outside(tmp_path))
    try:
        server.wait_until(lambda: "service_ready" in server.log, "'service_ready'")
        answer = httpx.post(f"http://127.0.0.1:{port}/embed", json={"text": "Hello, world!"}, timeout=60)
        assert len(answer.json()["embedding"]) == 384
        rejected = httpx.post(f"http://127.0.0.1:{port}/embed/batch", json={"texts": ["a", "b"]}, timeout=60)
        assert rejected.json()["limit"] == 1
    finally:
        server.stop()
    assert server.process.returncode == 0


def test_command_of_the_package_does_what_main_does() -> None:
    code = "import sys; from cli.launch import main; sys.argv = ['fast-embedding', '--version']; main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    direct = subprocess.run(
        [sys.executable, "main.py", "--version"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (direct.returncode, direct.stdout)
    assert done.stdout
