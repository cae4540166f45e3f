"""Answers share the memory of results: both together stay within the limit, and answers take a small part of it."""

import hashlib
from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from result_cache.answer_cache import ENTRY_BYTES, MAX_PER_RESULT, MAX_SHARE, AnswerCache
from result_cache.memory_results import MemoryResults
from tests.support.clock import ManualClock

LIMIT = 1 << 20
BODY = 5_000
RESULT = bytes(1_600)


@pytest.fixture
def memory() -> MemoryResults:
    return MemoryResults(limit_bytes=LIMIT)


@pytest.fixture
def answers(memory: MemoryResults) -> AnswerCache[int]:
    return AnswerCache(memory)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def key_of(number: int) -> bytes:
    return hashlib.blake2b(number.to_bytes(8), digest_size=16).digest()


def use(memory: MemoryResults, number: int, *, times: int) -> None:
    """Use the result of a text so often; the first time, it is kept."""
    for _ in range(times):
        if memory.get(key_of(number)) is None:
            memory.put(key_of(number), RESULT)


def fill(answers: AnswerCache[int], memory: MemoryResults, *, times: int) -> int:
    """Keep as many answers as there is room for, from number 0, each to a text that came so often; return how many."""
    fit = int(memory.counts().limit_bytes * MAX_SHARE) // (BODY + ENTRY_BYTES)
    for number in range(fit):
        use(memory, number, times=times)
        answers.put(key_of(number), number, BODY, result_key=key_of(number))
    assert len(answers) == fit
    return fit


def kept(answers: AnswerCache[int], numbers: Iterable[int]) -> list[int | None]:
    return [answers.get(key_of(number)) for number in numbers]


def test_text_must_come_twice_for_its_answer_to_be_kept(answers: AnswerCache[int], memory: MemoryResults) -> None:
    found = []
    for _ in range(3):
        found.append(answers.may_keep(key_of(0)))
        use(memory, 0, times=1)
    assert found == [False, False, True]


def test_answers_to_texts_that_come_twice_do_not_replace_those_to_queries(
    answers: AnswerCache[int], memory: MemoryResults
) -> None:
    fit = fill(answers, memory, times=3)
    for number in range(fit, 10 * fit):
        use(memory, number, times=2)
        answers.put(key_of(number), number, BODY, result_key=key_of(number))
    assert kept(answers, range(fit)) == [*range(fit)]


def test_answer_to_what_comes_more_often_replaces_the_one_that_was_not_sent_for_longest(
    answers: AnswerCache[int], memory: MemoryResults
) -> None:
    fit = fill(answers, memory, times=2)
    assert answers.get(key_of(0)) == 0
    use(memory, fit, times=3)
    answers.put(key_of(fit), fit, BODY, result_key=key_of(fit))
    assert kept(answers, range(fit + 1)) == [0, None, *range(2, fit + 1)]


def test_large_answer_replaces_none_if_one_of_several_is_used_as_often(
    answers: AnswerCache[int], memory: MemoryResults
) -> None:
    fit = fill(answers, memory, times=2)
    memory.get(key_of(1))
    use(memory, fit, times=3)
    answers.put(key_of(fit), fit, 3 * BODY, result_key=key_of(fit))
    assert kept(answers, range(fit + 1)) == [*range(fit), None]


def test_what_was_asked_often_long_ago_makes_room_in_the_end(answers: AnswerCache[int], memory: MemoryResults) -> None:
    fit = fill(answers, memory, times=9)
    new = range(fit, 2 * fit)
    for _ in range(20):
        for number in new:
            use(memory, number, times=2)
            answers.put(key_of(number), number, BODY, result_key=key_of(number))
    assert kept(answers, new) == [*new]


@pytest.mark.parametrize("end", ["evicted", "replaced", "expired"])
def test_answer_ends_with_its_result(end: str, clock: ManualClock) -> None:
    memory = MemoryResults(limit_bytes=LIMIT, ttl_s=60, clock=clock)
    answers = AnswerCache[int](memory)
    memory.put(key_of(1), RESULT)
    for number in (1, 2):  # such as two encodings of the vector
        answers.put(key_of(number), number, BODY, result_key=key_of(1))
    assert kept(answers, (1, 2)) == [1, 2]
    before = memory.counts().bytes
    if end == "evicted":
        for number in range(1000, 1000 + LIMIT // len(RESULT)):
            memory.put(key_of(number), RESULT)
    elif end == "replaced":
        memory.put(key_of(1), RESULT[1:])
    else:
        clock.now_s += 61
        memory.get(key_of(3))
    assert kept(answers, (1, 2)) == [None, None]
    assert (end == "evicted") == (memory.counts().bytes > before)
    memory.clear()
    assert memory.counts().bytes == 0


def test_answer_whose_result_was_removed_before_it_was_written_is_not_kept(answers: AnswerCache[int]) -> None:
    answers.put(key_of(1), 1, BODY, result_key=key_of(1))
    assert len(answers) == 0


def test_a_large_answer_is_not_kept(answers: AnswerCache[int], memory: MemoryResults) -> None:
    use(memory, 1, times=2)
    before = memory.counts()
    answers.put(key_of(1), 1, int(LIMIT * MAX_SHARE), result_key=key_of(1))
    assert (len(answers), memory.counts()) == (0, before)


def test_requests_for_one_text_have_a_limited_number_of_answers(
    answers: AnswerCache[int], memory: MemoryResults
) -> None:
    """Otherwise one text, with other blanks around it each time, could take all memory for answers."""
    use(memory, 0, times=2)
    numbers = range(MAX_PER_RESULT + 2)
    for number in numbers:
        answers.put(key_of(number), number, 100, result_key=key_of(0))
    assert kept(answers, numbers) == [None, None, *numbers[2:]]
    memory.put(key_of(0), RESULT)
    assert len(answers) == 0


def test_cleared_answers_give_their_room_back(answers: AnswerCache[int], memory: MemoryResults) -> None:
    use(memory, 1, times=2)
    before = memory.counts()
    answers.put(key_of(1), 1, BODY, result_key=key_of(1))
    assert memory.counts() == replace(before, bytes=before.bytes + BODY + ENTRY_BYTES)
    answers.clear()
    assert (len(answers), memory.counts(), answers.get(key_of(1))) == (0, before, None)


STEPS = st.lists(
    st.tuples(st.sampled_from(["answer", "result", "clear answers"]), st.integers(0, 30), st.integers(0, 9_000))
)


@settings(deadline=None, derandomize=True)
@given(steps=STEPS)
def test_results_and_answers_together_never_take_more_than_the_limit(steps: list[tuple[str, int, int]]) -> None:
    memory = MemoryResults(limit_bytes=100_000)
    answers, limit = AnswerCache[int](memory), memory.counts().limit_bytes
    for step, number, size in steps:
        if step == "answer":
            answers.put(key_of(number), number, size, result_key=key_of(number // 2))
        elif step == "result":
            memory.put(key_of(number), bytes(size))
        else:
            answers.clear()
        counts = memory.counts()
        assert counts.bytes <= counts.limit_bytes == limit
    cached = [number for number in range(31) if answers.get(key_of(number)) is not None]
    assert all(memory.uses_of(key_of(number // 2)) for number in cached)
    with_answers = memory.counts().bytes
    answers.clear()
    assert with_answers - memory.counts().bytes <= limit * MAX_SHARE
