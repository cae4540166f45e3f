"""deploy/systemd/: the unit is valid, gives the service few rights, and agrees with the settings."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from config import Settings, load_settings
from tests.support.redis_servers import needed
from tests.support.servers import ROOT

UNIT = ROOT / "deploy" / "systemd" / "fast-embedding.service"
TEXT = UNIT.read_text(encoding="utf-8")
PROGRAM = "/opt/fast-embedding/bin/fast-embedding"
HUNDREDTHS_OF_EXPOSURE = "20"


def values(name: str) -> list[str]:
    """Return the values of a directive, in the order of the unit."""
    return re.findall(rf"(?m)^{name}=(.*)$", TEXT)


def environment(text: str = TEXT) -> dict[str, str]:
    words = [word for line in re.findall(r"(?m)^Environment=(.+)$", text) for word in line.split()]
    return dict(word.split("=", 1) for word in words)


@pytest.fixture(params=["as-it-is", "with-secrets-and-quota"])
def unit(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The unit with a program that exists here; the second one has every commented line enabled."""
    assert TEXT.count(PROGRAM) == 1
    text = TEXT.replace(PROGRAM, sys.executable)
    if request.param != "as-it-is":
        text, count = re.subn(r"(?m)^#(?=[A-Z][A-Za-z]+=)", "", text)
        assert count >= 5
    made = tmp_path / UNIT.name
    made.write_text(text, encoding="utf-8")
    return made


def test_systemd_accepts_every_line(unit: Path) -> None:
    done = analyze("verify", "--man=no", str(unit))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_systemd_reports_a_misspelled_line(unit: Path) -> None:
    """Proves that the test above finds typos."""
    unit.write_text(unit.read_text(encoding="utf-8").replace("LimitCORE=", "LimitCores="), encoding="utf-8")
    assert "LimitCores" in analyze("verify", "--man=no", str(unit)).stderr


def test_service_has_few_rights(unit: Path) -> None:
    done = analyze("security", "--offline=true", f"--threshold={HUNDREDTHS_OF_EXPOSURE}", "--no-pager", str(unit))
    assert done.returncode == 0, done.stdout


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [needed("systemd-analyze"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_settings_of_the_unit_exist_and_are_valid() -> None:
    everything = environment(re.sub(r"(?m)^#(?=Environment=)", "", TEXT))
    assert {name.lower() for name in everything} <= set(Settings.model_fields)
    given = {name.lower(): value for name, value in environment().items()}
    assert load_settings(_env_file=None, **given).log_format == "json"


def test_secrets_come_from_files_that_only_the_service_can_read() -> None:
    """`systemctl show` prints the environment of a unit to every user."""
    assert not {"API_KEYS", "JWT_SECRET", "REDIS_URL", "HF_TOKEN"} & set(environment())
    credentials = re.findall(r"(?m)^#LoadCredential=([a-z-]+):/etc/fast-embedding/", TEXT)
    used = re.findall(r"(?m)^#Environment=[A-Z_]+_FILE=%d/([a-z-]+)$", TEXT)
    assert credentials == used != []


def test_stop_takes_longer_than_the_shutdown_timeout() -> None:
    [stop_s] = values("TimeoutStopSec")
    assert int(stop_s) >= Settings.model_fields["shutdown_timeout"].default + 5
    assert values("KillSignal") == ["SIGTERM"]


def test_models_get_three_quarters_of_the_memory_and_no_core_is_written() -> None:
    [limit] = values("MemoryMax")
    budget = load_settings(_env_file=None, model_memory_budget=environment()["MODEL_MEMORY_BUDGET"]).model_memory_budget
    assert budget is not None
    assert limit == "2G"
    assert 0.6 < budget / (2 << 30) <= 0.75
    assert values("LimitCORE") == ["0"]


def test_cache_is_the_only_folder_that_the_service_may_write() -> None:
    assert values("ProtectSystem") == ["strict"]
    assert not re.search(r"(?m)^(ReadWritePaths|StateDirectory|LogsDirectory)=", TEXT)
    [cache] = values("CacheDirectory")
    assert environment()["HUB_CACHE_DIR"] == f"/var/cache/{cache}"
