"""@huggingface/inference repeats a 503 at once and for ever; so a refusal on the routes for it is a 429."""

import pytest

from tests.clients.support import TEST_TIMEOUT_S, Client, run_refused
from tests.support.servers import ServerProcess

pytestmark = [pytest.mark.slow, pytest.mark.clients, pytest.mark.timeout(TEST_TIMEOUT_S)]


def test_hugging_face_client_for_node_gets_one_429_and_stops(full_server: ServerProcess) -> None:
    client = Client("huggingface.mjs", "node")
    try:
        answer, statuses = run_refused(full_server, client)
    finally:
        client.stop()
    assert "no part of it was computed" in answer.error
    assert statuses == [429]
