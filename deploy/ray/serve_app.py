"""The service as a Ray Serve deployment: run `serve run deploy/ray/serve_config.yaml` in the folder of `main.py`.

Each replica is a complete service with its own lanes, models and queue limits. Serve's proxies, one per node, forward
requests to the replicas. docs/production/ray.md lists the differences from `python main.py`.
"""

import os
from typing import TYPE_CHECKING

import ray
import structlog
from litestar import Litestar
from ray import serve

from assembly.app import parts_of
from config import SettingsError
from deploy.ray.retries import CALLBACK

REPLICA_CPUS = 2
TARGET_REQUESTS_PER_LANE = 2
"""Ongoing requests per lane above which Serve adds a replica: one that the lane runs, and one that it can start at once
while the answer and the next request pass through the proxy."""
MAX_ONGOING_REQUESTS = 1000
"""Maximum number of requests that Serve gives to a replica. High, so that the replica's own queue rejects excess work
at once (MAX_QUEUE_SECONDS); in Serve's proxy it would wait without a limit in seconds."""

log = structlog.get_logger()


def open_app() -> Litestar:
    """Build the service of this replica. Serve calls it in the replica's process, with the replica's environment.

    Raises:
        SettingsError: a setting is invalid; `serve status` shows the message.
    """
    try:
        from main import create_app  # noqa: PLC0415 - reads the settings, which must be the replica's
    except SystemExit as ended:  # otherwise a bad setting ends the replica's process silently
        raise SettingsError(str(ended.code)) from None
    if not os.environ.get(CALLBACK):
        log.warning("requests_not_retried", missing=CALLBACK)
    # Replicas must not raise SIGTERM: `check_health` reports a model that cannot be loaded.
    return create_app(stop=lambda: None, cores=assigned_cores())


def assigned_cores() -> int | None:
    """Return the number of CPUs that Ray has assigned to this replica; None if it has assigned none.

    Ray uses CPU counts to place actors, but does not restrict a process to them. The number of lanes must therefore
    follow the assigned CPUs, or replicas on one machine would compete for its cores.
    """
    cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 0.0)
    return max(1, int(cpus)) if cpus else None


class FastEmbedding:
    """One replica. Serve runs the app's lifespan, and ends it when the replica's requests have been answered."""

    if TYPE_CHECKING:
        app: Litestar  # set by `serve.ingress`

    async def check_health(self) -> None:
        """Serve calls this before the first request and then every 10 s; it replaces a replica that raises.

        Raises:
            RuntimeError: a required model cannot be loaded, or a lane is stuck (`/health/live` returns 503, too).
        """
        service = parts_of(self.app).service
        await service.lifecycle.wait_for_start()
        if service.lifecycle.failure:
            message = f"The service cannot start: {service.lifecycle.failure}"
            raise RuntimeError(message)
        if stuck := service.parts.scheduler.stuck:
            message = f"A model run does not end: {stuck}"
            raise RuntimeError(message)


DEPLOYMENT = serve.deployment(
    serve.ingress(open_app)(FastEmbedding),
    max_ongoing_requests=MAX_ONGOING_REQUESTS,
    max_constructor_retry_count=3,
    ray_actor_options={"num_cpus": REPLICA_CPUS},
    autoscaling_config={
        "min_replicas": 2,
        "max_replicas": 8,
        "target_ongoing_requests": TARGET_REQUESTS_PER_LANE * REPLICA_CPUS,
    },
    health_check_period_s=10,
    health_check_timeout_s=5,
    graceful_shutdown_timeout_s=30,
)
app = DEPLOYMENT.bind()
