"""A real Prometheus collects a real service's metrics, set up as docs/MONITORING.md says."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.logged_process import LoggedProcess
from tests.support.redis_servers import needed
from tests.support.servers import ROOT, ServerProcess, free_port, running_server
from tests.support.tiny import TinyModel

pytestmark = [pytest.mark.prometheus, pytest.mark.timeout(120)]

KEY = "some-key-of-32-characters-or-more"
GUIDE = (ROOT / "docs/MONITORING.md").read_text(encoding="utf-8")
ALERT_PAGE = (ROOT / "docs/production/alerts.md").read_text(encoding="utf-8")
_, CONFIG = re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)
RULES = ROOT / "deploy/prometheus/fast-embedding-alerts.yml"
ALERTS = RULES.read_text(encoding="utf-8")
GUIDES_TARGET, GUIDES_INTERVAL = "127.0.0.1:8000", "scrape_interval: 15s"
TIMEOUT_S = 30
PAUSE_S = 0.1


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that has answered two requests, and requires a key for its metrics."""
    models = tmp_path_factory.mktemp("models")
    TinyModel("tiny/one").write(models)
    settings = {"MODELS_DIR": str(models), "REQUIRED_MODELS": "tiny/one", "CLOSED_ROUTES": "metrics"}
    with running_server(**settings, API_KEYS=f"prometheus:{KEY}:metrics+embed") as server:
        headers = {"X-API-Key": KEY}
        for body, status in (({"text": "one"}, 200), ({"text": ""}, 400)):
            assert httpx.post(f"{server.url}/embed", json=body, headers=headers, timeout=60).status_code == status
        yield server


