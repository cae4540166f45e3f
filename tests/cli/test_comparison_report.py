"""The verdict for every degree of agreement; the numbers behind it are checked in test_compare.py."""

import json

import numpy as np
import pytest

from cli.comparison_report import Comparison, Side, Skipped, as_json, as_lines, verdict
from cli.model_process import Loaded
from engine.catalog import Model
from engine.fingerprint import ModelFingerprint
from engine.self_check import SelfCheckResult


def side(dim: int = 4, *, memory_bytes: int | None = 2_000_000, cpu_ms: float = 2.0) -> Side:
    model = Model("acme/tiny", dim, 16, 1, 1, "", "", "local")
    loaded = Loaded(
        0.5,
        memory_bytes,
        None,
        SelfCheckResult(0.0, "mixed", 1.0, None, is_unit=True, seconds_per_token=1e-4),
        ModelFingerprint("", "", "1", "1", "0123456789abcdef"),
    )
    return Side(model, 1_000_000, loaded, np.ones((1, dim), np.float32), 2.5, cpu_ms, memory_bytes, 0)


def comparison(
    overlap: float = 1.0, cosine: float | None = 1.0, texts: int = 200, second: Side | None = None
) -> Comparison:
    return Comparison(
        sides=(side(), second or side()),
        lines=range(1, texts + 1),
        skipped=Skipped(1, 2, 0),
        input_type=None,
        cosines=None if cosine is None else np.full(texts, cosine),
        overlaps=np.full(texts, overlap),
    )


@pytest.mark.parametrize(
    ("overlap", "agreement", "words"),
    [
        (1.0, "same", "the same neighbours"),
        (0.99, "same", "the same neighbours"),
        (0.98, "near", "nearly the same neighbours"),
        (0.9, "near", "nearly the same neighbours"),
        (0.89, "partial", "most neighbours of A, but not all"),
        (0.69, "different", "other neighbours than A"),
    ],
)
def test_verdict_follows_the_overlap(overlap: float, agreement: str, words: str) -> None:
    result = comparison(overlap)
    assert result.agreement == agreement
    assert words in next(verdict(result))
    assert f"overlap@10 {overlap:.3f}" in next(verdict(result))


SHARE, DO_NOT_MIX = "One index may hold vectors of both.", "Do not mix their vectors in one index"


@pytest.mark.parametrize(
    ("overlap", "cosine", "advice"),
    [
        (1.0, 0.995, SHARE),
        (0.95, 0.995, SHARE),
        (0.95, 0.98, DO_NOT_MIX),
        (0.8, 1.0, DO_NOT_MIX),
        (1.0, None, DO_NOT_MIX),
    ],
)
def test_one_index_holds_both_only_where_vectors_and_neighbours_agree(
    overlap: float, cosine: float | None, advice: str
) -> None:
    result = comparison(overlap, cosine)
    assert result.may_share_index is (advice == SHARE)
    assert advice in " ".join(verdict(result))


def test_gains_are_told() -> None:
    told = " ".join(verdict(comparison(second=side(cpu_ms=1.0, memory_bytes=500_000))))
    assert "B takes 0.50 times the CPU time of A and 0.25 times its memory." in told


def test_weak_hints_are_told_as_such() -> None:
    assert "weak hint" in list(verdict(comparison(texts=99)))[-1]
    assert "weak hint" not in list(verdict(comparison(texts=100)))[-1]
    assert comparison(texts=11).agreement == "unknown"


def test_memory_that_is_not_measured_is_told_as_such() -> None:
    result = comparison(second=side(memory_bytes=None))
    assert "not measured" in "\n".join(as_lines(result))
    assert as_json(result)["models"]["b"]["memory_bytes"] is None


def test_lines_left_out_are_told() -> None:
    assert next(as_lines(comparison())) == "200 texts; lines left out: 1 blank, 2 repeated"


def test_json_holds_plain_numbers_only() -> None:
    for result in (comparison(), comparison(cosine=None, second=side(6))):
        json.dumps(as_json(result), allow_nan=False)
