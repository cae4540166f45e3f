"""Who asks at the same time shares one round of work; who asks during a round gets the next one."""

import asyncio

import pytest

from assembly.shared_rounds import SharedRounds


class Gated:
    """Counts rounds; each waits for *gate*."""

    def __init__(self) -> None:
        self.begun = 0
        self.gate = asyncio.Event()
        self.busy = asyncio.Event()

    async def work(self) -> int:
        self.begun += 1
        number = self.begun
        self.busy.set()
        await self.gate.wait()
        return number


async def test_all_who_ask_during_a_round_share_the_next_one() -> None:
    gated = Gated()
    rounds = SharedRounds(gated.work)
    first = [asyncio.create_task(rounds.result()) for _ in range(5)]
    await gated.busy.wait()
    later = [asyncio.create_task(rounds.result()) for _ in range(5)]
    await asyncio.sleep(0)
    assert gated.begun == 1
    gated.gate.set()
    assert await asyncio.gather(*first, *later) == [1] * 5 + [2] * 5
    assert await rounds.result() == 3


async def test_one_who_leaves_does_not_stop_the_round_for_others() -> None:
    gated = Gated()
    rounds = SharedRounds(gated.work)
    leaves, stays = (asyncio.create_task(rounds.result()) for _ in range(2))
    await gated.busy.wait()
    leaves.cancel()
    gated.gate.set()
    assert await stays == 1


async def test_error_of_a_round_reaches_those_who_asked_for_it_and_nobody_else() -> None:
    results = iter([ValueError("first"), None])

    async def work() -> str:
        await asyncio.sleep(0)
        if (error := next(results)) is not None:
            raise error
        return "second"

    rounds = SharedRounds(work)
    with pytest.raises(ValueError, match="first"):
        await rounds.result()
    assert await rounds.result() == "second"
