"""Public schemas of configuration files, from a package of requirements/lint.txt."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def needed(module: str) -> Any:
    """Return a module of requirements/lint.txt; if it is missing, skip the test, or fail it in CI."""
    return importlib.import_module(module) if os.environ.get("CI") else pytest.importorskip(module)


def complaints(kind: str, file: Path) -> str:
    """Return the errors that the public schema of this kind, such as `github-workflows`, finds in *file*."""
    needed("check_jsonschema")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{kind}", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr if done.returncode else ""
