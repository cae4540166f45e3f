"""Loads a model of the registry each time a line comes in, and prints the outcome; run by `tests/support/hubs.py`."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from engine.catalog import read_catalog
from engine.encoder import load_encoder
from engine.errors import ModelUnavailableError


def attempt(name: str, cache_dir: Path, text: str, preloaded: Path | None) -> dict[str, object]:
    try:
        model = read_catalog([], bundled="", preloaded=preloaded).get(name)
        encoder = load_encoder(model, hub_cache_dir=cache_dir)
    except ModelUnavailableError as error:
        return {"cause": error.cause}
    vector = encoder.encode(encoder.tokenizer.tokenize([text]))[0].tolist()
    return {"vector": vector, "fingerprint": asdict(encoder.fingerprint) if encoder.fingerprint else None}


for line in sys.stdin:
    order = json.loads(line)
    preloaded = Path(order["preloaded"]) if order["preloaded"] else None
    outcome = attempt(sys.argv[1], Path(order["cache_dir"]), order["text"], preloaded)
    sys.stdout.write(f"came of it: {json.dumps(outcome)}\n")
    sys.stdout.flush()
