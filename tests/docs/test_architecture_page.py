"""docs/ARCHITECTURE.md agrees with the code: files, names, layers and the diagram's parts."""

import ast
import re
from functools import cache

from tests.support.servers import ROOT
from tests.test_architecture import FLOORS

PAGE = (ROOT / "docs" / "ARCHITECTURE.md").read_text("utf-8")
BEHAVIOURS = re.findall(r"^\| ([^|]+) \| `([\w/]+\.py)` \| ([^|]+) \|$", PAGE, re.MULTILINE)
DIAGRAM = PAGE.partition("```mermaid\n")[2].partition("```")[0]
WAY = PAGE.partition("\n## The way of one request\n")[2].partition("\n## ")[0]


@cache
def names_in(file: str) -> frozenset[str]:
    """Return the functions, classes and methods that the file defines, such as `plan` and `Lane.close`."""
    names = set()
    for node in ast.parse((ROOT / file).read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = (part for part in node.body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef))
            names |= {f"{node.name}.{method.name}" for method in methods}
    return frozenset(names)


def all_names() -> set[str]:
    packages = {name for names in FLOORS for name in names}
    files = [*(f"{name}.py" for name in packages), *(f"{name}/*.py" for name in packages)]
    return {name for pattern in files for file in ROOT.glob(pattern) for name in names_in(str(file.relative_to(ROOT)))}


def test_table_has_at_least_thirty_behaviours() -> None:
    assert len(BEHAVIOURS) >= 30
    assert len({behaviour for behaviour, *_ in BEHAVIOURS}) == len(BEHAVIOURS)


def test_each_file_defines_the_names_beside_it() -> None:
    named = [(file, re.findall(r"`([\w.]+)`", names)) for _, file, names in BEHAVIOURS]
    assert [file for file, names in named if not names] == []
    assert [f"{file} {name}" for file, names in named for name in names if name not in names_in(file)] == []


def test_names_in_the_diagram_and_in_the_way_of_a_request_exist() -> None:
    in_diagram = re.findall(r'\["([A-Z]\w+(?:\.\w+)?)', DIAGRAM)
    in_text = re.findall(r"`([a-z]+_\w+|[A-Z][a-z]+\w*(?:\.\w+)?)`", WAY)
    assert len(in_diagram) > 8
    assert len(in_text) > 15
    assert {*in_diagram, *in_text} - all_names() == set()


def test_diagram_is_one_that_mermaid_draws() -> None:
    """Each `subgraph` is closed, and every line is a node, an arrow or one of the two."""
    lines = [line.strip() for line in DIAGRAM.splitlines() if line.strip()]
    assert lines[0] == "flowchart TB"
    assert sum(line.startswith("subgraph ") for line in lines) == lines.count("end") > 2
    for line in lines[1:]:
        assert re.fullmatch(r"subgraph \w+(\[\"[^\"]+\"\])?|end|.+(-->|-\.->).+|\w+\[\"[^\"]+\"\]", line), line


def test_layers_of_the_page_are_those_of_the_floor_plan() -> None:
    section = PAGE.partition("\n## Layers\n")[2].partition("\n## ")[0]
    first_cells = re.findall(r"^\| (`[^|]+) \|", section, re.MULTILINE)
    listed = [re.findall(r"`(\w+)(?:/|\.py)`", cell) for cell in first_cells]
    floor_of = {name: number for number, names in enumerate(FLOORS) for name in names}
    assert {name for names in listed for name in names} == set(floor_of)
    order = [max(floor_of[name] for name in names) for names in listed]
    assert order == sorted(order)
