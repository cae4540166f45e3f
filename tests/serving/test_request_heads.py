"""Checks of request heads that the HTTP parser accepts."""

import pytest

from serving.protocol_errors import LargeHeadError, MalformedRequestError
from serving.request_heads import RequestHead, find_fault, without_upgrade
from web.security_headers import Header

HOST = (b"host", b"me")
CHUNKED = (b"transfer-encoding", b"chunked")


def head_of(*headers: Header, version: str = "1.1") -> RequestHead:
    return RequestHead(b"POST", b"/embed", version, headers)


@pytest.mark.parametrize(
    "head",
    [
        head_of(HOST),
        head_of(version="1.0"),
        head_of(HOST, CHUNKED),
        head_of(HOST, (b"transfer-encoding", b"Chunked")),
    ],
)
def test_unambiguous_head_is_accepted(head: RequestHead) -> None:
    assert find_fault(head, max_bytes=1000) is None


@pytest.mark.parametrize(
    "head",
    [
        head_of(),
        head_of(HOST, HOST),
        head_of(HOST, HOST, version="1.0"),
        head_of(HOST, version="0.9"),
        head_of(HOST, version="2.0"),
        head_of(HOST, CHUNKED, version="1.0"),
        head_of(HOST, (b"transfer-encoding", b"gzip, chunked")),
    ],
)
def test_head_that_proxies_may_read_differently_is_malformed(head: RequestHead) -> None:
    assert isinstance(find_fault(head, max_bytes=1000), MalformedRequestError)


def test_size_limit_counts_the_bytes_on_the_wire() -> None:
    on_the_wire = b"POST /embed HTTP/1.1\r\nHost: me\r\n\r\n"
    assert find_fault(head_of(HOST), max_bytes=len(on_the_wire)) is None
    assert isinstance(find_fault(head_of(HOST), max_bytes=len(on_the_wire) - 1), LargeHeadError)


@pytest.mark.parametrize(
    ("options", "left"),
    [
        pytest.param(b"Upgrade, HTTP2-Settings", b"", id="upgrade"),
        pytest.param(b"close, Upgrade", b"connection: close\r\n", id="close-and-upgrade"),
        pytest.param(b"upgrade,keep-alive , x", b"connection: keep-alive, x\r\n", id="three"),
    ],
)
def test_only_the_headers_and_options_that_ask_for_another_protocol_are_removed(options: bytes, left: bytes) -> None:
    upgrade = ((b"connection", options), (b"upgrade", b"h2c"), (b"http2-settings", b"AAMA"))
    head = head_of(HOST, *upgrade, (b"content-length", b"3"))
    assert without_upgrade(head) == b"POST /embed HTTP/1.1\r\nhost: me\r\n" + left + b"content-length: 3\r\n\r\n"
