"""Redirects are relative, and lead to the same place whatever prefix a proxy puts before the path."""

from typing import cast
from urllib.parse import urljoin

import pytest
from litestar.types import HTTPScope

from web.redirects import has_final_slash, redirect_to


@pytest.mark.parametrize("prefix", ["", "/embeddings", "/a/b"])
@pytest.mark.parametrize("sent", ["/schema", "/schema/", "/schema/redoc", "/schema/redoc/", "/docs/"])
def test_redirect_leads_to_the_target_below_the_prefix(prefix: str, sent: str) -> None:
    scope = cast("HTTPScope", {"path": sent.rstrip("/"), "raw_path": sent.encode()})
    location = redirect_to("docs", scope).answer_headers["Location"]
    assert urljoin(f"http://host{prefix}{sent}", location) == f"http://host{prefix}/docs"


@pytest.mark.parametrize(("sent", "path"), [("///schema//swagger", "/schema/swagger"), ("/a//schema//", "/schema")])
def test_empty_segments_are_left_like_others(sent: str, path: str) -> None:
    """Browsers and curl count them. Python's `urljoin` drops them, so this is the way up, written out."""
    scope = cast("HTTPScope", {"path": path, "raw_path": sent.encode()})
    assert redirect_to("docs", scope).answer_headers["Location"] == "../../docs"


def test_final_slash_is_that_of_the_path_as_it_was_sent() -> None:
    assert has_final_slash(cast("HTTPScope", {"path": "/docs", "raw_path": b"/docs/"}))
    assert not has_final_slash(cast("HTTPScope", {"path": "/docs", "raw_path": b"/docs"}))
    assert not has_final_slash(cast("HTTPScope", {"path": "/docs", "raw_path": None}))  # a server need not say it
