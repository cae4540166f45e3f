"""The one place that calls FastEmbed: load a model, count tokens, encode one micro-batch.

A text is tokenised once: FastEmbed's own tokenizer makes its tokens when they are counted, and these very tokens are
handed to FastEmbed's `embed` in place of the text. So the tokens that are counted are the tokens that the model sees.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import structlog
from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType
from fastembed.text.onnx_text_model import OnnxTextModel
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from engine.catalog import Folder, Model
from engine.errors import ModelUnavailableError
from engine.hub import fetch, remove_spoilt_files
from engine.planner import cost

POOLINGS = {
    "mean": PoolingType.MEAN,
    "cls": PoolingType.CLS,
    "last_token": PoolingType.LAST_TOKEN,
    "none": PoolingType.DISABLED,
}
WARM_UP_WORDS = (6, 40)
"""Words of the texts that a new model is run on: a short one, and one long enough to tell the model's pace."""
SPIN_US = 50
"""How long a thread of the wide session waits for the next operator before it sleeps, in microseconds."""

onnxruntime.set_default_logger_severity(4)  # fatal only: failures of a run are raised, and told by us

log = structlog.get_logger()


@dataclass(slots=True, eq=False)
class TokenizedText:
    """One text and its tokens.

    Attributes:
        tokens: of the whole text, special tokens included, before any cut.
        length: tokens that the model will see.
        encoding: what FastEmbed gets; None where the model takes the text itself.
    """

    text: str
    tokens: int
    length: int
    encoding: Encoding | None

    @property
    def is_truncated(self) -> bool:
        return self.length < self.tokens


class Encoder:
    """A model in memory. Its methods block; they may be called from several threads at once.

    It has a session of one thread, for lanes that work beside each other, and may get a *wide* one that uses all
    cores, for a text that comes while nothing else runs: handing work between threads costs throughput, but a lone
    caller has cores to spare.
    """

    def __init__(self, model: Model, open_embedding: Callable[..., TextEmbedding]) -> None:
        """Open the session of one thread; *open_embedding* passes options on to FastEmbed."""
        self.model = model
        self.name = model.name
        self.dim = model.dim
        self.seconds_per_token = 0.0
        self._open = open_embedding
        self._narrow = open_embedding(threads=1)
        self._wide: TextEmbedding | None = None
        inner = self._narrow.model
        tokenizer = getattr(inner, "tokenizer", None)
        if not isinstance(tokenizer, Tokenizer):
            message = "it has no tokenizer, so its tokens cannot be counted"
            raise TypeError(message)
        self._tokenizer = tokenizer
        self._takes_tokens = isinstance(inner, OnnxTextModel)
        self._padding: dict[str, Any] = tokenizer.padding or {}
        self._special_tokens = tokenizer.num_special_tokens_to_add(is_pair=False) if self._takes_tokens else 0
        if self._takes_tokens:
            tokenizer.no_padding()  # texts are padded when their micro-batch is known, by `_padded`
            self._hand_tokens_to(self._narrow)

    @property
    def max_tokens(self) -> int | None:
        """The longest input in tokens, special tokens included; None: any length."""
        return self._tokenizer.truncation["max_length"] if self._tokenizer.truncation else self.model.max_tokens

    def tokenize(self, texts: Sequence[str]) -> list[TokenizedText]:
        """Count the tokens of *texts*, each whole, and cut those that are longer than the model's input."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=self._takes_tokens)
        return [self._tokenized(text, encoding) for text, encoding in zip(texts, encodings, strict=True)]

    def encode(self, items: Sequence[TokenizedText], *, is_lone: bool = False) -> NDArray[np.float32]:
        """Run the model once, on one micro-batch.

        Args:
            items: texts of this model.
            is_lone: nothing else runs, so that all cores may work on it.

        Returns:
            Float32 vectors of shape ``(len(items), dim)``, in the order of *items*, as FastEmbed gives them.
        """
        documents: list[Any] = [item.encoding if self._takes_tokens else item.text for item in items]
        session = (self._wide if is_lone else None) or self._narrow
        vectors = session.embed(documents, batch_size=len(documents))
        return np.stack([np.asarray(vector, dtype=np.float32) for vector in vectors])

    def warm_up(self) -> None:
        """Run real inference, so that the first caller does not pay for it, and measure the model's pace."""
        for words in WARM_UP_WORDS:
            items = self.tokenize(["warm " * words])
            started = time.perf_counter()
            vectors = self.encode(items)
            self.seconds_per_token = (time.perf_counter() - started) / cost(1, items[0].length)
            if vectors.shape != (1, self.dim):
                raise ModelUnavailableError(
                    self.name, f"its vectors have {vectors.shape[-1]} dimensions where {self.dim} are stated"
                )

    def widen(self, threads: int) -> None:
        """Open the session for lone texts, with *threads* threads; it takes the model's memory once more."""
        if not self._takes_tokens:
            return  # it runs no session at all
        wide = self._open(lazy_load=True)
        wide.model.model = _wide_session(self._narrow.model.model, threads)  # type: ignore[attr-defined]
        self._hand_tokens_to(wide)
        for _ in wide.embed([self.tokenize(["warm"])[0].encoding]):  # type: ignore[list-item]
            pass
        self._wide = wide

    def _hand_tokens_to(self, session: TextEmbedding) -> None:
        session.model.tokenize = partial(_padded, self._padding)  # type: ignore[attr-defined]  # OnnxTextModel has it

    def _tokenized(self, text: str, encoding: Encoding) -> TokenizedText:
        length = len(encoding)
        # What the tokenizer cut off comes in pieces, each with special tokens of its own.
        cut_off = sum(len(piece) - self._special_tokens for piece in encoding.overflowing)
        return TokenizedText(text, length + cut_off, length, encoding if self._takes_tokens else None)


