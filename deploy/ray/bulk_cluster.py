"""Distributes the units of a bulk job to a Ray cluster.

Ray Data assigns the units to a pool of actors that grows with the cluster, and reassigns a unit whose process or node
has died. Each unit reads its own input and writes its own output instead of using Ray Data's readers and writers: this
way rows and files stay the same from run to run, and a resumed job knows which units remain.
"""

import json
import logging
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from secrets import token_hex
from typing import Any

from deploy.ray.bulk_inputs import InputError, Unit, first_line
from deploy.ray.bulk_units import JobSpec, UnitResult, embed_unit
from engine.catalog import Model
from engine.encoder import Encoder, load_encoder
from engine.errors import ServiceError
from engine.hub import fetch
from host.cores import usable_cores

ROOT = Path(__file__).resolve().parent.parent.parent
OBJECT_STORE_BYTES = 200_000_000
"""Object store of a Ray that this script starts. Small, because only descriptions of units pass through it."""
UNITS_PER_ACTOR = 2
"""Units assigned to an actor: the one it embeds, and the next, so that it never waits for Ray."""


class UnitEmbedder:
    """An actor of the pool. Loads the model when its first unit arrives.

    Returns failures as results instead of raising them: Ray reports an exception of an actor as a page of its own stack
    traces, while a returned failure ends the job with one line.
    """

    def __init__(self, model: Model, spec: JobSpec, hub_cache_dir: Path) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # an actor has one core
        self._model = model
        self._spec = spec
        self._hub_cache_dir = hub_cache_dir
        self._encoder: Encoder | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Embed the units of *batch*, given as JSON; return each `UnitResult` as JSON."""
        return {"result": [self._embed(Unit(**json.loads(unit))).to_json() for unit in batch["unit"]]}

    def _embed(self, unit: Unit) -> UnitResult:
        try:
            if self._encoder is None:
                self._encoder = self._load()
            return embed_unit(self._encoder, unit, self._spec)
        except InputError as error:
            return UnitResult(unit.number, self._spec.run, failure=str(error))
        except ServiceError as error:
            return UnitResult(unit.number, self._spec.run, failure=error.detail)

    def _load(self) -> Encoder:
        encoder = load_model(self._model, self._hub_cache_dir)
        if (found := fingerprint_of(encoder)) != self._spec.fingerprint:
            raise InputError(
                f"the model on node {os.uname().nodename} has the fingerprint {found}, but on the node that started "
                f"the job it has {self._spec.fingerprint}; install the same versions and the same model on all nodes"
            )
        return encoder


def load_model(model: Model, hub_cache_dir: Path) -> Encoder:
    """Load *model*; download it first if it is not in the cache.

    Raises:
        ServiceError: the model cannot be downloaded or loaded.
    """
    fetch(model, hub_cache_dir)
    return load_encoder(model, hub_cache_dir=hub_cache_dir)


def fingerprint_of(encoder: Encoder) -> str:
    return encoder.fingerprint.digest if encoder.fingerprint else ""


def embed_units(
    units: Sequence[Unit],
    model: Model,
    spec: JobSpec,
    *,
    hub_cache_dir: Path,
    address: str | None,
    pool: tuple[int, int] | None,
) -> Iterator[UnitResult]:
    """Distribute *units* to a pool of actors; yield results as they arrive.

    Args:
        units: the units to embed.
        model: the model of all actors.
        spec: what all units share.
        hub_cache_dir: where each node looks for the model, or downloads it to.
        address: the address of a Ray cluster; None: RAY_ADDRESS, or else Ray on this machine.
        pool: the minimum and maximum number of actors; None: all cores of the cluster.

    Raises:
        InputError: there is no cluster, or Ray fails.
    """
    if not units:
        return
    import ray  # noqa: PLC0415 - takes seconds, and bad options are reported before that

    with ray_cluster(ray, address):
        cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
        minimum, maximum = pool or (cores, cores)
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False
        items = [{"unit": json.dumps(asdict(unit))} for unit in units]
        results = ray.data.from_items(items, override_num_blocks=len(units)).map_batches(
            UnitEmbedder,
            fn_constructor_args=(model, spec, hub_cache_dir),
            batch_size=1,
            num_cpus=1,
            compute=ray.data.ActorPoolStrategy(
                min_size=min(minimum, len(units)),
                max_size=min(maximum, len(units)),
                max_tasks_in_flight_per_actor=UNITS_PER_ACTOR,
            ),
        )
        try:
            for row in results.iter_rows():
                yield UnitResult.from_json(row["result"])
        except ray.exceptions.RayError as error:
            raise InputError(f"Ray failed: {first_line(error)}") from error


@contextmanager
def ray_cluster(ray: Any, address: str | None) -> Iterator[None]:
    """Connect to the cluster at *address*, or start Ray on this machine for the duration of the block.

    Raises:
        InputError: there is no cluster at *address*.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # silences a warning about a future change
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # errors are raised
    python_path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    options: dict[str, Any] = {
        "address": address or os.environ.get("RAY_ADDRESS"),
        "runtime_env": {"env_vars": {"PYTHONPATH": python_path}},
    }
    if options["address"] is None:
        os.environ.setdefault("RAY_AUTH_TOKEN", token_hex())  # otherwise Ray writes one into the home folder
        options |= {
            "num_cpus": usable_cores(),
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(logging_level=logging.ERROR, log_to_driver=False, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(f"there is no Ray cluster at {options['address']}: {first_line(error)}") from None
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray installs a handler that ends the process without a message
    try:
        yield
    finally:
        ray.shutdown()
