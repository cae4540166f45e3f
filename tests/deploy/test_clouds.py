"""Files below deploy/ for platforms that cannot be run here: they fit the service, and are what the platform takes."""

import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import jsonschema
import pytest
import yaml

from config import Settings, load_settings
from main import create_app
from tests.support.schemas import complaints, needed
from tests.support.servers import ROOT

GUIDE = (ROOT / "docs/production/clouds.md").read_text(encoding="utf-8")
MEASURED = (ROOT / "docs" / "BENCHMARKS.md").read_text(encoding="utf-8")
FILES = {
    "ecs": ROOT / "deploy" / "ecs" / "task-definition.json",
    "ecs-service": ROOT / "deploy" / "ecs" / "service.json",
    "cloud-run": ROOT / "deploy" / "cloud-run" / "service.yaml",
    "azure": ROOT / "deploy" / "azure" / "container-group.yaml",
    "swarm": ROOT / "deploy" / "swarm" / "stack.yaml",
}
FILLED_IN = {
    "API_KEYS": "alice:0123456789abcdef0123456789abcdef",
    "AWS_REGION": "eu-central-1",
    "BALANCER_NETWORKS": "10.0.1.0/24,10.0.2.0/24",
    "EXECUTION_ROLE": "arn:aws:iam::123456789012:role/embedding-execution",
    "GATEWAY_NETWORK": "10.1.1.0/24",
    "IDENTITY": "/subscriptions/0/resourceGroups/one/providers/Microsoft.ManagedIdentity/userAssignedIdentities/pull",
    "IMAGE": "registry.example/fast-embedding:2.0.0",
    "KEYS_SECRET": "arn:aws:secretsmanager:eu-central-1:123456789012:secret:embedding-keys",
    "LOCATION": "westeurope",
    "REGISTRY": "registry.example",
    "SECURITY_GROUP": "sg-0123456789abcdef0",
    "SUBNET": "/subscriptions/0/resourceGroups/one/providers/Microsoft.Network/virtualNetworks/net/subnets/services",
    "SUBNET_A": "subnet-0123456789abcdef0",
    "SUBNET_B": "subnet-0123456789abcdef1",
    "TARGET_GROUP": "arn:aws:elasticloadbalancing:eu-central-1:123456789012:targetgroup/fast-embedding/0123456789",
}
KILLED_AFTER_S = {"cloud-run": 10, "azure": 10}
"""Seconds from SIGTERM to SIGKILL where no file sets them. Google documents them; of Azure it is a careful guess."""
RUN_SCHEMAS = "google-api-python-client==2.202.0"

Document = Any


def read(name: str) -> Document:
    """The file, filled in as the guide has it done by envsubst."""
    return yaml.safe_load(Template(FILES[name].read_text(encoding="utf-8")).substitute(FILLED_IN))


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """What a platform's file says of the service, in common words."""

    environment: dict[str, str]
    port: int
    probes: tuple[str, ...]
    stop_grace_s: float
    memory_bytes: float
    cores: float


def ecs() -> Deployment:
    task = read("ecs")
    [container] = task["containerDefinitions"]
    return Deployment(
        environment={entry["name"]: entry["value"] for entry in container["environment"]}
        | {entry["name"]: FILLED_IN["API_KEYS"] for entry in container["secrets"]},
        port=container["portMappings"][0]["containerPort"],
        probes=tuple(re.findall(r"--health-check-path (\S+)", GUIDE)),
        stop_grace_s=container["stopTimeout"],
        memory_bytes=int(task["memory"]) << 20,
        cores=int(task["cpu"]) / 1024,
    )


def cloud_run() -> Deployment:
    [container] = read("cloud-run")["spec"]["template"]["spec"]["containers"]
    probes = [container["startupProbe"], container["livenessProbe"]]
    assert {probe["httpGet"]["port"] for probe in probes} == {container["ports"][0]["containerPort"]}
    return Deployment(
        environment={entry["name"]: entry["value"] for entry in container["env"]},
        port=container["ports"][0]["containerPort"],
        probes=tuple(probe["httpGet"]["path"] for probe in probes),
        stop_grace_s=KILLED_AFTER_S["cloud-run"],
        memory_bytes=int(container["resources"]["limits"]["memory"].removesuffix("Gi")) << 30,
        cores=float(container["resources"]["limits"]["cpu"]),
    )


