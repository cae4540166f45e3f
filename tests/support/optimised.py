"""Models that are large enough for an optimised copy, and their copies."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from engine.catalog import Model, read_catalog
from engine.copy_upkeep import CopyUpkeep
from engine.encoder import Encoder, load_encoder
from engine.optimised_models import OptimisedModels
from engine.vectors import Matrix
from tests.support.tiny import TinyModel
from tests.support.tiny_models import PROBE_WORDS, matmul

WIDE, WIDE_DIM = "acme/wide", 640
"""A model with one matrix of 1.6 MB."""
TEXTS = ("one two three", "four", "one one five five two zero")
MAX_BYTES = 1_000_000_000


def write_wide_model(parent: Path, **facts: Any) -> Path:
    """Create the folder of a model that gets a copy, and return it."""
    return TinyModel(**{"name": WIDE, "dim": WIDE_DIM, "words": PROBE_WORDS, "graph": matmul, **facts}).write(parent)


@dataclass
class Place:
    """A folder of copies, a folder of models, and what was asked to be loaded anew."""

    folder: Path
    models: Path
    reloads: list[str] = field(default_factory=list)

    @property
    def model(self) -> Model:
        """The wide model."""
        return read_catalog([self.models], bundled="").get(WIDE)

    def open(self, **options: Any) -> OptimisedModels:
        """Open the folder of copies as a process does at its start."""
        return OptimisedModels(self.folder, **{"max_bytes": MAX_BYTES, **options})

    def load(self, name: str = WIDE, **options: Any) -> Encoder:
        """Load the model as a process does at its start, without the work that follows."""
        model = read_catalog([self.models], bundled="").get(name)
        return load_encoder(model, hub_cache_dir=self.models / "none", copies=self.open(**options))

    def load_and_tend(self, name: str = WIDE, **options: Any) -> Encoder:
        """Load the model, and wait for the work that follows: its copy is written and adopted, or verified."""
        copies = self.open(**options)
        model = read_catalog([self.models], bundled="").get(name)
        encoder = load_encoder(model, hub_cache_dir=self.models / "none", copies=copies)
        with tending(copies, self.reloads.append) as upkeep:
            upkeep.tend(encoder)
            upkeep.wait()
        return encoder

    @property
    def copies(self) -> list[Path]:
        """The folders of copies."""
        return sorted(path for path in self.folder.glob("*") if path.is_dir() and not path.name.startswith("."))

    @property
    def copy(self) -> Path:
        [copy] = self.copies
        return copy


@contextmanager
def tending(copies: OptimisedModels, reload: Callable[[str], object], **options: Any) -> Iterator[CopyUpkeep]:
    upkeep = CopyUpkeep(copies, reload=reload, **{"max_tries": 1, "pause_s": 0.0, **options})
    try:
        yield upkeep
    finally:
        upkeep.close()


def vectors_of(encoder: Encoder, texts: Sequence[str] = TEXTS) -> Matrix:
    """Embed *texts*, each alone and all together."""
    items = encoder.tokenizer.tokenize(texts)
    return np.concatenate([encoder.encode(items), *(encoder.encode([item]) for item in items)])
