"""Route table: the template of a path, found as Litestar finds it."""

import pytest

from web.route_table import RouteTable

TEI = ("/tei/{owner}/{name}", "/tei/{owner}/{name}/embed", "/tei/{name}/info")
TABLE = RouteTable(["/embed", "/embed/batch", *TEI, "/v1/models/{id}"])


@pytest.mark.parametrize(
    ("path", "template"),
    [
        ("/embed", "/embed"),
        ("//embed/batch/", "/embed/batch"),
        ("/tei/a/b", "/tei/{owner}/{name}"),
        ("/tei/a/b/embed/", "/tei/{owner}/{name}/embed"),
        ("/v1/models/a/b", "/v1/models/{id}"),
        ("/v1/models", None),
        ("/v1/models/", None),
        ("/tei/a", None),
        ("/tei/a/embed", "/tei/{owner}/{name}"),
        ("/tei/a/info", "/tei/{name}/info"),
        ("/tei/a/b/c/embed", "/tei/{owner}/{name}/embed"),
        ("/embeds", None),
        ("/embed?x=1", None),
        ("/", None),
        ("", None),
    ],
)
def test_template_is_found_by_the_path(path: str, template: str | None) -> None:
    assert TABLE.find(path) == template


def test_path_of_many_slashes_takes_no_longer_than_its_length() -> None:
    """With a regular expression it took the square: seconds for a path as long as MAX_HEADER_SIZE allows."""
    path = "/tei/" + "a/" * 1_000_000
    assert TABLE.find(f"{path}embed") == "/tei/{owner}/{name}/embed"
    assert TABLE.find(f"{path}tokenize/x") == "/tei/{owner}/{name}"
