"""The prefix of a proxy: which paths have it, and which prefixes cannot be used."""

import pytest

from web.path_prefix import PathConflictError, PathPrefix

ROUTES = {
    "/": ["GET", "POST"],
    "/embed": ["POST"],
    "/embed/batch": ["POST"],
    "/embeddings": ["POST", "OPTIONS"],
    "/info": ["GET"],
    "/v1/models/{name}": ["GET"],
    "/tei/{owner}/{name}": ["POST"],
}


@pytest.mark.parametrize(
    ("path", "without"),
    [
        ("/a/b/embed", "/embed"),
        ("/a/b/", "/"),
        ("/a/b", "/"),
        ("/a/b?query=/x", "/?query=/x"),
        ("/a/b/embed?query=1", "/embed?query=1"),
        ("/a/b/a/b/embed", "/a/b/embed"),
        ("/embed", "/embed"),
        ("/a/bc", "/a/bc"),
        ("/a", "/a"),
        ("/x/a/b/embed", "/x/a/b/embed"),
    ],
)
def test_prefix_is_removed_from_the_beginning_once(path: str, without: str) -> None:
    for method in ("GET", "POST"):
        assert PathPrefix("/a/b", ROUTES).remove_from(path, method=method) == without


def test_prefix_that_is_a_route_for_post_is_the_root_for_get() -> None:
    prefix = PathPrefix("/embeddings", ROUTES)
    assert [prefix.remove_from("/embeddings", method=method) for method in ("GET", "HEAD")] == ["/", "/"]
    assert [prefix.remove_from("/embeddings", method=method) for method in ("POST", "OPTIONS")] == ["/embeddings"] * 2
    assert prefix.remove_from("/embeddings/embeddings") == "/embeddings"
    assert prefix.remove_from("/embeddings/") == "/"


@pytest.mark.parametrize(
    ("prefix", "route"),
    [
        ("/embed", "/embed/batch"),
        ("/info", "/info"),
        ("/v1", "/v1/models/{name}"),
        ("/v1/models/mine", "/v1/models/{name}"),
        ("/tei", "/tei/{owner}/{name}"),
        ("/tei/x/y/z", "/tei/{owner}/{name}"),
    ],
)
def test_prefix_with_which_a_route_may_begin_cannot_be_used(prefix: str, route: str) -> None:
    with pytest.raises(PathConflictError, match=route):
        PathPrefix(prefix, ROUTES)


@pytest.mark.parametrize("prefix", ["/embeddings", "/v1/x", "/v1/modelsx", "/embed/x", "/inf", ""])
def test_prefix_with_which_no_route_begins_can_be_used(prefix: str) -> None:
    assert PathPrefix(prefix, ROUTES).remove_from(f"{prefix}/embed") == "/embed"


def test_without_a_prefix_nothing_is_wrapped() -> None:
    async def app(*_: object) -> None: ...

    assert PathPrefix("", ROUTES).around(app) is app
