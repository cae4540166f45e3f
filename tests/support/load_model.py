"""Loads a model of the registry for each line on standard input and prints the outcome; run by `tests/support/hubs.py`.

Usage: `python -m tests.support.load_model NAME [HUB_TIMEOUT_S]`
"""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import engine.hub_client
from engine.catalog import read_catalog
from engine.encoder import load_encoder
from engine.errors import ModelUnavailableError
from tests.support.hubs import OUTCOME


def attempt(name: str, cache_dir: Path, text: str, preloaded: Path | None, revision: str) -> dict[str, object]:
    try:
        model = read_catalog([], bundled="", preloaded=preloaded).get(name)
        model = replace(model, card=replace(model.card, revision=revision))
        encoder = load_encoder(model, hub_cache_dir=cache_dir)
    except ModelUnavailableError as error:
        return {"cause": error.cause}
    vector = encoder.encode(encoder.tokenizer.tokenize([text]))[0].tolist()
    return {"vector": vector, "fingerprint": asdict(encoder.fingerprint) if encoder.fingerprint else None}


if len(sys.argv) > 2:
    engine.hub_client.HUB_TIMEOUT_S = float(sys.argv[2])
for line in sys.stdin:
    request = json.loads(line)
    preloaded = Path(request["preloaded"]) if request["preloaded"] else None
    outcome = attempt(sys.argv[1], Path(request["cache_dir"]), request["text"], preloaded, request["revision"])
    sys.stdout.write(f"{OUTCOME}{json.dumps(outcome)}\n")
    sys.stdout.flush()
