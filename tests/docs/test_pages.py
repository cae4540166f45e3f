"""The pages agree with the repository: links, commands, tests, numbers, versions and names."""

import ast
import re
from collections.abc import Iterator
from datetime import date
from functools import cache
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from config import SETTING_NAMES
from main import VERSION
from tests.support.servers import ROOT

PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(
            page
            for folder in ("benchmarks", "deploy", "docs", "models/all-MiniLM-L6-v2")
            for page in ROOT.glob(f"{folder}/**/*.md")
        ),
    ]
)
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text("utf-8") for page in PAGES}
CODE_BLOCK = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)
COMMANDS = re.compile(r"^ *```(?:bash|sh|shell|console)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://|mailto:)([^)\s]+)\)")
TEST_FILE = r"(?:tests/[\w/]+\.py|\btest_api\.py)"


def prose(page: str) -> str:
    """Return the page without its code blocks."""
    return CODE_BLOCK.sub("", TEXTS[page])


def table_rows(text: str) -> list[list[str]]:
    """Return the cells of every table row below a heading row."""
    rows = re.findall(r"^\| (?!-|:)(.+) \|$", re.sub(r"^\|.*\n\| *-.*$", "", text, flags=re.MULTILINE), re.MULTILINE)
    return [row.split(" |") for row in rows]


# --- Links and length ---


def anchors(page: str) -> set[str]:
    """Return what `#...` can name on the page: its headings as GitHub and GitLab write them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def leads_somewhere(page: str, target: str) -> bool:
    name, _, anchor = target.partition("#")
    file = (ROOT / page).parent.joinpath(name).resolve() if name else ROOT / page
    if not (file.is_relative_to(ROOT) and file.exists()):
        return False
    return not anchor or anchor in anchors(file.relative_to(ROOT).as_posix())


def test_links_lead_to_a_file_and_a_heading() -> None:
    links = [(page, target) for page in TEXTS for target in LINK.findall(prose(page))]
    assert len(links) > 100
    assert [link for link in links if not leads_somewhere(*link)] == []


@pytest.mark.parametrize(("start", "folder"), [("README.md", "docs"), ("docs/PRODUCTION.md", "docs/production")])
def test_each_page_of_a_folder_is_linked_from_its_start_page(start: str, folder: str) -> None:
    linked = {((ROOT / start).parent / target.partition("#")[0]).resolve() for target in LINK.findall(prose(start))}
    assert [page.name for page in (ROOT / folder).glob("*.md") if page not in linked] == []


@pytest.mark.parametrize(("page", "limit"), [("README.md", 120), ("docs/PRODUCTION.md", 80)])
def test_start_pages_stay_short(page: str, limit: int) -> None:
    assert len(TEXTS[page].splitlines()) <= limit


# --- Commands ---


def is_call_of_the_service(command: str) -> bool:
    """Return whether test_api.py runs this command."""
    return command.startswith("curl ") and "http://localhost:8000" in command


def is_accounted_for(page: str, block: re.Match[str]) -> bool:
    """Return whether a test runs the block's commands, or the paragraph above says what they need."""
    lines = block[1].replace("\\\n", " ").splitlines()
    if all(is_call_of_the_service(line.strip()) for line in lines if line.strip() and not line.startswith("#")):
        return True
    above = TEXTS[page][: block.start()].rstrip("\n").rpartition("\n\n")[2]
    if re.search(r"\bNot run here: needs \w", above):
        return True
    run_by = "".join(re.findall(r"<!-- run by (.+) -->$", above))
    files = re.findall(rf"({TEST_FILE})", run_by)
    return ".ci/run" in run_by or any(Path(page).name in (ROOT / file).read_text("utf-8") for file in files)


def test_commands_are_run_by_a_test_or_say_what_they_need() -> None:
    """Above each block is `<!-- run by FILE -->` or "Not run here: needs ..."; calls on port 8000 need neither."""
    blocks = [(page, block) for page in TEXTS for block in COMMANDS.finditer(TEXTS[page])]
    assert len(blocks) > 30
    assert [(page, block[1]) for page, block in blocks if not is_accounted_for(page, block)] == []


# --- Tests and scripts that pages name ---


