"""Real clients of other servers with this one: each library in a process of its own, compared with the native route."""

import pytest

from tests.clients.relay import relayed
from tests.clients.support import (
    FEW,
    KEY,
    MANY,
    ODD,
    TEST_TIMEOUT_S,
    TINY,
    UNKNOWN,
    Client,
    expected_of_odd,
    native,
    run_refused,
    same,
)
from tests.support.servers import ServerProcess

pytestmark = [pytest.mark.slow, pytest.mark.clients, pytest.mark.timeout(TEST_TIMEOUT_S)]


def test_a_dozen_texts_have_the_native_vectors_in_order(keyed_server: ServerProcess, client: Client) -> None:
    answer = client.run(keyed_server.url, "few", FEW, key=KEY)
    assert same(answer.vectors, native(keyed_server, FEW, key=KEY))


def test_3000_texts_are_embedded_or_the_user_sees_the_limit_and_so_many_are(
    server: ServerProcess, client: Client
) -> None:
    if client.max_texts < len(MANY):
        assert client.too_many in client.run(server.url, "many", MANY, model=TINY).error
    texts = MANY[: client.max_texts]
    with relayed(server.url) as relay:
        answer = client.run(relay.url, "many", texts, model=TINY)
    assert same(answer.vectors, native(server, texts, model=TINY))
    assert client.requests in {0, len(relay.statuses)}


def test_empty_text_and_one_of_20000_characters_are_embedded(server: ServerProcess, client: Client) -> None:
    answer = client.run(server.url, "odd", ODD if client.takes_empty else ODD[1:])
    expected = expected_of_odd(server)
    assert same(answer.vectors, expected if client.takes_empty else expected[1:])


def test_user_sees_what_is_wrong_with_the_model_name(server: ServerProcess, client: Client) -> None:
    error = client.run(server.url, "bad_model", FEW[:1], model=UNKNOWN).error
    assert client.bad_model in error, error


def test_user_sees_that_the_key_is_wrong(keyed_server: ServerProcess, client: Client) -> None:
    error = client.run(keyed_server.url, "bad_key", FEW[:1], key="not-the-key-0123456789").error
    assert client.bad_key in error, error


def test_refused_request_is_repeated_or_the_user_sees_why(full_server: ServerProcess, client: Client) -> None:
    answer, statuses = run_refused(full_server, client)
    assert {429, 503} & set(statuses)
    if client.refused:
        assert client.refused in answer.error
    else:
        assert same(answer.vectors, native(full_server, FEW[:2]))
