import re
from pathlib import Path

import pytest

from config import HERE, Settings
from env_file import mistyped

SETTINGS = [name.upper() for name in Settings.model_fields]


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
