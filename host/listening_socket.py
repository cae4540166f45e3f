"""Opens the socket that the service listens on, and explains why it cannot."""

import errno
import socket
from ipaddress import IPv6Address

BACKLOG = 2048
"""Connections that the kernel queues until the service accepts them; uvicorn's default."""

ALL_IPV4 = "0.0.0.0"  # noqa: S104 - the default of a server
NO_IPV6 = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})
"""Errors of a machine without IPv6: of its kernel, or of its network interfaces."""

LISTENING_HINTS = {
    errno.EAFNOSUPPORT: " This machine has no IPv6: set HOST=0.0.0.0, or 127.0.0.1 for this machine only.",
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


def without_brackets(host: str) -> str:
    """Return an IPv6 address as sockets take it: `[::1]`, as in a URL, becomes `::1`."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def open_listening_socket(host: str, port: int) -> socket.socket:
    """Bind a TCP socket to *host* and *port* and listen.

    `::` means all addresses, of IPv4 too; on a machine without IPv6, those of IPv4.

    Raises:
        ListenError: the address is invalid, forbidden or in use.
    """
    host = without_brackets(host) or ALL_IPV4
    try:
        return _listen(host, port)
    except (OSError, TypeError, ValueError) as error:
        if not (is_all_ipv6(host) and getattr(error, "errno", None) in NO_IPV6):
            raise ListenError(host, port, error) from None
    try:
        return _listen(ALL_IPV4, port)
    except OSError as error:
        raise ListenError(host, port, error) from None


def listening_address(listening: socket.socket) -> str:
    """Return where *listening* accepts connections, as in a URL: `http://127.0.0.1:8000` or `http://[::]:8000`."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if listening.family == socket.AF_INET6 else f"http://{host}:{port}"


def is_all_ipv6(host: str) -> bool:
    """Return whether *host* means all addresses of IPv6, in any of its spellings."""
    try:
        return IPv6Address(without_brackets(host)) == IPv6Address("::")
    except ValueError:
        return False


def has_fallen_back(host: str, listening: socket.socket) -> bool:
    """Return whether *listening* was opened for all addresses of IPv6, but this machine has IPv4 only."""
    return is_all_ipv6(host) and listening.family == socket.AF_INET


def _listen(host: str, port: int) -> socket.socket:
    # Finds the zone of fe80::1%eth0, too. AI_PASSIVE: glibc resolves `*`, which else means this machine only.
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, address = min(((family, address) for family, *_, address in found), key=lambda known: known[0])
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_all_ipv6(host):  # whatever the machine's default (net.ipv6.bindv6only) is
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listening.bind(address)
        listening.listen(BACKLOG)  # two servers can bind the same port; only one can listen
    except BaseException:
        listening.close()
        raise
    return listening
