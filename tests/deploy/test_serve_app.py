"""The service on a Ray cluster of two nodes: it answers as `python main.py` does, and a dead replica loses nothing."""

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
    """As docs/production/ray.md says, on a cluster that is running."""
    command = [sys.executable, "-m", "ray.serve.scripts", "run", "--non-blocking", "--address", cluster.address]
    done = subprocess.run(
        [*command, str(config)], env=cluster.environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def is_healthy(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.ConnectError:  # Serve's proxy is not there yet
        return False


@pytest.fixture(scope="module")
def served(cluster: RayCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """The service as `serve_config.yaml` has it, but on another port, and with a CPU for each of two replicas."""
    config = msgspec.yaml.decode(CONFIG.read_bytes())
    port = config["http_options"]["port"] = free_port()
    config["proxy_location"] = "HeadOnly"  # two nodes on one machine would want the same port
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


def test_replicas_answer_as_the_plain_service_does(served: httpx.Client, client: httpx.Client) -> None:
    body = {"texts": ["How do I reset my password?", "", "One, two, three."][::2]}
    ours, plain = served.post("/embed/batch", json=body), client.post("/embed/batch", json=body)
    assert ours.status_code == plain.status_code == 200
    np.testing.assert_allclose(ours.json()["embeddings"], plain.json()["embeddings"], atol=1e-5)
    assert ours.headers["x-model-fingerprint"] == plain.headers["x-model-fingerprint"]
    # Serve's HTTP server tells its name, and nothing behind it can take that back.
    assert {*ours.headers} - {*plain.headers} <= {"server"}
    assert {*plain.headers} <= {*ours.headers}


def test_failures_are_problems_with_the_callers_id(served: httpx.Client) -> None:
    for path, body in (("/embed", {"text": ""}), ("/nothing", {})):
        answer = served.post(path, json=body, headers={"X-Request-ID": "mine-1"})
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers.get_list("x-request-id") == ["mine-1"]
        assert answer.json()["request_id"] == "mine-1"


def test_lanes_follow_the_cpus_that_ray_has_given(served: httpx.Client, cluster: RayCluster) -> None:
    assert served.get("/metrics").json()["queue"]["lanes"] == 1
    assert '"lanes":1,"usable_cores":1' in cluster.logged("worker-*.out")


def has_lost_a_request(cluster: RayCluster, killed: list[int]) -> bool:
    """Kill a replica, and once it has been replaced another, until one was at work on a request."""
    alive = [pid for pid in cluster.processes(REPLICA) if pid not in killed]
    if cluster.logged("worker-*.out").count("service_ready") == REPLICAS + len(killed) and len(alive) == REPLICAS:
        os.kill(alive[0], signal.SIGKILL)
        killed.append(alive[0])
    return "lost its replica" in cluster.logged("serve/proxy*.log")


def test_replica_killed_under_load_loses_no_request(served: httpx.Client, cluster: RayCluster) -> None:
    enough = Event()
    texts = [f"{number} " + "some words that take the model a while, " * 12 for number in range(16)]

    def ask() -> list[int]:
        statuses = []
        while not enough.is_set():
            statuses.append(served.post("/embed/batch", json={"texts": texts}).status_code)
        return statuses

    with ThreadPoolExecutor(6) as callers:
        asked = [callers.submit(ask) for _ in range(6)]
        try:
            wait_until(lambda: served.get("/metrics").json()["queue"]["waiting_seconds"] > 0, "work waits")
            killed: list[int] = []
            wait_until(lambda: has_lost_a_request(cluster, killed), "a request is sent again")
        finally:
            enough.set()
        statuses = [status for caller in asked for status in caller.result()]
    assert set(statuses) == {200}
    wait_until(lambda: len({*cluster.processes(REPLICA)} - {*killed}) == REPLICAS, "the replica is replaced")
