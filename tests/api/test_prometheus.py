"""A real Prometheus collects a real service's metrics, set up as docs/MONITORING.md says."""

import re
import shutil
import subprocess
import time
from collections.abc import Iterator

import httpx
import pytest
import yaml

from tests.support.prometheus_servers import Prometheus, running_prometheus
from tests.support.redis_servers import needed
from tests.support.servers import ROOT, ServerProcess, running_server
from tests.support.tiny import TinyModel

pytestmark = [pytest.mark.prometheus, pytest.mark.timeout(120)]

KEY = "some-key-of-32-characters-or-more"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
GUIDE = (ROOT / "docs/MONITORING.md").read_text(encoding="utf-8")
ALERT_PAGE = (ROOT / "docs/production/alerts.md").read_text(encoding="utf-8")
_, CONFIG = re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)
RULES = ROOT / "deploy/prometheus/fast-embedding-alerts.yml"
ALERTS = RULES.read_text(encoding="utf-8")
RECORDED = RULES.with_name("fast-embedding-rules.yml")
GUIDES_TARGET, GUIDES_INTERVAL = "127.0.0.1:8000", "scrape_interval: 15s"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that has answered two requests, and requires a key for its metrics."""
    models = tmp_path_factory.mktemp("models")
    TinyModel("tiny/one").write(models)
    settings = {"MODELS_DIR": str(models), "REQUIRED_MODELS": "tiny/one", "CLOSED_ROUTES": "metrics"}
    with running_server(**settings, API_KEYS=f"prometheus:{KEY}:metrics+embed") as server:
        headers = {"X-API-Key": KEY, "traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-01"}
        for body, status in (({"text": "one"}, 200), ({"text": ""}, 400)):
            assert httpx.post(f"{server.url}/embed", json=body, headers=headers, timeout=60).status_code == status
        yield server


@pytest.fixture(scope="module")
def prometheus(service: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus with the guide's configuration, except for the address and shorter intervals."""
    folder = tmp_path_factory.mktemp("prometheus")
    assert GUIDES_TARGET in CONFIG
    assert GUIDES_INTERVAL in CONFIG
    interval = "global: {evaluation_interval: 1s}\n"
    config = CONFIG.replace(GUIDES_TARGET, service.url.removeprefix("http://"))
    (folder / "prometheus.yml").write_text(interval + config.replace(GUIDES_INTERVAL, "scrape_interval: 1s"))
    shutil.copy(RULES, folder)
    shutil.copy(RECORDED, folder)
    (folder / "metrics-key").write_text(f"{KEY}\n")
    with running_prometheus(folder, "--enable-feature=exemplar-storage") as running:
        yield running


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


def test_prometheus_finds_the_trace_of_a_request(prometheus: Prometheus) -> None:
    query = 'fast_embedding_request_duration_seconds_bucket{outcome="served",route="/embed"}'

    def exemplars() -> list[str]:
        now_s = time.time()
        found = prometheus.get("/query_exemplars", query=query, start=str(now_s - 600), end=str(now_s + 600))
        return [exemplar["labels"]["trace_id"] for series in found for exemplar in series["exemplars"]]

    assert set(prometheus.soon(exemplars, "exemplars")) == {TRACE_ID}


def test_quantiles_over_replicas_can_be_queried(prometheus: Prometheus) -> None:
    buckets = 'fast_embedding_request_duration_seconds_bucket{method="POST",route="/embed",outcome="served"}'
    assert 0 < prometheus.value(f"histogram_quantile(0.95, sum by (le) ({buckets}))") < 60


def test_rules_of_the_guide_are_evaluated(prometheus: Prometheus) -> None:
    rules = prometheus.rules()
    recorded = set(re.findall(r"record: (\S+)", RECORDED.read_text(encoding="utf-8")))
    assert set(rules) == set(re.findall(r"alert: (\w+)", ALERTS)) | recorded
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


def test_each_rule_has_tests_and_each_alert_also_one_in_which_it_does_not_fire() -> None:
    tests = yaml.safe_load(RULES.with_suffix(".test.yml").read_text(encoding="utf-8"))["tests"]
    cases = [case for test in tests for case in test.get("alert_rule_test", [])]
    alerts = set(re.findall(r"alert: (\w+)", ALERTS))
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == alerts
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == alerts
    asked = " ".join(case["expr"] for test in tests for case in test.get("promql_expr_test", []))
    recorded = re.findall(r"record: (\S+)", RECORDED.read_text(encoding="utf-8"))
    assert [name for name in recorded if name not in asked] == []


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
