"""A real Prometheus scrapes real services after traffic of every kind; it answers each query of each dashboard.

One service is a single process; its callers have quotas. The other has two workers and keeps results in Redis, so that
all metrics exist.
"""

import math
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest
import yaml

from tests.support.dashboards import DASHBOARDS, Query, queries
from tests.support.prometheus_servers import Prometheus, running_prometheus
from tests.support.redis_servers import running_redis
from tests.support.servers import NO_HUB, ROOT, ServerProcess, running_server
from tests.support.tiny import TinyModel

pytestmark = [
    pytest.mark.prometheus,
    pytest.mark.redis,
    pytest.mark.processes,
    pytest.mark.slow,  # two services, one of them with two workers
    pytest.mark.timeout(300),
]

FILES = ROOT / "deploy/prometheus"
JOB = "some-job"
"""Not the name in the repository's own configuration: no dashboard may depend on it."""
KEYS = {"worker": "some-key-of-32-characters-or-more", "greedy": "another-key-of-32-characters-or-so"}
MODELS = ("tiny/one", "tiny/two", "tiny/three")
HUB_MODEL = "BAAI/bge-small-en-v1.5"
"""Must be fetched from a hub, which cannot be reached."""
COMPOSED = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]["prometheus"]
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
QUOTA = 60
"""Requests per minute; more than a caller sends who is not greedy."""
WINDOW = "1m"


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[ServerProcess]]:
    folder = tmp_path_factory.mktemp("models")
    for dim, name in enumerate(MODELS, start=4):  # equal models would share their cached results
        TinyModel(name, dim=dim).write(folder)
    settings = {
        "MODELS_DIR": str(folder),
        "HUB_CACHE_DIR": str(tmp_path_factory.mktemp("hub")),
        "HF_ENDPOINT": NO_HUB,
        "REQUIRED_MODELS": MODELS[0],
        "MAX_CACHED_MODELS": "2",
        "MODEL_RETRY_PAUSE": "1",
        "API_KEYS": ",".join(f"{name}:{key}:embed+metrics" for name, key in KEYS.items()),
    }
    with ExitStack() as stack:
        redis = stack.enter_context(running_redis())
        single = {"ENABLE_RATE_LIMIT": "true", "RATE_LIMIT_REQUESTS": str(QUOTA)}
        secret = {"CACHE_KEY_SECRET": "x" * 32, "RESULT_CACHE_REDIS_TIMEOUT": "5"}
        several = {"WORKERS": "2", "REDIS_URL": redis.url, "RESULT_CACHE_REDIS": "true", **secret}
        yield [stack.enter_context(running_server(**settings, **own)) for own in (single, several)]


