"""Measure whether texts should share a row of a model run instead of being padded, and whether masks cost anything.

Run `python benchmarks/packing.py`; it needs `onnx`. Ways to run the same texts with the bundled model, on a session
of one thread, alternately:

- *padded*: as the service does: micro-batches of the cheapest split of 16 or 64 texts, padded, with an attention mask;
- *packed*: several texts in one row, with explicit positions and a block-diagonal mask, so that no text sees another;
- *equal*: micro-batches of texts of equal length, on a graph without a mask; and the same on the graph with one.

Seconds are CPU seconds of the thread, in the model run only. The vectors of all ways are compared first.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

if not __package__:  # run as a script: let `benchmarks` be found
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper
from tokenizers import Tokenizer

from benchmarks.machine import ROOT, describe_run
from benchmarks.tables import markdown
from benchmarks.texts import Kind, distinct_texts
from engine.planner import plan_micro_batches

FOLDER = ROOT / "models" / "all-MiniLM-L6-v2"
MAX_TOKENS = 256
WINDOWS = (16, 64)
"""Texts from which a cut is chosen: what waits with 16 clients of single texts, and the most that the service plans."""
BUDGET = 256
Feeds = dict[str, NDArray[np.int64]]
Run = tuple[Feeds, list[tuple[int, int, slice]]]
"""The inputs of a model run; and per text in it, its index, its row, and its place in the row."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way to run texts: the graph, and how a window of texts becomes runs."""

    name: str
    session: onnxruntime.InferenceSession
    runs_of: Callable[[Sequence[list[int]]], list[Run]]