def azure() -> Deployment:
    group = read("azure")["properties"]
    container = group["containers"][0]["properties"]
    probes = [container["livenessProbe"], container["readinessProbe"]]
    assert container["ports"] == group["ipAddress"]["ports"]
    assert {probe["httpGet"]["port"] for probe in probes} == {container["ports"][0]["port"]}
    return Deployment(
        environment={
            entry["name"]: entry.get("value") or entry["secureValue"] for entry in container["environmentVariables"]
        },
        port=container["ports"][0]["port"],
        probes=tuple(probe["httpGet"]["path"] for probe in probes),
        stop_grace_s=KILLED_AFTER_S["azure"],
        memory_bytes=container["resources"]["limits"]["memoryInGB"] * 1e9,
        cores=container["resources"]["limits"]["cpu"],
    )


def swarm() -> Deployment:
    service = read("swarm")["services"]["fast-embedding"]
    limits = service["deploy"]["resources"]["limits"]
    return Deployment(
        environment=service["environment"],
        port=service["ports"][0]["target"],
        probes=(),  # the image's own
        stop_grace_s=float(service["stop_grace_period"].removesuffix("s")),
        memory_bytes=int(limits["memory"].removesuffix("G")) << 30,
        cores=float(service["deploy"]["resources"]["reservations"]["cpus"]),
    )


@pytest.fixture(params=[ecs, cloud_run, azure, swarm], ids=lambda make: make.__name__)
def deployment(request: pytest.FixtureRequest) -> Deployment:
    return request.param()  # type: ignore[no-any-return]


