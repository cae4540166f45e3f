"""docker-compose.yml: limits, privileges, health checks, networks, and agreement with the service's settings."""

import ipaddress
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from config import Settings, load_settings
from tests.support.proxies import CONFIGURATION
from tests.support.servers import ROOT

MAIN, ALONE = ROOT / "docker-compose.yml", ROOT / "docker-compose.override.yml"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(MAIN.read_text(encoding="utf-8"))["services"]
NETWORKS: dict[str, Any] = yaml.safe_load(MAIN.read_text(encoding="utf-8"))["networks"]
VOLUMES: dict[str, Any] = yaml.safe_load(MAIN.read_text(encoding="utf-8"))["volumes"]
MONITORING = [name for name, service in SERVICES.items() if service.get("profiles") == ["monitoring"]]
SERVICE_NAMES = [name for name in SERVICES if name.startswith("fast-embedding")]
HUB_VARIABLES = {"HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE"}
VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")
UNITS = {"k": 10, "m": 20, "g": 30}

each_container = pytest.mark.parametrize("name", SERVICES)
each_service_container = pytest.mark.parametrize("name", SERVICE_NAMES)


def expand(value: object) -> str:
    """Expand variables as Compose does if none is set."""
    return VARIABLE.sub(lambda found: found[2] or "", str(value))


def parse_bytes(size: str) -> int:
    return int(size[:-1]) << UNITS[size[-1]]


def published(services: dict[str, Any], name: str) -> list[str]:
    return [expand(port) for port in services.get(name, {}).get("ports", [])]


@each_container
def test_container_has_bounded_memory_cpu_processes_logs_and_tmpfs(name: str) -> None:
    service = SERVICES[name]
    assert parse_bytes(expand(service["mem_limit"])) <= 2 << 30
    assert 0 < float(expand(service["cpus"])) <= 2  # Docker rejects more cores than the machine has
    assert service["pids_limit"]
    assert service["ulimits"] == {"core": 0}  # a core file would contain texts and keys
    assert service["restart"] == "unless-stopped"
    assert service["logging"]["driver"] == "json-file"
    assert service["logging"]["options"] == {"max-size": "10m", "max-file": "5"}
    assert all("size=" in mount for mount in service["tmpfs"])


@each_container
def test_container_has_the_least_privileges(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    # nginx's master process starts its workers under another user.
    assert service.get("cap_add", []) == (["CHOWN", "KILL", "SETGID", "SETUID"] if name == "nginx" else [])
    assert "privileged" not in service


@each_container
def test_container_has_a_health_check(name: str) -> None:
    health = SERVICES[name]["healthcheck"]
    assert health["test"][0] == "CMD"  # needs no shell in the image
    assert {"interval", "timeout", "retries"} <= set(health)


@each_container
def test_stop_grace_period_is_longer_than_the_shutdown_timeout(name: str) -> None:
    grace = expand(SERVICES[name]["stop_grace_period"])
    ends_at_once = name in {"redis", "prometheus", "grafana"}
    shutdown_s = 5 if ends_at_once else Settings.model_fields["shutdown_timeout"].default
    assert int(grace.removesuffix("s")) > shutdown_s


@each_service_container
def test_every_setting_is_passed_on_unless_the_image_fixes_it(name: str) -> None:
    given = SERVICES[name]["environment"]
    of_libraries = HUB_VARIABLES | {variable for variable in given if variable.startswith("OTEL_")}
    assert set(given) - of_libraries == {setting.upper() for setting in Settings.model_fields} - {
        "MODELS_DIR",
        "HUB_CACHE_DIR",
    }
    with_value = {"HOST", "PORT", "MODEL_MEMORY_BUDGET", "REDIS_URL", "THREAD_POOL_WORKERS", "TRUSTED_PROXIES"}
    assert {setting for setting, value in given.items() if value is not None} == with_value
    assert (given["HOST"], given["PORT"]) == ("0.0.0.0", "8000")  # noqa: S104 - in the container


@each_service_container
def test_model_memory_budget_is_at_most_three_quarters_of_the_memory(name: str) -> None:
    given = SERVICES[name]["environment"]
    budget = load_settings(_env_file=None, model_memory_budget=expand(given["MODEL_MEMORY_BUDGET"])).model_memory_budget
    assert budget is not None
    assert 0.6 < budget / parse_bytes(expand(SERVICES[name]["mem_limit"])) <= 0.75


def test_values_that_compose_sets_are_valid_settings() -> None:
    given = SERVICES["fast-embedding"]["environment"]
    settings = load_settings(
        _env_file=None,
        redis_url=expand(given["REDIS_URL"]),
        thread_pool_workers=expand(given["THREAD_POOL_WORKERS"]),
        trusted_proxies=expand(given["TRUSTED_PROXIES"]),
    )
    assert settings.thread_pool_workers == "auto"
    assert settings.redis_url is not None
    assert settings.redis_url.get_secret_value() == "redis://redis:6379/0"
    assert ipaddress.ip_network("172.16.0.0/12") in settings.trusted_proxies


def test_single_container_publishes_its_port_and_with_replicas_only_nginx_does() -> None:
    alone = yaml.safe_load(ALONE.read_text(encoding="utf-8"))["services"]
    assert set(alone) == {"fast-embedding"}, "changes for all profiles belong into docker-compose.yml"
    assert published(alone, "fast-embedding") == ["8000:8000"]
    ha = {name for name, service in SERVICES.items() if service.get("profiles", ["ha"]) == ["ha"]}
    assert ha == {"fast-embedding", "nginx", "redis"}
    assert {name: published(SERVICES, name) for name in ha} == {
        "fast-embedding": [],
        "nginx": ["8000:8080"],
        "redis": [],
    }


@pytest.mark.parametrize("name", MONITORING)
def test_monitoring_is_published_to_this_machine_only_and_keeps_its_data(name: str) -> None:
    """Neither has a password. Docker publishes a port without an address to all networks."""
    [port] = published(SERVICES, name)
    assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)
    [volume] = [mount for mount in SERVICES[name]["volumes"] if not mount.startswith("./")]
    assert volume.split(":")[0] in VOLUMES
    assert all(mount.endswith(":ro") for mount in SERVICES[name]["volumes"] if mount.startswith("./"))
    [repository, version] = expand(SERVICES[name]["image"]).split(":")
    assert re.fullmatch(r"v?\d+\.\d+\.\d+", version), repository


