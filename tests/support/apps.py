"""The app in this process, with settings as a server process reads them. Faster than a process, for what needs none."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from litestar import Litestar
from litestar.testing import TestClient

from config import Settings, load_settings
from tests.support.servers import environment


def settings_of(**variables: str) -> Settings:
    """Read the settings from these environment variables only: not from others, and not from `.env`.

    Raises:
        SettingsError: a value is not allowed.
    """
    with patch.dict(os.environ, environment(variables), clear=True):
        return load_settings(_env_file=None)


@contextmanager
def running_app(**variables: str) -> Iterator[TestClient[Litestar]]:
    """Run the app with these settings until the end of the block, and call it by the client.

    Models load in the background, as in a server; requests wait for the model that they need. The caller's address is
    not an IP address.
    """
    from main import create_app  # noqa: PLC0415 - importing main builds an app, too

    with TestClient(create_app(settings_of(**variables)), raise_server_exceptions=False) as client:
        yield client
