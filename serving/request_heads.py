"""Checks of a request's head that the HTTP parser does not make, and heads without an upgrade."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from engine.errors import ServiceError
from serving.connection_limits import FIELD_SEPARATORS
from serving.protocol_errors import LargeHeadError, MalformedRequestError
from web.security_headers import Header

UPGRADE_HEADERS = frozenset({b"upgrade", b"http2-settings"})
"""Headers with which a client asks to change to another protocol, and options of `Connection` that name them."""
VERSIONS = ("1.1", "1.0")
FIXED_BYTES = len("  HTTP/1.1\r\n\r\n")
"""The bytes that are the same in every head: the rest of the request line, and the empty line at the end."""


class RequestHead(NamedTuple):
    """The request line and the headers.

    Attributes:
        method: as received.
        target: the part of the URL in the request line, as received.
        version: of HTTP, such as `1.1`.
        headers: names in lower case, and values.
        keep_alive: the client lets the connection stay open after the answer.
    """

    method: bytes
    target: bytes
    version: str
    headers: Sequence[Header]
    keep_alive: bool = True


def find_fault(head: RequestHead, *, max_bytes: int) -> ServiceError | None:
    """Return why a head that the parser accepts is rejected; None: it is not.

    Proxies may read an ambiguous head differently, which lets one client smuggle requests into another client's
    connection. So the body's length must have one meaning, and the host must be given once.

    Args:
        head: the head to check.
        max_bytes: of the whole head: the request line, the header lines and the empty line.
    """
    head_bytes, hosts = len(head.method) + len(head.target) + FIXED_BYTES, 0
    for name, value in head.headers:
        head_bytes += len(name) + len(value) + FIELD_SEPARATORS
        hosts += name == b"host"
        if name == b"transfer-encoding" and (value.lower() != b"chunked" or head.version == "1.0"):
            return MalformedRequestError()
    if head_bytes > max_bytes:
        return LargeHeadError(max_bytes)
    if head.version not in VERSIONS or hosts > 1 or (head.version == "1.1" and not hosts):  # RFC 9112, section 3.2
        return MalformedRequestError()
    return None


def authority_of(target: bytes) -> bytes | None:
    """Return the host and port of a target in absolute form (`http://host/path`); None: *target* has none."""
    scheme, separator, rest = target.partition(b"://")
    return re.split(rb"[/?#]", rest, maxsplit=1)[0] if separator and scheme.isalnum() else None


def without_upgrade(head: RequestHead) -> bytes:
    """Return the head as bytes, without the headers that ask for another protocol."""
    lines = [b"%s %s HTTP/%s" % (head.method, head.target, head.version.encode())]
    for name, value in head.headers:
        if name == b"connection":
            options = [
                option for option in map(bytes.strip, value.split(b",")) if option.lower() not in UPGRADE_HEADERS
            ]
            if options:
                lines.append(b"connection: " + b", ".join(options))
        elif name not in UPGRADE_HEADERS:
            lines.append(b"%s: %s" % (name, value))
    return b"\r\n".join(lines) + b"\r\n\r\n"
