"""From the settings to keys, tokens and closed routes; errors in them never show a key."""

import os
from pathlib import Path
from typing import Any

import pytest
from litestar import Litestar
from redis.asyncio import Redis
from structlog.testing import capture_logs

from access.principals import NoTokens, Principal
from access.redis_quotas import RedisQuotas
from assembly.access import is_loopback, quota_store, read_access
from config import SettingsError
from tests.support.apps import settings_of
from tests.support.signing_keys import SECRET, ec_key, issuing, private_pem, public_jwk, public_pem, rsa_key, token

KEY, OTHER = "0123456789-alice-key", "0123456789-other-key"


def test_without_a_key_everything_is_open() -> None:
    access = read_access(settings_of())
    assert (access.sources, access.protected) == ((), frozenset())
    assert isinstance(access.tokens, NoTokens)


def test_with_keys_embedding_needs_one_and_closed_routes_do_too() -> None:
    access = read_access(settings_of(API_KEYS=f"alice:{KEY}", CLOSED_ROUTES="Metrics, docs"))
    assert access.sources == ("API_KEYS",)
    assert access.protected == {"embed", "admin", "metrics", "docs"}
    assert access.keys.find(KEY.encode()) == Principal("key", "alice", permissions=frozenset({"embed"}))


def test_keys_are_read_from_the_settings_and_from_the_file(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"bob:{OTHER}\n")
    access = read_access(settings_of(API_KEYS=KEY, API_KEYS_FILE=str(tmp_path / "keys")))
    assert access.sources == ("API_KEYS", "API_KEYS_FILE")
    assert len(access.keys) == 2


def test_keys_may_be_written_as_json() -> None:
    assert len(read_access(settings_of(API_KEYS=f'["{KEY}", "bob:{OTHER}"]')).keys) == 2


async def test_each_algorithm_uses_the_key_that_is_set_for_it(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_bytes(public_pem(ec_key()))
    access = read_access(
        settings_of(
            JWT_SECRET=SECRET, JWT_PUBLIC_KEY_FILE=str(tmp_path / "key.pem"), JWT_AUDIENCE="here", JWT_ISSUER="me"
        )
    )
    for key, algorithm in ((SECRET, "HS256"), (ec_key(), "ES256")):
        caller = await access.tokens.verify(token(key, algorithm, aud="here", iss="me").encode())
        assert caller is not None
        assert caller.name == "alice"
    await access.tokens.aclose()


async def test_keys_of_an_issuer_are_fetched_from_its_address() -> None:
    with issuing(public_jwk(rsa_key(), "one")) as issuer:
        access = read_access(settings_of(JWT_JWKS_URL=issuer.url))
        assert issuer.asked == 0
        assert await access.tokens.verify(token(rsa_key(), "RS256", kid="one").encode())
    await access.tokens.aclose()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        pytest.param({"API_KEYS": "short"}, "API_KEYS: entry 1", id="short key"),
        pytest.param({"API_KEYS": f"{KEY},{KEY}"}, "API_KEYS: entry 2 has the same key as entry 1", id="key twice"),
        pytest.param({"API_KEYS": f"a:{KEY},a:{OTHER}"}, "API_KEYS: entry 2 has the same name", id="name twice"),
        pytest.param({"API_KEYS": f"a:{KEY}:all"}, "allowed are embed, metrics, admin", id="unknown scope"),
        pytest.param({"API_KEYS": f'["{KEY}"'}, "API_KEYS is not allowed", id="broken JSON"),
        pytest.param({"API_KEYS": f'["{KEY}", 1]'}, "API_KEYS is not allowed", id="number among keys"),
        pytest.param({"API_KEYS_FILE": "none"}, "API_KEYS_FILE: No such file", id="no file"),
        pytest.param({"API_KEYS_FILE": "."}, "API_KEYS_FILE: Is a directory", id="folder"),
        pytest.param({"API_KEYS_FILE": "broken"}, "API_KEYS_FILE: line 1", id="broken file"),
        pytest.param({"JWT_SECRET": KEY}, "JWT_SECRET is not allowed: give at least 32 bytes", id="short secret"),
        pytest.param({"JWT_SECRET": public_pem(rsa_key()).decode()}, "JWT_SECRET: it is a key of", id="no secret"),
        pytest.param({"JWT_PUBLIC_KEY_FILE": "none"}, "JWT_PUBLIC_KEY_FILE: No such file", id="no key file"),
        pytest.param({"JWT_PUBLIC_KEY_FILE": "broken"}, "JWT_PUBLIC_KEY_FILE: it contains no public key", id="no key"),
        pytest.param({"JWT_PUBLIC_KEY_FILE": "private.pem"}, "contains a private key", id="private key"),
        pytest.param({"JWT_JWKS_URL": "ftp://x/keys"}, "JWT_JWKS_URL is not allowed", id="no web address"),
        pytest.param({"JWT_JWKS_URL": "https://"}, "JWT_JWKS_URL is not allowed", id="no host"),
        pytest.param(
            {"JWT_JWKS_URL": f"https://me:{KEY}@x/"}, "JWT_JWKS_URL is not allowed", id="address with a password"
        ),
        pytest.param({"JWT_JWKS_URL": f"https://{KEY}\u2100/"}, "JWT_JWKS_URL", id="invalid character"),
        pytest.param({"JWT_JWKS_URL": f"https://x:{KEY}/"}, "JWT_JWKS_URL", id="invalid port"),
        pytest.param({"JWT_JWKS_URL": f"https://[{KEY}/"}, "JWT_JWKS_URL", id="malformed address"),
        pytest.param(
            {"JWT_JWKS_URL": "https://x/", "JWT_PUBLIC_KEY_FILE": "broken"}, "set one of them", id="two sources"
        ),
        pytest.param({"JWT_LEEWAY": "-1"}, "JWT_LEEWAY='-1' is not allowed", id="leeway negative"),
        pytest.param(
            {"CLOSED_ROUTES": "models"}, "no key or token is configured; set API_KEYS", id="closed without keys"
        ),
        pytest.param(
            {"CLOSED_ROUTES": "health", "API_KEYS": KEY},
            "'metrics', 'docs' or 'models'",
            id="never closed",
        ),
    ],
)
def test_bad_setting_is_reported_in_one_line_without_a_key(
    settings: dict[str, str], reason: str, tmp_path: Path
) -> None:
    (tmp_path / "broken").write_text(f"{KEY}:{OTHER}:{KEY}\n")
    (tmp_path / "private.pem").write_bytes(private_pem(rsa_key()))
    files = {name: str(tmp_path / value) for name, value in settings.items() if name.endswith("_FILE")}
    with pytest.raises(SettingsError) as failure:
        read_access(settings_of(**{**settings, **files}))
    message = str(failure.value)
    assert reason in message
    assert "\n" not in message
    for secret in (KEY, OTHER, "short", str(tmp_path)):
        assert secret not in message


