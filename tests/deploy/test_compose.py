"""docker-compose.yml and what it does to the service: what would hurt on the day when something goes wrong."""

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
OF_THE_SERVICE = [name for name in SERVICES if name.startswith("fast-embedding")]
INSIDE = {"HOST", "PORT", "MODELS_DIR", "HUB_CACHE_DIR"}
"""Settings that are the image's, whatever stands in `.env`."""
OF_THE_HUB = {"HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE"}
VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")
UNITS = {"k": 10, "m": 20, "g": 30}

every_service = pytest.mark.parametrize("name", SERVICES)
every_one_of_ours = pytest.mark.parametrize("name", OF_THE_SERVICE)


def filled_in(value: object) -> str:
    """What Compose makes of it where no variable is set."""
    return VARIABLE.sub(lambda found: found[2] or "", str(value))


def bytes_of(size: str) -> int:
    return int(size[:-1]) << UNITS[size[-1]]


def published(services: dict[str, Any], name: str) -> list[str]:
    return [filled_in(port) for port in services.get(name, {}).get("ports", [])]


@every_service
def test_container_cannot_take_the_machine_down(name: str) -> None:
    service = SERVICES[name]
    assert bytes_of(filled_in(service["mem_limit"])) <= 2 << 30
    assert 0 < float(filled_in(service["cpus"])) <= 2  # Docker refuses more than the machine has
    assert service["pids_limit"]
    assert service["restart"] == "unless-stopped"
    assert service["logging"]["driver"] == "json-file"
    assert service["logging"]["options"] == {"max-size": "10m", "max-file": "5"}
    assert all("size=" in mount for mount in service["tmpfs"])


