"""The verdict for every degree of agreement. test_compare.py checks the numbers that it is based on."""

import json

import numpy as np
import pytest

from cli.comparison_report import Comparison, ModelResult, Skipped, as_json, print_report, verdict
from cli.model_process import LoadReport
from engine.catalog import Model
from engine.fingerprint import ModelFingerprint
from engine.runtime import Runtime
from engine.self_check import SelfCheckResult


def result(dim: int = 4, *, memory_bytes: int | None = 2_000_000, cpu_ms: float = 2.0) -> ModelResult:
    model = Model("acme/tiny", dim, 16, 1, 1, "", "", "local")
    loaded = LoadReport(
        0.5,
        memory_bytes,
        None,
        SelfCheckResult(0.0, "mixed", 1.0, None, is_unit=True, seconds_per_token=1e-4),
        ModelFingerprint("", "", "0123456789abcdef", Runtime("1", "1", "1", "x86_64")),
    )
    return ModelResult(model, 1_000_000, loaded, np.ones((1, dim), np.float32), 2.5, cpu_ms, memory_bytes, 0)


def comparison(
    overlap: float = 1.0, cosine: float | None = 1.0, texts: int = 200, second: ModelResult | None = None
) -> Comparison:
    return Comparison(
        models=(result(), second or result()),
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
    compared = comparison(overlap)
    assert compared.agreement == agreement
    assert words in next(verdict(compared))
    assert f"overlap@10 {overlap:.3f}" in next(verdict(compared))


SHARE, DO_NOT_MIX = "One index may contain vectors of both.", "Do not mix their vectors in one index"


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
def test_models_may_share_an_index_only_if_vectors_and_neighbours_agree(
    overlap: float, cosine: float | None, advice: str
) -> None:
    compared = comparison(overlap, cosine)
    assert compared.may_share_index is (advice == SHARE)
    assert advice in " ".join(verdict(compared))


def test_verdict_contains_the_relative_cost() -> None:
    sentences = list(verdict(comparison(second=result(cpu_ms=1.0, memory_bytes=500_000))))
    assert "B takes 0.50 times the CPU time of A and 0.25 times its memory." in sentences


def test_verdict_on_few_texts_is_called_uncertain() -> None:
    assert "uncertain" in list(verdict(comparison(texts=99)))[-1]
    assert "uncertain" not in list(verdict(comparison(texts=100)))[-1]
    assert comparison(texts=11).agreement == "unknown"


def test_report_names_what_was_skipped_and_not_measured(capsys: pytest.CaptureFixture[str]) -> None:
    compared = comparison(second=result(memory_bytes=None))
    print_report(compared)
    report = capsys.readouterr().out
    assert report.startswith("200 texts; skipped lines: 1 blank, 2 repeated\n")
    assert "not measured" in report
    assert as_json(compared)["models"]["b"]["memory_bytes"] is None


def test_json_contains_plain_numbers_only() -> None:
    for compared in (comparison(), comparison(cosine=None, second=result(6))):
        json.dumps(as_json(compared), allow_nan=False)
