"""Opens the socket that the service listens on, and logs what is unexpected about it."""

import socket

import structlog

from host.listening_socket import ALL_IPV4, has_fallen_back, open_listening_socket

log = structlog.get_logger()


def listen(host: str, port: int) -> socket.socket:
    """Open the socket to listen on.

    Raises:
        ListenError: it cannot be opened.
    """
    listening = open_listening_socket(host, port)
    if has_fallen_back(host, listening):
        log.warning("ipv6_unavailable", host=host, listening=ALL_IPV4)
    return listening
