"""Opens the socket that the service listens on, and explains why it cannot."""

import errno
import socket

BACKLOG = 2048
"""Connections that the kernel queues until the service accepts them; uvicorn's default."""

LISTENING_HINTS = {
    errno.EACCES: " Ports below 1024 need root: set PORT=8000, and map the other port in the container or proxy.",
    errno.EADDRINUSE: " Another process uses the port: stop it, or set another PORT.",
    errno.EADDRNOTAVAIL: " This machine does not have that address: set HOST=0.0.0.0 to use all of its addresses.",
}

INVALID_ADDRESS_HINT = " Set HOST to an address of this machine, such as 0.0.0.0 (all of them) or 127.0.0.1."


class ListenError(Exception):
    """The service cannot listen on HOST and PORT. The message contains the cause and a fix.

    Attributes:
        reason: the cause alone, such as `Address already in use`.
        is_in_use: another process uses the port.
    """

    def __init__(self, host: str, port: int, error: Exception) -> None:
        number = getattr(error, "errno", None) or 0
        self.reason = getattr(error, "strerror", None) or "this is not a valid address"
        self.is_in_use = number == errno.EADDRINUSE
        is_invalid = not isinstance(error, OSError) or isinstance(error, socket.gaierror)
        hint = INVALID_ADDRESS_HINT if is_invalid else LISTENING_HINTS.get(number, "")
        super().__init__(f"Cannot listen on HOST={host} PORT={port}: {self.reason}.{hint}")


def open_listening_socket(host: str, port: int) -> socket.socket:
    """Bind a TCP socket to *host* and *port* and listen.

    Raises:
        ListenError: the address is invalid, forbidden or in use.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(BACKLOG)  # two servers can bind the same port; only one can listen
    except (OSError, TypeError, UnicodeError) as error:
        listening.close()
        raise ListenError(host, port, error) from None
    return listening
