"""Settings: what each kind of value accepts, what a wrong value says, and that the pages state the same as the code."""

import json
import re
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from config import (
    BUNDLED_MODEL,
    BUNDLED_MODELS_DIR,
    ENV_FILE,
    HERE,
    SETTING_NAMES,
    Settings,
    SettingsError,
    load_settings,
)
from setting_errors import SECRETS

ENV_EXAMPLE = (HERE / ".env.example").read_text("utf-8")
SETTING_LINE = r"(?m)^(?:# )?([A-Z][A-Z0-9_]+)="
SET_IN_ENV_EXAMPLE = {"thread_pool_workers": "auto"}
"""What the copy of `.env.example` changes; all other lines are comments that state the defaults."""

Read = Callable[..., Settings]


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the developer's own settings."""
    for name in SETTING_NAMES:
        for spelling in (name, name.lower()):
            monkeypatch.delenv(spelling, raising=False)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Read:
    """Read the settings from these environment variables and from this `.env`; by default there is none."""

    def read(env_file: Path | None = None, **variables: str) -> Settings:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return load_settings(_env_file=env_file)

    return read


def error_of(read: Read, **variables: str) -> str:
    """Return the one line that rejects these variables."""
    with pytest.raises(SettingsError) as rejection:
        read(**variables)
    message = str(rejection.value)
    assert "\n" not in message
    assert message.endswith((".", "?"))
    assert not message.endswith("..")
    return message


# --- The pages state the same as the code ---


def test_env_example_has_each_setting_once_and_no_other_name() -> None:
    assert sorted(re.findall(SETTING_LINE, ENV_EXAMPLE)) == sorted(SETTING_NAMES)


def test_env_example_describes_each_setting_in_the_words_of_the_code() -> None:
    comments = {
        name: " ".join(comment.replace("\n# ", " ").split())
        for comment, name in re.findall(r"(?m)^# ((?:(?!\n\n)[\s\S])+?)\n(?:# )?([A-Z][A-Z0-9_]+)=.*$", ENV_EXAMPLE)
    }
    descriptions = {name.upper(): str(field.description) for name, field in Settings.model_fields.items()}
    assert [name for name in SETTING_NAMES if not comments.get(name, "").startswith(descriptions[name])] == []


def test_env_example_states_the_defaults(read: Read, tmp_path: Path) -> None:
    """Removing every `#` before a setting of the copy changes nothing."""
    unchanged = tmp_path / "unchanged"
    unchanged.write_text(ENV_EXAMPLE, "utf-8")
    assert read(unchanged) == read().model_copy(update=SET_IN_ENV_EXAMPLE)
    copy = tmp_path / ".env"
    copy.write_text(re.sub(SETTING_LINE, r"\1=", ENV_EXAMPLE), "utf-8")
    copied, bare = read(copy), read()
    differing = [name for name in Settings.model_fields if getattr(copied, name) != getattr(bare, name)]
    # The defaults of folders are absolute paths.
    assert [name for name in differing if not name.endswith("_dir")] == list(SET_IN_ENV_EXAMPLE)


def test_settings_page_has_each_setting_with_default_description_and_advice(read: Read, tmp_path: Path) -> None:
    rows = re.findall(
        r"(?m)^\| `([A-Z0-9_]+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", (HERE / "docs/SETTINGS.md").read_text("utf-8")
    )
    assert sorted(name for name, *_ in rows) == sorted(SETTING_NAMES)
    assert [name for name, *_, advice in rows if not advice.strip()] == []
    meanings = {name: meaning.replace("`", "") for name, _, meaning, _ in rows}
    descriptions = {name.upper(): str(field.description) for name, field in Settings.model_fields.items()}
    assert [name for name in SETTING_NAMES if not f"{meanings[name]}.".startswith(descriptions[name])] == []
    defaults = [(name, "" if default == "empty" else default.strip("`")) for name, default, *_ in rows]
    (tmp_path / ".env").write_text("".join(f"{name}={default}\n" for name, default in defaults), "utf-8")
    stated, bare = read(tmp_path / ".env"), read()
    differing = [name for name in Settings.model_fields if getattr(stated, name) != getattr(bare, name)]
    # The defaults of folders are absolute paths.
    assert [name for name in differing if not name.endswith("_dir")] == []


