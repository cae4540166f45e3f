"""The head of a request: what is wrong with one, and how one reads without what may be passed over."""

from collections.abc import Iterable

from engine.errors import ServiceError
from serving.protocol_errors import LargeHeadError, MalformedRequestError

UPGRADE_HEADERS = frozenset({b"upgrade", b"connection", b"http2-settings"})
"""Headers in which a caller asks for another protocol."""

Header = tuple[bytes, bytes]


def fault_of(url: bytes, headers: Iterable[Header], version: str, *, max_bytes: int) -> ServiceError | None:
    """What is wrong with a head that the parser took; None: nothing.

    Args:
        url: the request's target, as it came.
        headers: names in lower case, and values.
        version: of HTTP, such as `1.1`.
        max_bytes: of target, names and values together.
    """
    head_bytes, hosts = len(url), 0
    for name, value in headers:
        head_bytes += len(name) + len(value)
        hosts += name == b"host"
        if name == b"transfer-encoding" and (value.lower() != b"chunked" or version == "1.0"):
            return MalformedRequestError()
    if head_bytes > max_bytes:
        return LargeHeadError(max_bytes)
    if version == "0.9" or hosts > 1 or (version == "1.1" and not hosts):  # RFC 9112, section 3.2
        return MalformedRequestError()
    return None


def without_upgrade(method: bytes, url: bytes, version: str, headers: Iterable[Header]) -> bytes:
    """The whole head, without the wish for another protocol."""
    lines = [b"%s %s HTTP/%s" % (method, url, version.encode())]
    lines += [b"%s: %s" % header for header in headers if header[0] not in UPGRADE_HEADERS]
    return b"\r\n".join(lines) + b"\r\n\r\n"
