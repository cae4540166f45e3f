"""The listening socket, and why it cannot be opened. tests/assembly/test_start_checks.py has the other causes."""

import pytest

from host.ports import ListenError, open_listening_socket


def test_socket_listens_on_the_address() -> None:
    with open_listening_socket("127.0.0.1", 0) as listening:
        host, port = listening.getsockname()
        assert (host, port > 0) == ("127.0.0.1", True)


def test_port_in_use_is_reported_with_a_fix() -> None:
    with open_listening_socket("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(ListenError) as failure:
            open_listening_socket("127.0.0.1", port)
    assert failure.value.is_in_use
    cause = f"Cannot listen on HOST=127.0.0.1 PORT={port}: Address already in use."
    assert str(failure.value) == f"{cause} Another process uses the port: stop it, or set another PORT."


@pytest.mark.parametrize("host", ["\0", "x" * 300, "1.2.3.4.5", "::zz"])
def test_invalid_address_is_reported(host: str) -> None:
    with pytest.raises(ListenError, match="Cannot listen on HOST=") as failure:
        open_listening_socket(host, 8000)
    assert not failure.value.is_in_use
