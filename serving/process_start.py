"""The first thing that the server process does, before the imports of the service, which take a second.

Until signals are handled, one of them ends the process at once, or is lost if this is process 1 of a container. So this
module imports nothing that is not part of the interpreter, and its functions import what they need.
"""

import _signal  # type: ignore[import-not-found]  # the part in C of `signal`, which takes 10 ms to import
import gc
import os

WORKER_VARIABLE = "FAST_EMBEDDING_WORKER"
"""The environment variable in which a worker process finds what it inherits from the supervisor."""

GC_OBJECTS = 10_000
"""New objects after which Python looks for cycles in them. Its default of 700 is less than the requests in progress
hold: each search then goes through all of those, 2 % of the event loop's CPU, and finds next to nothing."""

TYPE_CHECKING = False  # for type checkers it is true; importing `typing` takes time

if TYPE_CHECKING:
    from serving.process_signals import ProcessSignals


def prepare_process() -> "ProcessSignals":
    """Set up the signals and the output of this process, and protect its memory. A second call changes nothing.

    Raises:
        ValueError: this is not the main thread.
    """
    if _signal.getsignal(_signal.SIGTERM) == _signal.SIG_DFL:
        _signal.signal(_signal.SIGTERM, lambda _number, _frame: os._exit(0))  # until the next lines are imported
    from host.standard_streams import make_nonblocking, open_closed_streams
    from serving.process_signals import installed_signals

    open_closed_streams()
    signals = installed_signals()
    from host.core_dumps import forbid_core_dumps
    from serving.process_exit import end_early, exit_quietly
    from telemetry.log_output import redirect_output

    if redirect_output():
        for descriptor in (1, 2):
            make_nonblocking(descriptor)
    signals.end_early = exit_quietly if WORKER_VARIABLE in os.environ else end_early
    forbid_core_dumps()
    gc.disable()  # imports create hardly any garbage, and looking for it takes a quarter of their time
    from host.deferred_imports import hidden

    with hidden("rich"):  # structlog imports it for tracebacks, which `telemetry.log_setup` formats itself
        import structlog  # noqa: F401 - for those that import it later
    return signals


def finish_imports() -> None:
    """Collect garbage again, but only what is created from now on: modules and routes stay for the process's life."""
    gc.freeze()
    gc.set_threshold(GC_OBJECTS)
    gc.enable()


def prepare_command() -> None:
    """Protect the memory of a command, and let SIGTERM end one that is process 1 of a container, as any other process.

    Commands read the secrets of the settings, and texts.
    """
    if os.getpid() == 1:
        _signal.signal(_signal.SIGTERM, lambda number, _frame: os._exit(128 + number))
    from host.core_dumps import forbid_core_dumps

    forbid_core_dumps()
