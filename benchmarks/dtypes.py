"""Measure the size of vectors in each `dtype`, and how many of float32's nearest neighbours each dtype keeps.

Run `python benchmarks/dtypes.py`. It embeds seeded English texts with the bundled model, converts the vectors as the
service does, reads them back as docs/API.md describes, and looks for the nearest neighbours among them.
"""

import itertools
import sys
from pathlib import Path
from typing import Any, get_args

if not __package__:  # run as a script: let `benchmarks` be found
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import orjson
from numpy.typing import NDArray

from benchmarks.texts import distinct_texts
from config import BUNDLED_MODEL, BUNDLED_MODELS_DIR
from engine.catalog import read_catalog
from engine.comparison import cosines, overlaps
from engine.encoder import load_encoder
from engine.vectors import Dtype, Matrix, convert, to_base64

TEXTS = 1000
RUN_TEXTS = 8
DTYPES: tuple[Dtype, ...] = get_args(Dtype)


def main() -> None:
    """Print one row per dtype."""
    texts = list(itertools.islice(distinct_texts("mixed", "dtypes"), TEXTS))
    vectors = _embed(texts)
    print(f"{BUNDLED_MODEL}, {TEXTS} texts of 4 to 300 words; bytes per vector as JSON numbers, base64 in JSON, alone")
    print(f"{'dtype':<9}{'json':>7}{'base64':>8}{'alone':>7}{'cosine':>9}{'least':>9}{'overlap@10':>12}")
    for dtype in DTYPES:
        stored = convert(vectors, dtype)
        restored = _restore(stored, dtype)
        similarities = cosines(restored, vectors)
        sizes = (_json_bytes(stored), _json_bytes(to_base64(stored)), stored.nbytes // TEXTS)
        columns = "".join(f"{size:>{width}}" for size, width in zip(sizes, (7, 8, 7), strict=True))
        overlap = overlaps(vectors, restored).mean()
        print(f"{dtype:<9}{columns}{similarities.mean():>9.5f}{similarities.min():>9.5f}{overlap:>12.3f}")


def _embed(texts: list[str]) -> Matrix:
    catalog = read_catalog([BUNDLED_MODELS_DIR], bundled=BUNDLED_MODEL)
    encoder = load_encoder(catalog.get(BUNDLED_MODEL), hub_cache_dir=Path("unused"))
    items = encoder.tokenizer.tokenize(texts)
    parts = (items[start : start + RUN_TEXTS] for start in range(0, len(items), RUN_TEXTS))
    return np.concatenate([encoder.encode(part) for part in parts])


def _restore(stored: NDArray[Any], dtype: Dtype) -> Matrix:
    """Return the float32 numbers that a reader computes from what was stored; the signs, if it was bits."""
    match dtype:
        case "uint8":
            values = stored.astype(np.float32) - 128
        case "ubinary":
            values = np.unpackbits(stored, axis=1) * 2.0 - 1.0
        case "binary":
            values = np.unpackbits((stored.astype(np.int16) + 128).astype(np.uint8), axis=1) * 2.0 - 1.0
        case _:
            values = stored
    return np.asarray(values, dtype=np.float32)


def _json_bytes(rows: Any) -> int:
    """Return the bytes of one vector in a JSON answer."""
    return len(orjson.dumps(rows, option=orjson.OPT_SERIALIZE_NUMPY)) // TEXTS


if __name__ == "__main__":
    main()
