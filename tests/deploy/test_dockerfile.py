"""Dockerfile and .dockerignore, read: the image gets all that the service imports, and the build nothing else."""

import ast
import fnmatch
import json
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cli.commands import COMMANDS
from config import BUNDLED_MODELS_DIR, HERE, PRELOADED_DIR
from main import VERSION
from tests.support.servers import ROOT

SERVICE = ["main.py", "cli/__main__.py", "cli/health.py", *(f"cli/{name}.py" for name in COMMANDS)]


@dataclass(slots=True)
class Stage:
    """One `FROM ... AS name` and its instructions, each in one line."""

    name: str
    parent: str
    lines: list[str] = field(default_factory=list)

    def of(self, instruction: str) -> list[str]:
        """What follows this instruction, wherever it stands."""
        return [line.partition(" ")[2].strip() for line in self.lines if line.startswith(f"{instruction} ")]

    @property
    def copied(self) -> list[str]:
        """What is copied from the context."""
        return [source for copy in self.of("COPY") if not copy.startswith("--from") for source in copy.split()[:-1]]


def stages() -> dict[str, Stage]:
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    found: dict[str, Stage] = {}
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if start := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            stage = found[start[2]] = Stage(start[2], start[1])
        elif line:
            stage.lines.append(line)
    return found


STAGES = stages()
PRODUCTION = STAGES["production"]


def in_context(path: str) -> bool:
    """Whether .dockerignore lets a file into the build; of several patterns the last one that fits counts."""
    is_in = True
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!")
            # A pattern fits a file, or a folder that holds it; `*` stops at a slash.
            parts = path.split("/")[: pattern.count("/") + 1]
            if len(parts) == pattern.count("/") + 1 and all(map(fnmatch.fnmatchcase, parts, pattern.split("/"))):
                is_in = line.startswith("!")
    return is_in


