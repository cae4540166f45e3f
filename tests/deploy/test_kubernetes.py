"""deploy/kubernetes/: rendered by kustomize, validated by Kubernetes' schemas, and compared with the service itself."""

import base64
import copy
import math
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import httpx
import kubernetes_validate
import pytest
import redis as redis_client
import yaml

import main
from assembly import lane_plan
from assembly.result_cache import cache_bytes_of
from assembly.serve import MAX_LARGE_BODIES
from config import Settings, load_settings
from engine.memory_estimate import PROCESS_BYTES
from setting_types import MIN_SECRET_BYTES
from tests.support import kubernetes
from tests.support.kubernetes import Thing, cores, memory_bytes, named, of_kind, pods
from tests.support.logged_process import LoggedProcess
from tests.support.redis_servers import needed
from tests.support.servers import ROOT, ServerProcess, free_port, running_server

VERSIONS = ("1.30", kubernetes_validate.latest_version())
"""The oldest supported version, and the newest one with a schema."""
OVERLAYS = ("plain", "ha")
VARIANTS = (*OVERLAYS, "plain with all components", "ha with all components")
FOREIGN_KINDS = {"ServiceMonitor", "CiliumNetworkPolicy"}
"""Not part of Kubernetes; tests of their own check the fields that are used."""
RESERVE_S = 5
"""Minimum time between the end of SHUTDOWN_TIMEOUT and the kill of a pod."""
PROBES = {"startupProbe": "/health/ready", "readinessProbe": "/health/ready", "livenessProbe": "/health/live"}

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Thing]]:
    """The objects of each overlay, as it is and with all its components enabled."""
    folder = kubernetes.copy_to(tmp_path_factory.mktemp("repository"))
    kubernetes.make_secrets(folder.parent.parent)
    made = {name: kubernetes.rendered(folder / "overlays" / name) for name in OVERLAYS}
    for name in OVERLAYS:
        kubernetes.enable_all_components(folder / "overlays" / name)
        made[f"{name} with all components"] = kubernetes.rendered(folder / "overlays" / name)
    return made


@pytest.fixture(params=VARIANTS)
def things(request: pytest.FixtureRequest, variants: dict[str, list[Thing]]) -> list[Thing]:
    return variants[request.param]


@pytest.fixture
def ha(variants: dict[str, list[Thing]]) -> list[Thing]:
    return variants["ha with all components"]


def deployment_of(things: list[Thing]) -> Thing:
    return named(things, "Deployment", "fast-embedding")


def pod_of(things: list[Thing]) -> Thing:
    return dict(deployment_of(things)["spec"]["template"]["spec"])


def container_of(things: list[Thing]) -> Thing:
    [container] = pod_of(things)["containers"]
    return dict(container)


def settings_of(things: list[Thing]) -> dict[str, str]:
    return dict(named(things, "ConfigMap", "fast-embedding-settings")["data"])


def environment_of(things: list[Thing]) -> dict[str, str]:
    """The environment of the service's container, with references resolved as the kubelet does."""
    container, environment = container_of(things), settings_of(things)
    for variable in container["env"]:
        if secret := variable.get("valueFrom", {}).get("secretKeyRef"):
            [found] = [thing for thing in of_kind(things, "Secret") if thing["metadata"]["name"] == secret["name"]]
            assert secret["key"] in found["data"]
            environment[variable["name"]] = "a-password"
        else:
            password = environment.get("REDIS_PASSWORD", "")
            environment[variable["name"]] = variable["value"].replace("$(REDIS_PASSWORD)", password)
    return environment


