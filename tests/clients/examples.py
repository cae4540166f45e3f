"""The examples of docs/CLIENTS.md: the very lines of the programs in tests/clients/programs that call a library."""

import re
from textwrap import dedent

from tests.clients.support import PROGRAMS

REGION = re.compile(r"^ *\t*(?:#|//) docs: begin\n(.*?)^ *\t*(?:#|//) docs: end$", re.MULTILINE | re.DOTALL)
LANGUAGES = {"py": "python", "mjs": "js", "go": "go", "java": "java"}
IMPORTS = {
    "py": re.compile(r"^(?:import|from) (?!program ).+$", re.MULTILINE),
    "mjs": re.compile(r'^import .+ from "(?!\./).+";$', re.MULTILINE),
    "go": re.compile(r'^\t"github.com/.+"$', re.MULTILINE),
    "java": re.compile(r"^import (?!java\.).+;$", re.MULTILINE),
}


def programs_with_examples() -> list[str]:
    """Return the names of the programs that mark lines for the page."""
    return sorted(path.name for path in PROGRAMS.iterdir() if path.is_file() and REGION.search(path.read_text("utf-8")))


def example_of(program: str) -> str:
    """Return the code block of the page: the imports that the marked lines need, and these lines."""
    text = (PROGRAMS / program).read_text("utf-8")
    [region] = REGION.findall(text)
    ending = program.rpartition(".")[2]
    imports = [line.strip() for line in IMPORTS[ending].findall(text)]
    if ending == "py":
        imports = [line for line in imports if any(re.search(rf"\b{name}\b", region) for name in _names(line))]
    if ending == "go":
        imports = [f"import {line}" for line in imports]
    lines = dedent(region.replace("\t", "    ")).rstrip("\n")
    return f"```{LANGUAGES[ending]}\n" + "\n".join([*imports, "", lines]) + "\n```"


def _names(line: str) -> list[str]:
    """Return the names that a Python import binds."""
    return re.findall(r"(\w+)(?:,|$)", line.rpartition(" import ")[2].removeprefix("import "))
