"""Read Dockerfile and .dockerignore: the image contains everything that the service imports, and nothing private."""

import ast
import fnmatch
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from api.openai_token_ids import CL100K_BASE
from assembly.optimised import BAKED_COPIES_DIR
from cli.commands import COMMANDS
from config import BUNDLED_MODELS_DIR, HERE, PRELOADED_DIR
from main import VERSION
from tests.support.servers import ROOT
from web.static_files import STATIC_DIR

SERVICE = ["main.py", "cli/__main__.py", "cli/health.py", *(f"cli/{name}.py" for name in COMMANDS)]


@dataclass(slots=True)
class Stage:
    """One `FROM ... AS name` with its instructions, each joined into one line."""

    name: str
    parent: str
    lines: list[str] = field(default_factory=list)

    def arguments(self, instruction: str) -> list[str]:
        """The arguments of every occurrence of *instruction*."""
        return [line.partition(" ")[2].strip() for line in self.lines if line.startswith(f"{instruction} ")]

    def contains(self, path: str) -> bool:
        """Whether a COPY from the build context takes *path*."""
        copies = [copy.split()[:-1] for copy in self.arguments("COPY") if not copy.startswith("--from")]
        return any(
            source in (".", path)
            or path.startswith(source.rstrip("/") + "/")
            or ("/" not in path and fnmatch.fnmatch(path, source))
            for sources in copies
            for source in sources
        )


def read_stages() -> dict[str, Stage]:
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    found: dict[str, Stage] = {}
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if start := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            stage = found[start[2]] = Stage(start[2], start[1])
        elif line:
            stage.lines.append(line)
    return found


STAGES = read_stages()
PRODUCTION = STAGES["production"]
IGNORE_LINES = [
    line
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]


def in_build_context(path: str) -> bool:
    """Whether .dockerignore admits *path*: the last matching pattern wins, and `*` does not match a slash."""
    admitted = True
    for line in IGNORE_LINES:
        pattern = line.removeprefix("!")
        parts = path.split("/")[: pattern.count("/") + 1]  # a pattern also matches everything below a folder
        if len(parts) == pattern.count("/") + 1 and all(map(fnmatch.fnmatchcase, parts, pattern.split("/"))):
            admitted = line.startswith("!")
    return admitted