@pytest.fixture(scope="module")
def prometheus(service: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator["Prometheus"]:
    """A Prometheus with the guide's configuration, except for the address and shorter intervals."""
    folder = tmp_path_factory.mktemp("prometheus")
    assert GUIDES_TARGET in CONFIG
    assert GUIDES_INTERVAL in CONFIG
    interval = "global: {evaluation_interval: 1s}\n"
    config = CONFIG.replace(GUIDES_TARGET, service.url.removeprefix("http://"))
    (folder / "prometheus.yml").write_text(interval + config.replace(GUIDES_INTERVAL, "scrape_interval: 1s"))
    shutil.copy(RULES, folder)
    (folder / "metrics-key").write_text(f"{KEY}\n")
    with running_prometheus(folder) as running:
        yield running


class Prometheus:
    """A Prometheus that a test has started."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=f"{url}/api/v1", timeout=TIMEOUT_S)

    def value(self, query: str) -> float:
        """Return the single number that *query* results in, as soon as there is one."""

        def answer() -> list[Any]:
            return list(self._get("/query", query=query)["result"])

        [found] = _soon(answer, query)
        return float(found["value"][1])

    def rules(self) -> dict[str, tuple[str, str]]:
        """Return each rule's health and last error by name, as soon as all have been evaluated."""

        def evaluated() -> list[Any]:
            rules = [rule for group in self._get("/rules")["groups"] for rule in group["rules"]]
            return rules if all(rule["health"] != "unknown" for rule in rules) else []

        return {rule["name"]: (rule["health"], rule.get("lastError", "")) for rule in _soon(evaluated, "rules")}

    def close(self) -> None:
        self._client.close()

    def _get(self, path: str, **query: str) -> dict[str, Any]:
        answer = self._client.get(path, params=query).json()
        assert answer["status"] == "success", answer
        return dict(answer["data"])


def _soon(look: Callable[[], list[Any]], what: str) -> list[Any]:
    """Return what *look* finds. It is called until then, as Prometheus does not report when it has collected."""
    ends = time.monotonic() + TIMEOUT_S
    while not (found := look()):
        assert time.monotonic() < ends, f"no {what}"
        time.sleep(PAUSE_S)
    return found


@contextmanager
def running_prometheus(folder: Path) -> Iterator[Prometheus]:
    """Start a Prometheus with the `prometheus.yml` of *folder*, where it stores its data, and stop it at the end."""
    address = f"127.0.0.1:{free_port()}"
    command = [needed("prometheus"), "--config.file=prometheus.yml", "--storage.tsdb.path=collected"]
    process = LoggedProcess([*command, f"--web.listen-address={address}"], folder=folder, environment=os.environ)
    try:
        process.wait_until(lambda: "Server is ready to receive web requests" in process.log, "start")
        prometheus = Prometheus(f"http://{address}")
        try:
            yield prometheus
        finally:
            prometheus.close()
    finally:
        process.stop()


def test_prometheus_collects_the_metrics(prometheus: Prometheus) -> None:
    route = 'method="POST",route="/embed",dialect="native"'
    assert prometheus.value(f'fast_embedding_requests_total{{{route},status="200"}}') == 1
    failed = (
        f'sum(fast_embedding_requests_total{{{route},status=~"4.."}}) / sum(fast_embedding_requests_total{{{route}}})'
    )
    assert prometheus.value(failed) == 0.5
    assert prometheus.value('up{job="fast-embedding"}') == 1
    assert prometheus.value('fast_embedding_errors_total{code="invalid-input"}') == 1
    assert prometheus.value("fast_embedding_queue_seconds") == 0
    assert prometheus.value('sum by (model) (fast_embedding_model_texts_total{model="tiny/one"})') == 1
    assert prometheus.value("process_resident_memory_bytes") > 1e7


def test_quantiles_over_replicas_can_be_queried(prometheus: Prometheus) -> None:
    buckets = 'fast_embedding_request_duration_seconds_bucket{method="POST",route="/embed",outcome="served"}'
    assert 0 < prometheus.value(f"histogram_quantile(0.95, sum by (le) ({buckets}))") < 60


def test_alerts_of_the_guide_are_evaluated(prometheus: Prometheus) -> None:
    rules = prometheus.rules()
    assert set(rules) == set(re.findall(r"alert: (\w+)", ALERTS))
    assert {name: state for name, state in rules.items() if state != ("ok", "")} == {}


def test_promtool_accepts_names_and_help_texts(service: ServerProcess) -> None:
    headers = {"Accept": "text/plain", "X-API-Key": KEY}
    text = httpx.get(f"{service.url}/metrics", headers=headers, timeout=30).content
    done = subprocess.run([needed("promtool"), "check", "metrics"], input=text, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_alerts_fire_when_they_should_and_only_then() -> None:
    [words] = re.findall(r"^(promtool test .+)$", ALERT_PAGE, re.MULTILINE)
    command = [needed("promtool"), *words.split()[1:]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout


def test_each_alert_has_tests_that_let_it_fire() -> None:
    tests = yaml.safe_load(RULES.with_suffix(".test.yml").read_text(encoding="utf-8"))["tests"]
    fires = {case["alertname"] for test in tests for case in test.get("alert_rule_test", []) if case["exp_alerts"]}
    assert fires == set(re.findall(r"alert: (\w+)", ALERTS))


def test_alert_on_memory_is_tested_with_the_numbers_of_the_guide() -> None:
    page = (ROOT / "docs/production/kubernetes.md").read_text(encoding="utf-8")
    [(ready_mb, busy_mb)] = re.findall(r"^\| 2 lanes \| (\d+) \| \d+ \| \d+ \| (\d+) \|", page, re.MULTILINE)
    tests = RULES.with_suffix(".test.yml").read_text(encoding="utf-8")
    assert f"{ready_mb}000000x" in tests
    assert f"{busy_mb}000000x1440" in tests
    assert f"{ready_mb} to {busy_mb} MB" in ALERTS
    assert f"{ready_mb} to {busy_mb} MB" in ALERT_PAGE


def test_every_error_code_is_there_from_the_start(service: ServerProcess) -> None:
    """Otherwise an alert could not see the first burst of errors."""
    headers = {"X-API-Key": KEY}
    text = httpx.get(f"{service.url}/metrics", headers={**headers, "Accept": "text/plain"}, timeout=30).text
    found = dict(re.findall(r'^fast_embedding_errors_total\{code="([^"]+)"\} ([\d.]+)$', text, re.MULTILINE))
    assert set(found) == documented_codes() | {"bad-request", "caller-left"}
    assert {code for code, count in found.items() if float(count)} == {"invalid-input"}
    answer = httpx.get(f"{service.url}/metrics", headers=headers, timeout=30).json()
    assert answer["errors"] == {"invalid-input": 1}


def documented_codes() -> set[str]:
    return set(re.findall(r"\| \d{3} \| `([a-z-]+)` \|", (ROOT / "docs/ERRORS.md").read_text(encoding="utf-8")))


def test_alerts_use_error_codes_that_exist() -> None:
    asked = {code for codes in re.findall(r'code=~?"([^"]+)"', ALERTS) for code in codes.split("|")}
    assert asked
    assert asked <= documented_codes()
