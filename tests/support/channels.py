"""Two ends of a message channel in this process, as a supervisor and a worker have them."""

import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from host.message_channel import Handler, MessageChannel


@asynccontextmanager
async def channel_ends(
    left: Mapping[str, Handler], right: Mapping[str, Handler]
) -> AsyncIterator[tuple[MessageChannel, MessageChannel]]:
    """Open both ends, which answer with *left* and *right*, and close them at the end of the block."""
    ends = [MessageChannel(sock, handlers) for sock, handlers in zip(socket.socketpair(), (left, right), strict=True)]
    for end in ends:
        await end.open()
    try:
        yield ends[0], ends[1]
    finally:
        for end in ends:
            end.close()
            await end.run()