def imported_files(entry: Path) -> set[Path]:
    """The repository's files that *entry* imports, directly or indirectly, with the `__init__.py` of their packages."""
    found, waiting = set[Path](), {entry}
    while waiting:
        path = waiting.pop()
        found.add(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            files = {ROOT / name.replace(".", "/") for name in names}
            files |= {file.parent for file in files}
            files = {file.with_suffix(".py") for file in files} | {file / "__init__.py" for file in files}
            waiting |= {file for file in files if file.is_file()} - found
    return found


@pytest.mark.parametrize(
    ("stage", "entries"),
    [
        pytest.param("production", SERVICE, id="production"),
        pytest.param("development", SERVICE, id="development"),
        pytest.param("preloaded", ["cli/__main__.py", "cli/download.py"], id="preloaded"),
    ],
)
def test_each_stage_contains_what_its_programs_import(stage: str, entries: list[str]) -> None:
    needed = {file.relative_to(ROOT).as_posix() for entry in entries for file in imported_files(ROOT / entry)}
    assert len(needed) > 10
    assert [path for path in sorted(needed) if not (in_build_context(path) and STAGES[stage].contains(path))] == []


@pytest.mark.parametrize(
    "folder", [BUNDLED_MODELS_DIR / "all-MiniLM-L6-v2", CL100K_BASE.parent, STATIC_DIR], ids=lambda it: it.name
)
def test_image_contains_the_bundled_model_the_vocabulary_and_static_files(folder: Path) -> None:
    files = [path.relative_to(ROOT).as_posix() for path in folder.rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if not (in_build_context(path) and PRODUCTION.contains(path))] == []


@pytest.mark.parametrize(
    "path",
    [
        *(".env", ".env.production", "keys.txt", "api-keys", "server.pem", "certs/server.key"),
        *(".git/config", ".venv/bin/python", ".hub_cache/models--me--private/blobs/1", "models/my-own/model.onnx"),
        *("tests/support/servers.py", "test_api.py", "conftest.py", "benchmarks/load.py", "docs/PRODUCTION.md"),
        *("deploy/kubernetes/base/deployment.yaml", "docker-compose.yml", "api/__pycache__/docs.cpython-312.pyc"),
        *("requirements/notes/secret.txt", "something-new.py"),
    ],
)
def test_build_context_excludes_secrets_own_models_and_files_that_the_image_does_not_use(path: str) -> None:
    assert not in_build_context(path)


def test_every_pattern_of_dockerignore_matches_a_file() -> None:
    assert [line for line in IGNORE_LINES if line.startswith("!") and not list(ROOT.glob(line[1:]))] == []


def test_production_is_the_default_target() -> None:
    assert {stage.name: stage.parent for stage in STAGES.values()} == {
        "base": "python:3.12-slim",
        "dependencies": "base",
        "development": "dependencies",
        "preloaded": "dependencies",
        "production": "base",
    }
    assert list(STAGES)[-1] == "production"


def test_production_has_the_locked_runtime_packages_and_no_test_or_build_tools() -> None:
    [install] = [line for line in STAGES["dependencies"].arguments("RUN") if "install" in line]
    assert "--require-hashes --requirement requirements/lock-runtime.txt" in install
    assert "--only-binary :all:" in install
    assert "--no-cache-dir" in install
    for stage in ("base", "dependencies", "production"):
        text = "\n".join(STAGES[stage].lines)
        assert not re.search(r"test\.txt|lint\.txt|apt-get|apk |gcc|build-essential|curl", text)
    assert not [line for line in PRODUCTION.arguments("RUN") if "pip" in line]
    assert not PRODUCTION.contains("requirements/lock-runtime.txt")


@pytest.mark.parametrize(
    ("extras", "locks"),
    [
        pytest.param("", [], id="none"),
        pytest.param("tracing", ["lock-tracing.txt"], id="one"),
        pytest.param("tracing, arrow", ["lock-tracing.txt", "lock-arrow.txt"], id="two"),
    ],
)
def test_extras_are_installed_from_their_lock_files(extras: str, locks: list[str]) -> None:
    [install] = [line for line in STAGES["dependencies"].arguments("RUN") if "install" in line]
    [expression] = re.findall(r"\$\(for .*?done\)", install)
    done = subprocess.run(
        ["/bin/sh", "-c", f"echo {expression}"], env={"EXTRAS": extras}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [word for lock in locks for word in ("--requirement", f"requirements/{lock}")]
    for lock in locks:
        assert STAGES["dependencies"].contains(f"requirements/{lock}")
    assert (ROOT / "requirements/lock-tracing.txt").is_file()


@pytest.mark.parametrize("name", ["production", "development"])
def test_image_has_a_fixed_user_and_a_health_check_without_curl(name: str) -> None:
    stage = STAGES[name]
    [check] = stage.arguments("HEALTHCHECK")
    assert check.endswith('CMD ["python", "-m", "cli.health"]')
    assert [stage.arguments(name) for name in ("USER", "VOLUME", "EXPOSE")] == [["10001:10001"], ["/data"], ["8000"]]


def test_service_receives_signals_and_accepts_commands_as_arguments() -> None:
    assert PRODUCTION.arguments("ENTRYPOINT") == ['["python", "main.py"]']
    assert PRODUCTION.arguments("CMD") == []
    [development] = STAGES["development"].arguments("ENTRYPOINT")
    assert '"exec uvicorn main:app --reload' in development


def test_preloaded_models_are_stored_where_the_service_looks_for_them() -> None:
    folder = PRELOADED_DIR.relative_to(HERE)
    assert STAGES["base"].arguments("WORKDIR") == ["/app"]
    assert f"--from=preloaded /app/{folder} {folder}" in PRODUCTION.arguments("COPY")
    assert f"HUB_CACHE_DIR=/app/{folder} " in STAGES["preloaded"].arguments("RUN")[0]


def test_optimised_copies_are_stored_where_the_service_looks_for_them_and_may_be_read_by_its_user() -> None:
    command = next(line for line in PRODUCTION.arguments("RUN") if "OPTIMISE_MODELS" in line)
    assert f"OPTIMISED_MODELS_DIR=/app/{BAKED_COPIES_DIR.relative_to(HERE)} " in command
    assert f"chmod -R u=rwX,go=rX {BAKED_COPIES_DIR.name}" in command


def test_large_layers_come_before_the_code() -> None:
    targets = [copy.split()[-1] for copy in PRODUCTION.arguments("COPY")]
    assert targets[:3] == ["/opt/venv", "models/", PRELOADED_DIR.name]
    assert targets[-1] == "./"


def test_labels_contain_the_version_of_the_service() -> None:
    assert PRODUCTION.arguments("ARG") == ["OPTIMISE_MODELS", f"VERSION={VERSION}", "REVISION", "CREATED"]
    [label] = PRODUCTION.arguments("LABEL")
    for name in ("title", "description", "version", "revision", "created"):
        assert f"org.opencontainers.image.{name}=" in label
