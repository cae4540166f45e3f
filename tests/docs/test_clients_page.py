"""docs/CLIENTS.md shows the very lines that the tests of tests/clients run, and the batch sizes that they see."""

import re

import pytest

from tests.clients.conftest import CLIENTS
from tests.clients.examples import example_of, programs_with_examples
from tests.clients.support import MANY, Client
from tests.support.servers import ROOT

PAGE = (ROOT / "docs" / "CLIENTS.md").read_text("utf-8")
EXAMPLES = dict(re.findall(r"^<!-- tests/clients/programs/(\S+) -->\n(```.*?^```)$", PAGE, re.MULTILINE | re.DOTALL))
ROWS = {
    program: cells.split(" | ")
    for cells, program in re.findall(r"^\| (.+) <!-- (\S+) --> \|$", PAGE.partition("\n## ")[2], re.MULTILINE)
}
"""The rows of the table of clients, by the program that shows what they claim."""


def test_each_program_with_marked_lines_has_its_example() -> None:
    assert sorted(EXAMPLES) == programs_with_examples()


@pytest.mark.parametrize("program", programs_with_examples())
def test_example_is_what_the_program_runs(program: str) -> None:
    assert EXAMPLES[program] == example_of(program)


def test_each_client_that_is_run_has_a_row() -> None:
    assert {client.program for client in CLIENTS} == ROWS.keys()


@pytest.mark.parametrize("client", CLIENTS, ids=str)
def test_row_states_how_many_texts_a_request_has_and_whether_a_refused_one_is_repeated(client: Client) -> None:
    _, _, texts, repeats, *_ = ROWS[client.program]
    if texts == "all":
        assert client.max_texts < len(MANY) or client.requests in {1, 2}  # the other one asks for the models
    else:
        size = int(re.findall(r"\d+", texts.replace(",", ""))[-1])
        assert client.requests in {-(-len(MANY) // size), -(-len(set(MANY)) // size)}  # some send equal texts once
    assert (repeats == "no") == bool(client.refused)
