"""The floor plan: packages import downwards only, modules and functions are short, importing `main` does nothing."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.servers import ROOT, environment

FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"setting_conflicts", "setting_errors", "setting_types", "env_file"}),
    frozenset({"setting_monitoring"}),
    frozenset({"host", "config", "telemetry"}),
    frozenset({"engine"}),
    frozenset({"model_manager", "access", "result_cache"}),
    frozenset({"web"}),
    frozenset({"api", "serving"}),
    frozenset({"assembly"}),
    frozenset({"cli"}),
    frozenset({"main"}),
)
"""Packages and top-level modules, lowest floor first. Each imports lower floors and itself only."""
FLOOR_OF = {name: number for number, names in enumerate(FLOORS) for name in names}
MODULES = sorted(
    path for name in FLOOR_OF for path in [ROOT / f"{name}.py", *ROOT.glob(f"{name}/*.py")] if path.exists()
)
RAY_MODULES = sorted(ROOT.glob("deploy/ray/*.py"))
"""An optional extra: it imports the product, and nothing in the product imports it."""
LIBRARIES = {
    "litestar": {"web", "api", "assembly", "serving", "main"},
    "uvicorn": {"serving"},
    "fastembed": {"engine"},
    "onnxruntime": {"engine"},
    "pydantic": {"config", "setting_monitoring", "setting_types"},
    "pydantic_settings": {"config", "setting_monitoring", "setting_types"},
    "prometheus_client": {"api"},
    "redis": {"access", "host"},
    "rich": {"cli"},
    "tqdm": {"cli"},
    "jwt": {"access"},
    "ray": set(),
}
"""Libraries that only some packages may import."""
USES_SETTINGS = {"assembly", "cli", "main", "config"}
"""Settings stop here: everything below takes plain values."""
MAX_MODULE_LINES = 350
MAX_FUNCTION_LINES = 60
SHOWS_THE_TIME_OF_DAY = {
    *("model_manager", "engine.hub_space", "telemetry.log_setup", "telemetry.metrics", "web.request_traces"),
}
"""Modules that show people when something happened, or read the ages of files; everything else measures time with a
monotonic clock."""
WALL_CLOCKS = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today", "date.today"}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports_of(path: Path) -> Iterator[str]:
    """Yield every module that *path* imports, in functions too; relative imports fail."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)} has a relative import"
            yield node.module or ""


def top(module: str) -> str:
    return module.partition(".")[0]


def test_the_floor_plan_lists_every_module_of_the_product() -> None:
    ours = {path.stem for path in ROOT.glob("*.py")} - {"conftest", "test_api", "example_client"}
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"benchmarks", "drills", "tests"}
    assert ours | packages == set(FLOOR_OF)


def test_packages_import_lower_floors_only() -> None:
    wrong = [
        f"{name_of(path)} imports {module}"
        for path in MODULES
        for module in imports_of(path)
        if top(module) in FLOOR_OF
        and top(module) != top(name_of(path))
        and FLOOR_OF[top(module)] >= FLOOR_OF[top(name_of(path))]
    ]
    assert wrong == []


def test_settings_stop_in_assembly() -> None:
    users = {top(name_of(path)) for path in MODULES if "config" in imports_of(path)}
    assert users <= USES_SETTINGS


def test_the_engine_knows_no_http_and_no_settings() -> None:
    foreign = {"litestar", "uvicorn", "starlette", "pydantic", "pydantic_settings", "orjson"}
    found = {top(module) for path in MODULES if name_of(path).startswith("engine") for module in imports_of(path)}
    assert found.isdisjoint(foreign)


def test_libraries_are_imported_only_where_they_belong() -> None:
    wrong = [
        f"{name_of(path)} imports {module}"
        for path in MODULES
        for module in imports_of(path)
        if top(module) in LIBRARIES and top(name_of(path)) not in LIBRARIES[top(module)]
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("library", "adapters"),
    [
        ("fastembed", {"engine.fastembed_imports"}),
        ("onnxruntime", {"engine.onnx_sessions"}),
        ("uvicorn", {"serving.uvicorn_adapter", "serving.uvicorn_server"}),
    ],
)
def test_few_modules_adapt_the_library(library: str, adapters: set[str]) -> None:
    users = {name_of(path) for path in MODULES if any(top(module) == library for module in imports_of(path))}
    assert users == adapters


def test_private_modules_of_litestar_are_used_in_one_place() -> None:
    users = {
        name_of(path)
        for path in MODULES
        for module in imports_of(path)
        if module.startswith(("litestar._", "litestar.utils"))
    }
    assert users == {"web.litestar_adapter"}