def test_recommended_settings_of_the_production_page_are_valid(read: Read, tmp_path: Path) -> None:
    [recommended] = re.findall(r"```ini\n(.*?)```", (HERE / "docs" / "PRODUCTION.md").read_text("utf-8"), re.DOTALL)
    (tmp_path / ".env").write_text(recommended, "utf-8")
    settings = read(tmp_path / ".env")
    stated = {line.partition("=")[0].lower() for line in recommended.splitlines() if not line.startswith("#")}
    assert stated <= settings.model_fields_set
    assert settings.closed_routes == ("metrics", "models", "docs")


# --- Defaults ---


def test_defaults_are_those_of_the_specification(read: Read) -> None:
    specified = {
        "host": "0.0.0.0",  # noqa: S104 - the specified value
        "port": 8000,
        "debug": False,
        "log_level": "INFO",
        "required_models": (BUNDLED_MODEL,),
        "allowed_models": (),
        "thread_pool_workers": 4,
        "max_text_length": 8192,
        "max_batch_size": 32,
        "request_timeout": 300,
        "model_cache_ttl": 3600,
        "max_cached_models": 5,
        "cleanup_interval": 60,
        "max_request_size": 10_000_000,
        "enable_rate_limit": False,
        "rate_limit_requests": 60,
        "enable_cors": True,
        "cors_origins": ("*",),
        "enable_metrics": True,
    }
    settings = read()
    assert {name: getattr(settings, name) for name in specified} == specified


def test_optional_settings_are_off_by_default(read: Read) -> None:
    settings = read()
    off = ["rate_limit_tokens", "redis_url", "trusted_proxies", "model_memory_budget", "closed_routes", "key_sources"]
    assert [name for name in off if getattr(settings, name)] == []
    assert settings.jwt_leeway == 30


def test_bundled_model_is_in_the_bundled_models_folder(read: Read) -> None:
    manifests = [json.loads(path.read_text("utf-8")) for path in BUNDLED_MODELS_DIR.glob("*/model.json")]
    assert BUNDLED_MODEL in [manifest["name"] for manifest in manifests]
    assert read().models_dir == BUNDLED_MODELS_DIR


@pytest.mark.parametrize("place", ["environment", ".env"])
def test_empty_value_means_the_default(place: str, read: Read, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("".join(f"{name}=\n" for name in SETTING_NAMES))
    empty = read(tmp_path / ".env") if place == ".env" else read(**dict.fromkeys(SETTING_NAMES, ""))
    assert empty == read()


# --- Kinds of values ---


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("a/one,b/two", id="commas"),
        pytest.param(" ,a/one , b/two,,", id="spaces and surplus commas"),
        pytest.param("a/one,b/two,a/one", id="duplicates"),
        pytest.param(' ["a/one", " b/two ", ""]', id="JSON"),
    ],
)
def test_list_may_be_written_with(value: str, read: Read) -> None:
    settings = read(REQUIRED_MODELS=value, ALLOWED_MODELS=value, JWT_AUDIENCE=value, JWT_ISSUER=value)
    for name in ("required_models", "allowed_models", "jwt_audience", "jwt_issuer"):
        assert getattr(settings, name) == ("a/one", "b/two"), name


def test_required_models_keep_their_order(read: Read) -> None:
    """The first is the default for requests."""
    assert read(REQUIRED_MODELS="z,a,m").required_models == ("z", "a", "m")


