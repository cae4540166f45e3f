"""deploy/kubernetes/: rendered by kustomize, checked against Kubernetes' own schemas and against the service itself."""

import base64
import copy
import math
import re
import socket
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import httpx
import kubernetes_validate
import pytest
import yaml

import main
from assembly.serve import MAX_LARGE_BODIES
from config import Settings, load_settings
from tests.support import kubernetes
from tests.support.kubernetes import Thing, cores, memory_bytes, named, of_kind, pods
from tests.support.servers import ROOT, ServerProcess, running_server

VERSIONS = ("1.30", kubernetes_validate.latest_version())
"""The oldest that the files are for, and the newest that there is a schema of."""
OVERLAYS = ("plain", "ha")
VARIANTS = (*OVERLAYS, "plain with all components", "ha with all components")
RESERVE_S = 5
"""Between the end that the service promises and the kill."""


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Thing]]:
    """What each overlay makes, as it stands and with every component that it names."""
    folder = kubernetes.copy_to(tmp_path_factory.mktemp("repository"))
    kubernetes.make_secrets(folder.parent.parent)
    made = {name: kubernetes.rendered(folder / "overlays" / name) for name in OVERLAYS}
    for name in OVERLAYS:
        kubernetes.with_all_components(folder / "overlays" / name)
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


def container_of(things: list[Thing]) -> Thing:
    [container] = deployment_of(things)["spec"]["template"]["spec"]["containers"]
    return dict(container)


def settings_of(things: list[Thing]) -> dict[str, str]:
    return dict(named(things, "ConfigMap", "fast-embedding-settings")["data"])


def environment_of(things: list[Thing]) -> dict[str, str]:
    """What the service's container finds in its environment; the kubelet's part is done here."""
    container, given = container_of(things), settings_of(things)
    for variable in container["env"]:
        if field := variable.get("valueFrom", {}).get("resourceFieldRef"):
            assert field == {"containerName": container["name"], "resource": "requests.cpu", "divisor": "1"}
            given[variable["name"]] = str(cores(container["resources"]["requests"]["cpu"]).__ceil__())
        elif secret := variable.get("valueFrom", {}).get("secretKeyRef"):
            [found] = [thing for thing in of_kind(things, "Secret") if thing["metadata"]["name"] == secret["name"]]
            assert secret["key"] in found["data"]
            given[variable["name"]] = "a-password"
        else:
            given[variable["name"]] = variable["value"].replace("$(REDIS_PASSWORD)", given["REDIS_PASSWORD"])
    return given


# The schemas


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.timeout(60)
def test_every_object_is_one_that_kubernetes_takes(variants: dict[str, list[Thing]], version: str) -> None:
    different = {yaml.safe_dump(thing): thing for things in variants.values() for thing in things}
    for thing in different.values():
        if thing["kind"] != "ServiceMonitor":  # not Kubernetes' own; see below
            kubernetes_validate.validate(thing, version, strict=True)


