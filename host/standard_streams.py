"""Standard input, output and error: closed ones are opened, and writes of libraries in C do not block."""

import os
import select
import stat

STANDARD_STREAMS = (0, 1, 2)


def open_closed_streams() -> None:
    """Open each standard stream that is closed on the null device.

    Otherwise the next file or socket would get the descriptor, and everything written to standard error would end up
    there.
    """
    for descriptor in STANDARD_STREAMS:
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # the lowest free number, so it is this descriptor
            os.set_inheritable(null, True)  # noqa: FBT003 - takes no keyword


def make_nonblocking(descriptor: int) -> None:
    """Make writes to a pipe, socket or terminal fail instead of block; best effort.

    Pipes and terminals are opened a second time: other processes may use the open file that this process inherited, and
    that must not change for them. Files are left alone, because they never block in this sense.
    """
    is_pipe, is_socket = (is_kind(os.fstat(descriptor).st_mode) for is_kind in (stat.S_ISFIFO, stat.S_ISSOCK))
    is_terminal = os.isatty(descriptor)
    try:
        if is_pipe or is_terminal:
            own = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
            os.dup2(own, descriptor)
            os.close(own)
            return
    except OSError:  # no /proc, or the pipe belongs to another user
        pass
    if is_pipe or is_socket:
        os.set_blocking(descriptor, False)


def is_writable(descriptor: int) -> bool:
    """Return whether writing a few lines would not block, as it does in a full pipe."""
    waiting = select.poll()
    waiting.register(descriptor, select.POLLOUT)
    return any(events & select.POLLOUT for _, events in waiting.poll(0))