@pytest.mark.parametrize(
    ("value", "size"),
    [("10MB", 10_000_000), ("512KiB", 524_288), ("1.5 MB", 1_500_000), ("2gb", 2 * 10**9), ("1024", 1024)],
)
def test_size_may_have_a_unit(value: str, size: int, read: Read) -> None:
    for name in (
        "MAX_REQUEST_SIZE",
        "MAX_HEADER_SIZE",
        "MODEL_MEMORY_BUDGET",
        "LONE_TEXT_MEMORY",
        "HUB_CACHE_MAX_SIZE",
    ):
        assert getattr(read(**{name: value}), name.lower()) == size, name


@pytest.mark.parametrize(
    ("is_on", "values"), [(True, ["true", "True", "1", "yes", "on"]), (False, ["false", "False", "0", "no", "off"])]
)
def test_switch_accepts_the_usual_words(values: list[str], read: Read, *, is_on: bool) -> None:
    for value in values:
        settings = read(DEBUG=value, ENABLE_CORS=value, ENABLE_METRICS=value, ENABLE_RATE_LIMIT=value)
        switches = (settings.debug, settings.enable_cors, settings.enable_metrics, settings.enable_rate_limit)
        assert switches == (is_on,) * 4, value


def test_hosts_are_kept_in_their_canonical_form(read: Read) -> None:
    hosts = read(ALLOWED_HOSTS="API.Example.com., *.M\u00fcnchen.example,[::1],10.0.0.0/8").allowed_hosts
    assert hosts == ("api.example.com", "*.xn--mnchen-3ya.example", "::1/128", "10.0.0.0/8")
    assert read(ALLOWED_HOSTS="a.example,*").allowed_hosts == ()


def test_threads_are_a_number_or_auto(read: Read) -> None:
    found = [read(THREAD_POOL_WORKERS=value).thread_pool_workers for value in ("8", "auto", " AUTO ")]
    assert found == [8, "auto", "auto"]


def test_words_and_names_may_be_written_in_any_case(read: Read) -> None:
    settings = read(LOG_LEVEL="warning", LOG_FORMAT="JSON", CLOSED_ROUTES="Docs", API_KEYS="k", port="9000")
    assert (settings.log_level, settings.log_format, settings.port) == ("WARNING", "json", 9000)
    assert settings.closed_routes == ("docs",)


def test_trusted_proxies_are_addresses_and_networks(read: Read) -> None:
    proxies = read(TRUSTED_PROXIES=" 10.0.0.7, 10.1.0.0/16,fd00::/8,10.0.0.7 ").trusted_proxies
    assert proxies == tuple(map(ip_network, ("10.0.0.7", "10.1.0.0/16", "fd00::/8")))
    assert read(TRUSTED_PROXIES='["::1"]').trusted_proxies == (ip_network("::1"),)


