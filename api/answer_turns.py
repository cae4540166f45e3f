"""Long answers are written in pieces, and the pieces of all answers take turns, fair between callers."""

import asyncio

from web.request_context import RequestContext

MAX_PIECE_NUMBERS = 16_384
"""Numbers that are written at once: as decimals, the slowest format, they take about 1 ms of the event loop. Other
requests are served between two pieces."""


def rows_per_piece(columns: int) -> int:
    """Return how many vectors with this many numbers are written at once."""
    return max(1, MAX_PIECE_NUMBERS // columns)


async def next_turn(context: RequestContext) -> None:
    """Let other requests be served until it is this one's turn to write a piece."""
    if (gate := context.answer_parts) is None:
        await asyncio.sleep(0)
    else:
        await gate.enter(context.caller, 1)
        asyncio.get_running_loop().call_soon(gate.leave)
