"""Fixtures of the tests of the page."""

from collections.abc import Iterator

import pytest

from tests.support.page_modules import PageModules, page_modules


@pytest.fixture(scope="session")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageModules]:
    """The page's modules that need no browser."""
    with page_modules(tmp_path_factory.mktemp("page")) as running:
        yield running
