"""The service on a Ray cluster of two nodes: it answers like `python main.py`, and a killed replica costs nothing."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import httpx
import msgspec
import numpy as np
import pytest

from tests.support.ray_clusters import RayCluster, running_cluster, wait_until
from tests.support.servers import ROOT, free_port

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]

CONFIG = ROOT / "deploy/ray/serve_config.yaml"
REPLICA = "ray::ServeReplica"
REPLICAS = 2


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with running_cluster(1, 1, MAX_QUEUE_SECONDS="120") as cluster:
        yield cluster


def serve(cluster: RayCluster, config: Path) -> None:
    """Deploy *config* on a running cluster, as docs/production/ray.md describes."""
    command = [sys.executable, "-m", "ray.serve.scripts", "run", "--non-blocking", "--address", cluster.address]
    done = subprocess.run(
        [*command, str(config)], env=cluster.environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def is_healthy(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.ConnectError:  # Serve's proxy has not started yet
        return False


@pytest.fixture(scope="module")
def served(cluster: RayCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """The service of `serve_config.yaml`, but on another port, and with two replicas of one CPU each."""
    config = msgspec.yaml.decode(CONFIG.read_bytes())
    port = config["http_options"]["port"] = free_port()
    config["proxy_location"] = "HeadOnly"  # two nodes on one machine would use the same port
    [deployment] = config["applications"][0]["deployments"]
    deployment["ray_actor_options"]["num_cpus"] = 1
    deployment["autoscaling_config"] |= {"min_replicas": REPLICAS, "max_replicas": REPLICAS}
    changed = tmp_path_factory.mktemp("serve") / "serve_config.yaml"
    changed.write_bytes(msgspec.yaml.encode(config))
    serve(cluster, changed)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
        wait_until(lambda: is_healthy(client), "healthy")
        wait_until(lambda: cluster.logged("worker-*.out").count("service_ready") == REPLICAS, "two replicas")
        yield client


def test_replicas_give_the_same_answers_as_the_service_without_ray(served: httpx.Client, client: httpx.Client) -> None:
    body = {"texts": ["How do I reset my password?", "", "One, two, three."][::2]}
    with_ray, plain = served.post("/embed/batch", json=body), client.post("/embed/batch", json=body)
    assert with_ray.status_code == plain.status_code == 200
    np.testing.assert_allclose(with_ray.json()["embeddings"], plain.json()["embeddings"], atol=1e-5)
    assert with_ray.headers["x-model-fingerprint"] == plain.headers["x-model-fingerprint"]
    # Serve's HTTP server adds its name to every answer.
    assert {*with_ray.headers} - {*plain.headers} <= {"server"}
    assert {*plain.headers} <= {*with_ray.headers}


def test_errors_are_problems_with_the_request_id_of_the_client(served: httpx.Client) -> None:
    for path, body in (("/embed", {"text": ""}), ("/nothing", {})):
        answer = served.post(path, json=body, headers={"X-Request-ID": "mine-1"})
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers.get_list("x-request-id") == ["mine-1"]
        assert answer.json()["request_id"] == "mine-1"


def test_number_of_lanes_follows_the_cpus_that_ray_assigns(served: httpx.Client, cluster: RayCluster) -> None:
    assert served.get("/metrics").json()["queue"]["lanes"] == 1
    assert '"lanes":1,"usable_cores":1' in cluster.logged("worker-*.out")


def has_lost_a_request(cluster: RayCluster, killed: list[int]) -> bool:
    """Kill one replica after another, each after the last is replaced, until one loses a request."""
    alive = [pid for pid in cluster.processes(REPLICA) if pid not in killed]
    if cluster.logged("worker-*.out").count("service_ready") == REPLICAS + len(killed) and len(alive) == REPLICAS:
        os.kill(alive[0], signal.SIGKILL)
        killed.append(alive[0])
    return "lost its replica" in cluster.logged("serve/proxy*.log")


def test_killed_replica_loses_no_request(served: httpx.Client, cluster: RayCluster) -> None:
    stopped = Event()
    texts = [f"{number} " + "some words that take the model a while, " * 12 for number in range(16)]

    def ask() -> list[int]:
        statuses = []
        while not stopped.is_set():
            statuses.append(served.post("/embed/batch", json={"texts": texts}).status_code)
        return statuses

    with ThreadPoolExecutor(6) as callers:
        asked = [callers.submit(ask) for _ in range(6)]
        try:
            wait_until(lambda: served.get("/metrics").json()["queue"]["waiting_texts"] > 0, "requests are queued")
            killed: list[int] = []
            wait_until(lambda: has_lost_a_request(cluster, killed), "a request is repeated")
        finally:
            stopped.set()
        statuses = [status for caller in asked for status in caller.result()]
    assert set(statuses) == {200}
    wait_until(lambda: len({*cluster.processes(REPLICA)} - {*killed}) == REPLICAS, "the replica is replaced")
