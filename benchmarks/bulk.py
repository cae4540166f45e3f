"""Measure what a core does in a bulk job, beside FastEmbed called directly: `python benchmarks/bulk.py`.

In turns, each in a process of its own: FastEmbed's `embed()` over all texts, with one thread and two batch sizes; and
the units of a bulk job, read, embedded and written as each of its actors does. Seconds are those of the CPU, all
threads of the process together, so that a machine that does other work, too, spoils little. Loading is not in them.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from statistics import median

if not __package__:  # run as a script: let `benchmarks` be found
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.cpu import cpu_model, usable_cores
from benchmarks.processes import ROOT
from benchmarks.texts import Kind, distinct_texts

MODEL_FOLDER = ROOT / "models/all-MiniLM-L6-v2"
BATCH_SIZES = (256, 32)
FASTEMBED = """
import json, sys, time
from fastembed import TextEmbedding
folder, batch_size, file = sys.argv[1:]
texts = [json.loads(line)["text"] for line in open(file)]
model = TextEmbedding("sentence-transformers/all-MiniLM-L6-v2", specific_model_path=folder, threads=1)
list(model.embed(texts[:32]))
started = time.process_time()
count = sum(1 for _ in model.embed(texts, batch_size=int(batch_size)))
print(json.dumps({"texts": count, "seconds": time.process_time() - started}))
"""
ACTOR = """
import json, os, sys, time
from deploy.ray.bulk_embed import build_parser, load_model, plan
from deploy.ray.bulk_units import embed_unit
from config import load_settings
os.environ["TOKENIZERS_PARALLELISM"] = "false"
job = plan(build_parser().parse_args(sys.argv[1:]), load_settings())
encoder = load_model(job.model, job.settings.hub_cache_dir)
os.makedirs(job.spec.output, exist_ok=True)
started = time.process_time()
done = [embed_unit(encoder, unit, job.spec) for unit in job.units]
seconds = time.process_time() - started
print(json.dumps({"texts": sum(d.texts for d in done), "tokens": sum(d.tokens for d in done), "seconds": seconds}))
"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="bulk.py", description="A bulk job beside FastEmbed called directly, per core.")
    made.add_argument("--texts", type=int, default=4000, help="texts of each kind (default: %(default)s)")
    made.add_argument("--rounds", type=int, default=3, help="turns; the median counts (default: %(default)s)")
    return made


def fastembed(file: Path, batch_size: int) -> dict[str, float]:
    return _told(FASTEMBED, str(MODEL_FOLDER), str(batch_size), str(file))


def bulk_actor(file: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as output:
        return _told(ACTOR, str(file), output)


def _told(program: str, *arguments: str) -> dict[str, float]:
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return told


def measure(kind: Kind, args: argparse.Namespace) -> dict[str, float]:
    """Medians of texts per second of a core, by what was measured; and the tokens of a text."""
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{kind}.jsonl"
        texts = itertools.islice(distinct_texts(kind, "bulk"), args.texts)
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        for _ in range(args.rounds):
            turns = {f"fastembed {size}": fastembed(file, size) for size in BATCH_SIZES} | {"bulk": bulk_actor(file)}
            rates = {name: turn["texts"] / turn["seconds"] for name, turn in turns.items()}
            rounds.append(rates | {"tokens": turns["bulk"]["tokens"] / turns["bulk"]["texts"]})
    return {name: median(turn[name] for turn in rounds) for name in rounds[0]}


def main() -> None:
    args = parser().parse_args()
    print(
        f"{cpu_model()}, {usable_cores()} cores, Python {sys.version.split()[0]}, "
        + ", ".join(f"{name} {version(name)}" for name in ("fastembed", "onnxruntime"))
        + f"; median of {args.rounds} rounds of {args.texts:,} texts; texts per second of a core"
    )
    print("| texts | tokens each | FastEmbed, batches of 256 | of 32 | bulk job | tokens/s |")
    print("|---|---|---|---|---|---|")
    kinds: tuple[Kind, ...] = ("short", "mixed")
    for kind in kinds:
        found = measure(kind, args)
        print(
            f"| {kind} | {found['tokens']:.0f} | {found['fastembed 256']:.0f} | {found['fastembed 32']:.0f} | "
            f"{found['bulk']:.0f} | {found['bulk'] * found['tokens']:,.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
