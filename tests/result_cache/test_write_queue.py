"""The queue of results to write: bounded by bytes, oldest first."""

from hypothesis import given
from hypothesis import strategies as st

from result_cache.write_queue import WriteQueue


def queue_of(**results: int) -> WriteQueue:
    """Return a queue of 100 bytes with results of these sizes."""
    queue = WriteQueue(max_bytes=100, max_result_bytes=60)
    queue.put("model", {key.encode(): b"x" * size for key, size in results.items()})
    return queue


def keys(queue: WriteQueue, *, max_writes: int = 10, max_bytes: int = 1000) -> list[bytes]:
    return [write.key for write in queue.take(max_writes=max_writes, max_bytes=max_bytes)]


def test_oldest_results_are_taken_first() -> None:
    queue = queue_of(a=10, b=10, c=10)
    assert keys(queue, max_writes=2) == [b"a", b"b"]
    assert keys(queue) == [b"c"]
    assert (keys(queue), bool(queue), queue.size) == ([], False, 0)


def test_none_is_taken_after_the_bytes_are_reached() -> None:
    queue = queue_of(a=10, b=10, c=10)
    assert keys(queue, max_bytes=11) == [b"a", b"b"]


def test_result_for_which_there_is_no_room_is_dropped() -> None:
    queue = queue_of(a=60)
    assert queue.put("model", {b"big": b"x" * 61, b"b": b"x" * 50, b"c": b"x" * 40}) == 2
    assert (keys(queue), queue.size) == ([b"a", b"c"], 0)


def test_equal_key_waits_once_per_namespace() -> None:
    queue = queue_of(a=10)
    assert queue.put("model", {b"a": b"x" * 10}) == 0
    assert queue.size == 10
    assert queue.put("another", {b"a": b"x" * 10}) == 0
    assert [(write.namespace, write.key) for write in queue.take(max_writes=10, max_bytes=1000)] == [
        ("model", b"a"),
        ("another", b"a"),
    ]


def test_cleared_queue_is_empty() -> None:
    queue = queue_of(a=10, b=20)
    assert (queue.clear(), bool(queue), queue.size) == (2, False, 0)


@given(st.lists(st.one_of(st.tuples(st.binary(max_size=1), st.integers(0, 70)), st.integers(0, 3)), max_size=60))
def test_size_is_the_sum_of_what_waits(steps: list[tuple[bytes, int] | int]) -> None:
    """Each step puts a result, or takes some."""
    queue = WriteQueue(max_bytes=100, max_result_bytes=60)
    expected: dict[bytes, int] = {}
    for step in steps:
        if isinstance(step, int):
            for key in keys(queue, max_writes=step):
                del expected[key]
        elif not queue.put("model", {step[0]: b"x" * step[1]}):
            expected.setdefault(*step)
        assert queue.size == sum(expected.values()) <= 100
    assert set(keys(queue, max_writes=100)) == set(expected)
