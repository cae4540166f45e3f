"""Security headers by media type."""

import pytest

from web.security_headers import DATA_POLICY, PAGE_POLICY, SECURITY_HEADERS, Header, security_headers_for


@pytest.mark.parametrize(
    ("media_type", "policy"),
    [
        pytest.param(b"application/json", DATA_POLICY, id="JSON"),
        pytest.param(b"application/problem+json", DATA_POLICY, id="problem"),
        pytest.param(b"text/html; charset=utf-8", PAGE_POLICY, id="page"),
    ],
)
def test_pages_may_load_scripts_and_data_may_load_nothing(media_type: bytes, policy: Header) -> None:
    added = security_headers_for([(b"content-length", b"2"), (b"content-type", media_type)])
    assert added == (*SECURITY_HEADERS, policy)


def test_answer_without_a_media_type_is_treated_as_data() -> None:
    assert security_headers_for([])[-1] == DATA_POLICY