def test_nothing_imports_main_but_the_ray_app() -> None:
    users = {name_of(path) for path in [*MODULES, *RAY_MODULES] if "main" in imports_of(path)}
    assert users == {"deploy.ray.serve_app"}


def test_nothing_in_the_product_imports_deploy_benchmarks_drills_or_tests() -> None:
    outside = {"deploy", "benchmarks", "drills", "tests"}
    assert [name_of(path) for path in MODULES for module in imports_of(path) if top(module) in outside] == []


def test_drills_import_benchmarks_and_neither_imports_tests() -> None:
    """Tests may import both. The way back would make benchmarks depend on how tests start servers."""
    outside = {"benchmarks": {"deploy", "drills", "tests"}, "drills": {"deploy", "tests"}}
    wrong = [
        f"{name_of(path)} imports {module}"
        for folder, forbidden in outside.items()
        for path in ROOT.glob(f"{folder}/*.py")
        for module in imports_of(path)
        if top(module) in forbidden
    ]
    assert wrong == []


def test_dialects_do_not_import_each_other() -> None:
    """Modules of api/ may use only these of their own package, and a dialect's modules each other."""
    names = (
        *("answer_types", "metric_types", "request_types", "answer_formats", "fingerprint_header", "openapi"),
        *("request_terms", "model_names", "problem_examples", "process_reports", "vector_answers", "cache_headers"),
        *("openapi_metrics", "answer_pieces"),
    )
    shared = {"api", *(f"api.{name}" for name in names)}
    wrong = [
        f"{name_of(path)} imports {module}"
        for path in MODULES
        if name_of(path).startswith("api.")
        for module in imports_of(path)
        if top(module) == "api" and module not in shared and dialect_of(module) != dialect_of(name_of(path))
    ]
    assert wrong == []


def dialect_of(module: str) -> str:
    """Return the dialect of a module such as `api.openai_answers`, or `prometheus`; for the others, the module."""
    first = module.removeprefix("api.").partition("_")[0]
    return first if first in {"openai", "ollama", "cohere", "tei", "voyage", "prometheus"} else module


def test_packages_have_no_second_level() -> None:
    packages = [ROOT / name for name in FLOOR_OF if (ROOT / name).is_dir()]
    assert [folder for package in packages for folder in package.iterdir() if (folder / "__init__.py").exists()] == []


def test_time_is_measured_with_a_monotonic_clock() -> None:
    """A clock that is set back or forth must not change a deadline, a pause or a time to live."""
    users = set()
    for path in [*MODULES, *RAY_MODULES]:
        used = {ast.unparse(node) for node in ast.walk(tree_of(path)) if isinstance(node, ast.Attribute)}
        names = {
            alias.name
            for node in ast.walk(tree_of(path))
            if isinstance(node, ast.ImportFrom) and node.module == "time"
            for alias in node.names
        }
        if used & WALL_CLOCKS or "time" in names:
            users.add(name_of(path))
    assert users == SHOWS_THE_TIME_OF_DAY


def test_modules_are_short_and_say_what_they_are_for() -> None:
    paths = [*MODULES, *RAY_MODULES]
    assert {
        name_of(path): lines
        for path in paths
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MAX_MODULE_LINES
    } == {}
    assert [name_of(path) for path in paths if not ast.get_docstring(tree_of(path))] == []


def test_functions_are_short() -> None:
    long = {
        f"{name_of(path)}.{node.name}": lines
        for path in [*MODULES, *RAY_MODULES]
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > MAX_FUNCTION_LINES
    }
    assert long == {}


NEEDED_LATER = (
    *("PIL", "fastembed.image", "huggingface_hub", "requests", "loguru", "tqdm", "httpx", "rich"),
    *("prometheus_client", "redis", "jwt", "cryptography", "jsonschema"),
)
"""What serving the bundled model needs never, or not before somebody asks for it. All of it takes 0.6 s to import."""

IMPORT_AS_THE_SERVER = """
import sys
from serving.process_start import finish_imports, prepare_process
prepare_process()
import main
finish_imports()
from assembly.catalog import open_catalog
from config import Settings
from engine.encoder import load_cached_encoder
settings = Settings(_env_file=None)
model = open_catalog(settings).get(settings.required_models[0])
load_cached_encoder(model, hub_cache_dir=settings.hub_cache_dir)
print(*sys.modules)
"""


def test_starting_and_loading_the_bundled_model_imports_nothing_that_is_needed_later() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_AS_THE_SERVER],
        cwd=ROOT,
        env=environment({}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    imported = set(done.stdout.splitlines()[-1].split())
    assert {"main", "fastembed.text", "onnxruntime"} <= imported
    assert imported.isdisjoint(NEEDED_LATER)


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
        "app": "LeanLitestar",
    }