def open_graph(change: Callable[[onnx.ModelProto], None] | None = None) -> onnxruntime.InferenceSession:
    """Open the bundled graph, changed by *change*, with one thread."""
    model = onnx.load(str(FOLDER / "model.onnx"))
    if change is not None:
        change(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def pack_rows(model: onnx.ModelProto) -> None:
    """Let the graph take positions, and a mask that says for each token which others it sees."""
    graph = model.graph
    for entry in graph.input:
        if entry.name == "attention_mask":
            entry.CopyFrom(
                helper.make_tensor_value_info(entry.name, TensorProto.INT64, ["batch", "sequence", "sequence"])
            )
    graph.input.append(helper.make_tensor_value_info("position_ids", TensorProto.INT64, ["batch", "sequence"]))
    for node in graph.node:
        if node.op_type == "Slice":  # the first rows of the table of positions
            gather = helper.make_node("Gather", [node.input[0], "position_ids"], list(node.output), name=node.name)
            node.CopyFrom(gather)


def remove_mask(model: onnx.ModelProto) -> None:
    """Let every token see all others of its row."""
    graph = model.graph
    for node in graph.node:
        if node.op_type == "Attention":
            node.input[3] = ""
    for cast in [node for node in graph.node if "attention_mask" in node.input]:
        graph.node.remove(cast)
    for entry in [entry for entry in graph.input if entry.name == "attention_mask"]:
        graph.input.remove(entry)


def padded_runs(texts: Sequence[list[int]]) -> list[Run]:
    return _runs(texts, plan_micro_batches([len(ids) for ids in texts], "mixed", budget_tokens=BUDGET), with_mask=True)


def equal_runs(texts: Sequence[list[int]], *, with_mask: bool) -> list[Run]:
    parts = plan_micro_batches([len(ids) for ids in texts], "equal", budget_tokens=BUDGET)
    return _runs(texts, parts, with_mask=with_mask)


def packed_runs(texts: Sequence[list[int]], row_tokens: int) -> list[Run]:
    """Fill rows of up to *row_tokens* in the order of the texts; a longer text has a row of its own."""
    rows: list[list[int]] = []
    room = 0
    for index, ids in enumerate(texts):
        if len(ids) > room:
            rows.append([])
            room = row_tokens
        rows[-1].append(index)
        room -= len(ids)
    return [_packed_run(texts, row) for row in rows]


def _packed_run(texts: Sequence[list[int]], row: Sequence[int]) -> Run:
    lengths = [len(texts[index]) for index in row]
    ends = list(itertools.accumulate(lengths))
    owner = np.repeat(np.arange(len(row)), lengths)
    feeds: Feeds = {
        "input_ids": np.array([[number for index in row for number in texts[index]]], dtype=np.int64),
        "position_ids": np.concatenate([np.arange(length) for length in lengths])[None].astype(np.int64),
        "attention_mask": (owner[:, None] == owner[None, :]).astype(np.int64)[None],
    }
    feeds["token_type_ids"] = np.zeros_like(feeds["input_ids"])
    places = [(index, 0, slice(end - length, end)) for index, length, end in zip(row, lengths, ends, strict=True)]
    return feeds, places


def _runs(texts: Sequence[list[int]], parts: Sequence[Sequence[int]], *, with_mask: bool) -> list[Run]:
    runs: list[Run] = []
    for part in parts:
        longest = max(len(texts[index]) for index in part)
        ids, mask = (np.zeros((len(part), longest), dtype=np.int64) for _ in range(2))
        for row, index in enumerate(part):
            ids[row, : len(texts[index])] = texts[index]
            mask[row, : len(texts[index])] = 1
        feeds: Feeds = {"input_ids": ids, "token_type_ids": np.zeros_like(ids)}
        if with_mask:
            feeds["attention_mask"] = mask
        places = [(index, row, slice(len(texts[index]))) for row, index in enumerate(part)]
        runs.append((feeds, places))
    return runs


def execute(way: Way, runs: Sequence[Run], texts: int) -> tuple[NDArray[Any], float]:
    """Return the vectors, and the CPU seconds of the model runs."""
    vectors: list[Any] = [None] * texts
    seconds = 0.0
    for feeds, places in runs:
        started = time.thread_time()
        [hidden] = way.session.run(None, feeds)
        seconds += time.thread_time() - started
        for index, row, place in places:
            mean = hidden[row, place].mean(axis=0, dtype=np.float64)
            vectors[index] = mean / np.linalg.norm(mean)
    return np.stack(vectors), seconds


def measure(kind: Kind, window: int, ways: Sequence[Way], *, windows: int, rounds: int) -> list[list[str]]:
    """Return the rows of the table for one length distribution."""
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_TOKENS)
    texts = list(itertools.islice(distinct_texts(kind, "packing"), window * windows))
    ids = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    groups = [ids[start : start + window] for start in range(0, len(ids), window)]
    real = sum(map(len, ids))
    prepared = {way.name: [way.runs_of(group) for group in groups] for way in ways}
    seconds: dict[str, list[float]] = {way.name: [] for way in ways}
    drift = dict.fromkeys(seconds, 0.0)
    for _ in range(rounds):
        spent = dict.fromkeys(seconds, 0.0)
        for number, group in enumerate(groups):
            expected: NDArray[Any] | None = None
            for way in ways:
                vectors, some_s = execute(way, prepared[way.name][number], len(group))
                spent[way.name] += some_s
                expected = vectors if expected is None else expected
                drift[way.name] = max(drift[way.name], float(1 - np.sum(vectors * expected, axis=1).min()))
        for name, value in spent.items():
            seconds[name].append(value)
    rows = []
    for way in ways:
        runs = [run for group in prepared[way.name] for run in group]
        computed = sum(feeds["input_ids"].size for feeds, _ in runs)
        per_1000 = median(seconds[way.name]) * 1e6 / real
        ratio = median(own / first for own, first in zip(seconds[way.name], seconds[ways[0].name], strict=True))
        cells = f"{len(ids) / len(runs):.1f}", f"{computed / real:.2f}", f"{per_1000:.0f}", f"{ratio:.2f}"
        rows.append([f"{kind}, {window} texts", way.name, *cells, f"{drift[way.name]:.0e}"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="packing.py", description="Compare padding with packing several texts into one row."
    )
    parser.add_argument("--windows", type=int, default=6, help="windows of texts per round (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=5, help="rounds, of which the median is taken (default: %(default)s)"
    )
    options = parser.parse_args()
    plain, packed, unmasked = open_graph(), open_graph(pack_rows), open_graph(remove_mask)
    ways = [
        Way("padded", plain, padded_runs),
        *(
            Way(f"packed, {size} tokens", packed, lambda texts, size=size: packed_runs(texts, size))  # type: ignore[misc]
            for size in (64, 128, BUDGET)
        ),
        Way("equal, no mask", unmasked, lambda texts: equal_runs(texts, with_mask=False)),
        Way("equal, mask", plain, lambda texts: equal_runs(texts, with_mask=True)),
    ]
    kinds: tuple[Kind, ...] = ("short", "mixed")
    rows = [
        row
        for kind in kinds
        for window in WINDOWS
        for row in measure(kind, window, ways, windows=options.windows, rounds=options.rounds)
    ]
    print(describe_run("python benchmarks/packing.py " + " ".join(sys.argv[1:])))
    header = [
        "texts",
        "way",
        "texts per run",
        "computed per real token",
        "CPU ms per 1,000 real tokens",
        "ratio",
        "1 - cosine",
    ]
    print(markdown(header, rows))


if __name__ == "__main__":
    main()
