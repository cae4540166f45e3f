"""Measure the texts per second and core of a bulk job and of FastEmbed called directly.

Run `python benchmarks/bulk.py`. Alternately, each in a process of its own: FastEmbed's `embed()` over all texts, with
one thread and two batch sizes; and the units of a bulk job, read, embedded and written as each of its actors does.
Seconds are CPU seconds of all threads of the process, so that other work on the machine matters little. Loading is not
included.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

if not __package__:  # run as a script: let `benchmarks` be found
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.machine import ROOT, describe_run
from benchmarks.tables import markdown
from benchmarks.texts import Kind, distinct_texts

KINDS: tuple[Kind, ...] = ("short", "mixed")
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


def _run(program: str, *arguments: str) -> dict[str, float]:
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def _measure(kind: Kind, texts: int, rounds: int) -> dict[str, float]:
    """Return the medians of texts per second and core, by program, and the mean number of tokens per text."""
    results = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{kind}.jsonl"
        lines = (json.dumps({"text": text}) for text in itertools.islice(distinct_texts(kind, "bulk"), texts))
        file.write_text("\n".join(lines) + "\n")
        for number in range(rounds):
            model = str(ROOT / "models/all-MiniLM-L6-v2")
            runs = {f"fastembed {size}": _run(FASTEMBED, model, str(size), str(file)) for size in BATCH_SIZES}
            runs["bulk"] = _run(ACTOR, str(file), str(Path(folder) / f"output {number}"))
            rates = {name: run["texts"] / run["seconds"] for name, run in runs.items()}
            results.append(rates | {"tokens": runs["bulk"]["tokens"] / runs["bulk"]["texts"]})
    return {name: median(result[name] for result in results) for name in results[0]}


def main() -> None:
    parser = argparse.ArgumentParser(prog="bulk.py", description="Compare a bulk job with FastEmbed, per core.")
    parser.add_argument("--texts", type=int, default=4000, help="number of texts of each kind (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, of which the median is taken (default: 3)")
    options = parser.parse_args()
    print(describe_run(f"python benchmarks/bulk.py --texts {options.texts} --rounds {options.rounds}"), end="\n\n")
    lines = []
    for kind in KINDS:
        found = _measure(kind, options.texts, options.rounds)
        rates = [f"{found[name]:.0f}" for name in ("tokens", "fastembed 256", "fastembed 32", "bulk")]
        lines.append([kind, *rates, f"{found['bulk'] * found['tokens']:,.0f}"])
    head = ["texts", "tokens each", "FastEmbed, batches of 256", "of 32", "bulk job", "tokens/s"]
    print(f"Texts per second and core:\n\n{markdown(head, lines)}")


if __name__ == "__main__":
    main()
