"""Vendored files are unchanged, and their origin, version and licence are stated."""

import hashlib
import re
from pathlib import Path

import pytest

from tests.support.servers import ROOT
from web.static_files import STATIC_DIR

VENDORED = sorted(STATIC_DIR.rglob("vendor"))
each_folder = pytest.mark.parametrize("folder", VENDORED, ids=lambda folder: folder.parent.name)


def test_page_and_docs_have_vendored_files() -> None:
    assert {folder.parent.name for folder in VENDORED} == {"page", "docs"}


@each_folder
def test_each_file_has_the_listed_hash(folder: Path) -> None:
    lines = (folder / "SHA256SUMS").read_text("utf-8").splitlines()
    listed = {name: digest for digest, name in (line.split() for line in lines)}
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    del found["SHA256SUMS"]
    assert found == listed


@each_folder
def test_licence_and_origin_are_stated(folder: Path) -> None:
    assert list(folder.glob("*.LICENSE.txt"))
    place = folder.relative_to(ROOT).as_posix()
    [row] = [line for line in (ROOT / "THIRD_PARTY.md").read_text("utf-8").splitlines() if f"`{place}/`" in line]
    assert re.search(r"\d+\.\d+\.\d+", row)
    assert "npm package" in row
    assert f"({place}/SHA256SUMS)" in row


@each_folder
def test_served_files_contact_no_other_server(folder: Path) -> None:
    """URLs in vendored code are names and links; here are those that a browser would load by itself."""
    loads = re.compile(rb"""(?:@import\s*|url\(\s*|(?:src|href)=\s*)["']?(?:https?:)?//""")
    loading = [path for path in folder.parent.rglob("*") if path.suffix in {".css", ".html", ".svg"}]
    assert [path.name for path in loading if loads.search(path.read_bytes())] == []