@pytest.fixture(scope="module")
def prometheus(services: list[ServerProcess], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus with the repository's rules that has seen the counters of both services grow."""
    folder = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load((FILES / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    [scraped] = config["scrape_configs"]
    del scraped["dns_sd_configs"]
    scraped["job_name"] = JOB
    scraped["static_configs"] = [{"targets": [service.url.removeprefix("http://") for service in services]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    for file in config["rule_files"]:
        shutil.copy(FILES / file, folder)
    [exemplars] = [word for word in COMPOSED["command"] if word.startswith("--enable-feature=")]
    with running_prometheus(folder, exemplars) as running:
        for times in (1, 2):
            for service in services:
                send_traffic(service, word=("one", "two")[times - 1])
            last = 'fast_embedding_requests_total{route="/tokenize", status="200"}'
            running.value(f"count({last} >= {times}) == {len(services)}")
        # Rates need two samples of each counter after it has changed.
        running.value(f"min(count_over_time(fast_embedding_model_evictions_total[{WINDOW}])) > 2")
        yield running


def send_traffic(service: ServerProcess, *, word: str) -> None:
    """Send requests that are served, kept, cut, wrong, refused and failed, and last one to `/tokenize`.

    Texts with another *word* than before are not kept.
    """
    with httpx.Client(base_url=service.url, timeout=60, headers={"X-API-Key": KEYS["worker"]}) as client:
        answers = [
            client.post("/embed/batch", json={"texts": texts, "model_name": model})
            for model in (*MODELS, MODELS[0])
            for texts in (
                [word, f"{word} three"],
                [word, word],
                ["five " * 40 + word, *[f"zero {word}"] * 5, f"four {word}"],
            )
        ]
        answers.append(client.post("/embed", json={"text": "four five", "model_name": MODELS[0]}))
        answers.append(client.post("/v1/embeddings", json={"input": "two three", "model": MODELS[0]}))
        assert [answer.text for answer in answers if answer.status_code != 200] == []
        assert client.post("/embed", json={"text": ""}).status_code == 400
        assert client.post("/nowhere").status_code == 404
        assert client.post("/embed", json={"text": "one", "model_name": HUB_MODEL}).status_code == 503
        one_text = {"text": "one", "model_name": MODELS[0]}
        greedy = {"X-API-Key": KEYS["greedy"]}
        answers = [client.post("/embed", json=one_text, headers=greedy) for _ in range(QUOTA + 30)]
        assert {answer.status_code for answer in answers} <= {200, 429}
        traced = {"traceparent": f"00-{TRACE_ID}-00f067aa0ba902b7-01"}
        assert client.post("/embed", json=one_text, headers=traced).status_code == 200
        last = client.post("/tokenize", json={"texts": ["two three"], "model_name": MODELS[0]})
        assert last.status_code == 200


def sent(query: Query, *, instance: str = ".+") -> str:
    """Return what Grafana would send for all models, and for this replica or all."""
    return query.substituted(job=JOB, instance=instance, rate_interval=WINDOW, dashboard_range=WINDOW)


@pytest.mark.parametrize("name", DASHBOARDS)
def test_prometheus_answers_each_query_with_the_series_that_its_panel_shows(name: str, prometheus: Prometheus) -> None:
    wrong = []
    for query in (query for query in queries() if query.dashboard == name):
        found = prometheus.query(sent(query))
        labels = {label for one in found for label in one["metric"]}
        if not any(math.isfinite(float(one["value"][1])) for one in found) or query.legend_labels - labels:
            wrong.append((query.place, found[:3]))
    assert wrong == []


def test_one_replica_alone_has_all_but_what_only_workers_and_redis_have(
    prometheus: Prometheus, services: list[ServerProcess]
) -> None:
    instance = services[0].url.removeprefix("http://")
    empty = {query.panel for query in queries() if not prometheus.query(sent(query, instance=instance))}
    assert empty == {
        "capacity: Workers replaced (timeseries)",
        "capacity: Workers that do not answer (timeseries)",
        "capacity: Redis: results per second (timeseries)",
        "capacity: Redis: time to read (timeseries)",
        "capacity: Redis: errors and backlog (timeseries)",
    }


def test_figures_are_those_of_the_traffic(prometheus: Prometheus) -> None:
    """A few whose values can be stated; of the others, there are some."""
    values = {query.place: prometheus.query(sent(query)) for query in queries()}

    def figure(place: str) -> float:
        [found] = values[place]
        return float(found["value"][1])

    assert figure("overview: Replicas (stat), A") == figure("overview: Replicas (stat), B") == 2
    assert 0 < figure("overview: Server errors (stat), A") < 0.5
    assert 0 < figure("overview: Cached (stat), A") < 1
    assert 0 < figure("models: Cut texts (stat), A") < 1
    assert 0 < figure("capacity: Padding (stat), A") < 1
    assert 0 <= figure("capacity: Lanes busy (stat), A") < 1
    assert figure("models: Failed loads (stat), A") > 0
    assert figure("models: Evictions (stat), A") > 0
    policies = values["overview: Over a quota (timeseries), A"]
    refused = {found["metric"]["policy"]: float(found["value"][1]) for found in policies}
    assert refused["requests"] > 0 == refused["tokens"]


def test_exemplars_of_the_heat_map_lead_to_the_trace_of_a_request(prometheus: Prometheus) -> None:
    [heat_map] = [query for query in queries() if query.place == "overview: Latency (heatmap), A"]
    found = prometheus.get("/query_exemplars", query=sent(heat_map), start="0", end="9999999999")
    assert {exemplar["labels"]["trace_id"] for one in found for exemplar in one["exemplars"]} == {TRACE_ID}


def test_variables_find_the_job_the_replicas_and_the_models(prometheus: Prometheus) -> None:
    for board in DASHBOARDS.values():
        for variable in board["templating"]["list"][1:]:
            pattern = r"label_values\((.+), (\w+)\)"
            [(selector, label)] = re.findall(pattern, variable["definition"])
            selector = selector.replace("$job", JOB).replace("$instance", ".+")
            values = {found["metric"][label] for found in prometheus.query(selector)}
            expected = {"job": {JOB}, "model": {*MODELS, HUB_MODEL}}.get(label)
            assert values == expected if expected else len(values) == 2


def test_each_recording_rule_has_a_result_and_no_rule_an_error(prometheus: Prometheus) -> None:
    rules = prometheus.rules()
    assert {name: state for name, state in rules.items() if state != ("ok", "")} == {}
    recorded = [name for name in rules if ":" in name]
    assert recorded
    values = {name: prometheus.query(name) for name in recorded}
    assert [name for name, found in values.items() if not found] == []
    assert {found["metric"]["job"] for one in values.values() for found in one} == {JOB}