def imported_files(entry: Path) -> set[Path]:
    """The files of ours that *entry* imports, directly or not."""
    found, waiting = set[Path](), {entry}
    while waiting:
        path = waiting.pop()
        found.add(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            files = {ROOT / name.replace(".", "/") for name in names}
            files = {file.with_suffix(".py") for file in files} | {file / "__init__.py" for file in files}
            waiting |= {file for file in files if file.is_file()} - found
    return found


def is_copied(path: str, stage: Stage) -> bool:
    return any(
        source == "."
        or path.startswith(source.rstrip("/") + "/")
        or ("/" not in path and fnmatch.fnmatch(path, source))
        for source in stage.copied
    )


@pytest.mark.parametrize(
    ("stage", "entries"),
    [
        pytest.param("production", SERVICE, id="production"),
        pytest.param("development", SERVICE, id="development"),
        pytest.param("preloaded", ["cli/__main__.py", "cli/download.py"], id="preloaded"),
    ],
)
def test_all_that_a_stage_imports_is_copied_into_it(stage: str, entries: list[str]) -> None:
    needed = {file.relative_to(ROOT).as_posix() for entry in entries for file in imported_files(ROOT / entry)}
    assert len(needed) > 10
    assert [path for path in sorted(needed) if not (in_context(path) and is_copied(path, STAGES[stage]))] == []


def test_bundled_model_is_copied() -> None:
    files = [path.relative_to(ROOT).as_posix() for path in (BUNDLED_MODELS_DIR / "all-MiniLM-L6-v2").iterdir()]
    assert [path for path in files if not (in_context(path) and is_copied(path, PRODUCTION))] == []


@pytest.mark.parametrize(
    "path",
    [
        ".env",
        ".env.production",
        ".git/config",
        ".venv/bin/python",
        ".hub_cache/models--me--private/blobs/1",
        "models/my-own/model.onnx",
        "tests/support/servers.py",
        "test_api.py",
        "conftest.py",
        "benchmarks/load.py",
        "docs/PRODUCTION.md",
        "deploy/kubernetes/base/deployment.yaml",
        "keys.txt",
        "api-keys",
        "server.pem",
        "certs/server.key",
        "api/__pycache__/docs.cpython-312.pyc",
        "docker-compose.yml",
        "requirements/notes/secret.txt",
        "something-new.py",
    ],
)
def test_build_never_sees(path: str) -> None:
    """Secrets, other people's models, and what changes without a reason to build anew."""
    assert not in_context(path)


def test_everything_named_in_dockerignore_is_there() -> None:
    named = [
        line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line.startswith("!")
    ]
    assert [name for name in named if not list(ROOT.glob(name))] == []


def test_stages_follow_each_other_and_production_is_what_is_built_by_default() -> None:
    parents = {stage.name: stage.parent for stage in STAGES.values()}
    assert parents == {
        "base": "python:3.12-slim",
        "dependencies": "base",
        "development": "dependencies",
        "preloaded": "dependencies",
        "production": "base",
    }
    assert list(STAGES)[-1] == "production"


def test_production_gets_the_locked_runtime_packages_and_no_tool_of_tests_or_builds() -> None:
    [install] = [line for line in STAGES["dependencies"].of("RUN") if "install" in line]
    assert "--requirement requirements/runtime.txt --constraint requirements/lock.txt" in install
    assert "--only-binary :all:" in install
    assert "--no-cache-dir" in install
    for stage in ("base", "dependencies", "production"):
        text = "\n".join(STAGES[stage].lines)
        assert not re.search(r"test\.txt|lint\.txt|apt-get|apk |gcc|build-essential|curl", text)
    assert not [line for line in PRODUCTION.of("RUN") if "pip" in line]
    assert "requirements/" not in PRODUCTION.copied


@pytest.mark.parametrize("name", ["production", "development"])
def test_image_runs_as_the_fixed_user_and_tells_its_health_without_curl(name: str) -> None:
    stage = STAGES[name]
    assert stage.of("USER") == ["10001:10001"]
    [check] = stage.of("HEALTHCHECK")
    assert check.endswith('CMD ["python", "-m", "cli.health"]')
    assert stage.of("VOLUME") == ["/data"]
    assert stage.of("EXPOSE") == ["8000"]


def test_process_itself_gets_signals_and_commands_can_follow() -> None:
    assert PRODUCTION.of("ENTRYPOINT") == ['["python", "main.py"]']
    assert PRODUCTION.of("CMD") == []
    [development] = STAGES["development"].of("ENTRYPOINT")
    assert '"exec uvicorn main:app --reload' in development


def test_preloaded_models_lie_where_the_service_looks_first() -> None:
    assert STAGES["base"].of("WORKDIR") == ["/app"]
    assert f"--from=preloaded /app/{PRELOADED_DIR.relative_to(HERE)} {PRELOADED_DIR.name}" in PRODUCTION.of("COPY")
    assert f"HUB_CACHE_DIR=/app/{PRELOADED_DIR.name} " in STAGES["preloaded"].of("RUN")[0]


def test_code_comes_after_all_that_is_large() -> None:
    copies = PRODUCTION.of("COPY")
    assert [copy.split()[-1] for copy in copies][:3] == ["/opt/venv", "models/", PRELOADED_DIR.name]
    assert copies[-1] == "*.py ./"


def test_labels_have_the_version_of_the_service() -> None:
    arguments = PRODUCTION.of("ARG")
    assert arguments == [f"VERSION={VERSION}", "REVISION", "CREATED"]
    [label] = PRODUCTION.of("LABEL")
    for name in ("title", "description", "version", "revision", "created"):
        assert f"org.opencontainers.image.{name}=" in label


@pytest.mark.network
@pytest.mark.timeout(600)
def test_every_locked_package_has_a_wheel_for_arm64(tmp_path: Path) -> None:
    """Resolved as pip on an arm64 machine would, with the image's Python; nothing is installed."""
    version = re.search(r"python:([\d.]+)", STAGES["base"].parent)
    assert version
    platforms = [f"--platform=manylinux{glibc}_aarch64" for glibc in ("_2_28", "_2_27", "_2_17", "2014")]
    chosen = ["--only-binary=:all:", f"--python-version={version[1]}", "--implementation=cp", *platforms]
    files = ["--requirement=requirements/runtime.txt", "--constraint=requirements/lock.txt"]
    report = tmp_path / "report.json"
    options = ["--quiet", "--dry-run", "--ignore-installed", f"--target={tmp_path}/none", f"--report={report}"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, *chosen, *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    wheels = [package["download_info"]["url"] for package in json.loads(report.read_text())["install"]]
    assert len(wheels) > 30
    assert any("onnxruntime" in wheel and "aarch64" in wheel for wheel in wheels)
    assert not [wheel for wheel in wheels if not wheel.endswith(".whl") or "x86_64" in wheel]
