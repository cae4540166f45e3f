"""The commands in docs/RELIABILITY.md: each selects tests, so each fault that the page tells of is really made."""

import ast
import re

import pytest

from tests.support.servers import ROOT

PAGE = (ROOT / "docs" / "RELIABILITY.md").read_text(encoding="utf-8")
COMMANDS = sorted(set(re.findall(r"`pytest ([^`]+)`", PAGE)))
SCRIPTS = sorted(set(re.findall(r"`python (benchmarks/\w+\.py)", PAGE)))


def names_in(file: str) -> str:
    """What `-k` looks at: names of tests, and the ids of their cases."""
    text = (ROOT / file).read_text(encoding="utf-8")
    names = [
        node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return "\n".join([*(name for name in names if name.startswith("test_")), *re.findall(r"id=\"([^\"]+)\"", text)])


def test_page_tells_of_faults() -> None:
    assert len(COMMANDS) > 30
    assert len(SCRIPTS) == 3


@pytest.mark.parametrize("command", COMMANDS)
def test_command_selects_tests(command: str) -> None:
    files, _, wanted = command.removeprefix("-s ").partition(" -k ")
    names = "\n".join(names_in(file) for file in files.split())
    for word in set(re.findall(r"\w+", wanted)) - {"or", "and", "not"}:
        assert word.lower() in names.lower()


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_exists(script: str) -> None:
    assert (ROOT / script).exists()