# --- Wrong values ---


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        pytest.param("PORT", "abc", "whole number", id="port that is not a number"),
        pytest.param("PORT", "0", "greater than or equal to 1", id="port too small"),
        pytest.param("PORT", "65536", "less than or equal to 65535", id="port too large"),
        pytest.param("DEBUG", "maybe", "true or false", id="switch neither on nor off"),
        pytest.param("LOG_LEVEL", "loud", "'DEBUG', 'INFO', 'WARNING', 'ERROR' or 'CRITICAL'", id="unknown level"),
        pytest.param("LOG_FORMAT", "Xml", "'auto', 'json' or 'console'", id="unknown format"),
        pytest.param("CLOSED_ROUTES", "docs,Health", "'metrics', 'docs' or 'models'", id="unknown route"),
        pytest.param("REQUIRED_MODELS", '["a", 1]', "list of strings", id="list with a number"),
        pytest.param("REQUIRED_MODELS", '["a"', "JSON", id="list that is not JSON"),
        pytest.param("REQUIRED_MODELS", ",", "at least 1", id="list without names"),
        pytest.param("MODEL_CACHE_TTL", "-1", "greater than 0", id="negative time"),
        pytest.param("MODEL_CACHE_TTL", "inf", "finite", id="infinite time"),
        pytest.param("REQUEST_TIMEOUT", "nan", "finite", id="time that is not a number"),
        pytest.param("REQUEST_TIMEOUT", "1e300", "less than or equal to", id="time too long for timers"),
        pytest.param("ALLOWED_HOSTS", "a.example,https://b.example", "without a scheme and a port", id="host as a URL"),
        pytest.param("ALLOWED_HOSTS", "a.example:8000", "without a scheme and a port", id="host with a port"),
        pytest.param("ALLOWED_HOSTS", "a.*.example", "names such as api.example.com", id="wildcard inside"),
        pytest.param("ALLOWED_HOSTS", "a..example", "names such as api.example.com", id="empty label"),
        pytest.param("THREAD_POOL_WORKERS", "1.5", "whole number, or auto", id="fraction of a thread"),
        pytest.param("THREAD_POOL_WORKERS", "0", "greater than 0", id="no thread"),
        pytest.param("THREAD_POOL_WORKERS", "9" * 30, "less than or equal to", id="too many threads"),
        pytest.param("MICRO_BATCH_TOKENS", "8", "greater than or equal to 16", id="too few tokens per run"),
        pytest.param("MAX_CACHED_MODELS", "0", "greater than 0", id="count of zero"),
        pytest.param("MAX_CACHED_MODELS", "1" + "0" * 30, "less than or equal to", id="count too large for JSON"),
        pytest.param("MAX_REQUEST_SIZE", "10 parsecs", "unit", id="unknown unit"),
        pytest.param("MAX_REQUEST_SIZE", "10,000", "such as", id="size with a comma"),
        pytest.param("HUB_CACHE_MAX_SIZE", "1,5GB", "such as", id="size with a decimal comma"),
        pytest.param("HUB_CACHE_MAX_SIZE", "80%", "such as", id="size in percent"),
        pytest.param("MODEL_MEMORY_BUDGET", "2GB or so", "such as", id="size with words"),
        pytest.param("MAX_REQUEST_SIZE", "0", "greater than or equal to 1", id="size of zero"),
        pytest.param("MAX_REQUEST_SIZE", "-5", "byte", id="negative size"),
        pytest.param("MAX_REQUEST_SIZE", "9" * 30, "less than or equal to", id="size too large"),
        pytest.param("MODEL_MEMORY_BUDGET", "0", "greater than", id="budget of zero"),
        pytest.param("RATE_LIMIT_REQUESTS", "100001", "less than or equal to 100000", id="quota that is not exact"),
        pytest.param("RATE_LIMIT_WINDOW", "0.5", "whole number", id="fraction of a second"),
        pytest.param("RATE_LIMIT_TOKENS", "0", "greater than or equal to 1", id="quota of no tokens"),
        pytest.param("IPV4_CALLER_PREFIX", "7", "greater than or equal to 8", id="IPv4 prefix too short"),
        pytest.param("IPV4_CALLER_PREFIX", "33", "less than or equal to 32", id="IPv4 prefix too long"),
        pytest.param("IPV6_CALLER_PREFIX", "31", "greater than or equal to 32", id="IPv6 prefix too short"),
        pytest.param("IPV6_CALLER_PREFIX", "/64", "whole number", id="IPv6 prefix with a slash"),
        pytest.param("IPV6_WIDE_CALLER_PREFIX", "15", "greater than or equal to 16", id="wide IPv6 prefix too short"),
        pytest.param("CORS_ORIGINS", "app.example", "(no path), or *.", id="origin without a scheme"),
        pytest.param("CORS_ORIGINS", "https://app.example/", "(no path), or *.", id="origin with a path"),
        pytest.param("TRUSTED_PROXIES", "10.0.0.1,proxy", "'proxy' does not appear", id="proxy by its name"),
        pytest.param("TRUSTED_PROXIES", "10.0.0.1/8", "host bits set", id="network with an address in it"),
        pytest.param("RESULT_CACHE_MB", "64MB", "use a whole number of megabytes", id="megabytes with a unit"),
        pytest.param("RESULT_CACHE_MB", "-1", "greater than or equal to 0", id="negative megabytes"),
        pytest.param("RESULT_CACHE_TTL", "0", "greater than 0", id="results that expire at once"),
        pytest.param("RESULT_CACHE_REDIS_TIMEOUT", "50ms", "use a number", id="seconds with a unit"),
        pytest.param("CACHE_SCOPE", "all", "'shared' or 'caller'", id="unknown scope"),
        pytest.param("MODELS_DIR", "x" * 5000, "not a valid path", id="path too long"),
        pytest.param("LOG_LEVEL", "INFO\nDEBUG", "'INFO'", id="line break"),
    ],
)
def test_wrong_value_is_rejected_as_it_was_typed(name: str, value: str, allowed: str, read: Read) -> None:
    message = error_of(read, **{name: value})
    assert message.startswith(f"{name}={value!r} is not allowed: ")
    assert allowed in message