def use_environment(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return load_settings(_env_file=None)


# --- Schemas --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_matches_the_schema(variants: dict[str, list[Thing]], version: str) -> None:
    different = {yaml.safe_dump(thing): thing for things in variants.values() for thing in things}
    for thing in different.values():
        if thing["kind"] not in FOREIGN_KINDS:
            kubernetes_validate.validate(thing, version, strict=True)


def mapping_paths(node: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the paths of all mappings whose keys the schemas restrict."""
    if isinstance(node, dict):
        if path:
            yield path
        for name, below in node.items():
            if name not in {"metadata", "data", "matchLabels", "selector", "requests", "limits", "stringData"}:
                yield from mapping_paths(below, (*path, name))
    elif isinstance(node, list):
        for index, below in enumerate(node[:1]):
            yield from mapping_paths(below, (*path, index))


def test_schemas_reject_a_wrong_key_anywhere(ha: list[Thing]) -> None:
    """Proves that the test above finds typos in any place of any kind."""
    by_kind = {thing["kind"]: thing for thing in reversed(ha) if thing["kind"] not in FOREIGN_KINDS}
    for thing in by_kind.values():
        for path in mapping_paths(thing):
            broken = copy.deepcopy(thing)
            place: Any = broken
            for step in path:
                place = place[step]
            place["typo"] = 1
            with pytest.raises(kubernetes_validate.ValidationError):
                kubernetes_validate.validate(broken, VERSIONS[-1], strict=True)
    assert set(by_kind) >= {"Deployment", "Service", "NetworkPolicy", "HorizontalPodAutoscaler", "PodDisruptionBudget"}


def test_service_monitor_has_the_fields_of_its_kind_and_selects_the_service(ha: list[Thing]) -> None:
    """Its schema comes with the operator; this checks the part that is used here."""
    monitor = named(ha, "ServiceMonitor", "fast-embedding")
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert set(monitor["spec"]) == {"selector", "endpoints"}
    [endpoint] = monitor["spec"]["endpoints"]
    assert set(endpoint) == {"port", "path", "interval", "scrapeTimeout", "authorization"}
    assert set(endpoint["authorization"]) == {"credentials"}
    assert set(endpoint["authorization"]["credentials"]) == {"name", "key"}
    labels = monitor["spec"]["selector"]["matchLabels"].items()
    found = [
        service["metadata"]["name"]
        for service in of_kind(ha, "Service")
        if labels <= service["metadata"]["labels"].items()
    ]
    assert found == ["fast-embedding"]


def test_policy_by_names_has_the_fields_of_its_kind_and_selects_the_service(ha: list[Thing]) -> None:
    """Its schema comes with Cilium; this checks the part that is used here."""
    policy = named(ha, "CiliumNetworkPolicy", "fast-embedding-to-hub")
    assert policy["apiVersion"] == "cilium.io/v2"
    assert set(policy["spec"]) == {"endpointSelector", "egress"}
    selected = policy["spec"]["endpointSelector"]["matchLabels"].items()
    [pod] = [pod for pod in pods(ha) if selected <= pod["metadata"]["labels"].items()]
    assert pod["spec"] == pod_of(ha)
    dns, hub = policy["spec"]["egress"]
    assert set(dns) == {"toEndpoints", "toPorts"}
    assert set(hub) == {"toFQDNs", "toPorts"}
    assert all(set(name) <= {"matchName", "matchPattern"} for name in hub["toFQDNs"])
    assert {"matchName": "huggingface.co"} in hub["toFQDNs"]
    assert [port for rule in (dns, hub) for port in rule["toPorts"][0]["ports"]] == [
        {"port": "53", "protocol": "ANY"},
        {"port": "443", "protocol": "TCP"},
    ]


def test_every_selector_matches_exactly_one_pod(things: list[Thing]) -> None:
    """Kubernetes does not report a selector that matches nothing."""
    selectors = [thing["spec"]["selector"] for thing in of_kind(things, "Service")]
    for kind in ("Deployment", "PodDisruptionBudget"):
        selectors += [thing["spec"]["selector"]["matchLabels"] for thing in of_kind(things, kind)]
    for policy in of_kind(things, "NetworkPolicy"):
        selectors.append(policy["spec"]["podSelector"]["matchLabels"])
        rules = [*policy["spec"].get("ingress", []), *policy["spec"].get("egress", [])]
        peers = [peer for rule in rules for peer in (*rule.get("from", ()), *rule.get("to", ()))]
        # Peers in other namespaces are not part of these files.
        own = [peer for peer in peers if "namespaceSelector" not in peer]
        selectors += [peer["podSelector"]["matchLabels"] for peer in own if "podSelector" in peer]
    for pod in pods(things):
        spread = pod["spec"].get("topologySpreadConstraints", [])
        selectors += [constraint["labelSelector"]["matchLabels"] for constraint in spread]
    labels = [pod["metadata"]["labels"] for pod in pods(things)]
    matches = [sum(selector.items() <= owned.items() for owned in labels) for selector in selectors]
    assert matches == [1] * len(selectors)


# --- Agreement with the service -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(variants: dict[str, list[Thing]]) -> Iterator[ServerProcess]:
    """A real server with the settings of the plain overlay."""
    settings = environment_of(variants["plain"])
    if not has_ipv6():
        settings["HOST"] = "127.0.0.1"
    with running_server(**settings) as running:
        yield running


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as tried:
            tried.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_probes_use_health_routes(server: ServerProcess, variants: dict[str, list[Thing]]) -> None:
    container = container_of(variants["plain"])
    assert {name: container[name]["httpGet"]["path"] for name in PROBES} == PROBES
    assert {httpx.get(server.url + path).status_code for path in PROBES.values()} == {200}


def test_service_answers_over_ipv4_and_ipv6(server: ServerProcess) -> None:
    if not has_ipv6():
        pytest.skip("this machine has no IPv6")
    urls = (server.url, server.url.replace("127.0.0.1", "[::1]"))
    assert [httpx.get(url + "/health/ready").status_code for url in urls] == [200, 200]


def test_number_of_lanes_follows_the_cpu_limit_and_is_that_of_the_requested_cores(
    server: ServerProcess, things: list[Thing], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert server.wait_for("threads_planned")["wanted"] == "auto"
    resources = container_of(things)["resources"]
    monkeypatch.setattr(lane_plan, "usable_cores", lambda: int(cores(resources["limits"]["cpu"])))
    monkeypatch.setattr(lane_plan, "is_quota_tight", lambda: True)
    plan = lane_plan.plan_lanes(use_environment(environment_of(things), monkeypatch))
    assert (plan.lanes, plan.unused_cores) == (cores(resources["requests"]["cpu"]), 0)


def test_settings_are_valid_and_contain_no_secrets(things: list[Thing], monkeypatch: pytest.MonkeyPatch) -> None:
    environment = environment_of(things)
    assert {name for name in environment if name.lower() not in Settings.model_fields} <= {"REDIS_PASSWORD"}
    settings = use_environment(environment, monkeypatch)
    assert settings.log_format == "json"
    assert settings.enable_rate_limit is (settings.redis_url is not None)
    assert {"REDIS_URL", "REDIS_PASSWORD", "API_KEYS", "JWT_SECRET"}.isdisjoint(settings_of(things))


def test_ports_agree(things: list[Thing]) -> None:
    container = container_of(things)
    [port] = container["ports"]
    assert port["containerPort"] == int(settings_of(things).get("PORT", Settings.model_fields["port"].default))
    assert {container[probe]["httpGet"]["port"] for probe in PROBES} == {port["name"]}
    [outside] = named(things, "Service", "fast-embedding")["spec"]["ports"]
    assert outside["targetPort"] == port["name"]
    for monitor in of_kind(things, "ServiceMonitor"):
        assert monitor["spec"]["endpoints"][0]["port"] == outside["name"]
    [rule] = named(things, "NetworkPolicy", "fast-embedding")["spec"]["ingress"]
    assert [allowed["port"] for allowed in rule["ports"]] == [port["containerPort"]]


def test_image_has_the_version_of_the_service(things: list[Thing]) -> None:
    assert container_of(things)["image"] == f"fast-embedding:{main.VERSION}"


# --- Updates, drains and scaling ------------------------------------------------------------------------------------


def test_pod_has_time_to_drain(things: list[Thing]) -> None:
    settings = settings_of(things)
    pre_stop_s = container_of(things)["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain_s = int(settings["SHUTDOWN_TIMEOUT"])
    assert pod_of(things)["terminationGracePeriodSeconds"] >= pre_stop_s + drain_s + RESERVE_S
    assert float(settings["MAX_QUEUE_SECONDS"]) < drain_s, "accepted requests must be answered during the drain"


def test_update_starts_a_new_replica_first_and_allows_a_slow_start(things: list[Thing]) -> None:
    spec = deployment_of(things)["spec"]
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
    assert spec["strategy"] == strategy
    assert spec["minReadySeconds"] == 10
    probe = container_of(things)["startupProbe"]
    start_s = probe["periodSeconds"] * probe["failureThreshold"]
    assert start_s >= 600, "enough to download a model of some gigabytes"
    assert spec["progressDeadlineSeconds"] > start_s


def test_node_can_be_drained_even_if_there_is_one_replica(things: list[Thing]) -> None:
    [budget] = of_kind(things, "PodDisruptionBudget")
    assert budget["spec"]["maxUnavailable"] == 1
    assert "minAvailable" not in budget["spec"]


def test_autoscaler_alone_sets_the_number_of_replicas_and_keeps_three(ha: list[Thing]) -> None:
    [autoscaler] = of_kind(ha, "HorizontalPodAutoscaler")
    target = autoscaler["spec"]["scaleTargetRef"]
    deployment = named(ha, target["kind"], target["name"])
    assert (deployment["apiVersion"], deployment["metadata"]["name"]) == (target["apiVersion"], target["name"])
    assert "replicas" not in deployment["spec"]
    assert 3 == autoscaler["spec"]["minReplicas"] < autoscaler["spec"]["maxReplicas"]
    assert autoscaler["spec"]["metrics"][0]["containerResource"]["container"] == container_of(ha)["name"]


def test_changed_setting_or_password_causes_a_rolling_update_and_a_changed_key_does_not(tmp_path: Path) -> None:
    folder = kubernetes.copy_to(tmp_path)

    def render(password: str) -> Thing:
        kubernetes.make_secrets(tmp_path)  # new keys each time
        (folder / "overlays" / "ha" / "redis.env").write_text(f"REDIS_PASSWORD={password}\n", encoding="utf-8")
        return deployment_of(kubernetes.rendered(folder / "overlays" / "ha"))

    before = render("one")
    assert render("two") != before
    assert render("one") == before
    with (folder / "base" / "settings.env").open("a", encoding="utf-8") as settings:
        settings.write("DEBUG=true\n")
    assert render("one") != before


def test_queue_autoscaling_uses_a_metric_that_the_service_has(server: ServerProcess, ha: list[Thing]) -> None:
    values = ROOT / kubernetes.FOLDER / "components" / "queue-autoscaling" / "prometheus-adapter-values.yaml"
    [rule] = yaml.safe_load(values.read_text(encoding="utf-8"))["rules"]["custom"]
    [metric] = [metric["pods"] for metric in metrics_of(ha) if metric["type"] == "Pods"]
    name = metric["metric"]["name"]
    assert name == rule["name"]["as"]
    assert rule["seriesQuery"].startswith(name + "{")
    assert float(metric["target"]["averageValue"]) < float(settings_of(ha)["MAX_QUEUE_SECONDS"])
    path = named(ha, "ServiceMonitor", "fast-embedding")["spec"]["endpoints"][0]["path"]
    assert f"# TYPE {name} gauge\n" in httpx.get(server.url + path, headers={"Accept": "text/plain"}).text


def metrics_of(things: list[Thing]) -> list[Thing]:
    return list(named(things, "HorizontalPodAutoscaler", "fast-embedding")["spec"]["metrics"])


# --- Cores, memory and storage --------------------------------------------------------------------------------------


def test_cpu_request_is_whole_cores_and_the_limit_one_more(things: list[Thing]) -> None:
    container = container_of(things)
    request, limit = (cores(container["resources"][part]["cpu"]) for part in ("requests", "limits"))
    assert request == int(request) >= 1, "with half a core, a lane would be throttled half of the time"
    assert limit >= request + 1
    assert "THREAD_POOL_WORKERS" not in settings_of(things), "the container's own value would override it"


def test_memory_suffices_for_models_requests_and_measured_peak(
    things: list[Thing], monkeypatch: pytest.MonkeyPatch
) -> None:
    for pod in pods(things):
        for container in pod["spec"]["containers"]:
            assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]
    memory = memory_bytes(container_of(things)["resources"]["limits"]["memory"])
    settings = use_environment(environment_of(things), monkeypatch)
    budget = settings.model_memory_budget
    assert budget is not None
    assert 0 < budget <= memory * 3 / 4
    report = (ROOT / "docs" / "BENCHMARKS.md").read_text(encoding="utf-8")
    [peak_mb] = re.findall(r"^\| service, at its peak \| (\d+) \|$", report, flags=re.MULTILINE)
    bodies_bytes = MAX_LARGE_BODIES * int(Settings.model_fields["max_request_size"].default)
    kept_bytes = cache_bytes_of(settings)
    assert int(peak_mb) * 1_000_000 + bodies_bytes + kept_bytes < memory
    assert PROCESS_BYTES + budget + bodies_bytes + kept_bytes < memory


def test_volumes_of_a_pod_fit_its_ephemeral_storage(things: list[Thing]) -> None:
    for pod in pods(things):
        sizes = [volume["emptyDir"]["sizeLimit"] for volume in pod["spec"]["volumes"] if "emptyDir" in volume]
        for limits in (container["resources"]["limits"] for container in pod["spec"]["containers"]):
            if limit := limits.get("ephemeral-storage"):
                assert sum(map(memory_bytes, sizes)) < memory_bytes(limit)


# --- Security -------------------------------------------------------------------------------------------------------


def test_every_pod_meets_the_restricted_standard_and_has_read_only_files_and_no_token(things: list[Thing]) -> None:
    for pod in pods(things):
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        account = named(things, "ServiceAccount", spec["serviceAccountName"])  # not the namespace's default one
        assert account["automountServiceAccountToken"] is False
        assert spec["serviceAccountName"] == pod["metadata"]["labels"]["app.kubernetes.io/name"]
        assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers", "ephemeralContainers"} & set(spec)
        context = spec["securityContext"]
        assert context["runAsNonRoot"] is True
        assert min(context["runAsUser"], context["runAsGroup"]) > 0
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        kinds = {kind for volume in spec["volumes"] for kind in set(volume) - {"name"}}
        assert kinds <= {"emptyDir", "secret", "persistentVolumeClaim"}
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert not any("hostPort" in port for port in container["ports"])
    context = pod_of(things)["securityContext"]
    assert {context[name] for name in ("runAsUser", "runAsGroup", "fsGroup")} == {10001}, "the user of the image"


def test_namespace_enforces_the_restricted_standard(things: list[Thing]) -> None:
    [namespace] = of_kind(things, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    names = {thing["metadata"].get("namespace") for thing in things if thing is not namespace}
    assert names == {namespace["metadata"]["name"]}


def test_keys_are_mounted_as_a_folder_so_that_changes_arrive(ha: list[Thing]) -> None:
    [mount] = [mount for mount in container_of(ha)["volumeMounts"] if mount["name"] == "api-keys"]
    assert set(mount) == {"name", "mountPath", "readOnly"}, "with `subPath` the file would never change"
    file = Path(settings_of(ha)["API_KEYS_FILE"])
    assert file.parent == Path(mount["mountPath"])
    [volume] = [volume for volume in pod_of(ha)["volumes"] if volume["name"] == "api-keys"]
    assert volume["secret"]["defaultMode"] == 0o440, "for the group of the service only"
    assert file.name in named(ha, "Secret", volume["secret"]["secretName"])["data"]


def test_replicas_share_results_with_a_secret_of_their_own(ha: list[Thing]) -> None:
    file = Path(settings_of(ha)["CACHE_KEY_SECRET_FILE"])
    [mount] = [mount for mount in container_of(ha)["volumeMounts"] if mount["name"] == "cache-key"]
    assert file.parent == Path(mount["mountPath"])
    [volume] = [volume for volume in pod_of(ha)["volumes"] if volume["name"] == "cache-key"]
    secret = named(ha, "Secret", "fast-embedding-cache-key")
    assert volume["secret"]["secretName"] == secret["metadata"]["name"], "a changed secret is a rolling update"
    assert len(decode(secret, file.name)) >= MIN_SECRET_BYTES


def test_prometheus_has_a_key_for_the_closed_metrics(ha: list[Thing]) -> None:
    assert "metrics" in settings_of(ha)["CLOSED_ROUTES"].split(",")
    credentials = named(ha, "ServiceMonitor", "fast-embedding")["spec"]["endpoints"][0]["authorization"]["credentials"]
    key = decode(named(ha, "Secret", credentials["name"]), credentials["key"])
    assert f"prometheus:{key}:metrics\n" in decode(named(ha, "Secret", "fast-embedding-api-keys"), "api-keys.txt")


def decode(secret: Thing, name: str) -> str:
    return base64.b64decode(secret["data"][name]).decode()


def test_network_policies_allow_only_what_is_needed(variants: dict[str, list[Thing]], ha: list[Thing]) -> None:
    def allowed(things: list[Thing], direction: str) -> dict[str, set[tuple[str, int]]]:
        return {
            policy["metadata"]["name"]: {
                (port["protocol"], port["port"])
                for rule in policy["spec"].get(direction.lower(), [])
                for port in rule["ports"]
            }
            for policy in of_kind(things, "NetworkPolicy")
            if direction in policy["spec"]["policyTypes"]
        }

    dns = {("UDP", 53), ("TCP", 53)}
    assert allowed(ha, "Ingress") == {"fast-embedding": {("TCP", 8000)}, "fast-embedding-redis": {("TCP", 6379)}}
    assert allowed(ha, "Egress") == {
        "fast-embedding": dns,
        "fast-embedding-to-redis": {("TCP", 6379)},
        "fast-embedding-to-hub": {("TCP", 443)},
        "fast-embedding-to-issuer": {("TCP", 443), ("TCP", 8443)},
        "fast-embedding-redis": set(),
    }
    assert all("podSelector" in policy["spec"] for policy in of_kind(ha, "NetworkPolicy"))
    assert allowed(variants["plain"], "Egress") == {"fast-embedding": dns}
    assert of_kind(variants["plain"], "Secret") == []


def test_every_egress_rule_names_its_peers(ha: list[Thing]) -> None:
    """A rule without `to` allows every address; so does a peer that selects all namespaces."""
    peers = {
        policy["metadata"]["name"]: [rule["to"] for rule in policy["spec"].get("egress", [])]
        for policy in of_kind(ha, "NetworkPolicy")
    }
    for name, rules in peers.items():
        for peer in (peer for rule in rules for peer in rule):
            selectors = [selector for kind, selector in peer.items() if kind != "ipBlock"]
            assert all(selector["matchLabels"] for selector in selectors), name
    [dns] = peers["fast-embedding"]
    assert dns == [
        {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
            "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
        },
        {"ipBlock": {"cidr": "169.254.20.10/32"}},
    ]
    wide = {name for name, rules in peers.items() if any("0.0.0.0/0" in str(rule) for rule in rules)}
    assert wide == {"fast-embedding-to-hub"}, "the addresses of a hub change, see its file"


@pytest.mark.parametrize(
    ("variant", "megabytes", "policy"),
    [
        pytest.param("ha", 64, "volatile-ttl", id="quotas"),
        pytest.param("ha with all components", 512, "volatile-lfu", id="quotas and results"),
    ],
)
def test_redis_reads_its_password_from_standard_input(
    variant: str, megabytes: int, policy: str, variants: dict[str, list[Thing]], tmp_path: Path
) -> None:
    """Every user of a node can read the arguments of its processes."""
    [redis] = named(variants[variant], "Deployment", "fast-embedding-redis")["spec"]["template"]["spec"]["containers"]
    assert "args" not in redis
    [variable] = redis["env"]
    assert set(variable["valueFrom"]) == {"secretKeyRef"}
    shell, options, script = redis["command"]
    port, password = free_port(), "0123456789abcdef" * 4  # as `openssl rand -hex 32` of the guide makes it
    script = script.replace("dir /data\n", f"dir {tmp_path}\nport {port}\n")
    needed("redis-server")
    environment = {**os.environ, variable["name"]: password}
    process = LoggedProcess([shell, options, script], folder=tmp_path, environment=environment)
    try:
        process.wait_until(lambda: "Ready to accept connections" in process.log, "start of Redis")
        arguments = Path(f"/proc/{process.process.pid}/cmdline").read_bytes()
        assert b"redis-server" in arguments
        assert password.encode() not in arguments
        with redis_client.Redis(port=port, password=password) as client:
            assert client.config_get("maxmemory") == {"maxmemory": str(megabytes << 20)}
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": policy}
            assert client.config_get("save") == {"save": ""}
        with redis_client.Redis(port=port) as stranger, pytest.raises(redis_client.AuthenticationError):
            stranger.ping()
    finally:
        process.stop()


def test_redis_url_points_to_the_redis_service(ha: list[Thing]) -> None:
    url = urlsplit(environment_of(ha)["REDIS_URL"])
    [port] = named(ha, "Service", str(url.hostname))["spec"]["ports"]
    assert port["port"] == url.port == 6379
    assert url.password == "a-password"  # noqa: S105 - in place of the Secret's


def test_missing_secret_is_named_and_nothing_is_rendered(tmp_path: Path) -> None:
    done = kubernetes.kustomize(kubernetes.copy_to(tmp_path) / "overlays" / "ha")
    assert done.returncode != 0
    assert done.stdout == ""
    assert any(Path(file).name in done.stderr for file in kubernetes.SECRETS)


def test_git_ignores_secrets() -> None:
    patterns = list(filter(None, (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()))
    for file in kubernetes.SECRETS:
        assert any(PurePosixPath(f"/{kubernetes.FOLDER / file}").match(pattern) for pattern in patterns)


# --- The guide ------------------------------------------------------------------------------------------------------


def test_replica_table_of_the_guide_follows_from_the_benchmarks(ha: list[Thing]) -> None:
    """Recomputes the table from docs/BENCHMARKS.md and the CPU use at which the autoscaler adds a replica."""
    report = (ROOT / "docs" / "BENCHMARKS.md").read_text(encoding="utf-8")
    [cpu] = [metric for metric in metrics_of(ha) if metric["type"] == "ContainerResource"]
    load = cpu["containerResource"]["target"]["averageUtilization"] / 100
    pattern = r"^\| (?:single|batches)[^|]*\(row (\d)\) \|(.*)\|$"
    rows = re.findall(pattern, kubernetes.guide(), flags=re.MULTILINE)
    assert [row for row, _ in rows] == ["1", "2", "4", "3"]
    for row, cells in rows:
        measured = re.search(rf"^### {row}\..*?^\| service \| ([\d.]+) \|", report, flags=re.MULTILINE | re.DOTALL)
        assert measured
        per_replica = float(measured[1]) * load
        needed = [str(math.ceil(texts_per_s / per_replica)) for texts_per_s in (50, 200, 1000)]
        _, *written = (cell.strip() for cell in cells.split("|"))
        assert written == [f"{float(measured[1]):.0f}", f"{per_replica:.0f}", *needed]


def test_ingress_of_the_guide_exposes_public_routes_only(variants: dict[str, list[Thing]]) -> None:
    ingress = yaml.safe_load(kubernetes.guide_block("kind: Ingress"))
    for version in VERSIONS:
        kubernetes_validate.validate(ingress, version, strict=True)
    service = named(variants["plain"], "Service", "fast-embedding")
    assert ingress["metadata"]["namespace"] == service["metadata"]["namespace"]
    paths = ingress["spec"]["rules"][0]["http"]["paths"]
    for path in paths:
        backend = path["backend"]["service"]
        assert backend["name"] == service["metadata"]["name"]
        assert backend["port"]["name"] == service["spec"]["ports"][0]["name"]
    routes = [route.path for route in main.app.routes]
    listed = {path["path"] for path in paths}
    of_others = {"/", "/v1", "/v2", "/api", "/tei", "/embeddings", "/openai", "/similarity", "/info"}
    assert listed == {"/embed", "/tokenize", "/models"} | of_others
    for path in listed:
        assert path in routes or any(route.startswith(f"{path}/") for route in routes)


def test_guide_and_overlays_list_every_component() -> None:
    components = {folder.name for folder in (ROOT / kubernetes.FOLDER / "components").iterdir()}
    listed = set(re.findall(r"^\| `([a-z-]+)`(?: \([^|]*\))? \|", kubernetes.guide(), flags=re.MULTILINE))
    assert listed == {*components, *OVERLAYS}
    for overlay in OVERLAYS:
        file = ROOT / kubernetes.FOLDER / "overlays" / overlay / "kustomization.yaml"
        named_there = set(re.findall(r"\.\./\.\./components/([a-z-]+)", file.read_text(encoding="utf-8")))
        assert components - named_there <= ({"queue-autoscaling", "shared-results"} if overlay == "plain" else set())
