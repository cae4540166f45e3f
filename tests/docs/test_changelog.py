"""CHANGELOG.md keeps its form, ends at the version that runs, and names settings that exist."""

import re
from datetime import date

from config import Settings
from main import VERSION
from tests.support.servers import ROOT

TEXT = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
RELEASES = re.findall(r"^## \[([\d.]+)\] - (\S+)$", TEXT, re.MULTILINE)
KINDS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_newest_version_is_the_one_that_runs() -> None:
    assert RELEASES[0][0] == VERSION


def test_versions_and_days_go_down() -> None:
    versions = [tuple(map(int, version.split("."))) for version, _ in RELEASES]
    days = [date.fromisoformat(day) for _, day in RELEASES]
    assert versions == sorted(set(versions), reverse=True)
    assert days == sorted(days, reverse=True)


def test_headings_are_those_of_keep_a_changelog() -> None:
    releases = re.findall(r"^## (.+)$", TEXT, re.MULTILINE)
    assert [name for name in releases if name != "[Unreleased]"] == [f"[{name}] - {day}" for name, day in RELEASES]
    assert set(re.findall(r"^### (.+)$", TEXT, re.MULTILINE)) <= KINDS


def test_settings_that_are_named_exist() -> None:
    """In what is not released, and in the newest version; older ones may name what is gone."""
    newest = "\n".join(re.split(r"^## \[\d", TEXT, flags=re.MULTILINE)[:2])
    named = set(re.findall(r"`([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)`", newest))
    assert named - {name.upper() for name in Settings.model_fields} == set()