def test_origin_error_names_the_origin_and_a_valid_form(read: Read) -> None:
    assert error_of(read, CORS_ORIGINS="https://ok.example,x").endswith(
        "'x' is not a valid origin. Use a form like https://app.example (no path), or *."
    )


def test_all_wrong_values_are_reported_at_once(read: Read) -> None:
    message = error_of(read, PORT="abc", LOG_LEVEL="loud")
    assert "PORT='abc'" in message
    assert "LOG_LEVEL='loud'" in message


@pytest.mark.parametrize(
    ("variables", "parts"),
    [
        pytest.param(
            {"REQUIRED_MODELS": "a,b,c", "MAX_CACHED_MODELS": "2"},
            ("REQUIRED_MODELS names 3 models", "MAX_CACHED_MODELS=2"),
            id="more required models than fit into memory",
        ),
        pytest.param(
            {"REQUIRED_MODELS": "a,b", "ALLOWED_MODELS": "a,c"},
            ("REQUIRED_MODELS names 'b'", "add it to ALLOWED_MODELS"),
            id="required model that is not allowed",
        ),
        pytest.param({"ALLOWED_MODELS": "a"}, (f"names {BUNDLED_MODEL!r}",), id="default model that is not allowed"),
        pytest.param(
            {"CLOSED_ROUTES": "docs"}, ("no key or token is configured", "API_KEYS_FILE"), id="closed routes, no keys"
        ),
        pytest.param(
            {"JWT_PUBLIC_KEY_FILE": "key.pem", "JWT_JWKS_URL": "https://a"},
            ("set one of them",),
            id="two sources of one key",
        ),
        pytest.param(
            {"IPV6_WIDE_CALLER_PREFIX": "65"},
            ("IPV6_WIDE_CALLER_PREFIX=65 is longer than IPV6_CALLER_PREFIX=64", "64 for no second quota"),
            id="wide network narrower than a caller",
        ),
        pytest.param(
            {"RESULT_CACHE_REDIS": "true", "CACHE_KEY_SECRET": "x" * 32},
            ("RESULT_CACHE_REDIS=true needs a Redis", "REDIS_URL_FILE"),
            id="results in Redis without a Redis",
        ),
        pytest.param(
            {"RESULT_CACHE_REDIS": "true", "REDIS_URL": "redis://host"},
            ("RESULT_CACHE_REDIS=true needs a secret", "CACHE_KEY_SECRET_FILE", "openssl rand -hex 32"),
            id="results in Redis without a secret",
        ),
        pytest.param(
            {"RESULT_CACHE_REDIS": "true"},
            ("needs a Redis; set REDIS_URL or REDIS_URL_FILE. RESULT_CACHE_REDIS=true needs a secret",),
            id="results in Redis with neither",
        ),
    ],
)
def test_contradiction_is_rejected(variables: dict[str, str], parts: tuple[str, ...], read: Read) -> None:
    message = error_of(read, **variables)
    assert [part for part in parts if part not in message] == []


