"""Servers for the programs of tests/clients/programs; each is shared by all tests of a pytest worker."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.clients import openai_clients, other_clients, other_languages
from tests.clients.replay import ALIAS, KEYS
from tests.clients.support import BUNDLED, KEY, Client
from tests.support.servers import ServerProcess, held_server

CLIENTS = [*openai_clients.CLIENTS, *other_clients.CLIENTS, *other_languages.CLIENTS]
"""All tests of a client run one after the other, and share its process."""


@pytest.fixture(scope="module", params=CLIENTS, ids=str)
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    """Each client in turn."""
    yield request.param
    request.param.stop()


@pytest.fixture
def server(server_with: Callable[..., ServerProcess], tiny_models: Path) -> ServerProcess:
    """A server with the bundled model and tiny ones, and without keys."""
    return server_with(MODELS_DIR=str(tiny_models))


@pytest.fixture
def keyed_server(server_with: Callable[..., ServerProcess], tiny_models: Path) -> ServerProcess:
    """A server that asks for KEY."""
    return server_with(MODELS_DIR=str(tiny_models), API_KEYS=f"tests:{KEY}")


@pytest.fixture
def aliased_server(server_with: Callable[..., ServerProcess], tiny_models: Path) -> ServerProcess:
    """A server for which ALIAS is the bundled model."""
    return server_with(MODELS_DIR=str(tiny_models), MODEL_ALIASES=f"{ALIAS}={BUNDLED}")


@pytest.fixture
def counting_server(server_with: Callable[..., ServerProcess]) -> ServerProcess:
    """A server with ALIAS, for which each of KEYS may make four requests."""
    keys = ",".join(f"tests{number}:{key}" for number, key in enumerate(KEYS))
    quota = {"ENABLE_RATE_LIMIT": "true", "RATE_LIMIT_REQUESTS": "4", "RATE_LIMIT_WINDOW": "86400"}
    return server_with(MODEL_ALIASES=f"{ALIAS}={BUNDLED}", API_KEYS=keys, **quota)


@pytest.fixture(scope="session")
def full_server() -> Iterator[ServerProcess]:
    """A server for `run_refused`, whose queue is soon full."""
    with held_server(MAX_QUEUE_SECONDS="0.05", THREAD_POOL_WORKERS="1") as server:
        yield server
