"""Who may import whom, how large a part may grow, and that importing the service does nothing: DESIGN, checked."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.servers import ROOT, environment

PACKAGES = {"engine", "api", "cli", "serving"}
RAY = "deploy.ray"
"""Modules of an optional extra: they use the house, and nothing in the house knows them."""
TOP = {"main", "running", "access", "model_manager", "config", "typos"}
MODULES = sorted(
    [path for package in PACKAGES for path in ROOT.glob(f"{package}/*.py")]
    + [ROOT / f"{name}.py" for name in TOP]
    + list(ROOT.glob("deploy/ray/*.py"))
)
MAX_LINES_OF_A_MODULE = 350
MAX_LINES_OF_A_FUNCTION = 60

TESTED_ELSEWHERE = {
    "api.openapi_examples": "test_api.py checks every example against the OpenAPI document",
    "access.principals": "tests/web/test_authentication.py refuses and lets in by it",
    "api.openapi": "test_api.py checks the document that it makes",
    "cli.__main__": "tests/cli/test_commands.py runs it",
    "cli.console": "tests/cli/test_commands.py and tests/cli/test_download.py see all that it writes",
    "serving.protocol_errors": "tests/serving/test_protocol.py hears all of them",
    "running": "tests/serving/test_server.py starts, drains and ends real services",
    "api.build_answers": "test_api.py checks the answers that it makes, over HTTP",
    "engine.admission": "tests/engine/test_scheduler.py fills it through the scheduler, which owns it",
    "engine.jobs": "tests/engine/test_scheduler.py drives it through the scheduler, which owns it",
    "serving.connection_pool": "tests/serving/test_protocol.py fills it",
    "serving.connection_limits": "tests/serving/test_protocol.py breaks each of them",
    "deploy.ray.bulk_progress": "tests/deploy/test_bulk_embed.py reads what it tells",
    "engine.errors": "tests/web/test_problems.py raises every one of them",
}
SHARED_IN_API = {
    "access.quotas",
    "access.principals",
    "web.problems",
    "web.security_headers",
    "api.answer_types",
    "api.request_types",
    "api.answer_formats",
    "telemetry.metrics",
    "api.prometheus",
    "api.openapi",
    "web.responses",
    "web.large_body_queue",
}
"""What other modules of api/ may use: how errors are told, the bodies and answers that views fill and docs describe."""


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


each_module = pytest.mark.parametrize("path", [pytest.param(path, id=name_of(path)) for path in MODULES])


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports_of(path: Path) -> set[str]:
    """Every module that *path* imports, functions' own imports too; `from api import openapi` is `api.openapi`."""
    found: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)} imports from a dot"
            module = node.module or ""
            found |= {f"{module}.{alias.name}" for alias in node.names} if module in PACKAGES else {module}
    return found


def own(modules: set[str]) -> set[str]:
    """Those of *modules* that are ours."""
    return {module for module in modules if module.partition(".")[0] in PACKAGES | TOP}


def in_package(package: str) -> list[Path]:
    return [path for path in MODULES if path.parent.name == package]


def test_there_is_something_to_check() -> None:
    assert len(in_package("engine")) > 5
    assert len(in_package("api")) > 5
    assert len(MODULES) > 15


@each_module
def test_nobody_imports_main(path: Path) -> None:
    """But the one that serves the same app in another way."""
    assert ("main" in imports_of(path)) is (name_of(path) == f"{RAY}.serve_app")


@each_module
def test_only_the_extra_for_ray_knows_ray(path: Path) -> None:
    if not name_of(path).startswith(RAY):
        assert not [module for module in imports_of(path) if module.startswith(("ray", "deploy"))]


@pytest.mark.parametrize("path", [pytest.param(path, id=name_of(path)) for path in in_package("engine")])
def test_engine_knows_neither_http_nor_settings(path: Path) -> None:
    assert {module.partition(".")[0] for module in own(imports_of(path))} <= {"engine"}
    foreign = {module.partition(".")[0] for module in imports_of(path)}
    assert foreign.isdisjoint({"litestar", "uvicorn", "starlette", "pydantic", "pydantic_settings", "orjson"})


@pytest.mark.parametrize("path", [pytest.param(path, id=name_of(path)) for path in in_package("api")])
def test_api_knows_the_engine_and_of_its_own_modules_the_shared_ones(path: Path) -> None:
    ours = own(imports_of(path))
    assert {module.partition(".")[0] for module in ours} <= {"engine", "api"}
    assert {module for module in ours if module.startswith("api")} <= SHARED_IN_API


