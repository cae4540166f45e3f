"""`python main.py check`: its report, and whether its exit code is what the service would do."""

import socket
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from onnxruntime.quantization import quantize_dynamic

from cli.check import examine
from config import BUNDLED_MODEL
from tests.support.commands import (
    HUB_MODEL,
    NO_HUB,
    Outcome,
    change,
    command,
    repository_files,
    repository_of,
    write_matmul_model,
)
from tests.support.hubs import Hub, serving
from tests.support.redis_servers import running_redis
from tests.support.servers import free_port
from tests.support.tiny import TinyModel, mean_of

API_KEY = "0123456789-alice-key"

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with serving(repository_of(HUB_MODEL), repository_files(tmp_path_factory.mktemp("repository"))) as hub:
        yield hub


def check(models: Path, *arguments: str, **variables: str) -> Outcome:
    folders = {"MODELS_DIR": str(models), "HUB_CACHE_DIR": str(models / "hub")}
    return command("check", *arguments, variables={**folders, **variables})


def levels(outcome: Outcome, subject: str) -> list[str]:
    return [finding["level"] for finding in outcome.json["findings"] if finding["subject"].strip() == subject]


def finding(outcome: Outcome, subject: str) -> dict[str, Any]:
    """The one finding on *subject*."""
    [found] = [found for found in outcome.json["findings"] if found["subject"].strip() == subject]
    return dict(found)


def failures(outcome: Outcome) -> list[str]:
    return [found["detail"] for found in outcome.json["findings"] if found["level"] == "fail"]


