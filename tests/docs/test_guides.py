"""The guides hold together: their links lead somewhere, and every command in them is run by a test or says why not."""

import re
from pathlib import Path

import pytest

from tests.support.servers import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCED = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose_of(page: Path) -> str:
    """The page without its blocks of code."""
    return FENCED.sub("", page.read_text(encoding="utf-8"))


def anchors_of(page: Path) -> set[str]:
    """What `#...` may name there, as GitHub and GitLab make it of a heading."""
    headings = re.findall(r"^#+ (.+)$", prose_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


LINKS = [
    pytest.param(page, target, id=f"{name_of(page)}:{target}")
    for page in PAGES
    for target in sorted(set(LINK.findall(prose_of(page))))
    if not target.startswith(("http://", "https://", "mailto:"))
]


@pytest.mark.parametrize(("page", "target"), LINKS)
def test_link_leads_somewhere(page: Path, target: str) -> None:
    name, _, anchor = target.partition("#")
    file = (page.parent / name).resolve() if name else page
    assert file.is_relative_to(ROOT)
    assert file.exists()
    if anchor:
        assert anchor in anchors_of(file)


def test_readme_leads_to_every_page() -> None:
    """A page that nobody finds is not there."""
    linked = {(ROOT / target.partition("#")[0]).resolve() for target in LINK.findall(prose_of(ROOT / "README.md"))}
    assert [name_of(page) for page in PAGES if page.parent.name == "docs" and page not in linked] == []


BLOCK = re.compile(r"^ *```(?:bash|sh|shell|console)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
COMMANDS = [
    pytest.param(page, block, id=f"{name_of(page)}:{page.read_text('utf-8')[: block.start()].count(chr(10)) + 1}")
    for page in PAGES
    for block in BLOCK.finditer(page.read_text("utf-8"))
]
RUN_BY = re.compile(r"<!-- run by (.+) -->$")
NOT_RUN = re.compile(r"\bNot run here: needs \w")


def is_call_of_the_service(command: str) -> bool:
    """Those that test_api.py runs."""
    return command.startswith("curl ") and "http://localhost:8000" in command


@pytest.mark.parametrize(("page", "block"), COMMANDS)
def test_commands_are_run_by_a_test_or_say_what_they_need(page: Path, block: re.Match[str]) -> None:
    """Right above stands `<!-- run by FILE::TEST -->` or "Not run here: needs ..."; calls on port 8000 need neither."""
    commands = [line for line in block[1].replace("\\\n", " ").splitlines() if line.strip() and line[0] != "#"]
    if all(is_call_of_the_service(command.strip()) for command in commands):
        return
    above = page.read_text(encoding="utf-8")[: block.start()].rstrip("\n").rpartition("\n\n")[2]
    if NOT_RUN.search(above):
        return
    found = RUN_BY.search(above)
    assert found, f"neither a test nor a reason stands above\n{block[1]}"
    assert "::" in found[1] or ".ci/run" in found[1]
    for file, test in re.findall(r"(\S+\.py)::(\w+)", found[1]):
        code = (ROOT / file).read_text(encoding="utf-8")
        assert f"def {test}(" in code
        assert page.name in code, f"{file} does not read the page"
