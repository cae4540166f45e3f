"""Clients of OpenAI's dialect, each in a process of its own, compared with the native route."""

import pytest

from tests.clients.support import (
    FEW,
    KEY,
    Client,
    native,
    run_refused,
    same,
)
from tests.support.servers import ServerProcess

pytestmark = [pytest.mark.slow, pytest.mark.clients]

CLIENTS = [
    Client("openai_sync.py", "openai"),
    Client("openai_sync.py", "openai1"),
]


@pytest.mark.parametrize("client", CLIENTS, ids=str)
def test_a_dozen_texts_have_the_native_vectors_and_the_key_is_checked(
    keyed_server: ServerProcess, client: Client
) -> None:
    answer = client.run(keyed_server.url, "few", FEW, key=KEY)
    assert same(answer.vectors, native(keyed_server, FEW, key=KEY))


@pytest.mark.parametrize("client", CLIENTS, ids=str)
def test_refused_request_is_repeated(full_server: ServerProcess, client: Client) -> None:
    answer, statuses = run_refused(full_server, client)
    assert same(answer.vectors, native(full_server, FEW[:2]))
    assert statuses[0] == 503
    assert statuses[-1] == 200
