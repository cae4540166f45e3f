"""A server with small limits, shared by the tests of requests that exceed one."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.servers import ServerProcess
from tests.support.tiny import TinyModel

STRICT = {
    "HEADER_TIMEOUT": "0.6",
    "BODY_TIMEOUT": "0.6",
    "KEEP_ALIVE_TIMEOUT": "60",
    "MAX_HEADER_SIZE": "2KiB",
    "MAX_REQUEST_SIZE": "64KiB",
    "MAX_BATCH_SIZE": "500",
    "REQUIRED_MODELS": "tiny/wide",
    "RESULT_CACHE_MB": "0",  # so that the app answers all requests: see test_early_reuse.py for the others
}


@pytest.fixture(scope="session")
def wide_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of which a batch of 500 vectors is larger than the buffers of a connection."""
    folder = tmp_path_factory.mktemp("wide_models")
    TinyModel("tiny/wide", dim=1024).write(folder)
    return folder


@pytest.fixture
def strict(server_with: Callable[..., ServerProcess], wide_models: Path) -> ServerProcess:
    return server_with(**STRICT, MODELS_DIR=str(wide_models))
