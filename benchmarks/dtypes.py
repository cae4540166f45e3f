"""What each `dtype` costs in bytes, and what it leaves of the neighbours that float32 finds.

Run it as `python benchmarks/dtypes.py`. It embeds seeded English texts with the bundled model, converts the vectors as
the service does, reads them back as docs/API.md says, and looks for the nearest neighbours among them.
"""

import itertools
import sys
from pathlib import Path
from typing import Any, get_args

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402 - the path above makes the project's own modules importable
import orjson  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from benchmarks.texts import distinct_texts  # noqa: E402
from config import BUNDLED_MODEL, BUNDLED_MODELS_DIR  # noqa: E402
from engine.catalog import read_catalog  # noqa: E402
from engine.comparison import cosines, overlaps  # noqa: E402
from engine.encoder import load_encoder  # noqa: E402
from engine.vectors import Dtype, Matrix, convert, to_base64  # noqa: E402

TEXTS = 1000
RUN_TEXTS = 8
KINDS: tuple[Dtype, ...] = get_args(Dtype)


def main() -> None:
    """Print one row per dtype."""
    texts = list(itertools.islice(distinct_texts("mixed", "dtypes"), TEXTS))
    vectors = embedded(texts)
    print(f"{BUNDLED_MODEL}, {TEXTS} texts of 4 to 300 words; bytes per vector as JSON numbers, base64 in JSON, alone")
    print(f"{'dtype':<9}{'json':>7}{'base64':>8}{'alone':>7}{'cosine':>9}{'least':>9}{'overlap@10':>12}")
    for kind in KINDS:
        stored = convert(vectors, kind)
        told = restored(stored, kind)
        alike = cosines(told, vectors)
        sizes = (written(stored), written(to_base64(stored)), stored.nbytes // TEXTS)
        columns = "".join(f"{size:>{width}}" for size, width in zip(sizes, (7, 8, 7), strict=True))
        overlap = overlaps(vectors, told).mean()
        print(f"{kind:<9}{columns}{alike.mean():>9.5f}{alike.min():>9.5f}{overlap:>12.3f}")


def embedded(texts: list[str]) -> Matrix:
    encoder = load_encoder(
        read_catalog([BUNDLED_MODELS_DIR], bundled=BUNDLED_MODEL).get(BUNDLED_MODEL), hub_cache_dir=Path("unused")
    )
    items = encoder.tokenizer.tokenize(texts)
    parts = (items[start : start + RUN_TEXTS] for start in range(0, len(items), RUN_TEXTS))
    return np.concatenate([encoder.encode(part) for part in parts])


def restored(stored: NDArray[Any], kind: Dtype) -> Matrix:
    """The numbers that a reader makes of what was stored; of bits the signs."""
    match kind:
        case "uint8":
            values = stored.astype(np.float32) - 128
        case "ubinary":
            values = np.unpackbits(stored, axis=1) * 2.0 - 1.0
        case "binary":
            values = np.unpackbits((stored.astype(np.int16) + 128).astype(np.uint8), axis=1) * 2.0 - 1.0
        case _:
            values = stored
    return np.asarray(values, dtype=np.float32)


def written(rows: Any) -> int:
    """Bytes of one vector in a JSON answer."""
    return len(orjson.dumps(rows, option=orjson.OPT_SERIALIZE_NUMPY)) // TEXTS


if __name__ == "__main__":
    main()