def _padded(padding: Mapping[str, Any], documents: list[Encoding], **_: object) -> list[Encoding]:
    """Stands in for FastEmbed's `tokenize`: the tokens are there already, they only lack the padding.

    No method: an encoder that its own session refers to would be freed by the garbage collector only.
    """
    length = padding.get("length") or max(len(document) for document in documents)
    if multiple := padding.get("pad_to_multiple_of"):
        length = -(-length // multiple) * multiple
    for document in documents:
        document.pad(
            length,
            direction=padding["direction"],
            pad_id=padding["pad_id"],
            pad_type_id=padding["pad_type_id"],
            pad_token=padding["pad_token"],
        )
    return documents


def load_encoder(model: Model, *, hub_cache_dir: Path) -> Encoder:
    """Load *model* and run it once. Blocks, for minutes when it has to be downloaded.

    Raises:
        ModelUnavailableError: it is not in the cache and the hub does not give it, or its files cannot be used.
    """
    folder = fetch(model, hub_cache_dir)
    try:
        name = _registered(model.folder) if model.folder else model.name
        encoder = Encoder(model, partial(TextEmbedding, name, specific_model_path=str(folder)))
        encoder.warm_up()
    except ModelUnavailableError:
        raise
    except Exception as error:
        log.warning("model_files_unusable", model=model.name, exc_info=error)
        cause = f"its files are missing or broken ({type(error).__name__})"
        if not model.folder and remove_spoilt_files(folder):
            cause = "its files in the cache were spoilt; they are removed, and the next try downloads them again"
        raise ModelUnavailableError(model.name, cause) from error
    return encoder


def _wide_session(narrow: Any, threads: int) -> Any:
    """A session on the same file, with options that FastEmbed does not pass on.

    Threads that wait for work by spinning make a lone text 1.5 times as fast, but spin on after it, and on a core that
    somebody else needs they wait for each other: ONNX Runtime's own limit for that is far longer than one operator.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_US))
    return onnxruntime.InferenceSession(narrow._model_path, options, providers=["CPUExecutionProvider"])  # noqa: SLF001


def _registered(folder: Folder) -> str:
    """Make FastEmbed know the model of *folder*, once per process, and tell the name under which it does."""
    known: Iterator[str] = (facts["model"] for facts in TextEmbedding.list_supported_models())
    if folder.registry_name not in known:
        manifest = folder.manifest
        TextEmbedding.add_custom_model(
            model=folder.registry_name,
            pooling=POOLINGS[manifest.pooling],
            normalization=manifest.normalized,
            sources=ModelSource(hf=manifest.name),
            dim=manifest.dim,
            model_file=manifest.model_file,
            additional_files=manifest.additional_files,
            output_name=manifest.output_name,
        )
    return folder.registry_name
