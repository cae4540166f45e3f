"""The adapter uses names that uvicorn does not document. An upgrade that changes one fails here."""

import asyncio
import inspect
from collections import deque
from collections.abc import Callable
from importlib.metadata import version
from operator import attrgetter
from typing import Any

import httptools
import uvicorn
from uvicorn.lifespan.on import LifespanOn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

HALF_A_REQUEST = b"POST /path HTTP/1.1\r\nHost: me\r\nContent-Length: 2\r\n\r\n1"


def takes(*parameters: str) -> Callable[[Callable[..., object]], bool]:
    return lambda function: tuple(inspect.signature(function).parameters) == parameters


def is_a(kind: type) -> Callable[[object], bool]:
    return lambda value: isinstance(value, kind)


NAMES_OF_A_PROTOCOL: dict[str, Callable[[Any], object]] = {
    # called
    "_unset_keepalive_if_required": takes(),
    "timeout_keep_alive_handler": takes(),
    # overridden, or called by the parser
    "connection_made": takes("transport"),
    "connection_lost": takes("exc"),
    "data_received": takes("data"),
    "eof_received": takes(),
    "pause_writing": takes(),
    "resume_writing": takes(),
    "on_message_begin": takes(),
    "on_header": takes("name", "value"),
    "on_headers_complete": takes(),
    "on_body": takes("body"),
    "on_message_complete": takes(),
    "on_response_complete": takes(),
    # read or set
    "connections": is_a(set),
    "flow.write_paused": is_a(bool),
    "headers": lambda headers: headers[0] == (b"host", b"me"),
    "loop": is_a(asyncio.AbstractEventLoop),
    "parser": is_a(httptools.HttpRequestParser),
    "parser.get_method": lambda get: get() == b"POST",
    "parser.get_http_version": lambda get: get() == "1.1",
    "parser.should_keep_alive": lambda get: get() is True,
    "parser.set_dangerous_leniencies": lambda _: True,
    "parser.should_upgrade": lambda get: get() is False,
    "client": is_a(tuple),
    "pipeline": is_a(deque),
    "scope": lambda scope: scope["path"] == "/path",
    "server_state.default_headers": is_a(list),
    "timeout_keep_alive": is_a(int),
    "timeout_keep_alive_task": lambda task: task is None,
    "url": lambda url: url == b"/path",
    "cycle": is_a(RequestResponseCycle),
    "cycle.body": is_a(bytearray),
    "cycle.disconnected": lambda value: value is False,
    "cycle.keep_alive": lambda value: value is True,
    "cycle.message_event": is_a(asyncio.Event),
    "cycle.more_body": lambda value: value is True,
    "cycle.response_started": lambda value: value is False,
    "cycle.response_complete": lambda value: value is False,
    "cycle.chunked_encoding": lambda value: value is None,
    "cycle.access_log": is_a(bool),
    "cycle.default_headers": is_a(list),
    "cycle.on_response": takes(),
    "cycle.waiting_for_100_continue": lambda value: value is False,
    "cycle.transport": is_a(asyncio.Transport),
    "cycle.scope": lambda scope: scope["path"] == "/path",
}
NAMES_OF_A_SERVER: dict[str, Callable[[Any], object]] = {
    "capture_signals": takes(),
    "handle_exit": takes("sig", "frame"),
    "on_tick": lambda method: takes("counter")(method) and inspect.iscoroutinefunction(method),
    "shutdown": lambda method: takes("sockets")(method) and inspect.iscoroutinefunction(method),
    "config.timeout_graceful_shutdown": lambda value: value is None,
    "server_state.connections": is_a(set),
    "server_state.tasks": is_a(set),
    "should_exit": lambda value: value is False,
}
NAMES_OF_A_LIFESPAN: dict[str, Callable[[Any], object]] = {"should_exit": lambda value: value is False}


def problems(owner: object, names: dict[str, Callable[[Any], object]]) -> list[str]:
    """Return the names that *owner* does not have, or that are not what the adapter expects."""
    found = []
    for name, is_as_expected in names.items():
        where = f"{type(owner).__name__}.{name}"
        try:
            if not is_as_expected(attrgetter(name)(owner)):
                found.append(f"{where} is not as expected")
        except AttributeError as error:
            found.append(f"{where}: {error}")
    return found


async def test_installed_versions_have_every_undocumented_name_that_the_adapter_uses() -> None:
    has_begun = asyncio.Event()

    async def app(scope: object, receive: Callable[[], Any], send: object) -> None:
        del scope, send
        await receive()
        has_begun.set()
        await receive()

    config = uvicorn.Config(app, lifespan="on")
    config.load()
    protocol = HttpToolsProtocol(config=config, server_state=ServerState(), app_state={})
    listening = await asyncio.get_running_loop().create_server(lambda: protocol, "127.0.0.1", 0)
    _, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
    writer.write(HALF_A_REQUEST)
    await has_begun.wait()
    found = [
        *problems(protocol, NAMES_OF_A_PROTOCOL),
        *problems(uvicorn.Server(config), NAMES_OF_A_SERVER),
        *problems(LifespanOn(config), NAMES_OF_A_LIFESPAN),
    ]
    writer.close()
    listening.close()
    await asyncio.gather(*protocol.tasks)
    versions = f"uvicorn {version('uvicorn')} and httptools {version('httptools')}"
    assert found == [], f"serving/uvicorn_*.py rely on names that {versions} do not have"
