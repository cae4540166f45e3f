""".ci/lint-web finds mistakes in HTML, CSS and JavaScript. That static/ has none, `make lint` says."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.servers import ROOT

MISTAKES = {
    "page/app.js": "const unused = 1;\nundeclared();\n",
    "page/style.css": "a { colour: red; }\n",
    "page/index.html": '<!doctype html><html lang="en"><head><title>A</title></head><body><img src="x"></body></html>',
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the linters, installed by the script, and files without mistakes."""
    if shutil.which("npm") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("npm is not installed (Debian: apt-get install npm)")
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / ".ci", folder / ".ci")
    shutil.copytree(ROOT / "static", folder / "static")
    subprocess.run(["/bin/bash", folder / ".ci" / "lint-web"], check=True)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", MISTAKES)
def test_file_with_a_mistake_fails(checkout: Path, name: str) -> None:
    file = checkout / "static" / name
    before = file.read_bytes()
    file.write_text(MISTAKES[name], "utf-8")
    done = subprocess.run(["/bin/bash", checkout / ".ci" / "lint-web"], capture_output=True, text=True, check=False)
    file.write_bytes(before)
    assert done.returncode != 0
    assert Path(name).name in done.stdout + done.stderr


def test_versions_of_the_linters_are_exact_and_locked_without_naming_a_registry() -> None:
    wanted = json.loads((ROOT / ".ci" / "web" / "package.json").read_text("utf-8"))["devDependencies"]
    lock = json.loads((ROOT / ".ci" / "web" / "package-lock.json").read_text("utf-8"))["packages"]
    assert {name: lock[f"node_modules/{name}"]["version"] for name in wanted} == wanted
    assert [name for name, entry in lock.items() if name and ("resolved" in entry or "integrity" not in entry)] == []