@pytest.mark.parametrize(
    ("value", "aliases"),
    [
        pytest.param("", (), id="empty"),
        pytest.param("small=a/b", (("small", "a/b"),), id="one"),
        pytest.param(
            " small = a/b ,, Big:v1=c=d ", (("small", "a/b"), ("Big:v1", "c=d")), id="blanks, and = in a name"
        ),
        pytest.param('{"small": "a/b", "x,y": "c"}', (("small", "a/b"), ("x,y", "c")), id="JSON object"),
        pytest.param('["small=a/b", "big=c"]', (("small", "a/b"), ("big", "c")), id="JSON list"),
        pytest.param("{}", (), id="empty object"),
    ],
)
def test_aliases_are_pairs_or_a_json_object(value: str, aliases: tuple[tuple[str, str], ...], read: Read) -> None:
    assert read(MODEL_ALIASES=value).model_aliases == aliases


@pytest.mark.parametrize(
    "value",
    [
        *("small", "small=", "=a/b", "a=b,c", "[1]", '{"a": "b"', '{"a": "b"} x'),
        *('{"a": 1}', '{"a": {"b": "c"}}', '{"a": ""}', '{"a": null}', '{"a": ["b"]}'),
    ],
)
def test_an_alias_without_its_model_is_rejected(value: str, read: Read) -> None:
    message = error_of(read, MODEL_ALIASES=value)
    assert message.startswith(f"MODEL_ALIASES={value!r} is not allowed: write alias=model, separated by commas, or ")


def test_an_alias_of_a_model_that_is_not_allowed_is_rejected(read: Read) -> None:
    required = {"REQUIRED_MODELS": "A/b", "ALLOWED_MODELS": "a/b"}
    assert read(**required, MODEL_ALIASES="x=A/B").model_aliases == (("x", "A/B"),)
    message = error_of(read, **required, MODEL_ALIASES="x=A/B,y=other")
    assert message == "MODEL_ALIASES: 'y' means 'other', which ALLOWED_MODELS does not name; add it there."


def test_required_models_may_fill_the_memory_and_differ_in_case_from_the_allowed_ones(read: Read) -> None:
    settings = read(REQUIRED_MODELS="baai/BGE,b", MAX_CACHED_MODELS="2", ALLOWED_MODELS="BAAI/bge,B")
    assert settings.required_models == ("baai/BGE", "b")


def test_wide_prefix_that_is_not_set_follows_a_short_prefix_of_callers(read: Read) -> None:
    assert read(IPV6_CALLER_PREFIX="40").ipv6_caller_prefix == 40
    assert read(IPV6_CALLER_PREFIX="40", IPV6_WIDE_CALLER_PREFIX="").ipv6_caller_prefix == 40
    assert read(IPV6_CALLER_PREFIX="40", IPV6_WIDE_CALLER_PREFIX="40").ipv6_wide_caller_prefix == 40


@pytest.mark.parametrize(
    ("variables", "is_per_caller"),
    [
        pytest.param({}, False, id="no keys"),
        pytest.param({"API_KEYS": "alice:0123456789abcdef"}, True, id="keys"),
        pytest.param({"JWT_SECRET": "x" * 32}, True, id="tokens"),
        pytest.param({"API_KEYS": "alice:0123456789abcdef", "CACHE_SCOPE": "Shared"}, False, id="keys, but shared"),
        pytest.param({"CACHE_SCOPE": "caller"}, True, id="no keys, but by caller"),
        pytest.param({"API_KEYS_FILE": "keys", "CACHE_SCOPE": ""}, True, id="empty: by whether there are keys"),
    ],
)
def test_results_are_kept_for_their_caller_only_if_there_are_keys_or_the_scope_says_so(
    variables: dict[str, str], read: Read, *, is_per_caller: bool
) -> None:
    assert read(**variables).is_cache_per_caller is is_per_caller


def test_quotas_in_redis_need_no_secret_of_the_cache(read: Read) -> None:
    assert not read(REDIS_URL="redis://host", ENABLE_RATE_LIMIT="true").result_cache_redis


# --- Secrets ---


def test_secrets_are_exactly_the_settings_whose_type_is_secret() -> None:
    hidden = {name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)}
    assert hidden == SECRETS


