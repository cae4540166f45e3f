"""Security headers: of data, and of answers that have a Content-Security-Policy of their own."""

import pytest

from web.security_headers import BASIC_HEADERS, DATA_HEADERS, security_headers_for


@pytest.mark.parametrize("media_type", [b"application/json", b"application/problem+json", b"text/html; charset=utf-8"])
def test_data_may_load_nothing_and_is_not_kept(media_type: bytes) -> None:
    added = security_headers_for([(b"content-length", b"2"), (b"content-type", media_type)])
    assert added == DATA_HEADERS
    assert dict(added)[b"content-security-policy"] == b"default-src 'none'; frame-ancestors 'none'"
    assert dict(added)[b"cache-control"] == b"no-store"


def test_answer_with_its_own_policy_keeps_it_and_its_caching() -> None:
    added = security_headers_for([(b"content-security-policy", b"script-src 'self'"), (b"cache-control", b"no-cache")])
    assert added == BASIC_HEADERS
    assert {b"content-security-policy", b"cache-control"}.isdisjoint(dict(added))
