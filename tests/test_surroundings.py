import re
from pathlib import Path

import pytest

from cli.surroundings import available_bytes, free_disk_bytes, mistyped
from config import HERE, Settings

SETTINGS = [name.upper() for name in Settings.model_fields]


def cgroup(parent: Path, limit: str, current: str = "1000") -> Path:
    (parent / "memory.max").write_text(f"{limit}\n")
    (parent / "memory.current").write_text(f"{current}\n")
    return parent


@pytest.fixture
def meminfo(tmp_path: Path) -> Path:
    file = tmp_path / "meminfo"
    file.write_text("MemTotal:  9 kB\nMemAvailable:      5 kB\nBuffers:  1 kB\n")
    return file


@pytest.mark.parametrize(
    ("limit", "expected"), [("max", 5120), ("3000", 2000), ("100000", 5120), ("500", 0), ("", 5120)]
)
def test_memory_is_what_machine_and_container_leave(limit: str, expected: int, meminfo: Path, tmp_path: Path) -> None:
    assert available_bytes(meminfo=meminfo, cgroup=cgroup(tmp_path, limit)) == expected


@pytest.mark.parametrize("content", ["", "MemAvailable:\n", "MemAvailable: many kB\n"])
def test_memory_that_nobody_tells_is_unknown(content: str, tmp_path: Path) -> None:
    file = tmp_path / "meminfo"
    file.write_text(content)
    assert available_bytes(meminfo=file, cgroup=tmp_path) is None
    assert available_bytes(meminfo=tmp_path / "nowhere", cgroup=tmp_path) is None


def test_free_space_is_that_of_where_a_folder_would_be(tmp_path: Path) -> None:
    assert free_disk_bytes(tmp_path / "a" / "b")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        pytest.param("LOG_LEVL=INFO", {"LOG_LEVL": "LOG_LEVEL"}, id="typo"),
        pytest.param("  export API_KEY = abc", {"API_KEY": "API_KEYS"}, id="one-letter-less"),
        pytest.param("port=1\nMax_Batch_Size=2", {}, id="settings-in-any-case"),
        pytest.param("# LOG_LEVL=INFO\nHF_TOKEN=a\nCOMPOSE_PROFILES=ha\n\nnonsense", {}, id="other-programs"),
    ],
)
def test_name_that_is_no_setting_but_like_one_is_told(line: str, told: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"{line}\n")
    assert mistyped(tmp_path / ".env", SETTINGS) == told


def test_names_of_the_example_are_all_right(tmp_path: Path) -> None:
    """Those that only Compose reads, too."""
    text = (HERE / ".env.example").read_text("utf-8")
    names = re.findall(r"^# ([A-Z_]+)=|^#   ([A-Z_]+) ", text, re.MULTILINE)
    (tmp_path / ".env").write_text("".join(f"{setting or variable}=1\n" for setting, variable in names))
    assert len(names) > len(SETTINGS)
    assert mistyped(tmp_path / ".env", SETTINGS) == {}


def test_without_a_file_nothing_is_mistyped(tmp_path: Path) -> None:
    assert mistyped(tmp_path / ".env", SETTINGS) == {}