@cache
def names_of_tests(file: str) -> tuple[str, ...]:
    """Return the names of the test functions in the file."""
    nodes = ast.walk(ast.parse((ROOT / file).read_text("utf-8")))
    functions = (node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return tuple(name for name in functions if name.startswith("test_"))


def test_files_and_scripts_that_pages_name_exist() -> None:
    text = "\n".join(TEXTS.values())
    files = set(re.findall(rf"`({TEST_FILE})`", text)) - {"tests/support/tiny_models.py"}
    scripts = set(re.findall(r"`(?:python )?((?:benchmarks|drills|deploy)/\w+\.py)", text))
    scripts |= {f"{module.replace('.', '/')}.py" for module in re.findall(r"`python -m (drills\.\w+)", text)}
    assert min(len(files), len(scripts)) > 5
    assert [file for file in files if not ((ROOT / file).exists() and names_of_tests(file))] == []
    assert [script for script in scripts if not (ROOT / script).exists()] == []


def test_selections_of_tests_are_narrow() -> None:
    """`pytest FILES -k "one or other"` selects three tests at most; each word and each file has a part in it.

    A word that selects more has matched tests that happen to contain it, but do not prove what the page says.
    """
    pattern = rf"`pytest (?:-s )?((?:{TEST_FILE} ?)+)-k (\w+|\"[^\"]+\")`"
    selections = [found for text in TEXTS.values() for found in re.findall(pattern, text)]
    assert len(selections) > 30
    wrong = []
    for files, expression in selections:
        words = expression.strip('"').split(" or ")
        files_and_words = [(file, word) for file in files.split() for word in words]
        found = [(*pair, name) for pair in files_and_words for name in names_of_tests(pair[0]) if pair[1] in name]
        parts = {file for file, _, _ in found} | {word for _, word, _ in found}
        if parts != {*files.split(), *words} or len({name for _, _, name in found}) > 3:
            wrong.append(f"{files}-k {expression}")
    assert wrong == []


@pytest.mark.parametrize(
    ("page", "least"), [("docs/PROJECT_STATUS.md", 30), ("SECURITY.md", 15), ("docs/RELIABILITY.md", 40)]
)
def test_each_row_names_its_tests(page: str, least: int) -> None:
    text = TEXTS[page].partition("\n## Overload")[0].partition("\n## How the code is checked")[0]
    rows = table_rows(text)
    assert len(rows) >= least
    assert [row for row in rows if not re.search(TEST_FILE, row[-1] + row[1]) and "the same" not in row[-1]] == []


# --- Versions, numbers and names ---


def test_changelog_keeps_its_form() -> None:
    """Its newest version is the one that runs, and versions and days go down."""
    headings = re.findall(r"^## (.+)$", TEXTS["CHANGELOG.md"], re.MULTILINE)
    releases = [re.fullmatch(r"\[([\d.]+)\] - (\S+)", heading) for heading in headings if heading != "[Unreleased]"]
    versions = [[int(number) for number in release[1].split(".")] for release in releases if release]
    days = [date.fromisoformat(release[2]) for release in releases if release]
    assert len(versions) == len(releases)
    assert versions == sorted(versions, reverse=True)
    assert days == sorted(days, reverse=True)
    assert versions[0] == [int(number) for number in VERSION.split(".")]
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.+)$", TEXTS["CHANGELOG.md"], re.MULTILINE)) <= kinds
    assert f"Version {VERSION}." in TEXTS["docs/PROJECT_STATUS.md"]


def test_settings_that_the_changelog_names_exist() -> None:
    """In the unreleased part and the newest version; older ones may name settings that are gone."""
    newest = "\n".join(re.split(r"^## \[\d", TEXTS["CHANGELOG.md"], flags=re.MULTILINE)[:2])
    assert set(re.findall(r"`([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)`", newest)) <= set(SETTING_NAMES)


def test_numbers_of_the_readme_are_measured() -> None:
    written = TEXTS["docs/BENCHMARKS.md"].partition("<!-- begin throughput")[2].partition("<!-- end throughput")[0]
    shown = TEXTS["README.md"].partition("\n## Why")[2].partition("\n## ")[0]
    numbers = [dict(re.findall(r"^\| \*\*(.+?)\*\*[^|]*\| (.+) \|$", text, re.MULTILINE)) for text in (shown, written)]
    assert len(numbers[0]) == 3
    assert numbers[0] == numbers[1]


def test_each_alert_has_a_section_in_the_runbook() -> None:
    page = TEXTS["docs/production/alerts.md"]
    runbook = page.partition("\n## Runbook\n")[2].partition("\n## ")[0]
    rules = (ROOT / "deploy/prometheus/fast-embedding-alerts.yml").read_text("utf-8")
    named = re.findall(r"- alert: (\w+)", rules)
    assert re.findall(r"^### (\w+)$", runbook, re.MULTILINE) == named
    assert re.findall(r"^\| `(Embedding\w+)` \|", page, re.MULTILINE) == named


def runtime_packages() -> Iterator[str]:
    """Yield the names of all packages that requirements/runtime.txt installs here."""
    lines = (ROOT / "requirements" / "runtime.txt").read_text("utf-8").splitlines()
    waiting = [Requirement(line.partition("#")[0]) for line in lines if line.partition("#")[0].strip()]
    seen = set()
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        extras = wanted.extras or {""}
        if (name, *extras) in seen or (wanted.marker and not wanted.marker.evaluate()):
            continue
        seen.add((name, *extras))
        yield name
        for line in distribution(name).requires or []:
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                needed.marker = None
                waiting.append(needed)


def test_third_party_page_lists_the_packages_of_the_image() -> None:
    listed = re.findall(r"^\| ([a-z0-9-]+) \|", TEXTS["THIRD_PARTY.md"], re.MULTILINE)
    assert listed == sorted(set(runtime_packages()))


def test_shell_scripts_keep_their_line_endings_on_windows() -> None:
    rules = (ROOT / ".gitattributes").read_text("utf-8").splitlines()
    assert {tuple(rule.split()) for rule in rules} >= {("*.sh", "text", "eol=lf"), (".ci/run", "text", "eol=lf")}
