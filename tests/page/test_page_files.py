"""The files of the page: complete, small, and without anything from elsewhere."""

import gzip
import hashlib
import re

import pytest

from benchmarks.screenshots import MAX_BYTES
from tests.support.servers import ROOT
from web.problems import known_codes

PAGE = ROOT / "static" / "page"
FILES = sorted(path for path in PAGE.rglob("*") if path.suffix in {".html", ".css", ".js", ".svg"})
OWN = [path for path in FILES if "vendor" not in path.parts]
MAX_COMPRESSED_BYTES = 120_000


def test_page_is_small() -> None:
    assert sum(len(gzip.compress(path.read_bytes())) for path in FILES) < MAX_COMPRESSED_BYTES


def test_vendored_files_are_those_that_were_published() -> None:
    lines = (PAGE / "vendor/SHA256SUMS").read_text().splitlines()
    listed = {name: digest for digest, name in (line.split("  ") for line in lines)}
    found = {path.name: path.read_bytes() for path in (PAGE / "vendor").iterdir() if path.name != "SHA256SUMS"}
    assert {name: hashlib.sha256(content).hexdigest() for name, content in found.items()} == listed


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_addresses_are_relative_and_nothing_comes_from_elsewhere(path: object) -> None:
    text = PAGE.joinpath(str(path)).read_text().replace('xmlns="http://www.w3.org/2000/svg"', "")
    text = re.sub(r"(?m)^\s*(//|\*|/\*).*$", "", text)
    assert re.findall(r"https?://(?!localhost)[\w.]+", text) == []
    assert re.findall(r"""(?:href|src)=["']/|url\([^)]*/|(?:fetch|import)\(["']/|from ["']/|@import""", text) == []


def test_document_has_no_inline_script_or_style() -> None:
    document = (PAGE / "index.html").read_text()
    assert re.findall(r"<style|\sstyle=|\son\w+=|javascript:", document) == []
    assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", document))


def test_each_error_code_has_plain_words() -> None:
    known = set(
        re.findall(
            r'(?m)^  "?([a-z-]+)"?: \["(?:quota|refused|caller|service)", "', (PAGE / "error-words.js").read_text()
        )
    )
    documented = set(re.findall(r"(?m)^\| \d{3} \| `([a-z-]+)`", (ROOT / "docs/ERRORS.md").read_text()))
    assert (known_codes() | documented) - known == set()


def test_pictures_of_the_readme_exist_and_are_small() -> None:
    pictures = re.findall(r"!\[([^\]]+)\]\((docs/images/[^)]+)\)", (ROOT / "README.md").read_text())
    assert len(pictures) == 2
    for description, path in pictures:
        assert len(description) > 20
        assert (ROOT / path).stat().st_size <= MAX_BYTES
