"""Real Prometheus servers for tests, each on a port of its own, with the configuration of a folder."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.support.logged_process import LoggedProcess
from tests.support.redis_servers import needed
from tests.support.servers import free_port

TIMEOUT_S = 30
PAUSE_S = 0.1


class Prometheus:
    """A Prometheus that a test has started."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=f"{url}/api/v1", timeout=TIMEOUT_S)

    def query(self, query: str) -> list[dict[str, Any]]:
        """Return the series that *query* results in now: `metric` (its labels) and `value` (the time and the value)."""
        return list(self.get("/query", query=query)["result"])

    def value(self, query: str) -> float:
        """Return the single number that *query* results in, as soon as there is one."""
        [found] = self.soon(lambda: self.query(query), query)
        return float(found["value"][1])

    def rules(self) -> dict[str, tuple[str, str]]:
        """Return each rule's health and last error by name, as soon as all have been evaluated."""

        def evaluated() -> list[Any]:
            rules = [rule for group in self.get("/rules")["groups"] for rule in group["rules"]]
            return rules if all(rule["health"] != "unknown" for rule in rules) else []

        return {rule["name"]: (rule["health"], rule.get("lastError", "")) for rule in self.soon(evaluated, "rules")}

    def get(self, path: str, **query: str) -> Any:
        """Return the data of the API's answer at *path*."""
        answer = self._client.get(path, params=query).json()
        assert answer["status"] == "success", (answer, query)
        return answer["data"]

    def soon(self, look: Callable[[], list[Any]], what: str) -> list[Any]:
        """Return what *look* finds. It is called until then, as Prometheus does not report when it has collected."""
        ends = time.monotonic() + TIMEOUT_S
        while not (found := look()):
            assert time.monotonic() < ends, f"no {what}"
            time.sleep(PAUSE_S)
        return found

    def close(self) -> None:
        self._client.close()


@contextmanager
def running_prometheus(folder: Path, *arguments: str) -> Iterator[Prometheus]:
    """Start a Prometheus with the `prometheus.yml` of *folder*, where it stores its data, and stop it at the end."""
    address = f"127.0.0.1:{free_port()}"
    command = [needed("prometheus"), "--config.file=prometheus.yml", "--storage.tsdb.path=collected", *arguments]
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