@pytest.mark.parametrize("path", [pytest.param(path, id=name_of(path)) for path in in_package("cli")])
def test_commands_know_the_engine_the_settings_and_who_may_call(path: Path) -> None:
    assert {module.partition(".")[0] for module in own(imports_of(path))} <= {
        "engine",
        "cli",
        "config",
        "access",
        "typos",
    }


@pytest.mark.parametrize("path", [pytest.param(path, id=name_of(path)) for path in in_package("serving")])
def test_the_process_around_the_app_knows_only_how_failures_are_told(path: Path) -> None:
    allowed = {
        "serving.protocol",
        "serving.protocol_errors",
        "serving.request_heads",
        "serving.connection_pool",
        "serving.response_writer",
        "serving.connection_limits",
        "engine.errors",
        "web.problems",
        "web.security_headers",
    }
    assert own(imports_of(path)) <= allowed


def test_model_manager_knows_only_the_engine() -> None:
    imported = imports_of(ROOT / "model_manager.py")
    assert {module.partition(".")[0] for module in own(imported)} == {"engine"}
    assert not [module for module in imported if module.startswith(("litestar", "fastembed", "onnxruntime"))]


def test_config_knows_nobody() -> None:
    assert own(imports_of(ROOT / "config.py")) == set()


def test_only_the_engine_calls_fastembed() -> None:
    users = {name_of(path) for path in MODULES if any(name.startswith("fastembed") for name in imports_of(path))}
    assert {user.partition(".")[0] for user in users} == {"engine"}


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_package_has_no_second_level(package: str) -> None:
    assert [path for path in (ROOT / package).iterdir() if path.is_dir() and path.name != "__pycache__"] == []


SHOWS_THE_TIME_OF_DAY = {"model_manager": "when a model was loaded, for people who read it"}
WALL_CLOCKS = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today", "date.today"}


@each_module
def test_time_is_measured_with_a_monotonic_clock(path: Path) -> None:
    """A clock that is set back or forth must change no deadline, no pause and no time to live."""
    used = {ast.unparse(node) for node in ast.walk(tree_of(path)) if isinstance(node, ast.Attribute)}
    assert (name_of(path) in SHOWS_THE_TIME_OF_DAY) is bool(used & WALL_CLOCKS)
    assert "time" not in {
        alias.name
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ImportFrom) and node.module == "time"
        for alias in node.names
    }


@each_module
def test_module_stays_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES_OF_A_MODULE


@each_module
def test_functions_stay_short(path: Path) -> None:
    functions = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {node.name: (node.end_lineno or node.lineno) - node.lineno + 1 for node in functions}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES_OF_A_FUNCTION} == {}


@each_module
def test_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(tree_of(path))


@each_module
def test_module_has_a_file_of_tests(path: Path) -> None:
    name = name_of(path)
    if name in TESTED_ELSEWHERE or path.stem == "__init__":
        return
    tests = [ROOT / "tests" / f"test_{path.stem}.py"]
    if name == "main":
        tests = [ROOT / "test_api.py", ROOT / "tests" / "test_server.py"]
    assert [test.name for test in tests if not test.exists()] == []


def test_list_of_modules_tested_elsewhere_is_up_to_date() -> None:
    names = {name_of(path) for path in MODULES}
    assert set(TESTED_ELSEWHERE) <= names
    assert not [name for name in TESTED_ELSEWHERE if (ROOT / "tests" / f"test_{name.rpartition('.')[2]}.py").exists()]


IMPORT_MAIN = """
import gc, json, os, threading
import main
from engine.encoder import Encoder
from fastembed import TextEmbedding
from onnxruntime import InferenceSession

folder = "/proc/self/fd"
links = []
for descriptor in os.listdir(folder) if os.path.isdir(folder) else []:
    try:
        links.append(os.readlink(f"{folder}/{descriptor}"))
    except OSError:
        pass
found = {
    "loaded": [type(thing).__name__ for thing in gc.get_objects()
               if isinstance(thing, (Encoder, TextEmbedding, InferenceSession))],
    "sockets": [link for link in links if link.startswith("socket:")],
    "models": [link for link in links if link.endswith(".onnx")],
    "threads": [thread.name for thread in threading.enumerate()],
    "app": type(main.app).__name__,
}
print(json.dumps(found))
"""


@pytest.mark.timeout(60)  # it starts a process, on a machine that may be busy
def test_importing_main_loads_no_model_opens_no_socket_and_starts_no_thread() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT_MAIN],
        cwd=ROOT,
        env=environment({}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert json.loads(done.stdout) == {
        "loaded": [],
        "sockets": [],
        "models": [],
        "threads": ["MainThread"],
        "app": "Litestar",
    }
