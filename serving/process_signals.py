"""Handles the signals of the server process, from its first moment to its last.

One object handles them all the time. So no signal meets the default action of the system, which ends the process at
once, and process 1 of a container does not ignore any.
"""

# Nothing else is imported, because this module must be ready within milliseconds.
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

STOP_SIGNALS = ("SIGTERM", "SIGINT", "SIGQUIT")
"""They stop the service: SIGINT is Ctrl-C, SIGQUIT is Ctrl-\\."""
UNUSED_SIGNALS = ("SIGUSR1", "SIGUSR2", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGIO", "SIGPWR", "SIGSTKFLT")
"""Their default action ends a process. Here they only leave a log line."""
IGNORED_SIGNALS = ("SIGTTOU", "SIGTTIN")
"""Their default action stops a process in the background that writes to its terminal."""
TERMINAL = "/dev/tty"
"""The controlling terminal of the process that opens it."""
REPEATED_S = 0.2
"""Signals within this time after the first one count as the same: `timeout` and some shells send it to a process and to
its group. The log line `drain_started` appears after this time."""


class ProcessSignals:
    """Handles the signals of this process: before the service runs, while it runs, and while the process ends."""

    def __init__(self) -> None:
        """Install nothing yet."""
        self.end_early: Callable[[str], object] = lambda _: os._exit(0)
        """Ends the process; called with the name of a signal that stops it before the service runs."""
        self._stop_service: Callable[[int, FrameType | None], None] | None = None
        self._reload: Callable[[], None] | None = None
        self._report_unused: Callable[[str], None] | None = None
        self._is_reload_due = False
        self._survives_terminal = False

    def install(self) -> None:
        """Handle all signals from now on.

        Raises:
            ValueError: this is not the main thread.
        """
        handlers: dict[str, Callable[[int, FrameType | None], None] | signal.Handlers] = {
            **dict.fromkeys(STOP_SIGNALS, self._stop),
            **dict.fromkeys(UNUSED_SIGNALS, self._ignore),
            **dict.fromkeys(IGNORED_SIGNALS, signal.SIG_IGN),
        }
        if hasattr(signal, "SIGHUP"):
            is_nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            self._survives_terminal = is_nohup or not _has_terminal()
            handlers["SIGHUP"] = self._hang_up
        numbers = {getattr(signal, name): handler for name, handler in handlers.items() if hasattr(signal, name)}
        for number, handler in numbers.items():
            signal.signal(number, handler)
        if sys.platform != "win32":
            signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)  # the parent process may have blocked some

    def hand_over(
        self,
        *,
        stop: Callable[[int, FrameType | None], None],
        reload: Callable[[], None],
        report_unused: Callable[[str], None],
    ) -> None:
        """Call these functions from now on. Each runs in the main thread, and may interrupt any code there.

        Args:
            stop: gets the number of a signal that stops the service.
            reload: reads files again; called at once if a signal asked for it before.
            report_unused: gets the name of a signal without a meaning.
        """
        self._stop_service, self._reload, self._report_unused = stop, reload, report_unused
        if self._is_reload_due:
            reload()

    @staticmethod
    def ignore_rest() -> None:
        """Ignore signals from now on, because the process ends anyway.

        Python's own end would restore the default actions, with which a signal replaces the exit code.
        """
        for name in (*STOP_SIGNALS, *UNUSED_SIGNALS, "SIGHUP"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), signal.SIG_IGN)

    def _stop(self, sig: int, frame: FrameType | None) -> None:
        if self._stop_service is not None:
            self._stop_service(sig, frame)
        else:
            self.end_early(signal.Signals(sig).name)

    def _hang_up(self, sig: int, frame: FrameType | None) -> None:
        if not self._survives_terminal and not _has_terminal():
            self._stop(sig, frame)
        elif self._reload is not None:
            self._reload()
        else:
            self._is_reload_due = True

    def _ignore(self, sig: int, _frame: FrameType | None) -> None:
        if self._report_unused is not None:
            self._report_unused(signal.Signals(sig).name)


def installed_signals() -> ProcessSignals:
    """Return the object that handles the signals of this process; if there is none, install one.

    Raises:
        ValueError: this is not the main thread.
    """
    owner = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    if isinstance(owner, ProcessSignals):
        return owner
    signals = ProcessSignals()
    signals.install()
    return signals


def _has_terminal() -> bool:
    """Return whether the process has a controlling terminal that is still connected."""
    try:
        os.close(os.open(TERMINAL, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK))
    except OSError:
        return False
    return True
