"""The service as a Ray Serve deployment: `serve run deploy/ray/serve_config.yaml`, from the folder of `main.py`.

Each replica is the whole service, with its own lanes, models and limits on what may wait; Serve's proxies stand in
front, one per node. `docs/production/ray.md` lists what differs from `python main.py`.
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
TARGET_PER_LANE = 2
"""Requests under way per lane at which no replica is added: one that the lane runs, and one that it can begin the
moment that ends, while the answer and the next request travel through the proxy."""
MAX_ONGOING = 1000
"""Requests that Serve gives to a replica at most. Not less: what would wait in Serve's proxy, without a bound in
seconds, hears from the replica's own queue (MAX_QUEUE_SECONDS) at once whether it will be served."""

log = structlog.get_logger()


def open_app() -> Litestar:
    """Build the service for this replica; called by Serve in the replica's process, with its environment.

    Raises:
        SettingsError: a setting has a value that is not allowed; `serve status` tells the message.
    """
    try:
        from main import create_app  # noqa: PLC0415 - it reads the settings, which are the replica's
    except SystemExit as ended:  # a bad setting must be told as the replica's failure, not end its process in silence
        raise SettingsError(str(ended.code)) from None
    if not os.environ.get(CALLBACK):
        log.warning("requests_not_retried", missing=CALLBACK)
    # No thread of a replica may raise SIGTERM: that a model cannot be loaded is told by `check_health`.
    return create_app(stop=lambda: None, cores=assigned_cores())


def assigned_cores() -> int | None:
    """The CPUs that Ray has promised this replica; None: it has promised none.

    Ray counts CPUs when it places an actor, and does not confine it to them: what the process may use is the whole
    machine. So lanes must follow this number, or replicas on one machine would fight for its cores.
    """
    cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 0.0)
    return max(1, int(cpus)) if cpus else None


class FastEmbedding:
    """One replica. Serve runs the app's lifespan, and ends it when the replica's requests have been answered."""

    if TYPE_CHECKING:
        app: Litestar  # set by `serve.ingress`

    async def check_health(self) -> None:
        """Serve asks before it sends the first request, and then every 10 s; a replica that raises is replaced.

        Raises:
            RuntimeError: a required model cannot be loaded, or a lane is stuck (then `/health/live` is 503, too).
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
    max_ongoing_requests=MAX_ONGOING,
    max_constructor_retry_count=3,
    ray_actor_options={"num_cpus": REPLICA_CPUS},
    autoscaling_config={
        "min_replicas": 2,
        "max_replicas": 8,
        "target_ongoing_requests": TARGET_PER_LANE * REPLICA_CPUS,
    },
    health_check_period_s=10,
    health_check_timeout_s=5,
    graceful_shutdown_timeout_s=30,
)
app = DEPLOYMENT.bind()
