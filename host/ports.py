"""The socket that the service listens on."""

import errno
import socket

BACKLOG = 2048
"""Connections that the kernel holds until the service accepts them."""

LISTENING_HINTS = {
    errno.EACCES: " Ports below 1024 are for root: set PORT=8000, and let the container or a proxy map the other one.",
    errno.EADDRINUSE: " Another process has the port: end it, or set another PORT.",
    errno.EADDRNOTAVAIL: " This machine has no such address: set HOST=0.0.0.0 for all of its own.",
}


class ListenError(Exception):
    """The service cannot listen on HOST and PORT; the message says why and what helps.

    Attributes:
        reason: the cause alone, such as `Address already in use`.
        is_in_use: another process listens there.
    """

    def __init__(self, host: str, port: int, error: Exception) -> None:
        number = getattr(error, "errno", None) or 0
        self.reason = getattr(error, "strerror", None) or "this is not a valid address"
        self.is_in_use = number == errno.EADDRINUSE
        hint = LISTENING_HINTS.get(number, "")
        super().__init__(f"Cannot listen on HOST={host} PORT={port}: {self.reason}.{hint}")


def open_listening_socket(host: str, port: int) -> socket.socket:
    """Bind to *host* and *port* and listen.

    Raises:
        ListenError: the address is not valid, not allowed, or in use.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(BACKLOG)  # only this takes the port: two servers may have bound it
    except (OSError, TypeError, UnicodeError) as error:
        listening.close()
        raise ListenError(host, port, error) from None
    return listening
