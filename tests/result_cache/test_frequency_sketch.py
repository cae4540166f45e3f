"""How often keys were used lately: never too low, seldom too high, and forgotten after two generations."""

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from result_cache.frequency_sketch import MAX_CELLS, MAX_USES, FrequencySketch


def keys(number: int) -> list[bytes]:
    source = random.Random(1)  # noqa: S311 - the same keys in every run
    return [source.randbytes(16) for _ in range(number)]


@given(st.lists(st.binary(min_size=16, max_size=16)))
def test_no_key_counts_for_less_than_its_uses(used: list[bytes]) -> None:
    sketch = FrequencySketch(0)
    for key in used:
        sketch.count(key)
    assert all(sketch.uses(key) >= min(uses, MAX_USES) for key, uses in Counter(used).items())


def test_few_keys_count_for_more_than_their_uses() -> None:
    used, unused = keys(2000)[:1000], keys(2000)[1000:]
    sketch = FrequencySketch(32 * len(used))
    for key in used * 2:
        sketch.count(key)
    assert sum(sketch.uses(key) != 2 for key in used) < 0.01 * len(used)
    assert sum(sketch.uses(key) != 0 for key in unused) < 0.01 * len(unused)


def test_uses_are_forgotten_after_two_generations() -> None:
    [key] = keys(1)
    sketch = FrequencySketch(0)
    sketch.count(key)
    sketch.begin_generation()
    sketch.count(key)
    assert sketch.uses(key) == 2
    sketch.begin_generation()
    assert sketch.uses(key) == 1
    sketch.begin_generation()
    assert sketch.uses(key) == 0


def test_a_generation_counts_up_to_a_limit_and_a_clear_forgets_both() -> None:
    [key] = keys(1)
    sketch = FrequencySketch(0)
    for _ in range(2):
        for _ in range(300):
            sketch.count(key)
        sketch.begin_generation()
    for _ in range(300):
        sketch.count(key)
    assert sketch.uses(key) == 2 * MAX_USES
    sketch.clear()
    assert sketch.uses(key) == 0


def test_largest_sketch_is_bounded_and_all_of_it_is_forgotten() -> None:
    sketch = FrequencySketch(MAX_CELLS * 100)
    assert sketch.size_bytes == 2 * MAX_CELLS
    used = [keys(1)[0], (MAX_CELLS - 1).to_bytes(4, "little") * 4]
    for key in used:
        sketch.count(key)
    for _ in range(2):
        sketch.begin_generation()
    assert [sketch.uses(key) for key in used] == [0, 0]