# --- Secrets in files ---


def of_redis(**settings: str) -> str:
    """Return the address that the store of quotas uses."""
    store = quota_store(settings_of(ENABLE_RATE_LIMIT="true", **settings))
    assert isinstance(store, RedisQuotas)
    client = store._redis.commands  # noqa: SLF001 - nothing else shows the address
    assert isinstance(client, Redis)
    connection = client.connection_pool.connection_kwargs
    return f"{connection['password']}@{connection['host']}"


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n"])
async def test_secret_is_read_from_a_file_without_the_line_break_at_its_end(end: str, tmp_path: Path) -> None:
    (tmp_path / "jwt").write_bytes(b"\xef\xbb\xbf" + f"{SECRET}{end}".encode())
    (tmp_path / "redis").write_bytes(f"redis://:hush@redis.example:6379/0{end}".encode())
    access = read_access(settings_of(JWT_SECRET_FILE=str(tmp_path / "jwt")))
    assert access.sources == ("JWT_SECRET_FILE",)
    assert access.protected == {"embed", "admin"}
    assert await access.tokens.verify(token(SECRET, "HS256").encode())
    assert of_redis(REDIS_URL_FILE=str(tmp_path / "redis")) == "hush@redis.example"


SECRET_FILES = {
    "missing": "No such file or directory",
    "folder": "Is a directory",
    "pipe": "it is not a regular file, but a pipe or a device",
    "device": "it is not a regular file, but a pipe or a device",
    "empty": "it is empty",
    "blank": "it is empty",
    "binary": "it is not UTF-8",
    "huge": "it is larger than 65536 bytes",
    "lines": "it contains more than one line, or control characters",
    "NUL": "it contains more than one line, or control characters",
}


