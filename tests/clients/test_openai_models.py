"""What OpenAI's client for Python asks a server for besides vectors of texts."""

from collections.abc import Iterator

import numpy as np
import pytest

from tests.clients.support import BUNDLED, TEST_TIMEOUT_S, TINY, Client, native, same
from tests.support.servers import ServerProcess

pytestmark = [pytest.mark.slow, pytest.mark.clients, pytest.mark.timeout(TEST_TIMEOUT_S)]


@pytest.fixture(params=["openai", "openai1"])
def program(request: pytest.FixtureRequest) -> Iterator[Client]:
    client = Client("openai_models.py", request.param)
    yield client
    client.stop()


def test_models_are_listed_and_found_and_the_user_sees_what_is_wrong(server: ServerProcess, program: Client) -> None:
    """Version 3 sends the slash of a name as %2F, version 1 as it is."""
    answers = program.run(server.url, "few", []).printed["answers"]
    assert {BUNDLED, TINY} <= set(answers["names"])
    assert answers["id"] == BUNDLED
    assert "no/model" in answers["unknown"]
    assert "dimensions" in answers["dimensions"]
    assert answers["param"] == "dimensions"
    assert same(np.array(answers["floats"], np.float32), native(server, ["one", "two"]))
    assert answers["index"] == [0, 1]
    assert answers["tokens"] == 6
    assert answers["fingerprint"]
    assert answers["request_id"]
