"""The guides hold together: their links lead somewhere, and every command in them is run by a test or says why not."""

import re
from pathlib import Path

import pytest

from tests.servers import ROOT

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
