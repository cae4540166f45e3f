import os
import re
from pathlib import Path

import pytest

from config import HERE, SETTING_NAMES, find_unknown_names
from env_file import COMPOSE_NAMES, EnvFileError, UnknownName, read_env_file, unknown_names


def test_missing_env_file_is_empty(tmp_path: Path) -> None:
    assert read_env_file(tmp_path / ".env") == {}


def test_names_and_values_are_read_as_pydantic_reads_them(tmp_path: Path) -> None:
    text = "\ufeff# a comment\n\nA=1 # one\n  export B = 'two words'\nC=\"two\nlines\"\nD=\n"
    (tmp_path / ".env").write_text(text, "utf-8")
    assert read_env_file(tmp_path / ".env") == {"A": "1", "B": "two words", "C": "two\nlines", "D": ""}


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("PORT 8000", id="blank instead of ="),
        pytest.param("PORT: 8000", id="colon instead of ="),
        pytest.param("PORT", id="name alone"),
        pytest.param("=8000", id="value alone"),
        pytest.param("API_KEYS='hush", id="quote that is not closed"),
        pytest.param('API_KEYS="hu"sh', id="text after the closing quote"),
    ],
)
def test_line_that_is_not_an_assignment_is_rejected_with_its_number_and_without_its_text(
    line: str, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text(f"A=1\n\n  {line}\nB=2\n")
    with pytest.raises(EnvFileError, match=r"^\.env, line 3: this is not NAME=value\. Close each quote") as rejection:
        read_env_file(tmp_path / ".env")
    assert "hu" not in str(rejection.value)


def test_folder_in_the_place_of_the_env_file_is_rejected(tmp_path: Path) -> None:
    (tmp_path / ".env").mkdir()
    with pytest.raises(EnvFileError, match=r"^\.env is a folder.* copy \.env\.example to \.env"):
        read_env_file(tmp_path / ".env")


def test_env_file_that_is_not_utf8_is_rejected(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes("HOST=\xfcber\n".encode("latin-1"))
    with pytest.raises(EnvFileError, match="not UTF-8"):
        read_env_file(tmp_path / ".env")


def test_env_file_that_cannot_be_read_is_rejected_with_the_reason() -> None:
    """A process cannot read its own memory from address 0; this holds for root, too."""
    with pytest.raises(EnvFileError, match=r"^\.env cannot be read \(Input/output error\)"):
        read_env_file(Path("/proc/self/mem"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param(
            "LOG_LEVL", "LOG_LEVL in .env is not a setting and has no effect; did you mean LOG_LEVEL?", id="similar"
        ),
        pytest.param("FAVOURITE", "FAVOURITE in .env is not a setting and has no effect.", id="unlike any"),
    ],
)
def test_every_unknown_name_in_the_env_file_is_reported(name: str, message: str) -> None:
    assert [str(unknown) for unknown in unknown_names([name, "port"], [], SETTING_NAMES)] == [message]


def test_only_names_much_like_a_setting_are_reported_from_the_environment() -> None:
    """All other variables belong to other programs."""
    names = ["PATH", "HOME", "HOSTNAME", "DBHOST", "PGPORT", "REDIS_PORT", "XDG_CACHE_HOME", "Port", "MAX_BATCH_SISE"]
    unknown = UnknownName("MAX_BATCH_SISE", "the environment", "MAX_BATCH_SIZE")
    assert unknown_names([], names, SETTING_NAMES) == [unknown]


def test_names_of_compose_and_deploy_sh_are_known() -> None:
    """They read the same `.env`."""
    compose = "".join(
        (HERE / name).read_text("utf-8") for name in ("docker-compose.yml", "docker-compose.override.yml")
    )
    scripts = "".join(path.read_text("utf-8") for path in (HERE / "deploy.sh", *(HERE / "deploy" / "shell").iterdir()))
    read = {
        *re.findall(r"\$\{([A-Z_]+)", compose),
        *re.findall(r"(?m)^  ([A-Z_]+):", compose),
        *re.findall(r"\$\(setting ([A-Z_]+) ", scripts),
    }
    assert read > COMPOSE_NAMES - {"REPLICAS", "WAIT_SECONDS"}
    assert unknown_names([*read, "COMPOSE_PROFILES", "DOCKER_HOST"], [], SETTING_NAMES) == []


def test_names_are_found_where_the_service_reads_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("MAX_BATCH_SISE=1\n")
    monkeypatch.setattr("config.ENV_FILE", tmp_path / ".env")
    monkeypatch.setenv("LOG_LEVLE", "DEBUG")
    places = {unknown.name: unknown.place for unknown in find_unknown_names()}
    assert places == {"MAX_BATCH_SISE": ".env", "LOG_LEVLE": "the environment"}


def test_pipe_in_the_place_of_the_env_file_is_rejected(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".env")
    with pytest.raises(EnvFileError, match=r"not a regular file"):
        read_env_file(tmp_path / ".env")
