"""Writes long answers in pieces, and yields the event loop to others between two pieces, fairly between callers."""

import asyncio

from web.request_context import RequestContext

MAX_PIECE_NUMBERS = 16_384
"""Numbers that are written at once: as decimals, the slowest format, they take about 1 ms of the event loop. Other
requests are served between two pieces."""


def rows_per_piece(columns: int) -> int:
    """Return how many vectors with this many numbers are written at once."""
    return max(1, MAX_PIECE_NUMBERS // columns)


async def yield_to_others(context: RequestContext) -> None:
    """Let other requests be served until the fair order between callers reaches this one's next piece."""
    if (gate := context.piece_gate) is None:
        await asyncio.sleep(0)
    else:
        await gate.enter(context.caller, 1)
        asyncio.get_running_loop().call_soon(gate.leave)
