"""docs/PROJECT_STATUS.md names a test for each feature, and each of them exists."""

import ast
import re

import pytest

from main import VERSION
from tests.support.servers import ROOT

PAGE = (ROOT / "docs" / "PROJECT_STATUS.md").read_text(encoding="utf-8")
TEST = r"`(tests/\w+\.py|test_api\.py)::(\w+)`"
ROWS = [row for row in re.findall(r"^\| (.+) \|$", PAGE, re.MULTILINE) if not row.startswith(("feature ", "---"))]


def test_page_tells_of_this_version() -> None:
    assert f"Version {VERSION}." in PAGE


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.partition(" | ")[0])
def test_feature_has_a_test(row: str) -> None:
    named = re.findall(TEST, row.split(" | ")[1])
    assert named
    for file, name in named:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_each_row_has_its_columns() -> None:
    assert len(ROWS) > 40
    assert {len(row.split(" |")) for row in ROWS} == {3}
