"""The CORS headers of answers; tests/web/test_authentication_http.py tests those of the whole service."""

from typing import Any

import pytest

from web.cors import cors_config, cors_headers


def headers_for(origins: list[str] | None, *headers: tuple[bytes, bytes]) -> dict[bytes, bytes]:
    scope: Any = {"headers": [(b"host", b"x"), *headers]}
    return dict(cors_headers(None if origins is None else cors_config(origins, exposed_headers=["X-Own"]), scope))


ORIGIN = (b"origin", b"https://app.example")


def test_any_page_may_read_errors_if_all_origins_are_allowed() -> None:
    headers = headers_for(["*"], ORIGIN)
    assert headers[b"access-control-allow-origin"] == b"*"
    assert b"X-Own" in headers[b"access-control-expose-headers"]
    assert b"access-control-allow-credentials" not in headers


def test_page_of_a_named_origin_may_read_errors_and_send_credentials() -> None:
    headers = headers_for(["https://app.example", "https://other.example"], ORIGIN)
    assert headers[b"access-control-allow-origin"] == b"https://app.example"
    assert headers[b"access-control-allow-credentials"] == b"true"
    assert headers[b"vary"] == b"Origin"


@pytest.mark.parametrize(
    ("origins", "headers"),
    [
        pytest.param(None, [ORIGIN], id="CORS is off"),
        pytest.param(["*"], [], id="no origin"),
        pytest.param(["https://other.example"], [ORIGIN], id="another origin"),
        pytest.param(["https://app.example"], [(b"origin", b"https://app.example.evil")], id="longer origin"),
        pytest.param(["https://app.example"], [(b"origin", b"\xff\r\n")], id="invalid origin"),
    ],
)
def test_other_requests_get_no_headers(origins: list[str] | None, headers: list[tuple[bytes, bytes]]) -> None:
    assert headers_for(origins, *headers) == {}


@pytest.mark.parametrize(
    ("origins", "are_allowed"),
    [
        pytest.param(["*"], False, id="any"),
        pytest.param(["https://app.example", "*"], False, id="one and any"),
        pytest.param(["https://*.example"], False, id="pattern"),
        pytest.param(["https://app.example"], True, id="named"),
    ],
)
def test_only_named_origins_may_send_credentials(origins: list[str], *, are_allowed: bool) -> None:
    assert cors_config(origins, exposed_headers=["X-Own"]).allow_credentials is are_allowed