def test_single_container_trusts_no_proxy_and_uses_no_redis() -> None:
    [alone] = yaml.safe_load(ALONE.read_text(encoding="utf-8"))["services"].values()
    assert {name: expand(value) for name, value in alone["environment"].items()} == {
        "REDIS_URL": "",
        "TRUSTED_PROXIES": "",
    }


def test_only_nginx_is_in_the_network_with_a_published_port() -> None:
    """Redis and the connections between nginx and the replicas are in networks without internet access."""
    assert SERVICES["redis"]["networks"] == ["limits"]
    assert set(SERVICES["nginx"]["networks"]) == {"outside", "replicas"}
    assert "outside" not in SERVICES["fast-embedding"]["networks"]
    assert {name for name in MONITORING if "replicas" in SERVICES[name]["networks"]} == {"prometheus"}
    assert {name for name, service in SERVICES.items() if "monitoring" in service.get("networks", ())} == set(
        MONITORING
    )
    assert {name for name, network in NETWORKS.items() if network and network["internal"]} == {"limits", "replicas"}


def test_nginx_uses_the_tested_configuration() -> None:
    """tests/deploy/test_nginx_reload.py runs the script, with an nginx that knows all lines."""
    nginx = SERVICES["nginx"]
    assert f"./{CONFIGURATION.name}:/etc/nginx/nginx.conf:ro" in nginx["volumes"]
    assert nginx["entrypoint"] == ["/bin/sh", "/start-nginx.sh"]
    assert "./deploy/compose/start-nginx.sh:/start-nginx.sh:ro" in nginx["volumes"]
    assert nginx["command"] == ["-g", "daemon off;"]
    [version] = re.findall(r"^nginx:(\d+)\.(\d+)-alpine$", expand(nginx["image"]))
    assert tuple(map(int, version)) >= (1, 28), "has all directives that start-nginx.sh enables"
    text = CONFIGURATION.read_text(encoding="utf-8")
    assert "server fast-embedding:8000 " in text
    assert "listen 8080;" in text
    assert "http://127.0.0.1:8080/health/ready" in nginx["healthcheck"]["test"]


def test_every_variable_is_explained_in_env_example() -> None:
    """Variables that only Compose reads are at the end of .env.example."""
    used = {name for file in (MAIN, ALONE) for name, _ in VARIABLE.findall(file.read_text(encoding="utf-8"))}
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    own = used - {name.upper() for name in Settings.model_fields}
    assert own == set(re.findall(r"^#   ([A-Z_]+) ", example.partition("--- Compose")[2], re.MULTILINE))


def test_build_targets_exist() -> None:
    stages = set(re.findall(r"(?m)^FROM \S+ AS (\w+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8")))
    assert {SERVICES[name]["build"]["target"] for name in SERVICE_NAMES} <= stages
    assert Path(ROOT / SERVICES["fast-embedding"]["build"]["context"]).resolve() == ROOT


def test_guide_contains_the_commands_of_the_file() -> None:
    guide = (ROOT / "docs" / "DOCKER_SETUP.md").read_text(encoding="utf-8")
    commands = re.findall(r"(?m)^#   (docker compose .+?)(?:  .*)?$", MAIN.read_text(encoding="utf-8"))
    assert len(commands) == 4
    for command in commands:
        assert command in guide
