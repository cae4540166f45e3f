"""The start of a server process: it is the only one, or the supervisor of workers, or one of its workers.

The supervisor imports little: it needs neither the app nor the models.
"""

import asyncio
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

import structlog

from assembly.client_addresses import client_addresses
from assembly.shared_state import SharedState
from assembly.worker_environment import settings_environment
from assembly.worker_share import take_share, worker_count
from config import Settings, SettingsError, load_settings
from host.listening_socket import ListenError
from host.open_files import raise_file_limit
from serving.listening import listen
from serving.process_exit import exit_despite_threads, fail
from serving.process_signals import ProcessSignals
from serving.process_start import prepare_process
from serving.rolling_replacement import PlanError, RollingReplacement
from serving.supervisor import Supervisor, WorkerPlan
from serving.supervisor_signals import SupervisorSignals
from serving.worker_process import WorkerLink
from telemetry.log_setup import configure_logging, log_unhandled_errors

SUPERVISOR_SETTINGS = ("host", "port", "workers")
"""Settings that only a restart of the whole service changes: the supervisor has used them."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Start:
    """How this process serves.

    Attributes:
        settings: of this process; those of a worker are its share.
        cores: cores that it may use; None: all.
        worker: what it has inherited from the supervisor; None: it is the only process.
    """

    settings: Settings
    cores: int | None = None
    worker: WorkerLink | None = None


def begin() -> Start:
    """Read the settings. With several workers, supervise them; then the process ends, and this does not return."""
    link = WorkerLink.from_environment()
    try:
        if link is not None:
            share = take_share(load_settings(_env_file=None), link.number, link.workers)
            return Start(share.settings, share.cores, link)
        settings = load_settings()
        workers = worker_count(settings)
        if workers == 1:
            return Start(settings.model_copy(update={"workers": 1}))
        plan = _plan_of(settings)
    except SettingsError as error:
        end_start(link, f"Bad settings: {error}")
    sys.exit(_supervise(settings, workers, plan))


def end_start(link: WorkerLink | None, reason: str) -> NoReturn:
    """End this process before it serves. *reason* is one line for standard error; the supervisor writes a worker's."""
    if link is None:
        sys.exit(reason)
    link.report_failure(reason)
    sys.exit(1)


def _supervise(settings: Settings, workers: int, plan: WorkerPlan) -> int:
    """Run the workers until a signal stops the service; return the exit code."""
    signals = prepare_process()
    _set_up_log(settings)
    log_unhandled_errors()
    try:
        listening = listen(settings.host, settings.port)
    except ListenError as error:
        return fail(str(error))
    failure = asyncio.run(_run_workers(settings, workers, plan, listening, signals))
    signals.ignore_rest()
    return exit_despite_threads(0 if failure is None else fail(failure))


async def _run_workers(
    settings: Settings, workers: int, plan: WorkerPlan, listening: socket.socket, signals: ProcessSignals
) -> str | None:
    """Run the workers until a signal stops the service; return why they could not start, or None."""
    raise_file_limit()  # connections on their way to workers count
    supervisor = Supervisor(
        workers=workers,
        command=[sys.executable, *sys.orig_argv[1:]],
        plan=plan,
        listening=listening,
        address_of=client_addresses(settings).network_of_peer,
        handlers=lambda number: shared.handlers(number),  # noqa: PLW0108 - it is made below
        on_change=lambda: shared.reports.refresh(is_draining=supervisor.is_stopping),
    )
    shared = SharedState(
        settings, slots=workers, workers=lambda: supervisor.workers, restarts=lambda: supervisor.replaced
    )
    replacement = RollingReplacement(supervisor, read_plan=lambda: new_plan(settings, workers))
    SupervisorSignals(supervisor, reload=replacement.request).install(signals)
    await supervisor.run()
    return supervisor.failure


def new_plan(running: Settings, workers: int, *, read: Callable[[], Settings] = load_settings) -> WorkerPlan:
    """Read the settings again, and report those that only a restart changes.

    Args:
        running: the settings with which the supervisor has started.
        workers: the number of workers that it runs.
        read: reads the settings.

    Raises:
        PlanError: the settings are not allowed, or `.env` cannot be read.
    """
    try:
        new = read()
        new = new.model_copy(update={"workers": worker_count(new)})
        plan = _plan_of(new)
    except SettingsError as error:
        raise PlanError(str(error)) from None
    running = running.model_copy(update={"workers": workers})
    for name in SUPERVISOR_SETTINGS:
        if (old_value := getattr(running, name)) != (new_value := getattr(new, name)):
            log.warning("restart_needed", setting=name.upper(), running=old_value, wanted=new_value)
    _set_up_log(new)
    return plan


def _plan_of(settings: Settings) -> WorkerPlan:
    return WorkerPlan(
        environment=settings_environment(os.environ),
        drain_s=settings.shutdown_timeout,
        stuck_s=settings.lane_stuck_seconds,
        max_connections_per_address=settings.max_connections_per_address,
    )


def _set_up_log(settings: Settings) -> None:
    configure_logging(
        level=settings.lowest_level,
        is_json=None if settings.log_format == "auto" else settings.log_format == "json",
        context={"process": "supervisor", "pid": os.getpid()},
    )
