"""What pages of other origins are told; test_auth_http.py asks a real server the same."""

from typing import Any

import pytest

from web.cors import cors_config, cors_headers


def told(origins: list[str] | None, *headers: tuple[bytes, bytes]) -> dict[bytes, bytes]:
    scope: Any = {"headers": [(b"host", b"x"), *headers]}
    return dict(cors_headers(None if origins is None else cors_config(origins, exposed_headers=["X-Own"]), scope))


ASKED = (b"origin", b"https://app.example")


def test_any_page_may_read_a_failure_where_any_may_call() -> None:
    headers = told(["*"], ASKED)
    assert headers[b"access-control-allow-origin"] == b"*"
    assert b"X-Own" in headers[b"access-control-expose-headers"]
    assert b"access-control-allow-credentials" not in headers


def test_page_of_a_named_origin_may_read_it_with_its_cookies() -> None:
    headers = told(["https://app.example", "https://other.example"], ASKED)
    assert headers[b"access-control-allow-origin"] == b"https://app.example"
    assert headers[b"access-control-allow-credentials"] == b"true"
    assert headers[b"vary"] == b"Origin"


@pytest.mark.parametrize(
    ("origins", "headers"),
    [
        pytest.param(None, [ASKED], id="switched off"),
        pytest.param(["*"], [], id="no page asks"),
        pytest.param(["https://other.example"], [ASKED], id="another page asks"),
        pytest.param(["https://app.example"], [(b"origin", b"https://app.example.evil")], id="page with a longer name"),
        pytest.param(["https://app.example"], [(b"origin", b"\xff\r\n")], id="odd origin"),
    ],
)
def test_others_are_told_nothing(origins: list[str] | None, headers: list[tuple[bytes, bytes]]) -> None:
    assert told(origins, *headers) == {}


@pytest.mark.parametrize(
    ("origins", "with_cookies"),
    [
        pytest.param(["*"], False, id="any"),
        pytest.param(["https://app.example", "*"], False, id="one and any"),
        pytest.param(["https://*.example"], False, id="pattern"),
        pytest.param(["https://app.example"], True, id="named"),
    ],
)
def test_cookies_go_with_named_origins_only(origins: list[str], *, with_cookies: bool) -> None:
    assert cors_config(origins, exposed_headers=["X-Own"]).allow_credentials is with_cookies
