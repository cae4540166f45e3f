"""Heads that the parser takes, and the service does not."""

import pytest

from serving.protocol_errors import LargeHeadError, MalformedRequestError
from serving.request_heads import fault_of, without_upgrade

HOST = (b"host", b"me")
CHUNKED = (b"transfer-encoding", b"chunked")


@pytest.mark.parametrize(
    ("headers", "version"),
    [([HOST], "1.1"), ([], "1.0"), ([HOST, CHUNKED], "1.1"), ([HOST, (b"transfer-encoding", b"Chunked")], "1.1")],
)
def test_a_sound_head_has_no_fault(headers: list[tuple[bytes, bytes]], version: str) -> None:
    assert fault_of(b"/embed", headers, version, max_bytes=1000) is None


@pytest.mark.parametrize(
    ("headers", "version"),
    [
        ([], "1.1"),
        ([HOST, HOST], "1.1"),
        ([HOST, HOST], "1.0"),
        ([HOST], "0.9"),
        ([HOST, CHUNKED], "1.0"),
        ([HOST, (b"transfer-encoding", b"gzip, chunked")], "1.1"),
    ],
)
def test_what_others_might_read_in_another_way_is_malformed(headers: list[tuple[bytes, bytes]], version: str) -> None:
    assert isinstance(fault_of(b"/embed", headers, version, max_bytes=1000), MalformedRequestError)


def test_target_names_and_values_count_together() -> None:
    assert fault_of(b"/embed", [HOST], "1.1", max_bytes=12) is None
    assert isinstance(fault_of(b"/embed", [HOST], "1.1", max_bytes=11), LargeHeadError)


def test_only_the_wish_for_another_protocol_is_left_out() -> None:
    headers = [HOST, (b"connection", b"Upgrade, HTTP2-Settings"), (b"upgrade", b"h2c"), (b"http2-settings", b"AAMA")]
    head = without_upgrade(b"POST", b"/embed?a=b", "1.1", [*headers, (b"content-length", b"3")])
    assert head == b"POST /embed?a=b HTTP/1.1\r\nhost: me\r\ncontent-length: 3\r\n\r\n"
