"""Measure a bulk job beside FastEmbed called directly, per core, on the same texts: `python benchmarks/bulk.py`.

In turns, and each in a process of its own: FastEmbed's `embed()` over all texts, with one thread and its default batch
size; the same with the batch size of the service's limit; and `deploy/ray/bulk_embed.py` on all cores, of which
the seconds count that its actors worked on their units. So no number has a start in it.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

if not __package__:  # run as a script: let `benchmarks` be found
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.cpu import cpu_model, usable_cores
from benchmarks.processes import ROOT
from benchmarks.texts import Kind, distinct_texts
from deploy.ray.bulk_embedder import read_done

MODEL_FOLDER = ROOT / "models/all-MiniLM-L6-v2"
BATCH_SIZES = (256, 32)
FASTEMBED = """
import json, sys, time
from fastembed import TextEmbedding
folder, batch_size, file = sys.argv[1:]
texts = [json.loads(line)["text"] for line in open(file)]
model = TextEmbedding("sentence-transformers/all-MiniLM-L6-v2", specific_model_path=folder, threads=1)
list(model.embed(texts[:32]))
started = time.perf_counter()
count = sum(1 for _ in model.embed(texts, batch_size=int(batch_size)))
print(count / (time.perf_counter() - started))
"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="bulk.py", description="A bulk job beside FastEmbed called directly, per core.")
    made.add_argument("--texts", type=int, default=4000, help="texts of each kind (default: %(default)s)")
    made.add_argument("--rounds", type=int, default=3, help="turns; the median counts (default: %(default)s)")
    made.add_argument("--address", help="of a Ray cluster (default: this machine, all cores)")
    return made


def fastembed(file: Path, batch_size: int) -> float:
    """Texts per second of one thread."""
    told = _output([sys.executable, "-c", FASTEMBED, str(MODEL_FOLDER), str(batch_size), str(file)])
    return float(told.splitlines()[-1])


def bulk_job(file: Path, rows_per_file: int, address: str | None) -> dict[str, float]:
    """Texts and tokens per second and core, while the job's actors work; and the tokens of a text."""
    with tempfile.TemporaryDirectory() as output:
        more = ["--address", address] if address else []
        command = [sys.executable, "deploy/ray/bulk_embed.py", str(file), output, "--rows-per-file", str(rows_per_file)]
        _output([*command, *more])
        done = [read_done(part) for part in Path(output).glob("part-*.parquet")]
    worked = sum(one.seconds for one in done)
    texts, tokens = sum(one.texts for one in done), sum(one.tokens for one in done)
    return {"core": texts / worked, "tokens": tokens / worked, "mean": tokens / texts}


def _output(command: Sequence[str]) -> str:
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def measure(kind: Kind, args: argparse.Namespace) -> dict[str, Any]:
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{kind}.jsonl"
        texts = itertools.islice(distinct_texts(kind, "bulk"), args.texts)
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        for _ in range(args.rounds):
            turn = {f"fastembed {size}": fastembed(file, size) for size in BATCH_SIZES}
            rounds.append(turn | bulk_job(file, max(1, args.texts // (8 * usable_cores())), args.address))
    return {name: median(turn[name] for turn in rounds) for name in rounds[0]}


def main() -> None:
    args = parser().parse_args()
    print(
        f"{cpu_model()}, {usable_cores()} cores, Python {sys.version.split()[0]}, "
        + ", ".join(f"{name} {version(name)}" for name in ("ray", "fastembed", "onnxruntime"))
        + f"; median of {args.rounds} rounds of {args.texts:,} texts"
    )
    print("| texts | tokens (mean) | FastEmbed, 1 thread, batch 256 | batch 32 | bulk job, per core | tokens/s/core |")
    print("|---|---|---|---|---|---|")
    for kind in ("short", "mixed"):
        found = measure(kind, args)
        print(
            f"| {kind} | {found['mean']:.0f} | {found['fastembed 256']:.0f}/s | {found['fastembed 32']:.0f}/s | "
            f"{found['core']:.0f}/s | {found['tokens']:,.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
