import json
import re
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from config import BUNDLED_MODEL, BUNDLED_MODELS_DIR, HERE, SECRETS, Settings, SettingsError, load_settings

ENV_EXAMPLE = HERE / ".env.example"
README = HERE / "README.md"
NAMES = [name.upper() for name in Settings.model_fields]

Read = Callable[..., Settings]


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the developer has set does not count here."""
    for name in NAMES:
        for spelling in (name, name.lower()):
            monkeypatch.delenv(spelling, raising=False)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Read:
    """Reads the settings from these environment variables and from this `.env`, which by default is none."""

    def read(env_file: Path | None = None, **variables: str) -> Settings:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return load_settings(_env_file=env_file)

    return read


@pytest.mark.parametrize("name", NAMES)
def test_setting_stands_in_env_example(name: str) -> None:
    assert re.search(rf"^#? ?{name}=", ENV_EXAMPLE.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("name", NAMES)
def test_setting_stands_in_readme(name: str) -> None:
    assert f"`{name}`" in README.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", Settings.model_fields)
def test_operators_are_told_what_the_setting_protects_against(name: str) -> None:
    rows = [row for row in (HERE / "docs" / "PRODUCTION.md").read_text("utf-8").splitlines() if row.startswith("| `")]
    assert any(f"`{name.upper()}`" in row.split("|")[1] for row in rows)


def test_env_example_names_no_setting_that_does_not_exist() -> None:
    named = re.findall(r"^#? ?([A-Z][A-Z0-9_]+)=", ENV_EXAMPLE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(named) == sorted(NAMES)


def test_env_example_states_the_defaults(read: Read, tmp_path: Path) -> None:
    """Who copies it to `.env`, and takes every `#` before a setting away, changes nothing."""
    copy = tmp_path / ".env"
    copy.write_text(re.sub(r"(?m)^#? ?([A-Z][A-Z0-9_]+=)", r"\1", ENV_EXAMPLE.read_text(encoding="utf-8")))
    copied, bare = read(copy), read()
    differing = {name for name in Settings.model_fields if getattr(copied, name) != getattr(bare, name)}
    # A relative folder cannot equal the absolute one that it stands for.
    assert {name for name in differing if not name.endswith("_dir")} == set()


def test_recommended_settings_can_be_used(read: Read, tmp_path: Path) -> None:
    [recommended] = re.findall(r"```ini\n(.*?)```", (HERE / "docs" / "PRODUCTION.md").read_text("utf-8"), re.DOTALL)
    (tmp_path / ".env").write_text(recommended, encoding="utf-8")
    settings = read(tmp_path / ".env")
    stated = {line.partition("=")[0].lower() for line in recommended.splitlines() if not line.startswith("#")}
    assert stated <= settings.model_fields_set
    assert settings.closed_routes == ("metrics", "models", "docs")


@pytest.mark.parametrize("name", Settings.model_fields)
def test_setting_is_described(name: str) -> None:
    assert Settings.model_fields[name].description


@pytest.mark.parametrize(
    ("name", "default"),
    [
        ("host", "0.0.0.0"),  # noqa: S104 - what the contract says
        ("port", 8000),
        ("debug", False),
        ("log_level", "INFO"),
        ("required_models", (BUNDLED_MODEL,)),
        ("allowed_models", ()),
        ("thread_pool_workers", 4),
        ("max_text_length", 8192),
        ("max_batch_size", 32),
        ("request_timeout", 300),
        ("model_cache_ttl", 3600),
        ("max_cached_models", 5),
        ("cleanup_interval", 60),
        ("max_request_size", 10_000_000),
        ("enable_rate_limit", False),
        ("rate_limit_tokens", None),
        ("redis_url", None),
        ("trusted_proxies", ()),
        ("enable_cors", True),
        ("cors_origins", ("*",)),
        ("enable_metrics", True),
        ("api_keys", ()),
        ("jwt_secret", None),
        ("jwt_leeway", 30),
        ("closed_routes", ()),
        ("models_dir", BUNDLED_MODELS_DIR),
        ("model_memory_budget", None),
    ],
)
def test_default_is_the_one_promised(name: str, default: object, read: Read) -> None:
    assert getattr(read(), name) == default


def test_bundled_model_lies_in_the_bundled_models_folder() -> None:
    manifests = [json.loads(path.read_text(encoding="utf-8")) for path in BUNDLED_MODELS_DIR.glob("*/model.json")]
    assert BUNDLED_MODEL in [manifest["name"] for manifest in manifests]


@pytest.mark.parametrize("name", NAMES)
def test_empty_value_means_the_default(name: str, read: Read) -> None:
    default = read()
    assert read(**{name: ""}) == default


@pytest.mark.parametrize("name", NAMES)
def test_empty_value_in_the_env_file_means_the_default(name: str, read: Read, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"{name}=\n")
    assert read(tmp_path / ".env") == read()


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("a/one,b/two", id="commas"),
        pytest.param(" a/one , b/two ", id="commas and spaces"),
        pytest.param(",a/one,,b/two,", id="commas too many"),
        pytest.param("a/one,b/two,a/one", id="one named twice"),
        pytest.param('["a/one", "b/two"]', id="JSON"),
        pytest.param(' ["a/one", " b/two ", ""]', id="JSON and spaces"),
    ],
)
@pytest.mark.parametrize("name", ["REQUIRED_MODELS", "ALLOWED_MODELS", "CORS_ORIGINS"])
def test_list_is_read_from(value: str, name: str, read: Read) -> None:
    # All at once, so that required models are allowed ones.
    origins = value.replace("a/one", "http://a").replace("b/two", "http://b")
    settings = read(REQUIRED_MODELS=value, ALLOWED_MODELS=value, CORS_ORIGINS=origins)
    wanted = ("http://a", "http://b") if name == "CORS_ORIGINS" else ("a/one", "b/two")
    assert getattr(settings, name.lower()) == wanted


def test_required_models_keep_their_order(read: Read) -> None:
    """The first is the default of requests."""
    assert read(REQUIRED_MODELS="z,a,m").required_models == ("z", "a", "m")


@pytest.mark.parametrize(
    ("value", "size"),
    [("10MB", 10_000_000), ("512KiB", 524_288), ("1.5 MB", 1_500_000), ("2gb", 2 * 10**9), ("1MiB", 1 << 20), ("7", 7)],
)
@pytest.mark.parametrize("name", ["MAX_REQUEST_SIZE", "MODEL_MEMORY_BUDGET"])
def test_size_is_read_with_its_unit(name: str, value: str, size: int, read: Read) -> None:
    assert getattr(read(**{name: value}), name.lower()) == size


@pytest.mark.parametrize("value", ["true", "True", "1", "yes", "on"])
@pytest.mark.parametrize("name", ["DEBUG", "ENABLE_CORS", "ENABLE_METRICS"])
def test_switch_is_on_for(name: str, value: str, read: Read) -> None:
    assert getattr(read(**{name: value}), name.lower()) is True


@pytest.mark.parametrize("value", ["false", "False", "0", "no", "off"])
@pytest.mark.parametrize("name", ["DEBUG", "ENABLE_CORS", "ENABLE_METRICS"])
def test_switch_is_off_for(name: str, value: str, read: Read) -> None:
    assert getattr(read(**{name: value}), name.lower()) is False


def test_words_may_be_written_in_any_case(read: Read) -> None:
    settings = read(LOG_LEVEL="warning", LOG_FORMAT="JSON")
    assert (settings.log_level, settings.log_format) == ("WARNING", "json")


def test_names_may_be_written_in_any_case(read: Read) -> None:
    assert read(port="9000").port == 9000


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        pytest.param("PORT", "abc", "integer", id="port that is no number"),
        pytest.param("PORT", "0", "greater than or equal to 1", id="port too small"),
        pytest.param("PORT", "65536", "less than or equal to 65535", id="port too large"),
        pytest.param("DEBUG", "maybe", "boolean", id="switch neither on nor off"),
        pytest.param("LOG_LEVEL", "loud", "'DEBUG', 'INFO', 'WARNING', 'ERROR' or 'CRITICAL'", id="level unknown"),
        pytest.param("LOG_FORMAT", "xml", "'auto', 'json' or 'console'", id="format unknown"),
        pytest.param("REQUIRED_MODELS", '["a", 1]', "strings only", id="list with a number"),
        pytest.param("REQUIRED_MODELS", '["a"', "JSON", id="list that is not JSON"),
        pytest.param("REQUIRED_MODELS", "[]", "at least 1", id="list empty"),
        pytest.param("REQUIRED_MODELS", ",", "at least 1", id="list of nothing"),
        pytest.param("MAX_CACHED_MODELS", "0", "greater than 0", id="no place"),
        pytest.param("MODEL_CACHE_TTL", "-1", "greater than 0", id="time negative"),
        pytest.param("MODEL_CACHE_TTL", "inf", "finite", id="time without end"),
        pytest.param("REQUEST_TIMEOUT", "nan", "finite", id="time that is no number"),
        pytest.param("CLEANUP_INTERVAL", "0", "greater than 0", id="time zero"),
        pytest.param("THREAD_POOL_WORKERS", "1.5", "integer", id="half a worker"),
        pytest.param("MICRO_BATCH_TOKENS", "8", "greater than or equal to 16", id="budget too small"),
        pytest.param("MAX_REQUEST_SIZE", "10 parsecs", "unit", id="unit unknown"),
        pytest.param("MAX_REQUEST_SIZE", "0", "greater than or equal to 1", id="size zero"),
        pytest.param("MAX_REQUEST_SIZE", "-5", "byte", id="size negative"),
        pytest.param("MODEL_MEMORY_BUDGET", "much", "byte", id="size in words"),
        pytest.param("MODEL_MEMORY_BUDGET", "0", "greater than", id="budget zero"),
        pytest.param("CORS_ORIGINS", "app.example", "no origin", id="origin without a scheme"),
        pytest.param("CORS_ORIGINS", "https://app.example/", "no origin", id="origin with a path"),
        pytest.param("RATE_LIMIT_REQUESTS", "0", "greater than or equal to 1", id="nobody may ask"),
        pytest.param("RATE_LIMIT_REQUESTS", "100001", "less than or equal to 100000", id="limit beyond what is exact"),
        pytest.param("RATE_LIMIT_WINDOW", "0.5", "integer", id="half a second"),
        pytest.param("RATE_LIMIT_TOKENS", "0", "greater than or equal to 1", id="no token"),
        pytest.param("TRUSTED_PROXIES", "10.0.0.1,proxy", "'proxy' does not appear", id="proxy by its name"),
        pytest.param("TRUSTED_PROXIES", "10.0.0.1/8", "host bits set", id="network with an address in it"),
        pytest.param("TRUSTED_PROXIES", "[1]", "strings only", id="proxy that is a number"),
        pytest.param("MAX_CACHED_MODELS", "1" + "0" * 30, "less than or equal to", id="number that JSON cannot hold"),
        pytest.param("SHUTDOWN_TIMEOUT", "1" + "0" * 400, "less than or equal to", id="time that no timer takes"),
        pytest.param("REQUEST_TIMEOUT", "1e300", "less than or equal to", id="time past all timers"),
        pytest.param("MAX_REQUEST_SIZE", "9" * 30, "less than or equal to", id="size past all memory"),
        pytest.param("MODELS_DIR", "x" * 5000, "no address of a file or folder", id="folder with too long a name"),
    ],
)
def test_bad_value_is_told_in_one_line(name: str, value: str, allowed: str, read: Read) -> None:
    with pytest.raises(SettingsError) as refusal:
        read(**{name: value})
    message = str(refusal.value)
    assert message.lower().startswith(f"{name}={value!r} is not allowed: ".lower())
    assert allowed in message
    assert "\n" not in message


def test_bad_value_of_the_env_file_is_told_in_the_same_way(read: Read, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("PORT=abc\n")
    with pytest.raises(SettingsError, match=r"^PORT='abc' is not allowed: .*integer"):
        read(tmp_path / ".env")


def test_value_with_a_line_break_is_told_in_one_line(read: Read) -> None:
    with pytest.raises(SettingsError) as refusal:
        read(LOG_LEVEL="INFO\nDEBUG")
    assert "\n" not in str(refusal.value)


def test_all_bad_values_are_told_at_once(read: Read) -> None:
    with pytest.raises(SettingsError) as refusal:
        read(PORT="abc", LOG_LEVEL="loud")
    assert "PORT='abc'" in str(refusal.value)
    assert "LOG_LEVEL=" in str(refusal.value)


def test_env_file_that_is_not_utf8_is_told_in_one_line(read: Read, tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes("HOST=\xfcber\n".encode("latin-1"))
    with pytest.raises(SettingsError, match="UTF-8"):
        read(tmp_path / ".env")


def test_more_required_models_than_places_are_a_contradiction(read: Read) -> None:
    with pytest.raises(SettingsError) as refusal:
        read(REQUIRED_MODELS="a,b,c", MAX_CACHED_MODELS="2")
    for told in ("REQUIRED_MODELS", "3 models", "MAX_CACHED_MODELS=2"):
        assert told in str(refusal.value)


def test_as_many_required_models_as_places_are_fine(read: Read) -> None:
    assert read(REQUIRED_MODELS="a,b", MAX_CACHED_MODELS="2").required_models == ("a", "b")


def test_required_model_that_is_not_allowed_is_a_contradiction(read: Read) -> None:
    with pytest.raises(SettingsError) as refusal:
        read(REQUIRED_MODELS="a,b", ALLOWED_MODELS="a,c")
    for told in ("REQUIRED_MODELS", "'b'", "ALLOWED_MODELS"):
        assert told in str(refusal.value)


def test_default_required_model_must_be_allowed_too(read: Read) -> None:
    with pytest.raises(SettingsError, match=re.escape(BUNDLED_MODEL)):
        read(ALLOWED_MODELS="BAAI/bge-small-en-v1.5")


def test_required_model_is_allowed_whatever_its_case(read: Read) -> None:
    """The catalogue finds a model whatever the case of its name."""
    settings = read(REQUIRED_MODELS="baai/BGE-small-en-v1.5", ALLOWED_MODELS="BAAI/bge-small-en-v1.5")
    assert settings.required_models == ("baai/BGE-small-en-v1.5",)


def test_settings_cannot_be_changed(read: Read) -> None:
    settings: Any = read()
    with pytest.raises(ValidationError, match="frozen"):
        settings.port = 1


def test_env_file_is_read(read: Read, tmp_path: Path) -> None:
    lines = ["# a comment", "PORT=9001", "REQUIRED_MODELS=a, b", "HOST='127.0.0.1'", "export LOG_LEVEL=debug"]
    (tmp_path / ".env").write_text("\n".join(lines))
    settings = read(tmp_path / ".env")
    assert (settings.port, settings.required_models) == (9001, ("a", "b"))
    assert (settings.host, settings.log_level) == ("127.0.0.1", "DEBUG")


def test_environment_wins_over_the_env_file(read: Read, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("PORT=9001\nMAX_BATCH_SIZE=7\n")
    settings = read(tmp_path / ".env", PORT="9002")
    assert (settings.port, settings.max_batch_size) == (9002, 7)


def test_variables_of_others_are_ignored(read: Read, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("SOMEBODY_ELSES=1\n")
    assert read(tmp_path / ".env") == read()


def test_env_file_lies_beside_the_code_and_not_where_the_caller_stands() -> None:
    assert Settings.model_config.get("env_file") == HERE / ".env"


@pytest.mark.parametrize(
    "value",
    [
        "redis://host",
        "redis://:hush@host:6380/2",
        "redis://user:hush@[::1]:6380",
        "rediss://host:6379/0?ssl_cert_reqs=none",
        "unix:///run/redis.sock?db=1",
    ],
)
def test_redis_url_is_taken_and_never_shown(value: str, read: Read) -> None:
    settings = read(REDIS_URL=value)
    assert settings.redis_url is not None
    assert settings.redis_url.get_secret_value() == value
    assert value not in f"{settings!r} {settings} {settings.model_dump_json()}"


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("http://:hush@host", id="scheme unknown"),
        pytest.param("hush@host:6379", id="no scheme"),
        pytest.param("redis://", id="no host"),
        pytest.param("redis://:hush@:6379", id="no host, but a port"),
        pytest.param("redis://:hush@host:port", id="port in letters"),
        pytest.param("redis://:hush@host:65536", id="port too large"),
        pytest.param("redis://:hush@[host", id="bracket"),
        pytest.param("redis://:hush@\u2100", id="host that is no host in another form"),
        pytest.param("unix://", id="no path"),
    ],
)
def test_bad_redis_url_is_told_without_what_it_holds(value: str, read: Read) -> None:
    with pytest.raises(SettingsError) as refusal:
        read(REDIS_URL=value)
    assert str(refusal.value).startswith("REDIS_URL is not allowed: write redis://host:port/database")
    assert "hush" not in str(refusal.value)


def test_trusted_proxies_are_addresses_and_networks(read: Read) -> None:
    proxies = read(TRUSTED_PROXIES=" 10.0.0.7, 10.1.0.0/16,fd00::/8,10.0.0.7 ").trusted_proxies
    assert proxies == tuple(map(ip_network, ("10.0.0.7", "10.1.0.0/16", "fd00::/8")))
    assert read(TRUSTED_PROXIES='["::1"]').trusted_proxies == (ip_network("::1"),)


def test_secrets_are_the_settings_whose_type_says_so() -> None:
    """Those alone are left out of the message about a wrong value."""
    hidden = {name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)}
    assert hidden == SECRETS