@pytest.mark.parametrize(
    "value",
    [
        "redis://host",
        "redis://host/",
        "redis://:hush@host:6380/2",
        "redis://user:hush@[::1]:6380",
        "rediss://host:6379/0?ssl_cert_reqs=none",
        "unix:///run/redis.sock?db=1",
    ],
)
def test_redis_url_is_accepted_and_never_shown(value: str, read: Read) -> None:
    settings = read(REDIS_URL=value)
    assert settings.redis_url is not None
    assert settings.redis_url.get_secret_value() == value
    assert value not in f"{settings!r} {settings} {settings.model_dump_json()}"


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("http://:hush@host", id="unknown scheme"),
        pytest.param("hush@host:6379", id="no scheme"),
        pytest.param("redis://:hush@:6379", id="no host"),
        pytest.param("redis://:hush@host:port", id="port in letters"),
        pytest.param("redis://:hush@host:65536", id="port too large"),
        pytest.param("redis://:hush@[host", id="open bracket"),
        pytest.param("redis://:hush@\u2100", id="host that is invalid after normalisation"),
        pytest.param("redis://:hush@host/limits", id="database that is no number"),
        pytest.param("redis://:hush@host/1/2", id="two databases"),
        pytest.param("unix://", id="no path"),
    ],
)
def test_wrong_redis_url_is_rejected_without_its_password(value: str, read: Read) -> None:
    message = error_of(read, REDIS_URL=value)
    assert message.startswith("REDIS_URL is not allowed: use redis://host:port/database")
    assert "hush" not in message


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        pytest.param("JWT_SECRET", "hush", "at least 32 bytes", id="short secret"),
        pytest.param("CACHE_KEY_SECRET", "hush", "at least 32 bytes", id="short secret of the cache"),
        pytest.param("JWT_JWKS_URL", "https://hush@login.example", "without a user name", id="address with a user"),
        pytest.param("JWT_JWKS_URL", "ftp://hush.example", "https://login.example", id="address of another kind"),
        pytest.param("JWT_JWKS_URL", "https://[hush", "https://login.example", id="address that is malformed"),
        pytest.param("API_KEYS", '["hush", 1]', "separate names with commas", id="keys that are not strings"),
    ],
)
def test_wrong_secret_is_rejected_without_its_value(name: str, value: str, allowed: str, read: Read) -> None:
    message = error_of(read, **{name: value})
    assert message.startswith(f"{name} is not allowed: ")
    assert allowed in message
    assert "hush" not in message


# --- Where settings come from ---


def test_env_file_is_read_and_the_environment_wins(read: Read, tmp_path: Path) -> None:
    lines = ["# a comment", "PORT=9001", "REQUIRED_MODELS=a, b", "HOST='127.0.0.1'", "export LOG_LEVEL=debug"]
    (tmp_path / ".env").write_text("\n".join([*lines, "MAX_BATCH_SIZE=7", "OF_ANOTHER_PROGRAM=1"]))
    settings = read(tmp_path / ".env", PORT="9002")
    assert (settings.port, settings.max_batch_size, settings.required_models) == (9002, 7, ("a", "b"))
    assert (settings.host, settings.log_level) == ("127.0.0.1", "DEBUG")


def test_env_file_is_beside_the_code_of_a_clone_whatever_the_working_directory() -> None:
    assert HERE / ".env" == ENV_FILE == Settings.model_config.get("env_file")


def test_wrong_value_in_the_env_file_is_rejected_in_the_same_words(read: Read, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("PORT=abc\n")
    with pytest.raises(SettingsError, match=r"^PORT='abc' is not allowed: .*whole number"):
        read(tmp_path / ".env")


def test_env_file_that_cannot_be_parsed_is_rejected(read: Read, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("PORT 8000\n")
    with pytest.raises(SettingsError, match=r"^\.env, line 1: .*NAME=value"):
        read(tmp_path / ".env")


def test_settings_cannot_be_changed(read: Read) -> None:
    settings: Any = read()
    with pytest.raises(ValidationError, match="frozen"):
        settings.port = 1
