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
        head_of(HOST, CHUNKED, version="1.0"),
        head_of(HOST, (b"transfer-encoding", b"gzip, chunked")),
    ],
)
def test_head_that_proxies_may_read_differently_is_malformed(head: RequestHead) -> None:
    assert isinstance(find_fault(head, max_bytes=1000), MalformedRequestError)


def test_size_limit_counts_target_names_and_values_together() -> None:
    assert find_fault(head_of(HOST), max_bytes=12) is None
    assert isinstance(find_fault(head_of(HOST), max_bytes=11), LargeHeadError)


def test_only_the_headers_that_ask_for_another_protocol_are_removed() -> None:
    upgrade = ((b"connection", b"Upgrade, HTTP2-Settings"), (b"upgrade", b"h2c"), (b"http2-settings", b"AAMA"))
    head = head_of(HOST, *upgrade, (b"content-length", b"3"))
    assert without_upgrade(head) == b"POST /embed HTTP/1.1\r\nhost: me\r\ncontent-length: 3\r\n\r\n"
