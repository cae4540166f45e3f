"""`python main.py check`: its report, and whether its exit code is what the service would do."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from assembly import lane_plan, worker_share
from cli.check import _free_disk_bytes
from config import BUNDLED_MODEL
from host.memory import MemoryLimit
from tests.support.commands import HUB_MODEL, NO_HUB, Outcome, RunCommand, change, command
from tests.support.hubs import Hub
from tests.support.redis_servers import running_redis
from tests.support.servers import free_port
from tests.support.tiny import TinyModel, mean_of
from tests.support.tiny_models import write_quantised

API_KEY = "0123456789-alice-key"
TINY = "acme/tiny"


@pytest.fixture
def check(run_command: RunCommand, tmp_path: Path) -> RunCommand:
    """Run `check --json` with a tiny model as the only required one, and with the settings given."""
    TinyModel(TINY).write(tmp_path)
    return lambda **variables: run_command("check", "--json", **{"REQUIRED_MODELS": TINY, **variables})


def finding(outcome: Outcome, subject: str) -> dict[str, Any]:
    """The only finding about *subject*. One failure is enough to exit with 1."""
    found = outcome.json["findings"]
    assert outcome.code == (1 if "fail" in [line["level"] for line in found] else 0)
    assert outcome.json["would_start"] is (outcome.code == 0)
    [line] = [line for line in found if line["subject"].strip() == subject]
    return dict(line)


@pytest.mark.timeout(60)  # starts processes
def test_service_would_start_with_default_settings_and_no_hub(tmp_path: Path) -> None:
    outcome = command("check", variables={"HUB_CACHE_DIR": str(tmp_path), "MODELS_DIR": str(tmp_path)})
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.endswith("\nThe service would start.\n")
    for part in (f"{BUNDLED_MODEL} (bundled)", "MB in memory", "the same vector in any batch", "fingerprint"):
        assert part in outcome.out


def test_report_is_plain_text_with_a_line_for_each_finding_below_its_section(
    run_command: RunCommand, check: RunCommand
) -> None:
    report = run_command("check", REQUIRED_MODELS=TINY).out
    lines = report.splitlines()[:-1]
    sections = [line for line in lines if line and not line.startswith(("ok    ", "warn  ", "FAIL  "))]
    assert sections == ["settings", "machine", "models", "hub"]
    assert len(lines) - len(sections) - lines.count("") == len(check().json["findings"])
    assert "\033" not in report


def test_lines_in_a_file_are_not_wrapped(run_command: RunCommand, tmp_path: Path) -> None:
    names = [f"acme/{'long' * 10}{number}" for number in range(3)]
    for name in names:
        TinyModel(name).write(tmp_path)
    report = run_command("check", REQUIRED_MODELS=",".join(names)).out
    assert f"ok    REQUIRED_MODELS  {', '.join(names)}\n" in report


def test_bad_settings_are_reported_and_nothing_else_is_checked(run_command: RunCommand) -> None:
    outcome = run_command("check", PORT="0")
    assert outcome.code == 1
    assert outcome.out.splitlines()[1].startswith("FAIL  values           PORT='0' is not allowed")
    assert "machine" not in outcome.out
    assert outcome.out.endswith("The service would not start.\n")


def test_cores_that_stay_unused_are_a_warning(check: RunCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_plan, "usable_cores", lambda: 8)
    found = finding(check(), "lanes")
    assert (found["level"], found["unused_cores"]) == ("warn", 4)
    assert found["detail"] == "4 (THREAD_POOL_WORKERS=4); 4 usable cores stay unused; set THREAD_POOL_WORKERS=auto"
    assert finding(check(THREAD_POOL_WORKERS="auto"), "lanes")["detail"] == "8 (THREAD_POOL_WORKERS=auto)"


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this machine have eight cores, in two groups."""
    for module in (lane_plan, worker_share):
        monkeypatch.setattr(module, "usable_cores", lambda: 8)
        monkeypatch.setattr(module, "is_quota_tight", lambda: False)
    halves = [frozenset(range(4)), frozenset(range(4, 8))]
    monkeypatch.setattr(worker_share, "usable_places", lambda count: [halves[n * 2 // count] for n in range(count)])


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(
    ("settings", "workers", "lanes"),
    [
        pytest.param(
            {"WORKERS": "auto", "THREAD_POOL_WORKERS": "auto"},
            "2 (WORKERS=auto), with 4 lanes each; 1 on cores 0-3, 2 on cores 4-7",
            "8 (THREAD_POOL_WORKERS=auto)",
            id="auto",
        ),
        pytest.param(
            {"WORKERS": "3", "THREAD_POOL_WORKERS": "8"},
            "3 (WORKERS=3), with 2 to 3 lanes each; 1 on cores 0-3, 2 on cores 0-3, 3 on cores 4-7",
            "8 (THREAD_POOL_WORKERS=8)",
            id="uneven",
        ),
        pytest.param(
            {"WORKERS": "2", "THREAD_POOL_WORKERS": "4"},
            "2 (WORKERS=2), with 2 lanes each; 1 on cores 0-3, 2 on cores 4-7",
            "4 (THREAD_POOL_WORKERS=4); of each worker, 2 usable cores stay unused; set THREAD_POOL_WORKERS=auto",
            id="few-lanes",
        ),
    ],
)
def test_workers_share_lanes_and_cores(settings: dict[str, str], workers: str, lanes: str, check: RunCommand) -> None:
    outcome = check(**settings)
    assert finding(outcome, "workers")["detail"] == workers
    assert finding(outcome, "lanes")["detail"] == lanes


@pytest.mark.usefixtures("eight_cores")
def test_memory_of_workers_is_the_sum_of_what_each_has_alone_and_what_they_share(check: RunCommand) -> None:
    found = [finding(check(WORKERS=count, THREAD_POOL_WORKERS="auto"), "memory") for count in ("2", "3", "4")]
    two, three, four = (one["needed_bytes"] for one in found)
    assert two < three < four < 2 * two
    assert four - three == three - two
    assert "MB for the supervisor, 4 x " in found[-1]["detail"]


def test_one_process_is_not_called_a_worker(check: RunCommand) -> None:
    report = check().json["findings"]
    assert "workers" not in [line["subject"] for line in report]
    assert "supervisor" not in finding(check(), "memory")["detail"]


@pytest.mark.usefixtures("eight_cores")
def test_more_workers_than_cores_are_a_failure(check: RunCommand) -> None:
    outcome = check(WORKERS="9")
    assert finding(outcome, "values")["detail"].startswith("WORKERS=9 is not allowed: the service may use 8 cores;")


def test_mistyped_name_in_the_env_file_is_a_warning(check: RunCommand, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("API_KEY=0123456789abcdef\n")
    found = finding(check(), "names")
    assert (found["level"], found["name"], found["meant"]) == ("warn", "API_KEY", "API_KEYS")
    assert found["detail"] == "API_KEY in .env is not a setting and has no effect; did you mean API_KEYS?"


@pytest.mark.parametrize(
    ("setting", "names"),
    [
        pytest.param("REQUIRED_MODELS", "BAAI/bge-small-en-v1.6", id="required"),
        pytest.param("ALLOWED_MODELS", f"{TINY},BAAI/bge-small-en-v1.6", id="allowed"),
    ],
)
def test_unknown_model_name_is_a_failure_with_a_suggestion(setting: str, names: str, check: RunCommand) -> None:
    found = finding(check(**{setting: names}), setting)
    assert found["level"] == "fail"
    assert found["detail"].startswith(
        "No model named 'BAAI/bge-small-en-v1.6' is offered. Did you mean 'BAAI/bge-small-en-v1.5'"
    )


def test_aliases_are_reported_with_their_models_and_each_mistake(check: RunCommand) -> None:
    found = finding(check(MODEL_ALIASES=f"small={TINY}"), "MODEL_ALIASES")
    assert (found["level"], found["aliases"], found["detail"]) == ("ok", {"small": TINY}, f"small = {TINY}")
    outcome = check(MODEL_ALIASES=f"small={TINY},SMALL={TINY},{TINY}=no/such")
    assert outcome.code == 1
    lines = [line for line in outcome.json["findings"] if line["subject"] == "MODEL_ALIASES"]
    assert [line["level"] for line in lines] == ["fail"] * 3
    assert all(part in line["detail"] for part, line in zip(("same alias", "hide", "no/such"), lines, strict=True))


@pytest.mark.parametrize(
    ("variables", "level", "detail"),
    [
        pytest.param({"HOST": "0.0.0.0"}, "warn", "anyone who reaches HOST", id="open to all"),  # noqa: S104 - on purpose
        pytest.param({"HOST": "127.0.0.1"}, "ok", "anyone on this machine", id="open to this machine"),
        pytest.param(
            {"API_KEYS": f"alice:{API_KEY}"}, "ok", "of API_KEYS (1 key) is required for admin, embed", id="one key"
        ),
        pytest.param({"API_KEYS": f"{API_KEY},{API_KEY}"}, "fail", "entry 2 has the same key", id="key twice"),
        pytest.param({"JWT_SECRET": "s" * 32}, "ok", "of JWT_SECRET is required for admin, embed", id="tokens"),
        pytest.param({"API_KEYS_FILE": "none"}, "fail", "API_KEYS_FILE: No such file", id="no file"),
    ],
)
def test_report_says_who_may_call(variables: dict[str, str], level: str, detail: str, check: RunCommand) -> None:
    outcome = check(**variables)
    found = finding(outcome, "callers")
    assert found["level"] == level
    assert detail in found["detail"]
    assert API_KEY not in outcome.out + outcome.err


@pytest.mark.parametrize(
    ("variables", "level", "detail"),
    [
        pytest.param({}, "warn", "any: anyone who reaches HOST", id="open to all"),
        pytest.param({"HOST": "127.0.0.1"}, "ok", "any", id="open to this machine"),
    ],
)
def test_report_recommends_a_list_of_models(
    variables: dict[str, str], level: str, detail: str, check: RunCommand
) -> None:
    found = finding(check(**variables), "ALLOWED_MODELS")
    assert found["level"] == level
    assert found["detail"].startswith(detail)


NO_REDIS = "redis://:hush@127.0.0.1:9/0"


@pytest.mark.parametrize(
    ("variables", "level", "detail"),
    [
        pytest.param({}, "ok", "none (ENABLE_RATE_LIMIT)", id="off"),
        pytest.param({"RATE_LIMIT_TOKENS": "500"}, "warn", "so RATE_LIMIT_TOKENS has no effect", id="not enabled"),
        pytest.param(
            {"ENABLE_RATE_LIMIT": "true", "RATE_LIMIT_TOKENS": "5000"},
            "ok",
            "60 requests and 5,000 tokens per 60 s, counted in memory",
            id="memory",
        ),
        pytest.param(
            {"ENABLE_RATE_LIMIT": "true", "REDIS_URL": NO_REDIS},
            "warn",
            "counted in memory, because REDIS_URL cannot be used (ConnectionError)",
            id="no Redis",
        ),
        pytest.param(
            {"ENABLE_RATE_LIMIT": "true", "REDIS_URL": f"{NO_REDIS}?nonsense=1"},
            "fail",
            "REDIS_URL is not allowed",
            id="unknown option",
        ),
    ],
)
def test_report_says_how_much_a_caller_may_request(
    variables: dict[str, str], level: str, detail: str, check: RunCommand
) -> None:
    outcome = check(**variables)
    found = finding(outcome, "limits")
    assert found["level"] == level
    assert detail in found["detail"]
    assert "hush" not in outcome.out + outcome.err


@pytest.mark.redis
def test_redis_is_asked_with_the_password_that_requests_will_use(check: RunCommand) -> None:
    with running_redis("--requirepass", "right") as redis:
        right, wrong = (redis.url.replace("//", f"//:{password}@") for password in ("right", "wrong"))
        assert finding(check(REDIS_URL=right, ENABLE_RATE_LIMIT="true"), "limits")["detail"].endswith("in Redis")
        found = finding(check(REDIS_URL=wrong, ENABLE_RATE_LIMIT="true"), "limits")
    assert (found["level"], found["trouble"]) == ("warn", "AuthenticationError")


@pytest.mark.parametrize(
    ("variables", "level", "detail"),
    [
        pytest.param({}, "ok", "64 MB, for all callers (CACHE_SCOPE): about", id="default"),
        pytest.param({"API_KEYS": f"alice:{API_KEY}"}, "ok", "for the caller who sent the text", id="keys"),
        pytest.param({"RESULT_CACHE_MB": "0"}, "ok", "none in memory (RESULT_CACHE_MB=0)", id="off"),
        pytest.param(
            {"RESULT_CACHE_MB": "0", "RESULT_CACHE_TTL": "60"}, "warn", "RESULT_CACHE_TTL has no effect", id="no effect"
        ),
        pytest.param(
            {"CACHE_KEY_SECRET_FILE": "/nowhere"}, "fail", "CACHE_KEY_SECRET_FILE: No such file", id="no secret"
        ),
    ],
)
def test_report_says_who_finds_kept_results_and_how_many_fit(
    variables: dict[str, str], level: str, detail: str, check: RunCommand
) -> None:
    found = finding(check(**variables), "result cache")
    assert found["level"] == level
    assert detail in found["detail"]


@pytest.mark.usefixtures("eight_cores")
def test_report_says_how_many_results_fit_into_each_worker(check: RunCommand) -> None:
    found = finding(check(WORKERS="2", THREAD_POOL_WORKERS="auto"), "result cache")
    assert found["detail"].startswith("32 MB for each worker, for all callers (CACHE_SCOPE): about")


def test_report_says_that_settings_of_results_in_redis_have_no_effect_without_it(check: RunCommand) -> None:
    found = finding(check(RESULT_CACHE_REDIS_TTL="60"), "results in Redis")
    assert (found["level"], found["detail"]) == (
        "warn",
        "RESULT_CACHE_REDIS is false, so RESULT_CACHE_REDIS_TTL has no effect",
    )


def test_redis_of_results_that_cannot_be_reached_is_a_warning(check: RunCommand) -> None:
    outcome = check(REDIS_URL=NO_REDIS, RESULT_CACHE_REDIS="true", CACHE_KEY_SECRET="s" * 32)
    found = finding(outcome, "results in Redis")
    assert (found["level"], found["state"]) == ("warn", "unreachable")
    assert found["detail"] == "Redis is not used until it works: no connection; check REDIS_URL"
    assert finding(outcome, "limits")["level"] == "ok", "REDIS_URL has an effect without ENABLE_RATE_LIMIT"
    assert "hush" not in outcome.out + outcome.err


@pytest.mark.redis
def test_redis_of_results_is_asked(check: RunCommand) -> None:
    with running_redis() as redis:
        found = finding(
            check(REDIS_URL=redis.url, RESULT_CACHE_REDIS="true", CACHE_KEY_SECRET="s" * 32), "results in Redis"
        )
    assert (found["level"], found["state"]) == ("ok", "reachable")


def test_free_address_is_reported(check: RunCommand) -> None:
    assert finding(check(HOST="127.0.0.1", PORT=str(free_port())), "address")["level"] == "ok"


def test_address_in_use_is_a_warning_because_the_service_may_be_running(check: RunCommand) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        found = finding(check(HOST="127.0.0.1", PORT=str(server.getsockname()[1])), "address")
    assert (found["level"], found["problem"]) == ("warn", "Address already in use")


def test_address_of_another_machine_is_a_failure(check: RunCommand) -> None:
    found = finding(check(HOST="192.0.2.1"), "address")
    assert found["level"] == "fail"
    assert found["detail"].startswith("Cannot listen on HOST=192.0.2.1 PORT=8000: ")


@pytest.mark.parametrize(
    ("limit_bytes", "available_bytes", "level", "detail"),
    [
        pytest.param(10**9, 10**9, "ok", "1,000.0 MB available; the service needs", id="enough"),
        pytest.param(10**9, 10**8, "warn", "100.0 MB available", id="used by others"),
        pytest.param(10**8, 10**8, "warn", "may use only 100.0 MB", id="low limit"),
        pytest.param(10**7, 10**7, "fail", "may use only 10 MB", id="too low limit"),
        pytest.param(None, None, "ok", "the available memory is unknown", id="unknown"),
    ],
)
def test_memory_is_compared_with_the_need_of_the_required_models(
    limit_bytes: int | None, available_bytes: int | None, level: str, detail: str, check: RunCommand
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cli.check.memory_limit", lambda: MemoryLimit(limit_bytes))
        patch.setattr("cli.check.available_bytes", lambda: available_bytes)
        found = finding(check(), "memory")
    assert (found["level"], found["limit_bytes"], found["available_bytes"]) == (level, limit_bytes, available_bytes)
    assert detail in found["detail"]


def test_free_disk_space_is_that_of_the_place_of_a_folder_to_be_created(tmp_path: Path) -> None:
    assert _free_disk_bytes(tmp_path / "a" / "b")


def test_cache_that_is_not_writable_is_a_warning_if_no_download_is_needed(check: RunCommand, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert finding(check(HUB_CACHE_DIR=f"{tmp_path}/file/hub"), "HUB_CACHE_DIR")["level"] == "warn"


def test_missing_folder_of_models_is_reported(check: RunCommand, tmp_path: Path) -> None:
    found = finding(check(MODELS_DIR=f"{tmp_path}/moddels", REQUIRED_MODELS=BUNDLED_MODEL), "MODELS_DIR")
    assert (found["level"], found["folder"]) == ("ok", f"{tmp_path}/moddels")
    assert "does not exist" in found["detail"]


def test_folder_that_is_not_a_model_is_a_warning_with_the_reason(check: RunCommand, tmp_path: Path) -> None:
    change(TinyModel("acme/other").write(tmp_path), dim=0)
    outcome = check()
    found = finding(outcome, "ignored")
    assert (found["level"], found["folder"], outcome.err) == ("warn", "acme--other", "")
    assert "dim" in found["reason"]


def test_folder_that_replaces_a_model_is_a_warning(check: RunCommand, tmp_path: Path) -> None:
    TinyModel(HUB_MODEL).write(tmp_path)
    found = finding(check(), "replaced")
    folder = HUB_MODEL.replace("/", "--")
    assert (found["level"], found["model"], found["folder"]) == ("warn", HUB_MODEL, folder)
    assert found["detail"] == f"the folder {folder!r} replaces the hub model of the same name, {HUB_MODEL!r}"


def test_model_of_models_dir_is_loaded_even_if_it_is_not_required(check: RunCommand, tmp_path: Path) -> None:
    folder = TinyModel("acme/other").write(tmp_path)
    found = finding(check(), "folder")
    assert (found["level"], found["detail"]) == ("ok", "acme/other can be loaded")
    (folder / "tokenizer_config.json").unlink()
    found = finding(check(), "folder")
    assert (found["level"], len(found["notes"])) == ("warn", 1)
    assert "tokenizer_config.json is missing" in found["detail"]
    (folder / "model.onnx").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9040\n")
    found = finding(check(), "folder")
    assert found["level"] == "warn"
    assert (
        "acme/other cannot be loaded: its file 'model.onnx' is a git-lfs pointer instead of the file itself; run"
        in found["detail"]
    )
    assert finding(check(ALLOWED_MODELS=TINY), "ALLOWED_MODELS")["level"] == "ok"


def test_what_the_operator_should_know_about_a_required_folder_is_a_warning(check: RunCommand, tmp_path: Path) -> None:
    (tmp_path / "acme--tiny" / "tokenizer_config.json").unlink()
    found = finding(check(), "note")
    assert (found["level"], found["model"]) == ("warn", TINY)


def test_required_model_with_broken_files_is_a_failure(check: RunCommand, tmp_path: Path) -> None:
    (tmp_path / "acme--tiny" / "model.onnx").write_bytes(b"no model")
    outcome = check()
    found = finding(outcome, "loaded")
    assert found["level"] == "fail"
    assert "is not a complete ONNX file" in found["detail"]
    assert str(tmp_path) not in outcome.out + outcome.err


@pytest.mark.parametrize(("sign", "level"), [pytest.param(1, "ok", id="right"), pytest.param(-1, "fail", id="wrong")])
def test_reference_vectors_decide_whether_a_model_is_used(
    sign: int, level: str, check: RunCommand, tmp_path: Path
) -> None:
    vector = (sign * mean_of(["one", "two"])).tolist()
    change(tmp_path / "acme--tiny", canary=[{"text": "one two", "vector": vector}])
    outcome = check()
    found = finding(outcome, "loaded")
    assert found["level"] == level
    if level == "ok":
        assert finding(outcome, "canary")["cosine"] == pytest.approx(1.0)
    else:
        assert "canary" in found["detail"]


def test_model_whose_vectors_depend_on_the_batch_is_a_warning(check: RunCommand, tmp_path: Path) -> None:
    write_quantised(tmp_path, "acme/int8")
    found = finding(check(REQUIRED_MODELS="acme/int8"), "self-check")
    assert (found["level"], found["batch_invariant"], found["batching"]) == ("warn", False, "single")


def test_required_model_above_the_memory_budget_is_a_failure(check: RunCommand) -> None:
    found = [line for line in check(MODEL_MEMORY_BUDGET="1").json["findings"] if line["level"] == "fail"]
    assert ["MODEL_MEMORY_BUDGET" in line["detail"] for line in found] == [True]


def test_allowed_model_that_is_not_in_the_cache_is_a_warning(check: RunCommand) -> None:
    found = finding(check(ALLOWED_MODELS=f"{TINY},{HUB_MODEL}"), "allowed")
    assert (found["level"], found["model"]) == ("warn", HUB_MODEL)


def test_required_model_is_downloaded_if_it_is_not_in_the_cache(hub: Hub, check: RunCommand) -> None:
    first = check(REQUIRED_MODELS=HUB_MODEL, HF_ENDPOINT=hub.url)
    assert (first.code, finding(first, "required")["is_cached"]) == (0, False)
    assert finding(first, "needed")["is_reachable"] is True
    second = check(REQUIRED_MODELS=HUB_MODEL)
    assert (second.code, finding(second, "required")["is_cached"]) == (0, True)


def test_hub_that_is_needed_and_cannot_be_reached_is_a_failure(check: RunCommand) -> None:
    outcome = check(REQUIRED_MODELS=HUB_MODEL)
    assert (finding(outcome, "loaded")["level"], finding(outcome, "needed")["level"]) == ("fail", "fail")
    assert "the hub cannot be reached" in finding(outcome, "loaded")["detail"]


def test_hub_that_is_not_needed_is_at_most_a_warning(hub: Hub, check: RunCommand) -> None:
    found = finding(check(), "not needed")
    assert (found["level"], found["is_reachable"], found["endpoint"]) == ("warn", False, NO_HUB)
    hub.rejection = 503, None
    found = finding(check(HF_ENDPOINT=hub.url), "not needed")
    assert (found["level"], found["is_reachable"]) == ("warn", False)
    assert "answers with status 503" in found["detail"]
    assert finding(check(HF_HUB_OFFLINE="1"), "not needed")["level"] == "ok"


def test_secrets_in_the_url_of_the_hub_are_not_shown(check: RunCommand) -> None:
    outcome = check(HF_ENDPOINT="http://me:secret@127.0.0.1:9/hub?token=secret")
    assert finding(outcome, "not needed")["endpoint"] == "http://127.0.0.1:9/hub"
    assert "secret" not in json.dumps(outcome.json) + outcome.err
