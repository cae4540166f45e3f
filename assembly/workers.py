"""The start of a server process: it is the only one, or the supervisor of workers, or one of its workers.

The supervisor imports little: it needs neither the app nor the models.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from assembly.worker_share import settings_of_worker, share_of, worker_count
from config import Settings, SettingsError, load_settings
from host.cores import usable_cores
from host.listening_socket import ListenError, open_listening_socket
from host.message_channel import Handler
from serving.process_exit import exit_despite_threads, fail
from serving.process_start import prepare_process
from serving.supervisor import Supervisor, run_supervisor
from serving.worker_process import WorkerLink
from telemetry.log_setup import configure_logging, log_unhandled_errors


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

    def fail(self, reason: str) -> NoReturn:
        """End the process before it serves; the *reason* is one line."""
        if self.worker is not None:
            self.worker.report_failure(reason)
            sys.exit(1)
        sys.exit(reason)


def begin() -> Start:
    """Read the settings. With several workers, supervise them; then the process ends, and this does not return."""
    link = WorkerLink.from_environment()
    try:
        settings = load_settings()
        if link is not None:
            return Start(
                settings_of_worker(settings, link.number, link.workers),
                cores=share_of(usable_cores(), link.number, link.workers),
                worker=link,
            )
        workers = worker_count(settings)
    except SettingsError as error:
        reason = f"Bad settings: {error}"
        if link is not None:
            link.report_failure(reason)
            sys.exit(1)
        sys.exit(reason)
    if workers == 1:
        return Start(settings.model_copy(update={"workers": 1}))
    sys.exit(_supervise(settings, workers))


def supervisor_handlers(number: int) -> Mapping[str, Handler]:
    """Return the handlers for the calls of worker *number*."""
    del number
    return {}


def _supervise(settings: Settings, workers: int) -> int:
    """Run the workers until a signal stops the service; return the exit code."""
    signals = prepare_process()
    configure_logging(
        level="DEBUG" if settings.debug else settings.log_level,
        is_json=None if settings.log_format == "auto" else settings.log_format == "json",
    )
    log_unhandled_errors()
    try:
        listening = open_listening_socket(settings.host, settings.port)
    except ListenError as error:
        return fail(str(error))
    reason = run_supervisor(
        lambda: Supervisor(
            workers=workers,
            command=[sys.executable, *sys.orig_argv[1:]],
            environment=_environment(),
            listening=listening,
            drain_s=settings.shutdown_timeout,
            handlers=supervisor_handlers,
        ),
        signals,
    )
    signals.ignore_rest()
    return exit_despite_threads(0 if reason is None else fail(reason))


def _environment() -> Mapping[str, str]:
    return dict(os.environ)
