"""Start-time fair queueing: who goes next, and that nobody saves up credit or starves."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.fair_queue import AGING, MIN_PRUNED, WIDE_SHARE, Caller, FairClock, FairQueue


def pops(queue: FairQueue[str], count: int) -> list[str]:
    return [queue.pop() for _ in range(count)]


def test_newcomer_goes_next_whatever_others_have_queued() -> None:
    queue = FairQueue[str]()
    for _ in range(100):
        queue.push("flood", caller=("flood",), cost=1)
    assert pops(queue, 10) == ["flood"] * 10
    queue.push("newcomer", caller=("newcomer",), cost=1)
    assert "newcomer" in pops(queue, 2)


def test_idle_caller_saves_up_no_credit() -> None:
    queue = FairQueue[str]()
    queue.push("rare", caller=("rare",), cost=1)
    for _ in range(100):
        queue.push("steady", caller=("steady",), cost=1)
    pops(queue, 50)  # "rare" is idle for most of it
    for _ in range(20):
        queue.push("rare", caller=("rare",), cost=1)
    assert Counter(pops(queue, 20)) == {"rare": 10, "steady": 10}


def test_expensive_items_go_less_often() -> None:
    queue = FairQueue[str]()
    for _ in range(40):
        queue.push("big", caller=("big",), cost=3)
        queue.push("small", caller=("small",), cost=1)
    assert Counter(pops(queue, 40)) == {"big": 10, "small": 30}


def test_network_of_many_callers_gets_the_share_of_a_few() -> None:
    queue = FairQueue[str]()
    for number in range(2000):
        queue.push("network", caller=(f"{number}/64", "/48"), cost=1)
    for _ in range(200):
        queue.push("single", caller=("single",), cost=1)
    taken = Counter(pops(queue, 100 * (WIDE_SHARE + 1)))
    assert taken["single"] >= 99


def test_items_of_one_caller_are_in_their_order() -> None:
    queue = FairQueue[str]()
    for item, order in [("c", 2.0), ("a", 1.0), ("d", 2.0), ("b", 1.5)]:
        queue.push(item, caller=("one",), cost=1, order=order)
    assert queue.first(("one",)) == "a"
    assert pops(queue, 4) == ["a", "b", "c", "d"]
    assert queue.first(("one",)) is None
    assert len(queue) == 0
    assert queue.callers == []


def test_removed_items_cost_their_caller_nothing() -> None:
    queue = FairQueue[str]()
    for number in range(50):
        queue.push(f"removed {number}", caller=("impatient",), cost=1)
        queue.push("steady", caller=("steady",), cost=1)
    queue.push("kept", caller=("impatient",), cost=1)
    for _ in range(50):
        queue.remove(queue.first(("impatient",)) or "", ("impatient",))
    queue.remove("unknown", ("impatient",))
    queue.remove("unknown", ("nobody",))
    assert len(queue) == 51
    assert "kept" in pops(queue, 2)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(costs=st.lists(st.lists(st.floats(0.1, 5), min_size=30, max_size=30), min_size=2, max_size=5))
def test_callers_that_always_wait_get_equal_parts(costs: list[list[float]]) -> None:
    queue = FairQueue[tuple[int, float]]()
    for number, items in enumerate(costs):
        for index, item in enumerate(items):
            queue.push((number, item), caller=(str(number),), cost=item, order=index)
    got = [0.0] * len(costs)
    left = [len(items) for items in costs]
    while all(left):
        number, item = queue.pop()
        got[number] += item
        left[number] -= 1
        assert max(got) - min(got) <= 2 * 5  # the bound of the algorithm: one item of each


def test_stream_of_new_callers_starves_nobody() -> None:
    queue = FairQueue[str]()
    for _ in range(5):
        queue.push("old", caller=("old",), cost=1)
    taken = []
    for number in range(20 * AGING):
        queue.push("new", caller=(f"new {number}",), cost=1)
        taken.append(queue.pop())
    assert taken.count("old") == 5


def test_virtual_times_of_the_past_are_forgotten() -> None:
    clock = FairClock()
    steady: Caller = ("steady",)
    for number in range(10 * MIN_PRUNED):
        clock.charge((f"caller {number}",), 1)
        clock.charge(steady, 1)
        clock.advance(steady)
    assert clock.remembered < 3 * MIN_PRUNED