@pytest.mark.parametrize("name", ["JWT_SECRET_FILE", "REDIS_URL_FILE"])
@pytest.mark.parametrize("kind", SECRET_FILES)
def test_secret_file_that_cannot_be_used_is_reported_in_one_line_without_its_content(
    name: str, kind: str, tmp_path: Path
) -> None:
    path = tmp_path / kind
    contents = {
        "empty": b"",
        "blank": b" \r\n\n",
        "binary": SECRET.encode() + b"\xff",
        "huge": SECRET.encode() * 5000,
        "lines": f"{SECRET}\n{SECRET}\n".encode(),
        "NUL": f"{SECRET}\0".encode(),
    }
    if kind in contents:
        path.write_bytes(contents[kind])
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    message = error_of({name: str(path), "ENABLE_RATE_LIMIT": "true"})
    assert message == f"{name}: {SECRET_FILES[kind]}."


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("JWT_SECRET_FILE", KEY, "give at least 32 bytes, such as the output of `openssl rand -hex 32`"),
        ("REDIS_URL_FILE", f"http://:{KEY}@host", "use redis://host:port/database, rediss:// for TLS"),
        ("REDIS_URL_FILE", f"redis://:{KEY}@host?option=1", "it has an option that the Redis client does not know"),
    ],
)
def test_secret_in_a_file_is_checked_as_the_setting_is(name: str, content: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(content)
    message = error_of({name: str(tmp_path / "secret"), "ENABLE_RATE_LIMIT": "true"})
    assert message.startswith(name)
    assert reason in message
    assert KEY not in message


@pytest.mark.parametrize(
    ("name", "value"), [("JWT_SECRET", SECRET), ("REDIS_URL", "redis://:hush@host"), ("CACHE_KEY_SECRET", SECRET)]
)
def test_value_and_file_of_one_secret_contradict_each_other(name: str, value: str) -> None:
    message = error_of({name: value, f"{name}_FILE": "/run/secrets/x"})
    assert message == f"{name} and {name}_FILE are both set; set one of them."


@pytest.mark.parametrize("name", ["JWT_SECRET_FILE", "REDIS_URL_FILE", "API_KEYS_FILE", "JWT_PUBLIC_KEY_FILE"])
@pytest.mark.parametrize("value", [f"{KEY}-", f"{KEY}," * 1000, f"{KEY}\n"])
def test_secret_in_the_place_of_its_file_is_never_shown(name: str, value: str) -> None:
    message = error_of({name: value, "ENABLE_RATE_LIMIT": "true"})
    assert message.startswith(name)
    assert "\n" not in message
    assert KEY not in message


def error_of(settings: dict[str, str]) -> str:
    with pytest.raises(SettingsError) as failure:  # noqa: PT012 - which of the two parts fails depends on the setting
        read_access(settings_of(**settings))
        quota_store(settings_of(**settings))
    return str(failure.value)


async def test_start_warns_of_a_key_file_without_a_line_break_at_its_end(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"alice:{KEY}")
    access = read_access(settings_of(API_KEYS_FILE=str(tmp_path / "keys")))
    with capture_logs() as events:
        async with access.lifespan(Litestar([])):
            pass
    assert [(event["event"], event["log_level"]) for event in events] == [("api_keys_unterminated", "warning")]


def test_settings_never_show_secrets() -> None:
    settings = settings_of(API_KEYS=f"alice:{KEY},{OTHER}", JWT_SECRET=SECRET)
    for shown in (repr(settings), str(settings), settings.model_dump_json(), repr(settings.api_keys)):
        for secret in (KEY, OTHER, SECRET):
            assert secret not in shown


def test_settings_of_a_running_service_contain_no_api_key() -> None:
    settings = settings_of(API_KEYS=f"alice:{KEY}", PORT="9000").without_api_keys()
    assert (settings.api_keys, settings.port) == ((), 9000)


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST", "localhost.", "127.0.0.1", "127.8.9.1", "::1", "[::1]", "::ffff:127.0.0.1", "::1%lo"],
)
def test_host_is_reachable_from_this_machine_only(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    ["0.0.0.0", "::", "", "192.168.0.1", "10.0.0.1", "example.com", "localhost.example", "::ffff:10.0.0.1"],  # noqa: S104
)
def test_host_is_reachable_from_others(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("settings", "is_warned"),
    [
        pytest.param({"HOST": "0.0.0.0"}, True, id="open to all"),  # noqa: S104 - the service warns about this
        pytest.param({"HOST": "localhost"}, False, id="open to this machine"),
        pytest.param({"HOST": "0.0.0.0", "API_KEYS": KEY}, False, id="with keys"),  # noqa: S104 - the same
    ],
)
async def test_start_warns_if_the_service_is_open_to_others(settings: dict[str, str], *, is_warned: bool) -> None:
    access = read_access(settings_of(**settings))
    with capture_logs() as events:
        async with access.lifespan(Litestar([])):
            pass
    logged: list[Any] = [(event["event"], event["log_level"]) for event in events]
    assert logged == ([("service_open", "warning")] if is_warned else [])
