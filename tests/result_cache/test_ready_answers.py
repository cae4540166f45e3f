"""Answers share the memory of results: both together stay within the limit, and answers take a small part of it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from result_cache.memory_results import MemoryResults
from result_cache.ready_answers import ENTRY_BYTES, MAX_SHARE, ReadyAnswers

LIMIT = 1 << 20
BODY = 5_000


@pytest.fixture
def memory() -> MemoryResults:
    return MemoryResults(limit_bytes=LIMIT)


@pytest.fixture
def answers(memory: MemoryResults) -> ReadyAnswers[int]:
    return ReadyAnswers(memory)


def key_of(number: int) -> bytes:
    return number.to_bytes(16)


def test_the_answers_used_last_are_kept(answers: ReadyAnswers[int]) -> None:
    fit = int(LIMIT * MAX_SHARE * 0.99) // (BODY + ENTRY_BYTES)
    for number in range(fit):
        answers.put(key_of(number), number, BODY)
    assert answers.get(key_of(0)) == 0
    answers.put(key_of(fit), fit, BODY)
    assert [answers.get(key_of(number)) for number in range(fit + 1)] == [0, None, *range(2, fit + 1)]
    assert len(answers) == fit


def test_a_large_answer_is_not_kept(answers: ReadyAnswers[int], memory: MemoryResults) -> None:
    answers.put(key_of(1), 1, int(LIMIT * MAX_SHARE))
    assert (len(answers), memory.counts().bytes) == (0, 0)


def test_cleared_answers_give_their_room_back(answers: ReadyAnswers[int], memory: MemoryResults) -> None:
    limit = memory.counts().limit_bytes
    answers.put(key_of(1), 1, BODY)
    assert (memory.counts().bytes, memory.counts().limit_bytes) == (BODY + ENTRY_BYTES, limit)
    answers.clear()
    assert (len(answers), memory.counts().bytes, answers.get(key_of(1))) == (0, 0, None)


STEPS = st.lists(
    st.tuples(st.sampled_from(["answer", "result", "clear answers"]), st.integers(0, 30), st.integers(0, 20_000))
)


@settings(deadline=None, derandomize=True)
@given(steps=STEPS)
def test_results_and_answers_together_never_take_more_than_the_limit(steps: list[tuple[str, int, int]]) -> None:
    memory = MemoryResults(limit_bytes=100_000)
    answers, limit = ReadyAnswers[int](memory), memory.counts().limit_bytes
    for step, number, size in steps:
        if step == "answer":
            answers.put(key_of(number), number, size)
        elif step == "result":
            memory.put(key_of(number), bytes(size))
        else:
            answers.clear()
        counts = memory.counts()
        assert counts.bytes <= counts.limit_bytes == limit
        assert sum(size for _, size in answers._answers.values()) <= limit * MAX_SHARE  # noqa: SLF001 - it has no count
