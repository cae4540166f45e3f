"""The deadline of a request: what it cancels, and what it leaves to other cancellations."""

import asyncio

import pytest

from engine.errors import DeadlineError
from engine.offered_models import Deadline


async def never() -> None:
    await asyncio.Event().wait()


async def test_block_ends_at_its_deadline_and_its_task_goes_on() -> None:
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    for at_s in (loop.time(), loop.time() + 0.001):
        with pytest.raises(DeadlineError):
            async with Deadline(at_s):
                await never()
        assert task.cancelling() == 0
        await asyncio.sleep(0)


async def test_block_that_ends_in_time_is_not_cancelled_afterwards() -> None:
    async with Deadline(asyncio.get_running_loop().time()):
        pass
    for _ in range(3):
        await asyncio.sleep(0)


async def test_error_of_the_block_stays_what_it_is_at_the_deadline() -> None:
    async def fail() -> None:
        async with Deadline(asyncio.get_running_loop().time()):
            try:
                await never()
            except asyncio.CancelledError:
                raise ValueError("first") from None

    with pytest.raises(ValueError, match="first"):
        await fail()


async def test_task_that_is_cancelled_at_the_deadline_stays_cancelled() -> None:
    loop = asyncio.get_running_loop()

    async def wait() -> None:
        async with Deadline(loop.time()):
            loop.call_at(loop.time(), task.cancel)
            await never()

    task = asyncio.create_task(wait())
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