@every_service
def test_container_has_no_rights_that_it_does_not_need(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    # nginx's master starts its workers as another user; without `user` nginx would have to be root for all of it.
    assert service.get("cap_add", []) == (["CHOWN", "KILL", "SETGID", "SETUID"] if name == "nginx" else [])
    assert "privileged" not in service


@every_service
def test_container_says_whether_it_works(name: str) -> None:
    health = SERVICES[name]["healthcheck"]
    assert health["test"][0] == "CMD"  # no shell that would have to be there
    assert {"interval", "timeout", "retries"} <= set(health)


@every_service
def test_stop_waits_longer_than_the_service_takes_to_answer_what_it_has_accepted(name: str) -> None:
    grace = filled_in(SERVICES[name]["stop_grace_period"])
    least = 5 if name == "redis" else Settings.model_fields["shutdown_timeout"].default
    assert int(grace.removesuffix("s")) > least


@every_one_of_ours
def test_settings_of_env_reach_the_container(name: str) -> None:
    """All that are not fixed by the image; a new setting must be added to the list."""
    given = SERVICES[name]["environment"]
    assert set(given) - OF_THE_HUB == {setting.upper() for setting in Settings.model_fields} - {
        "MODELS_DIR",
        "HUB_CACHE_DIR",
    }
    ours = {"HOST", "PORT", "MODEL_MEMORY_BUDGET", "REDIS_URL", "TRUSTED_PROXIES"}
    assert {setting for setting, value in given.items() if value is not None} == ours


@every_one_of_ours
def test_port_of_env_moves_nothing_inside(name: str) -> None:
    given = SERVICES[name]["environment"]
    assert (given["HOST"], given["PORT"]) == ("0.0.0.0", "8000")  # noqa: S104 - of the container


@every_one_of_ours
def test_models_have_three_quarters_of_the_memory_at_most(name: str) -> None:
    given = SERVICES[name]["environment"]
    budget = load_settings(
        _env_file=None, model_memory_budget=filled_in(given["MODEL_MEMORY_BUDGET"])
    ).model_memory_budget
    assert budget is not None
    assert 0.6 < budget / bytes_of(filled_in(SERVICES[name]["mem_limit"])) <= 0.75


def test_values_that_compose_gives_are_settings_of_the_service() -> None:
    given = SERVICES["fast-embedding"]["environment"]
    settings = load_settings(
        _env_file=None, redis_url=filled_in(given["REDIS_URL"]), trusted_proxies=filled_in(given["TRUSTED_PROXIES"])
    )
    assert settings.redis_url is not None
    assert settings.redis_url.get_secret_value() == "redis://redis:6379/0"
    assert ipaddress.ip_network("172.16.0.0/12") in settings.trusted_proxies


def test_service_alone_publishes_its_port_and_with_replicas_nginx_alone_does() -> None:
    alone = yaml.safe_load(ALONE.read_text(encoding="utf-8"))["services"]
    assert set(alone) == {
        "fast-embedding"
    }  # whoever changes a service for all ways to start it does so in the other file
    assert published(alone, "fast-embedding") == ["8000:8000"]
    ha = {name for name, service in SERVICES.items() if service.get("profiles", ["ha"]) == ["ha"]}
    assert ha == {"fast-embedding", "nginx", "redis"}
    assert {name: published(SERVICES, name) for name in ha} == {
        "fast-embedding": [],
        "nginx": ["8000:8080"],
        "redis": [],
    }


def test_service_alone_believes_no_proxy_and_asks_no_redis() -> None:
    [alone] = yaml.safe_load(ALONE.read_text(encoding="utf-8"))["services"].values()
    assert {name: filled_in(value) for name, value in alone["environment"].items()} == {
        "REDIS_URL": "",
        "TRUSTED_PROXIES": "",
    }


def test_replicas_and_redis_are_in_no_network_with_a_published_port() -> None:
    """And Redis, like the way from nginx to the replicas, in none with a way out."""
    assert SERVICES["redis"]["networks"] == ["limits"]
    assert set(SERVICES["nginx"]["networks"]) == {"outside", "replicas"}
    assert "outside" not in SERVICES["fast-embedding"]["networks"]
    assert {name for name, network in NETWORKS.items() if network and network["internal"]} == {"limits", "replicas"}


def test_nginx_has_the_configuration_that_the_tests_run() -> None:
    nginx = SERVICES["nginx"]
    assert f"./{CONFIGURATION.name}:/etc/nginx/nginx.conf:ro" in nginx["volumes"]
    text = CONFIGURATION.read_text(encoding="utf-8")
    assert "server fast-embedding:8000 " in text
    assert "listen 8080;" in text
    assert "http://127.0.0.1:8080/health/ready" in nginx["healthcheck"]["test"]


def test_every_variable_of_the_files_is_explained() -> None:
    """Settings stand in .env.example with a line each; what Compose alone reads stands at its end."""
    used = {name for file in (MAIN, ALONE) for name, _ in VARIABLE.findall(file.read_text(encoding="utf-8"))}
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    own = used - {name.upper() for name in Settings.model_fields}
    assert own == set(re.findall(r"^#   ([A-Z_]+) ", example.partition("--- Compose")[2], re.MULTILINE))


def test_folder_that_is_built_has_the_targets_that_are_named() -> None:
    stages = set(re.findall(r"(?m)^FROM \S+ AS (\w+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8")))
    assert {SERVICES[name]["build"]["target"] for name in OF_THE_SERVICE} <= stages
    assert Path(ROOT / SERVICES["fast-embedding"]["build"]["context"]).resolve() == ROOT


def test_guide_tells_the_commands_of_the_file() -> None:
    """What stands at the top of docker-compose.yml is what docs/DOCKER_SETUP.md tells."""
    guide = (ROOT / "docs" / "DOCKER_SETUP.md").read_text(encoding="utf-8")
    commands = re.findall(r"(?m)^#   (docker compose .+?)(?:  .*)?$", MAIN.read_text(encoding="utf-8"))
    assert len(commands) == 3
    for command in commands:
        assert command in guide
