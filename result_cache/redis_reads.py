"""Reads values from Redis that may be too large for one reply: one of them, or all together."""

from collections.abc import Iterator, Sequence
from contextlib import suppress

from host.redis_client import MAX_REPLY_BYTES, OversizedReplyError, RedisClient

MAX_PART_BYTES = MAX_REPLY_BYTES // 2
"""Bytes of values per reply, if one reply is not enough for all. Its lines need some of the room."""


async def read_values(
    client: RedisClient, keys: Sequence[bytes], *, max_bytes: int
) -> tuple[Sequence[bytes | None], bool]:
    """Return the values of *keys*, and whether they are all that there are.

    If they are too large for one reply, those that have more than *max_bytes* are left out. Others may write to Redis,
    so a value may still grow until it is read.

    Raises:
        OversizedReplyError: such a value is too large for a reply.
    """
    with suppress(OversizedReplyError):
        return await client.get_all(keys), True
    sizes = await client.sizes(keys)
    found = dict[bytes, bytes | None]()
    for part in _parts(keys, sizes, max_bytes):
        found |= zip(part, await client.get_all(part), strict=True)
    return [found.get(key) for key in keys], max(sizes) <= max_bytes


def _parts(keys: Sequence[bytes], sizes: Sequence[int], max_bytes: int) -> Iterator[list[bytes]]:
    """Split those of *keys* that have a value of up to *max_bytes* by `MAX_PART_BYTES`."""
    part, part_bytes = list[bytes](), 0
    for key, size in zip(keys, sizes, strict=True):
        if not 0 < size <= max_bytes:
            continue
        if part and part_bytes + size > MAX_PART_BYTES:
            yield part
            part, part_bytes = [], 0
        part.append(key)
        part_bytes += size
    if part:
        yield part
