"""Descriptions of other people's files, out of requirements/lint.txt."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def needed(module: str) -> Any:
    """A module of requirements/lint.txt; without it the test is skipped, or fails where CI promises it."""
    return importlib.import_module(module) if os.environ.get("CI") else pytest.importorskip(module)


def complaints(kind: str, file: Path) -> str:
    """What the public schema of this kind, such as `github-workflows`, has against the file."""
    needed("check_jsonschema")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{kind}", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr if done.returncode else ""
