"""Whether models fit into memory: the estimate, and what is reported."""

from engine.catalog import Model
from engine.memory_estimate import (
    MIN_PROCESS_BYTES,
    PROCESS_BYTES,
    SHARED_PROCESS_BYTES,
    SUPERVISOR_BYTES,
    MemoryNeed,
    estimate_memory,
    memory_of_workers,
    tight_memory_fields,
    why_impossible,
)
from host.memory import MemoryLimit


def model(megabytes: int) -> Model:
    return Model(f"a/{megabytes}", 4, 16, megabytes * 1_000_000, megabytes * 1_100_000, "", "", "hub")


def test_with_an_unknown_limit_every_need_fits() -> None:
    limit = MemoryLimit(None)
    need = estimate_memory([model(10**9)], lambda _: 1)
    assert why_impossible(need, limit) is None
    assert not need.is_tight(limit)


def test_need_is_that_of_all_sessions_while_the_largest_model_is_loaded() -> None:
    need = estimate_memory([model(100), model(300)], lambda model: 2 if model.name == "a/100" else 1)
    assert need.bytes == PROCESS_BYTES + 2 * 110_000_000 + 330_000_000 + 300_000_000
    assert need.min_bytes == MIN_PROCESS_BYTES + 400_000_000


def test_kept_results_are_part_of_the_peak_but_not_of_what_a_start_needs() -> None:
    without, with_results = (estimate_memory([model(100)], lambda _: 1, cache_bytes=size) for size in (0, 64_000_000))
    assert with_results.bytes - without.bytes == 64_000_000
    assert with_results.min_bytes == without.min_bytes


def test_impossible_need_is_reported_with_both_numbers_and_a_fix() -> None:
    need, limit = MemoryNeed(3_000_000_000, 2_000_000_000), MemoryLimit(1_000_000_000, is_from_cgroup=True)
    reason = why_impossible(need, limit) or ""
    for part in ("REQUIRED_MODELS", "at least 2,000 MB", "only 1,000 MB", "its container", "fewer or smaller"):
        assert part in reason
    assert "this machine" in (why_impossible(need, MemoryLimit(1_000_000_000)) or "")


def test_need_that_fits_only_with_swap_is_tight_but_not_impossible() -> None:
    need, limit = MemoryNeed(3_000, 2_000), MemoryLimit(1_500, swap_bytes=1_000)
    assert why_impossible(need, limit) is None
    assert need.is_tight(limit)
    assert tight_memory_fields(need, limit)["limit_mb"] == 0


def test_need_that_fits_is_neither_tight_nor_impossible() -> None:
    need, limit = MemoryNeed(3_000, 2_000), MemoryLimit(3_000)
    assert why_impossible(need, limit) is None
    assert not need.is_tight(limit)


def test_workers_need_the_supervisor_and_what_they_share_once() -> None:
    one = MemoryNeed(bytes=300_000_000, min_bytes=120_000_000)
    assert memory_of_workers([one]) == one
    two, three = memory_of_workers([one] * 2), memory_of_workers([one] * 3)
    assert two.bytes == SUPERVISOR_BYTES + SHARED_PROCESS_BYTES + 2 * (one.bytes - SHARED_PROCESS_BYTES)
    assert three.bytes - two.bytes == one.bytes - SHARED_PROCESS_BYTES
    assert two.min_bytes == SUPERVISOR_BYTES + MIN_PROCESS_BYTES + one.min_bytes


def test_workers_may_start_where_only_the_weights_of_an_optimised_copy_fit() -> None:
    need = memory_of_workers([estimate_memory([model(1300)], lambda _: 1)] * 4)
    limit = MemoryLimit(4_000_000_000)
    assert why_impossible(need, limit) is None
    assert need.is_tight(limit)