def test_mistyped_name_in_the_env_file_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("API_KEY=0123456789abcdef\n")
    monkeypatch.setattr("config.ENV_FILE", tmp_path / ".env")
    told = [str(finding) for finding in islice(examine(), 2)]
    assert told[1] == (
        "warn  names            API_KEY in .env is not a setting and has no effect; did you mean API_KEYS?"
    )


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Default settings, and no hub."""
    return check(tmp_path_factory.mktemp("models"))


def test_service_would_start_with_default_settings_and_no_hub(default: Outcome) -> None:
    assert default.code == 0
    assert default.out.endswith("\nThe service would start.\n")
    assert default.err == ""


def test_each_line_begins_with_its_level_below_a_section(default: Outcome) -> None:
    lines = default.out.splitlines()[:-1]
    sections = [line for line in lines if line and not line.startswith(("ok    ", "warn  ", "FAIL  "))]
    assert sections == ["settings", "machine", "models", "hub"]
    assert max(map(len, lines)) <= 120
    assert "\033" not in default.out


def test_report_tells_what_matters_of_the_model(default: Outcome) -> None:
    for part in (f"{BUNDLED_MODEL} (bundled)", "in memory", "the same vector in any batch", "fingerprint"):
        assert part in default.out


def test_hub_that_is_not_needed_may_be_out_of_reach(tmp_path: Path) -> None:
    outcome = check(tmp_path, "--json")
    assert outcome.code == 0
    assert outcome.json["would_start"] is True
    found = finding(outcome, "not needed")
    assert (found["level"], found["is_reachable"], found["endpoint"]) == ("warn", False, NO_HUB)


def test_hub_that_is_switched_off_and_not_needed_is_no_warning(tmp_path: Path) -> None:
    assert levels(check(tmp_path, "--json", HF_HUB_OFFLINE="1"), "not needed") == ["ok"]


def test_hub_that_is_needed_and_out_of_reach_is_a_failure(tmp_path: Path) -> None:
    outcome = check(tmp_path, "--json", REQUIRED_MODELS=HUB_MODEL)
    assert outcome.code == 1
    assert outcome.json["would_start"] is False
    assert (levels(outcome, "loaded"), levels(outcome, "needed")) == (["fail"], ["fail"])
    assert "the hub cannot be reached" in failures(outcome)[0]


def test_required_model_is_downloaded_and_then_in_the_cache(hub: Hub, tmp_path: Path) -> None:
    required = {"REQUIRED_MODELS": HUB_MODEL}
    first = check(tmp_path, "--json", **required, HF_ENDPOINT=hub.url)
    assert first.code == 0
    assert finding(first, "required")["is_cached"] is False
    assert finding(first, "needed")["is_reachable"] is True
    second = check(tmp_path, **required)
    assert second.code == 0
    assert f"{HUB_MODEL} (hub, in the cache)" in second.out


def test_bad_settings_are_told_and_the_rest_is_skipped(tmp_path: Path) -> None:
    outcome = check(tmp_path, PORT="0")
    assert outcome.code == 1
    assert outcome.out.splitlines()[1].startswith("FAIL  values           PORT='0' is not allowed")
    assert "machine" not in outcome.out
    assert outcome.out.endswith("The service would not start.\n")


@pytest.mark.parametrize("setting", ["REQUIRED_MODELS", "ALLOWED_MODELS"])
def test_name_that_no_model_has_is_a_failure(setting: str, tmp_path: Path) -> None:
    names = {"ALLOWED_MODELS": f"{BUNDLED_MODEL},BAAI/bge-small-en-v1.6"} if setting == "ALLOWED_MODELS" else {}
    outcome = check(tmp_path, "--json", **(names or {setting: "BAAI/bge-small-en-v1.6"}))
    assert outcome.code == 1
    assert finding(outcome, setting)["level"] == "fail"
    assert "Did you mean 'BAAI/bge-small-en-v1.5'" in finding(outcome, setting)["detail"]


def test_folder_of_models_that_does_not_exist_is_told(tmp_path: Path) -> None:
    outcome = check(tmp_path / "moddels", "--json", HUB_CACHE_DIR=str(tmp_path))
    found = finding(outcome, "MODELS_DIR")
    assert (outcome.code, found["level"], found["folder"]) == (0, "ok", str(tmp_path / "moddels"))
    assert "does not exist" in found["detail"]


def test_folder_that_is_no_model_is_told_with_its_reason(tmp_path: Path) -> None:
    change(TinyModel("acme/tiny").write(tmp_path), dim=0)
    outcome = check(tmp_path, "--json")
    assert outcome.code == 0
    found = finding(outcome, "ignored")
    assert (found["level"], found["folder"]) == ("warn", "acme--tiny")
    assert "dim" in found["reason"]
    assert outcome.err == ""


def test_required_model_with_broken_files_is_a_failure(tmp_path: Path) -> None:
    folder = TinyModel("acme/tiny").write(tmp_path)
    (folder / "model.onnx").write_bytes(b"no model")
    outcome = check(tmp_path, "--json", REQUIRED_MODELS="acme/tiny")
    assert outcome.code == 1
    assert levels(outcome, "loaded") == ["fail"]
    assert str(tmp_path) not in outcome.out + outcome.err


@pytest.mark.parametrize(("sign", "level"), [pytest.param(1, "ok", id="right"), pytest.param(-1, "fail", id="wrong")])
def test_canary_decides_whether_a_model_is_used(sign: int, level: str, tmp_path: Path) -> None:
    vector = (sign * mean_of(["one", "two"])).tolist()
    change(TinyModel("acme/tiny").write(tmp_path), canary=[{"text": "one two", "vector": vector}])
    outcome = check(tmp_path, "--json", REQUIRED_MODELS="acme/tiny")
    assert outcome.code == (0 if sign > 0 else 1)
    assert levels(outcome, "loaded") == [level]
    assert sign > 0 or "canary" in failures(outcome)[0]
    assert sign < 0 or finding(outcome, "canary")["cosine"] == pytest.approx(1.0)


def test_model_whose_vectors_depend_on_the_batch_is_a_warning(tmp_path: Path) -> None:
    folder = write_matmul_model(tmp_path, "acme/int8")
    (folder / "model.onnx").rename(tmp_path / "float.onnx")
    quantize_dynamic(tmp_path / "float.onnx", folder / "model.onnx", op_types_to_quantize=["MatMul"])
    outcome = check(tmp_path, "--json", REQUIRED_MODELS="acme/int8")
    assert outcome.code == 0
    assert (levels(outcome, "self-check"), finding(outcome, "self-check")["batching"]) == (["warn"], "single")


def test_allowed_models_that_are_not_in_the_cache_are_told(tmp_path: Path) -> None:
    outcome = check(tmp_path, "--json", ALLOWED_MODELS=f"{BUNDLED_MODEL},{HUB_MODEL}")
    assert outcome.code == 0
    assert (finding(outcome, "allowed")["level"], finding(outcome, "allowed")["model"]) == ("warn", HUB_MODEL)


def test_memory_budget_that_a_required_model_exceeds_is_a_failure(tmp_path: Path) -> None:
    outcome = check(tmp_path, "--json", MODEL_MEMORY_BUDGET="50MB")
    assert outcome.code == 1
    assert "MODEL_MEMORY_BUDGET" in failures(outcome)[0]


def test_cache_that_cannot_be_written_is_a_warning_where_no_download_is_needed(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    outcome = check(tmp_path, "--json", HUB_CACHE_DIR=str(file / "hub"))
    assert outcome.code == 0
    assert levels(outcome, "HUB_CACHE_DIR") == ["warn"]


def test_no_secret_of_the_hubs_address_is_shown(tmp_path: Path) -> None:
    outcome = check(tmp_path, HF_ENDPOINT="http://me:secret@127.0.0.1:9/hub?token=secret", HF_TOKEN="hf_secret")  # noqa: S106
    assert "http://127.0.0.1:9/hub" in outcome.out
    assert "secret" not in outcome.out + outcome.err


@pytest.mark.parametrize(
    ("variables", "level", "told"),
    [
        pytest.param({"HOST": "0.0.0.0"}, "warn", "anyone who reaches HOST", id="open to all"),  # noqa: S104 - on purpose
        pytest.param({"HOST": "127.0.0.1"}, "ok", "anyone on this machine", id="open to this machine"),
        pytest.param({"API_KEYS": f"alice:{API_KEY}"}, "ok", "those of API_KEYS (1 key); closed: embed", id="keys"),
        pytest.param(
            {"API_KEYS": f"{API_KEY},{API_KEY}"}, "fail", "API_KEYS: entry 2 has the same key", id="key twice"
        ),
        pytest.param({"JWT_SECRET": "s" * 32}, "ok", "those of JWT_SECRET; closed: embed", id="tokens"),
        pytest.param({"API_KEYS_FILE": "none"}, "fail", "API_KEYS_FILE: No such file", id="no file"),
    ],
)
def test_report_says_who_may_call(variables: dict[str, str], level: str, told: str, tmp_path: Path) -> None:
    outcome = check(tmp_path, "--json", REQUIRED_MODELS=BUNDLED_MODEL, **variables)
    found = finding(outcome, "callers")
    assert (found["level"], outcome.code) == (level, 1 if level == "fail" else 0)
    assert told in found["detail"]
    assert API_KEY not in outcome.out + outcome.err


@pytest.mark.parametrize(
    ("variables", "level", "told"),
    [
        pytest.param({}, "ok", "none (ENABLE_RATE_LIMIT)", id="off"),
        pytest.param(
            {"RATE_LIMIT_TOKENS": "500"}, "warn", "is false, so RATE_LIMIT_TOKENS means nothing", id="switch forgotten"
        ),
        pytest.param(
            {"ENABLE_RATE_LIMIT": "true", "RATE_LIMIT_TOKENS": "5000"},
            "ok",
            "60 requests and 5,000 tokens per 60 s, counted in memory",
            id="memory",
        ),
        pytest.param(
            {"ENABLE_RATE_LIMIT": "true", "REDIS_URL": "redis://:hush@127.0.0.1:9/0"},
            "warn",
            "counted in memory, as REDIS_URL cannot be used (ConnectionError)",
            id="no Redis",
        ),
        pytest.param(
            {"ENABLE_RATE_LIMIT": "true", "REDIS_URL": "redis://:hush@127.0.0.1:9/0?nonsense=1"},
            "fail",
            "REDIS_URL is not allowed",
            id="unknown option",
        ),
    ],
)
def test_report_says_how_much_a_caller_may_ask(
    variables: dict[str, str], level: str, told: str, tmp_path: Path
) -> None:
    outcome = check(tmp_path, "--json", **variables)
    found = finding(outcome, "limits")
    assert (found["level"], outcome.code) == (level, 1 if level == "fail" else 0)
    assert told in found["detail"]
    assert "hush" not in outcome.out + outcome.err


@pytest.mark.redis
def test_redis_is_asked_as_requests_will_ask_it(tmp_path: Path) -> None:
    with running_redis("--requirepass", "right") as redis:
        right, wrong = (redis.url.replace("//", f"//:{password}@") for password in ("right", "wrong"))
        limited = {"ENABLE_RATE_LIMIT": "true"}
        assert levels(check(tmp_path, "--json", REDIS_URL=right, **limited), "limits") == ["ok"]
        found = finding(check(tmp_path, "--json", REDIS_URL=wrong, **limited), "limits")
        assert (found["level"], found["trouble"]) == ("warn", "AuthenticationError")


def test_address_that_is_free_is_told(tmp_path: Path) -> None:
    assert levels(check(tmp_path, "--json", HOST="127.0.0.1", PORT=str(free_port())), "address") == ["ok"]


def test_address_in_use_may_be_that_of_the_running_service(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        outcome = check(tmp_path, "--json", HOST="127.0.0.1", PORT=str(taken.getsockname()[1]))
    assert (outcome.code, finding(outcome, "address")["level"]) == (0, "warn")


def test_host_that_is_no_address_of_this_machine_is_a_failure(tmp_path: Path) -> None:
    outcome = check(tmp_path, HOST="192.0.2.1")
    assert outcome.code == 1
    assert "FAIL  address          HOST=192.0.2.1 PORT=8000 cannot be listened on: " in outcome.out