@pytest.fixture
def settings(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The service's settings there."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in deployment.environment.items():
        monkeypatch.setenv(name, value)
    return load_settings(_env_file=None)


def test_settings_of_the_file_exist_and_are_allowed(deployment: Deployment, settings: Settings) -> None:
    assert {name.lower() for name in deployment.environment} == settings.model_fields_set


def test_strangers_are_kept_out(settings: Settings) -> None:
    assert settings.key_sources
    assert set(settings.closed_routes) == {"metrics", "models", "docs"}


def test_platform_asks_where_the_service_listens(deployment: Deployment, settings: Settings) -> None:
    assert deployment.port == settings.port


def test_probes_are_routes(deployment: Deployment) -> None:
    assert set(deployment.probes) <= {route.path for route in create_app(Settings(_env_file=None)).routes}  # type: ignore[call-arg]


def test_service_has_ended_before_it_is_killed(deployment: Deployment, settings: Settings) -> None:
    assert settings.shutdown_timeout < deployment.stop_grace_s


def test_memory_holds_what_was_measured_twice_and_the_models_three_quarters(
    deployment: Deployment, settings: Settings
) -> None:
    [measured_mb] = re.findall(r"RSS at the end \|[^|]+\| (\d+) MB", MEASURED)
    assert deployment.memory_bytes >= 2 * int(measured_mb) * 1e6
    assert settings.model_memory_budget is not None
    assert settings.model_memory_budget <= 0.75 * deployment.memory_bytes


def test_lanes_are_the_cores_that_are_paid_for(deployment: Deployment, settings: Settings) -> None:
    assert settings.thread_pool_workers == deployment.cores


def test_limit_of_the_swarm_leaves_a_core_beside_the_lanes() -> None:
    resources = read("swarm")["services"]["fast-embedding"]["deploy"]["resources"]
    assert float(resources["limits"]["cpus"]) == float(resources["reservations"]["cpus"]) + 1


def test_health_check_and_user_are_those_of_the_image() -> None:
    image = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    check = read("ecs")["containerDefinitions"][0]["healthCheck"]
    options = f"--interval={check['interval']}s --timeout={check['timeout']}s --start-period={check['startPeriod']}s"
    kind, *command = check["command"]
    assert f"HEALTHCHECK {options} --retries={check['retries']} {kind} {json.dumps(command)}" in image
    [secret] = read("swarm")["services"]["fast-embedding"]["secrets"]
    assert f"USER {secret['uid']}:{secret['gid']}" in image


def test_service_tells_that_time_is_over_before_the_platform_does(settings: Settings) -> None:
    in_front_s = read("cloud-run")["spec"]["template"]["spec"]["timeoutSeconds"]
    assert in_front_s == 60  # what Amazon's balancer waits by default
    assert settings.request_timeout < in_front_s


def test_guide_fills_in_all_that_a_file_leaves_open() -> None:
    """And nothing else: a name that is exported for nothing is a slip."""
    left_open = {name for file in FILES.values() for name in re.findall(r"\$\{(\w+)\}", file.read_text("utf-8"))}
    assert left_open == set(FILLED_IN)
    assert left_open <= set(re.findall(r"\b([A-Z][A-Z_]+)=", GUIDE))
    for file in FILES.values():
        assert file.relative_to(ROOT).as_posix() in GUIDE


def botocore_model(service: str) -> Any:
    return needed("botocore.session").get_session().get_service_model(service)


@pytest.mark.parametrize(("name", "operation"), [("ecs", "RegisterTaskDefinition"), ("ecs-service", "CreateService")])
def test_amazon_takes_the_file(name: str, operation: str) -> None:
    shape = botocore_model("ecs").operation_model(operation).input_shape
    report = needed("botocore.validate").ParamValidator().validate(read(name), shape)
    assert report.generate_report() == ""


def aws_commands() -> Iterator[tuple[str, str, list[str]]]:
    """The guide's calls of `aws`: service, operation, options."""
    for block in re.findall(r"```bash\n(.*?)```", GUIDE, re.DOTALL):
        for service, operation, rest in re.findall(
            r"\baws ([a-z0-9-]+) ([a-z-]+)([^\n|)]*)", block.replace("\\\n", " ")
        ):
            yield service, operation, re.findall(r" --([a-z-]+)", rest)


@pytest.mark.parametrize(
    ("service", "operation", "options"), [pytest.param(*call, id="-".join(call[:2])) for call in aws_commands()]
)
def test_command_for_amazon_has_the_options_it_needs(service: str, operation: str, options: list[str]) -> None:
    model, name_of = botocore_model(service), needed("botocore").xform_name
    [found] = [name for name in model.operation_names if name_of(name, "-") == operation]
    shape = model.operation_model(found).input_shape
    given = set(options) - {"output", "query"}
    assert given - {"cli-input-json"} <= {name_of(member, "-") for member in shape.members}
    if "cli-input-json" not in given:
        assert {name_of(member, "-") for member in shape.required_members} <= given


def test_azure_takes_the_file() -> None:
    """What its own client does not know, it would leave out when it sends the file."""
    models = needed("azure.mgmt.containerinstance.models")
    group = read("azure")
    sent = models.ContainerGroup.deserialize(group).serialize(keep_readonly=True)
    assert sent == {name: value for name, value in group.items() if name != "apiVersion"}


def test_swarm_stack_keeps_to_the_schema_of_compose() -> None:
    assert complaints("compose-spec", FILES["swarm"]) == ""


def closed(schema: Any) -> Any:
    """A schema of Google's discovery format as JSON Schema; names that it does not list are not allowed."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: closed(part) for name, part in schema.items() if name not in {"format", "description", "readOnly"}}
    if isinstance(made.get("$ref"), str):
        made["$ref"] = f"#/schemas/{made['$ref']}"
    if isinstance(made.get("properties"), dict) and "type" in made:
        made.setdefault("additionalProperties", False)
    return made


@pytest.mark.network
@pytest.mark.timeout(120)
def test_cloud_run_takes_the_file(tmp_path: Path) -> None:
    """Its API's own description comes with Google's client, which at 114 MB is no package to install for one file."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(tmp_path), RUN_SCHEMAS]
    subprocess.run(command, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        described = json.loads(archive.read("googleapiclient/discovery_cache/documents/run.v1.json"))
    schema = {
        "$ref": "#/schemas/Service",
        "schemas": {name: closed(part) for name, part in described["schemas"].items()},
    }
    service = read("cloud-run")
    jsonschema.validate(service, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**service, "specification": {}}, schema)
    known = set(re.findall(r"`((?:run\.googleapis\.com|autoscaling\.knative\.dev)/[\w-]+)`", json.dumps(described)))
    template = service["spec"]["template"]["metadata"]["annotations"]
    assert {*service["metadata"]["annotations"], *template} <= known