def paths_of(node: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where every mapping stands whose names the schemas know; what labels, data and selectors hold is free."""
    if isinstance(node, dict):
        if path:
            yield path
        for name, below in node.items():
            if name not in {"metadata", "data", "matchLabels", "selector", "requests", "limits", "stringData"}:
                yield from paths_of(below, (*path, name))
    elif isinstance(node, list):
        for index, below in enumerate(node[:1]):
            yield from paths_of(below, (*path, index))


@pytest.mark.timeout(120)
def test_a_wrong_name_anywhere_is_found(ha: list[Thing]) -> None:
    """What proves that the test above is one: a typo in any place of any kind fails it."""
    seen: set[str] = set()
    for thing in ha:
        if thing["kind"] in seen | {"ServiceMonitor"}:
            continue
        seen.add(thing["kind"])
        for path in paths_of(thing):
            broken = copy.deepcopy(thing)
            place: Any = broken
            for step in path:
                place = place[step]
            place["typo"] = 1
            with pytest.raises(kubernetes_validate.ValidationError):
                kubernetes_validate.validate(broken, VERSIONS[-1], strict=True)
    assert seen >= {"Deployment", "Service", "NetworkPolicy", "HorizontalPodAutoscaler", "PodDisruptionBudget"}


def test_service_monitor_has_the_form_of_its_kind(ha: list[Thing]) -> None:
    """Its schema comes with the operator; this is the part of it that is used here."""
    monitor = named(ha, "ServiceMonitor", "fast-embedding")
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert set(monitor["spec"]) == {"selector", "endpoints"}
    [endpoint] = monitor["spec"]["endpoints"]
    assert set(endpoint) == {"port", "path", "interval", "scrapeTimeout", "authorization"}
    assert set(endpoint["authorization"]) == {"credentials"}
    assert set(endpoint["authorization"]["credentials"]) == {"name", "key"}


# The service and its files agree


@pytest.fixture(scope="module")
def server(variants: dict[str, list[Thing]]) -> Iterator[ServerProcess]:
    """A real one with the very settings of the plain overlay."""
    settings = environment_of(variants["plain"])
    if not _has_ipv6():
        settings["HOST"] = "127.0.0.1"
    with running_server(**settings) as running:
        yield running


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as tried:
            tried.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.timeout(60)
def test_probes_ask_routes_that_answer_200_where_all_is_well(
    server: ServerProcess, variants: dict[str, list[Thing]]
) -> None:
    container = container_of(variants["plain"])
    paths = {name: container[name]["httpGet"]["path"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert paths == {
        "startupProbe": "/health/ready",
        "readinessProbe": "/health/ready",
        "livenessProbe": "/health/live",
    }
    assert {httpx.get(server.url + path).status_code for path in paths.values()} == {200}


@pytest.mark.timeout(60)
def test_service_answers_in_both_families(server: ServerProcess) -> None:
    if not _has_ipv6():
        pytest.skip("this machine has no IPv6")
    urls = (server.url, server.url.replace("127.0.0.1", "[::1]"))
    assert [httpx.get(url + "/health/ready").status_code for url in urls] == [200, 200]


@pytest.mark.timeout(60)
def test_lanes_follow_the_cores_that_are_asked_for(server: ServerProcess, variants: dict[str, list[Thing]]) -> None:
    asked_for = cores(container_of(variants["plain"])["resources"]["requests"]["cpu"])
    assert server.wait_for("threads_planned")["wanted"] == asked_for


def test_all_settings_are_settings_and_load(things: list[Thing], monkeypatch: pytest.MonkeyPatch) -> None:
    environment = environment_of(things)
    assert {name for name in environment if name.lower() not in Settings.model_fields} <= {"REDIS_PASSWORD"}
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = load_settings(_env_file=None)
    assert settings.log_format == "json"
    assert settings.enable_rate_limit is (settings.redis_url is not None)


def test_nothing_secret_stands_in_the_settings(things: list[Thing]) -> None:
    secret = {"REDIS_URL", "REDIS_PASSWORD", "API_KEYS", "JWT_SECRET"}
    assert secret.isdisjoint(settings_of(things))


def test_ports_are_those_the_service_listens_on(things: list[Thing]) -> None:
    container = container_of(things)
    [port] = container["ports"]
    assert port["containerPort"] == int(settings_of(things).get("PORT", Settings.model_fields["port"].default))
    assert {container[probe]["httpGet"]["port"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")} == {
        port["name"]
    }
    [outside] = named(things, "Service", "fast-embedding")["spec"]["ports"]
    assert outside["targetPort"] == port["name"]
    for monitor in of_kind(things, "ServiceMonitor"):
        assert monitor["spec"]["endpoints"][0]["port"] == outside["name"]
    [rule] = named(things, "NetworkPolicy", "fast-embedding")["spec"]["ingress"]
    assert [allowed["port"] for allowed in rule["ports"]] == [port["containerPort"]]


def test_image_is_of_this_version(things: list[Thing]) -> None:
    assert container_of(things)["image"] == f"fast-embedding:{main.VERSION}"


def test_selectors_find_their_pods(things: list[Thing]) -> None:
    """A selector with a typo selects nothing, and nobody says so."""
    labels = [pod["metadata"]["labels"] for pod in pods(things)]

    def found_by(selector: dict[str, str]) -> int:
        return sum(selector.items() <= owned.items() for owned in labels)

    selectors = [thing["spec"]["selector"] for thing in of_kind(things, "Service")]
    selectors += [deployment["spec"]["selector"]["matchLabels"] for deployment in of_kind(things, "Deployment")]
    selectors += [budget["spec"]["selector"]["matchLabels"] for budget in of_kind(things, "PodDisruptionBudget")]
    for policy in of_kind(things, "NetworkPolicy"):
        selectors.append(policy["spec"]["podSelector"]["matchLabels"])
        peers = [peer for rule in _rules(policy) for peer in (*rule.get("from", ()), *rule.get("to", ()))]
        selectors += [peer["podSelector"]["matchLabels"] for peer in peers if "podSelector" in peer]
    for pod in pods(things):
        spread = pod["spec"].get("topologySpreadConstraints", [])
        selectors += [constraint["labelSelector"]["matchLabels"] for constraint in spread]
    assert [found_by(selector) for selector in selectors] == [1] * len(selectors)


def _rules(policy: Thing) -> list[Thing]:
    return [*policy["spec"].get("ingress", []), *policy["spec"].get("egress", [])]


def test_service_monitor_finds_the_service(ha: list[Thing]) -> None:
    wanted = named(ha, "ServiceMonitor", "fast-embedding")["spec"]["selector"]["matchLabels"]
    found = [thing["metadata"]["name"] for thing in of_kind(ha, "Service") if _has_labels(thing, wanted)]
    assert found == ["fast-embedding"]


def _has_labels(thing: Thing, wanted: dict[str, str]) -> bool:
    labels: dict[str, str] = thing["metadata"]["labels"]
    return wanted.items() <= labels.items()


# The end, updates, and lost nodes


def test_a_pod_has_the_time_to_end(things: list[Thing]) -> None:
    pod = deployment_of(things)["spec"]["template"]["spec"]
    settings = settings_of(things)
    pre_stop_s = container_of(things)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] >= pre_stop_s + int(settings["SHUTDOWN_TIMEOUT"]) + RESERVE_S


def test_nobody_accepted_waits_longer_than_the_end_takes(things: list[Thing]) -> None:
    settings = settings_of(things)
    assert float(settings["MAX_QUEUE_SECONDS"]) < float(settings["SHUTDOWN_TIMEOUT"])


def test_a_slow_start_is_no_failed_update(things: list[Thing]) -> None:
    probe = container_of(things)["startupProbe"]
    start_s = probe["periodSeconds"] * probe["failureThreshold"]
    assert start_s >= 600, "a model of some gigabytes has the time to be downloaded"
    assert deployment_of(things)["spec"]["progressDeadlineSeconds"] > start_s


def test_an_update_never_has_less_than_all_replicas(things: list[Thing]) -> None:
    assert deployment_of(things)["spec"]["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1},
    }


def test_a_node_can_be_drained(things: list[Thing]) -> None:
    """One replica may go at any time, also where there is one only; never two at a time."""
    [budget] = of_kind(things, "PodDisruptionBudget")
    assert budget["spec"]["maxUnavailable"] == 1
    assert "minAvailable" not in budget["spec"]


def test_autoscaler_keeps_three_replicas_and_nothing_else_sets_their_number(ha: list[Thing]) -> None:
    [autoscaler] = of_kind(ha, "HorizontalPodAutoscaler")
    target = autoscaler["spec"]["scaleTargetRef"]
    deployment = named(ha, target["kind"], target["name"])
    assert (deployment["apiVersion"], deployment["metadata"]["name"]) == (target["apiVersion"], target["name"])
    assert "replicas" not in deployment["spec"]
    assert 3 == autoscaler["spec"]["minReplicas"] < autoscaler["spec"]["maxReplicas"]
    assert autoscaler["spec"]["metrics"][0]["containerResource"]["container"] == container_of(ha)["name"]


def test_a_changed_setting_rolls_the_pods_and_a_changed_key_does_not(tmp_path: Path) -> None:
    folder = kubernetes.copy_to(tmp_path)
    kubernetes.make_secrets(tmp_path)
    before = kubernetes.rendered(folder / "overlays" / "ha")
    kubernetes.make_secrets(tmp_path)  # other keys, another password
    (folder / "overlays" / "ha" / "redis.env").write_text("REDIS_PASSWORD=the-same\n", encoding="utf-8")
    rolled = kubernetes.rendered(folder / "overlays" / "ha")
    assert deployment_of(rolled) != deployment_of(before)
    kubernetes.make_secrets(tmp_path)
    (folder / "overlays" / "ha" / "redis.env").write_text("REDIS_PASSWORD=the-same\n", encoding="utf-8")
    assert deployment_of(kubernetes.rendered(folder / "overlays" / "ha")) == deployment_of(rolled)
    settings = folder / "base" / "settings.env"
    settings.write_text(settings.read_text(encoding="utf-8") + "DEBUG=true\n", encoding="utf-8")
    assert deployment_of(kubernetes.rendered(folder / "overlays" / "ha")) != deployment_of(rolled)


# Cores and memory


def test_lanes_have_cores_and_what_works_beside_them_has_one_more(things: list[Thing]) -> None:
    container = container_of(things)
    asked_for, most = (cores(container["resources"][part]["cpu"]) for part in ("requests", "limits"))
    assert asked_for == int(asked_for) >= 1, "half a core would be a lane that is stopped half of the time"
    assert most >= asked_for + 1
    assert "THREAD_POOL_WORKERS" not in settings_of(things), "it would not count beside the container's own"


def test_memory_is_promised_in_full_and_models_leave_room(things: list[Thing], monkeypatch: pytest.MonkeyPatch) -> None:
    for pod in pods(things):
        for container in pod["spec"]["containers"]:
            assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]
    memory = memory_bytes(container_of(things)["resources"]["limits"]["memory"])
    monkeypatch.setenv("MODEL_MEMORY_BUDGET", settings_of(things)["MODEL_MEMORY_BUDGET"])
    budget = load_settings(_env_file=None).model_memory_budget
    assert budget is not None
    assert 0 < budget <= memory * 3 / 4


def test_files_of_a_pod_fit_into_what_it_may_store(things: list[Thing]) -> None:
    for pod in pods(things):
        sizes = [volume["emptyDir"]["sizeLimit"] for volume in pod["spec"]["volumes"] if "emptyDir" in volume]
        for limits in (container["resources"]["limits"] for container in pod["spec"]["containers"]):
            if most := limits.get("ephemeral-storage"):
                assert sum(map(memory_bytes, sizes)) < memory_bytes(most)


# Security


def test_every_pod_is_restricted(things: list[Thing]) -> None:
    """What the pod security standard `restricted` asks for, and more: files that nobody can write, no token."""
    for pod in pods(things):
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers", "ephemeralContainers"} & set(spec)
        secure = spec["securityContext"]
        assert secure["runAsNonRoot"] is True
        assert secure["runAsUser"] > 0
        assert secure["runAsGroup"] > 0
        assert secure["seccompProfile"] == {"type": "RuntimeDefault"}
        for volume in spec["volumes"]:
            [kind] = set(volume) - {"name"}
            assert kind in {"emptyDir", "secret", "persistentVolumeClaim"}
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert not any("hostPort" in port for port in container["ports"])


def test_the_namespace_enforces_it(things: list[Thing]) -> None:
    [namespace] = of_kind(things, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    names = {thing["metadata"].get("namespace") for thing in things if thing is not namespace}
    assert names == {namespace["metadata"]["name"]}


def test_service_runs_as_the_user_of_the_image(things: list[Thing]) -> None:
    secure = deployment_of(things)["spec"]["template"]["spec"]["securityContext"]
    assert {secure[name] for name in ("runAsUser", "runAsGroup", "fsGroup")} == {10001}


def test_keys_are_mounted_so_that_new_ones_arrive(ha: list[Thing]) -> None:
    [mount] = [mount for mount in container_of(ha)["volumeMounts"] if mount["name"] == "api-keys"]
    assert set(mount) == {"name", "mountPath", "readOnly"}, "with `subPath` the file would never change"
    assert Path(settings_of(ha)["API_KEYS_FILE"]).parent == Path(mount["mountPath"])
    [volume] = [
        volume for volume in deployment_of(ha)["spec"]["template"]["spec"]["volumes"] if volume["name"] == "api-keys"
    ]
    assert volume["secret"]["defaultMode"] == 0o440, "for the service's group alone"
    secret = named(ha, "Secret", volume["secret"]["secretName"])
    assert Path(settings_of(ha)["API_KEYS_FILE"]).name in secret["data"]


def test_prometheus_has_the_key_that_closed_metrics_want(ha: list[Thing]) -> None:
    assert "metrics" in settings_of(ha)["CLOSED_ROUTES"].split(",")
    credentials = named(ha, "ServiceMonitor", "fast-embedding")["spec"]["endpoints"][0]["authorization"]["credentials"]
    secret = named(ha, "Secret", credentials["name"])
    key = _decoded(secret, credentials["key"])
    assert f"prometheus:{key}:metrics\n" in _decoded(named(ha, "Secret", "fast-embedding-api-keys"), "api-keys.txt")


def _decoded(secret: Thing, name: str) -> str:
    return base64.b64decode(secret["data"][name]).decode()


# Networks


def test_network_lets_through_what_is_needed(ha: list[Thing]) -> None:
    """Callers to the service, the service to names and Redis and the hub, Redis to nobody."""
    allowed = {policy["metadata"]["name"]: policy["spec"] for policy in of_kind(ha, "NetworkPolicy")}
    assert {
        name: _ports(spec.get("ingress", [])) for name, spec in allowed.items() if "Ingress" in spec["policyTypes"]
    } == {
        "fast-embedding": {("TCP", 8000)},
        "fast-embedding-redis": {("TCP", 6379)},
    }
    assert {
        name: _ports(spec.get("egress", [])) for name, spec in allowed.items() if "Egress" in spec["policyTypes"]
    } == {
        "fast-embedding": {("UDP", 53), ("TCP", 53)},
        "fast-embedding-to-redis": {("TCP", 6379)},
        "fast-embedding-to-hub": {("TCP", 443)},
        "fast-embedding-redis": set(),
    }
    assert all(set(spec) >= {"podSelector", "policyTypes"} for spec in allowed.values())


def _ports(rules: list[Thing]) -> set[tuple[str, int]]:
    return {(port["protocol"], port["port"]) for rule in rules for port in rule["ports"]}


def test_plain_overlay_needs_no_secret_and_reaches_nothing_but_names(variants: dict[str, list[Thing]]) -> None:
    plain = variants["plain"]
    assert of_kind(plain, "Secret") == []
    [policy] = of_kind(plain, "NetworkPolicy")
    assert _ports(policy["spec"]["egress"]) == {("UDP", 53), ("TCP", 53)}


# Redis


def test_redis_is_where_the_service_looks_for_it(ha: list[Thing]) -> None:
    url = urlsplit(environment_of(ha)["REDIS_URL"])
    [port] = named(ha, "Service", str(url.hostname))["spec"]["ports"]
    assert port["port"] == url.port == 6379
    assert url.password == "a-password"  # noqa: S105 - stands for the Secret's


def test_missing_secrets_are_named(tmp_path: Path) -> None:
    """Nothing is rendered, so nothing is half applied."""
    folder = kubernetes.copy_to(tmp_path)
    done = kubernetes.kustomize(folder / "overlays" / "ha")
    assert done.returncode != 0
    assert done.stdout == ""
    assert any(Path(file).name in done.stderr for file in kubernetes.SECRETS)


def test_git_ignores_secrets() -> None:
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8")
    for file in kubernetes.SECRETS:
        assert any(
            PurePosixPath("/" + str(kubernetes.FOLDER / file)).match(line) for line in ignored.splitlines() if line
        )


# Autoscaling by queue


def test_adapter_tells_the_metric_that_the_autoscaler_asks_for(ha: list[Thing]) -> None:
    values = ROOT / kubernetes.FOLDER / "components" / "queue-autoscaling" / "prometheus-adapter-values.yaml"
    [rule] = yaml.safe_load(values.read_text(encoding="utf-8"))["rules"]["custom"]
    metrics = named(ha, "HorizontalPodAutoscaler", "fast-embedding")["spec"]["metrics"]
    [metric] = [metric["pods"] for metric in metrics if metric["type"] == "Pods"]
    assert metric["metric"]["name"] == rule["name"]["as"]
    assert rule["seriesQuery"].startswith(rule["name"]["as"] + "{")
    assert float(metric["target"]["averageValue"]) < float(settings_of(ha)["MAX_QUEUE_SECONDS"])


@pytest.mark.timeout(60)
def test_the_service_has_that_metric(server: ServerProcess, ha: list[Thing]) -> None:
    [monitor] = of_kind(ha, "ServiceMonitor")
    [metric] = [metric for metric in _metrics_of(ha) if metric["type"] == "Pods"]
    told = httpx.get(server.url + monitor["spec"]["endpoints"][0]["path"], headers={"Accept": "text/plain"})
    assert f"# TYPE {metric['pods']['metric']['name']} gauge\n" in told.text


def _metrics_of(things: list[Thing]) -> list[Thing]:
    return list(named(things, "HorizontalPodAutoscaler", "fast-embedding")["spec"]["metrics"])


# The guide


def test_memory_is_enough_for_what_was_measured_and_for_bodies(things: list[Thing]) -> None:
    report = (ROOT / "docs" / "BENCHMARKS.md").read_text(encoding="utf-8")
    [peak_mb] = re.findall(r"^\| service, at its peak \| (\d+) \|$", report, flags=re.MULTILINE)
    bodies_bytes = MAX_LARGE_BODIES * int(Settings.model_fields["max_request_size"].default)
    need_bytes = int(peak_mb) * 1_000_000 + bodies_bytes
    assert need_bytes < memory_bytes(container_of(things)["resources"]["requests"]["memory"])


def test_replicas_of_the_guide_follow_from_what_was_measured(ha: list[Thing]) -> None:
    """Its table, worked out again from docs/BENCHMARKS.md and the load at which the autoscaler adds a replica."""
    report = (ROOT / "docs" / "BENCHMARKS.md").read_text(encoding="utf-8")
    [processor] = [metric for metric in _metrics_of(ha) if metric["type"] == "ContainerResource"]
    load = processor["containerResource"]["target"]["averageUtilization"] / 100
    rows = re.findall(
        r"^\| (?:single|batches)[^|]*\(row (\d)\) \|(.*)\|$", kubernetes.guide_section(), flags=re.MULTILINE
    )
    assert [row for row, _ in rows] == ["1", "2", "4", "3"]
    for row, cells in rows:
        measured = re.search(rf"^### {row}\..*?^\| service \| ([\d.]+) \|", report, flags=re.MULTILINE | re.DOTALL)
        assert measured
        per_replica = float(measured[1]) * load
        needed = [str(math.ceil(texts_per_s / per_replica)) for texts_per_s in (50, 200, 1000)]
        _, *told = (cell.strip() for cell in cells.split("|"))
        assert told == [f"{float(measured[1]):.0f}", f"{per_replica:.0f}", *needed]


def test_ingress_of_the_guide_leads_callers_to_open_routes_only(variants: dict[str, list[Thing]]) -> None:
    ingress = yaml.safe_load(kubernetes.guide_block("kind: Ingress"))
    for version in VERSIONS:
        kubernetes_validate.validate(ingress, version, strict=True)
    service = named(variants["plain"], "Service", "fast-embedding")
    assert ingress["metadata"]["namespace"] == service["metadata"]["namespace"]
    paths = ingress["spec"]["rules"][0]["http"]["paths"]
    for path in paths:
        assert path["backend"]["service"]["name"] == service["metadata"]["name"]
        assert path["backend"]["service"]["port"]["name"] == service["spec"]["ports"][0]["name"]
    routes = {route.path for route in main.app.routes}
    assert {path["path"] for path in paths} == {"/embed", "/tokenize", "/models"} <= routes


def test_guide_tells_of_every_component() -> None:
    components = {folder.name for folder in (ROOT / kubernetes.FOLDER / "components").iterdir()}
    section = kubernetes.guide_section()
    assert set(re.findall(r"^\| `([a-z-]+)`(?: \([^|]*\))? \|", section, flags=re.MULTILINE)) == {
        *components,
        *OVERLAYS,
    }
    for overlay in OVERLAYS:
        listed = (ROOT / kubernetes.FOLDER / "overlays" / overlay / "kustomization.yaml").read_text(encoding="utf-8")
        named_there = set(re.findall(r"\.\./\.\./components/([a-z-]+)", listed))
        assert components - named_there <= ({"queue-autoscaling"} if overlay == "plain" else set())
