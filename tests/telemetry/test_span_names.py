"""The names of spans and attributes: one table, and the guide explains each of them."""

import ast
import re

from telemetry import span_names
from tests.support.servers import ROOT

GUIDE = (ROOT / "docs/MONITORING.md").read_text("utf-8").partition("\n## Traces\n")[2].partition("\n## ")[0]
ATTRIBUTE = re.compile(r"`((?:\w+\.)+\w+)`")
ROWS = re.findall(r"^\| (`[^|]+) \|", GUIDE, re.MULTILINE)


def test_guide_names_exactly_these_attributes() -> None:
    rows = [row for row in ROWS if ATTRIBUTE.search(row)]
    assert sorted(name for row in rows for name in ATTRIBUTE.findall(row)) == sorted(span_names.SPAN_ATTRIBUTES)
    assert {name for name in span_names.RESOURCE_ATTRIBUTES if f"`{name}`" not in GUIDE} == set()


def test_guide_names_exactly_these_spans() -> None:
    rows = [row.strip("`") for row in re.findall(r"^\| (`[^|]+) \| (?:server|internal) \|", GUIDE, re.MULTILINE)]
    assert sorted(rows) == sorted([f"{span_names.EMBEDDINGS} {{model}}", "{method} {route}", *span_names.STAGES])


def test_names_are_written_in_the_table_only() -> None:
    names = span_names.SPAN_ATTRIBUTES | span_names.RESOURCE_ATTRIBUTES
    for file in ("telemetry/tracing.py", "web/request_traces.py", "web/span_attributes.py"):
        tree = ast.parse((ROOT / file).read_text("utf-8"))
        strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        assert strings & names == set()


def test_table_has_every_name_that_it_defines() -> None:
    defined = {value for value in vars(span_names).values() if isinstance(value, str) and ATTRIBUTE.match(f"`{value}`")}
    assert defined - {span_names.__name__} == span_names.SPAN_ATTRIBUTES | span_names.RESOURCE_ATTRIBUTES
