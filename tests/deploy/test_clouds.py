"""Files for platforms that cannot run here: they agree with the service, and the platforms' clients accept them."""

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
VARIABLES = {
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
"""Seconds from SIGTERM to SIGKILL where no file sets them. Documented by Google; for Azure, a conservative guess."""
GOOGLE_CLIENT = "google-api-python-client==2.202.0"

Document = Any


def read(name: str) -> Document:
    """Read a file with its variables replaced, as envsubst does in the guide."""
    return yaml.safe_load(Template(FILES[name].read_text(encoding="utf-8")).substitute(VARIABLES))


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """The platform-independent content of a file."""

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
        | {entry["name"]: VARIABLES["API_KEYS"] for entry in container["secrets"]},
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
        probes=(),  # those of the image
        stop_grace_s=float(service["stop_grace_period"].removesuffix("s")),
        memory_bytes=int(limits["memory"].removesuffix("G")) << 30,
        cores=float(service["deploy"]["resources"]["reservations"]["cpus"]),
    )


@pytest.fixture(params=[ecs, cloud_run, azure, swarm], ids=lambda make: make.__name__)
def deployment(request: pytest.FixtureRequest) -> Deployment:
    return request.param()  # type: ignore[no-any-return]


@pytest.fixture
def settings(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The service's settings on the platform."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in deployment.environment.items():
        monkeypatch.setenv(name, value)
    return load_settings(_env_file=None)


def test_settings_in_the_file_are_valid(deployment: Deployment, settings: Settings) -> None:
    assert {name.lower() for name in deployment.environment} == settings.model_fields_set


def test_keys_are_required_and_internal_routes_to_json_schema(settings: Settings) -> None:
    assert settings.key_sources
    assert set(settings.closed_routes) == {"metrics", "models", "docs"}


def test_platform_uses_the_port_of_the_service(deployment: Deployment, settings: Settings) -> None:
    assert deployment.port == settings.port


def test_probes_use_routes_of_the_service(deployment: Deployment) -> None:
    assert set(deployment.probes) <= {route.path for route in create_app(Settings(_env_file=None)).routes}  # type: ignore[call-arg]


def test_shutdown_timeout_is_shorter_than_the_platforms(deployment: Deployment, settings: Settings) -> None:
    assert settings.shutdown_timeout < deployment.stop_grace_s


def test_memory_is_twice_the_measured_use_and_models_get_three_quarters(
    deployment: Deployment, settings: Settings
) -> None:
    [measured_mb] = re.findall(r"RSS at the end \|[^|]+\| (\d+) MB", MEASURED)
    assert deployment.memory_bytes >= 2 * int(measured_mb) * 1e6
    assert settings.model_memory_budget is not None
    assert settings.model_memory_budget <= 0.75 * deployment.memory_bytes


def test_one_lane_per_core(deployment: Deployment, settings: Settings) -> None:
    assert settings.thread_pool_workers == deployment.cores


def test_swarm_limits_cpu_to_one_core_more_than_lanes() -> None:
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


def test_request_timeout_is_shorter_than_the_platforms(settings: Settings) -> None:
    in_front_s = read("cloud-run")["spec"]["template"]["spec"]["timeoutSeconds"]
    assert in_front_s == 60  # also the default of Amazon's load balancer
    assert settings.request_timeout < in_front_s


def test_guide_sets_every_variable_of_the_files() -> None:
    variables = {name for file in FILES.values() for name in re.findall(r"\$\{(\w+)\}", file.read_text("utf-8"))}
    assert variables == set(VARIABLES)
    assert variables <= set(re.findall(r"\b([A-Z][A-Z_]+)=", GUIDE))
    for file in FILES.values():
        assert file.relative_to(ROOT).as_posix() in GUIDE


def botocore_model(service: str) -> Any:
    return needed("botocore.session").get_session().get_service_model(service)


@pytest.mark.parametrize(("name", "operation"), [("ecs", "RegisterTaskDefinition"), ("ecs-service", "CreateService")])
def test_aws_client_accepts_the_file(name: str, operation: str) -> None:
    shape = botocore_model("ecs").operation_model(operation).input_shape
    report = needed("botocore.validate").ParamValidator().validate(read(name), shape)
    assert report.generate_report() == ""


def aws_commands() -> Iterator[tuple[str, str, list[str]]]:
    """Yield service, operation and options of each `aws` command in the guide."""
    for block in re.findall(r"```bash\n(.*?)```", GUIDE, re.DOTALL):
        for service, operation, rest in re.findall(
            r"\baws ([a-z0-9-]+) ([a-z-]+)([^\n|)]*)", block.replace("\\\n", " ")
        ):
            yield service, operation, re.findall(r" --([a-z-]+)", rest)


@pytest.mark.parametrize(
    ("service", "operation", "options"), [pytest.param(*call, id="-".join(call[:2])) for call in aws_commands()]
)
def test_aws_command_of_the_guide_has_valid_options(service: str, operation: str, options: list[str]) -> None:
    model, name_of = botocore_model(service), needed("botocore").xform_name
    [found] = [name for name in model.operation_names if name_of(name, "-") == operation]
    shape = model.operation_model(found).input_shape
    given = set(options) - {"output", "query"}
    assert given - {"cli-input-json"} <= {name_of(member, "-") for member in shape.members}
    if "cli-input-json" not in given:
        assert {name_of(member, "-") for member in shape.required_members} <= given


def test_azure_client_accepts_the_file() -> None:
    """Azure's client drops fields that it does not know."""
    models = needed("azure.mgmt.containerinstance.models")
    group = read("azure")
    sent = models.ContainerGroup.deserialize(group).serialize(keep_readonly=True)
    assert sent == {name: value for name, value in group.items() if name != "apiVersion"}


def test_swarm_stack_matches_the_schema_of_compose() -> None:
    assert complaints("compose-spec", FILES["swarm"]) == ""


def to_json_schema(schema: Any) -> Any:
    """Convert a schema in Google's discovery format to JSON Schema without additional properties."""
    if isinstance(schema, list):
        return [to_json_schema(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {
        name: to_json_schema(part) for name, part in schema.items() if name not in {"format", "description", "readOnly"}
    }
    if isinstance(made.get("$ref"), str):
        made["$ref"] = f"#/schemas/{made['$ref']}"
    if isinstance(made.get("properties"), dict) and "type" in made:
        made.setdefault("additionalProperties", False)
    return made


@pytest.mark.network
@pytest.mark.timeout(120)
def test_cloud_run_accepts_the_file(tmp_path: Path) -> None:
    """Google's client contains the description of the API. At 114 MB it is too large to install for one file."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(tmp_path), GOOGLE_CLIENT]
    subprocess.run(command, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        described = json.loads(archive.read("googleapiclient/discovery_cache/documents/run.v1.json"))
    schema = {
        "$ref": "#/schemas/Service",
        "schemas": {name: to_json_schema(part) for name, part in described["schemas"].items()},
    }
    service = read("cloud-run")
    jsonschema.validate(service, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**service, "specification": {}}, schema)
    known = set(re.findall(r"`((?:run\.googleapis\.com|autoscaling\.knative\.dev)/[\w-]+)`", json.dumps(described)))
    template = service["spec"]["template"]["metadata"]["annotations"]
    assert {*service["metadata"]["annotations"], *template} <= known
