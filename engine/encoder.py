"""The one place that calls FastEmbed: load a model, tokenise, encode one micro-batch.

A text is tokenised once: its tokens are counted, perhaps cut, and these very tokens are handed to FastEmbed's `embed`
in place of the text. So the tokens that are counted are the tokens that the model sees.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
import structlog
from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType
from fastembed.text.onnx_text_model import OnnxTextModel
from fastembed.text.static_embedding import StaticTextEmbedding
from numpy.typing import NDArray
from tokenizers import Tokenizer

from engine.catalog import Model
from engine.errors import NO_MEMORY, ModelUnavailableError
from engine.fingerprint import ModelFiles, ModelFingerprint
from engine.hub import use_files
from engine.jobs import Batching, Matrix
from engine.manifest import Folder
from engine.model_cards import InputType
from engine.self_check import MAX_DRIFT, PROBES, SelfCheck, check_model, drift_of
from engine.tokenizer import TextTokenizer, TokenizedText

POOLINGS = {
    "mean": PoolingType.MEAN,
    "cls": PoolingType.CLS,
    "last_token": PoolingType.LAST_TOKEN,
    "none": PoolingType.DISABLED,
}
SPIN_US = 50
"""How long a thread of the wide session waits for the next operator before it sleeps, in microseconds."""

NO_CACHE_DIR = str(Path(__file__).parent)
"""FastEmbed makes the folder of its cache, even where it keeps nothing there: it gets one that is there. Not the
model's, which may be taken away while the service runs, and would come back empty."""

NO_MEMORY_WORDS = ("Failed to allocate memory", "bad_alloc")
"""How ONNX Runtime, which has no exception of its own for that, says that there is no memory left."""

onnxruntime.set_default_logger_severity(4)  # fatal only: failures of a run are raised, and told by us

log = structlog.get_logger()

Method = Literal["embed", "query_embed", "passage_embed"]


class Sessions:
    """A model's sessions: one of a single thread, and perhaps a *wide* one that uses all cores.

    The narrow one is for lanes that work beside each other, the wide one for a text that comes while nothing else
    runs: handing work between threads costs throughput, but a lone caller has cores to spare.
    """

    def __init__(self, open_embedding: Callable[..., TextEmbedding]) -> None:
        """Open the narrow session; *open_embedding* passes options on to FastEmbed."""
        self._open = open_embedding
        self._narrow = open_embedding()
        self._wide: TextEmbedding | None = None
        inner = self._narrow.model
        tokenizer = getattr(inner, "tokenizer", None)
        if not isinstance(tokenizer, Tokenizer) or not isinstance(inner, OnnxTextModel | StaticTextEmbedding):
            message = "it has no tokenizer, so its tokens cannot be counted"
            raise TypeError(message)
        self.tokenizer = tokenizer
        self.is_static = isinstance(inner, StaticTextEmbedding)
        self._padding: dict[str, Any] = tokenizer.padding or {}
        self._hand_tokens_to(self._narrow)

    def run(self, method: Method, items: Sequence[TokenizedText], *, is_lone: bool) -> Matrix:
        """Run the model once by this method of FastEmbed's; see `Encoder.encode`."""
        session = (self._wide if is_lone else None) or self._narrow
        vectors = getattr(session, method)(list(items), batch_size=len(items))
        return np.stack([np.asarray(vector, dtype=np.float32) for vector in vectors])

    def open_lone_text_session(self, threads: int, items: Sequence[TokenizedText]) -> float | None:
        """Open the wide session, unless it gives other vectors for *items* than the narrow one.

        Returns:
            How far its vectors are from the narrow one's; None where the model has no session at all.
        """
        if self.is_static:
            return None
        wide = self._open(lazy_load=True)
        wide.model.model = _wide_session(self._narrow.model.model, threads)  # type: ignore[attr-defined]
        self._hand_tokens_to(wide)
        narrow = self.run("embed", items, is_lone=False)
        vectors = [np.asarray(vector, dtype=np.float32) for vector in wide.embed(list(items), batch_size=len(items))]  # type: ignore[arg-type]
        drift = drift_of(np.stack(vectors), narrow)
        if drift <= MAX_DRIFT:
            self._wide = wide
        return drift

    def _hand_tokens_to(self, session: TextEmbedding) -> None:
        """Replace the one method of FastEmbed's that reads texts; no text is left to be read."""
        if self.is_static:
            session.model._token_ids = _ids_and_lengths  # type: ignore[attr-defined]  # noqa: SLF001
        else:
            session.model.tokenize = partial(_padded, self._padding)  # type: ignore[attr-defined]


class Encoder:
    """A model in memory. Its methods block; they may be called from several threads at once.

    Attributes:
        seconds_per_token: its pace, in seconds of one lane per token of modelled cost.
        batching: which texts may share a run, so that a text has one vector whatever its neighbours.
    """

    def __init__(self, model: Model, open_embedding: Callable[..., TextEmbedding]) -> None:
        """Open the model; it has proven nothing yet, see `warm_up`."""
        self.model = model
        self.name = model.name
        self.dim = model.dim
        self.seconds_per_token = 0.0
        self.batching: Batching = "mixed"
        self.fingerprint: ModelFingerprint | None = None
        self.check: SelfCheck | None = None
        self._sessions = Sessions(open_embedding)
        self.tokenizer = TextTokenizer(
            self._sessions.tokenizer,
            adds_special_tokens=not self._sessions.is_static,
            # The registry's number is read from a description, so there the tokenizer's own counts.
            max_tokens=model.folder.manifest.max_tokens if model.folder else None,
        )
        self._tasks: dict[InputType, TaskEncoder] = {}

    @property
    def max_tokens(self) -> int | None:
        """The longest input in tokens, special tokens included; None: any length."""
        return self.tokenizer.max_tokens

    def encode(self, items: Sequence[TokenizedText], *, is_lone: bool = False) -> Matrix:
        """Run the model once, on one micro-batch.

        Args:
            items: texts of this model.
            is_lone: nothing else runs, so that all cores may work on it.

        Returns:
            Float32 vectors of shape ``(len(items), dim)``, in the order of *items*, as FastEmbed gives them.
        """
        return self._sessions.run("embed", items, is_lone=is_lone)

    def runnable(self, input_type: InputType | None) -> "Encoder | TaskEncoder":
        """What runs texts of this type: another task of the model, where it knows tasks, else the model itself."""
        if input_type is None or not self.model.card.uses_tasks:
            return self
        return self._tasks[input_type]

    def warm_up(self) -> None:
        """Run real inference, so that the first caller does not pay for it, and let the model prove itself.

        Raises:
            ModelUnavailableError: it does not, see `engine.self_check`.
        """
        self.check = check_model(self.model, self.tokenizer, self.encode)
        self.batching = self.check.batching
        self.seconds_per_token = self.check.seconds_per_token
        self._tasks = {
            "query": TaskEncoder(self, self._sessions, "query_embed"),
            "document": TaskEncoder(self, self._sessions, "passage_embed"),
        }

    def open_lone_text_session(self, threads: int) -> None:
        """Open the session for lone texts, with *threads* threads; it takes the model's memory once more."""
        drift = self._sessions.open_lone_text_session(threads, self.tokenizer.cut(PROBES[:1]))
        if drift is not None and drift > MAX_DRIFT:
            log.warning("lone_text_session_dropped", model=self.name, drift=drift)


class TaskEncoder:
    """The same model, run for one input type by FastEmbed's own method for it, which sets the model's task.

    It does not refer to its encoder: what refers to itself is freed by the garbage collector only.
    """

    def __init__(self, encoder: Encoder, sessions: Sessions, method: Method) -> None:
        self.name = encoder.name
        self.dim = encoder.dim
        self.seconds_per_token = encoder.seconds_per_token
        self.batching = encoder.batching
        self._sessions = sessions
        self._method = method

    def encode(self, items: Sequence[TokenizedText], *, is_lone: bool = False) -> Matrix:
        """See `Encoder.encode`."""
        return self._sessions.run(self._method, items, is_lone=is_lone)


@dataclass(frozen=True, slots=True)
class _Padded:
    """As much of tokenizers' `Encoding` as FastEmbed reads."""

    ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]


def _padded(padding: Mapping[str, Any], items: list[TokenizedText], **_: object) -> list[_Padded]:
    """Stands in for FastEmbed's `tokenize`: the tokens are there already, they only lack the padding.

    No method: an encoder that its own session refers to would be freed by the garbage collector only.
    """
    longest = padding.get("length") or max(item.length for item in items)
    if multiple := padding.get("pad_to_multiple_of"):
        longest = -(-longest // multiple) * multiple
    ids = np.full((len(items), longest), padding.get("pad_id", 0), dtype=np.int64)
    mask = np.zeros((len(items), longest), dtype=np.int64)
    for row, item in enumerate(items):
        place = slice(longest - item.length, None) if padding.get("direction") == "left" else slice(item.length)
        ids[row, place] = item.ids
        mask[row, place] = 1
    return [_Padded(*rows) for rows in zip(ids, mask, strict=True)]


def _ids_and_lengths(items: list[TokenizedText]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Stands in for the tokenizer of FastEmbed's static models: all tokens in one row, and how many each text has."""
    ids = [np.asarray(item.ids, dtype=np.int64) for item in items]
    return np.concatenate(ids), np.asarray([item.length for item in items], dtype=np.int64)


def load_encoder(model: Model, *, hub_cache_dir: Path) -> Encoder:
    """Load *model*, compare its files with what was promised, and let it prove itself.

    Blocks, for minutes when it has to be downloaded. A spoilt file of the hub is put aside and fetched once more.

    Raises:
        ModelUnavailableError: it is not in the cache and the hub does not give it, its files cannot be used, or its
            vectors are not what they should be.
    """
    return use_files(model, hub_cache_dir, partial(_load, model))


def _load(model: Model, files: ModelFiles) -> Encoder:
    """Open the session while another thread reads the files: the longer one of the two is waited for.

    Raises:
        SpoiltFileError: a file is not what was promised, whether or not it could be opened.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="hash") as hashing:
        fingerprint = hashing.submit(lambda: files.fingerprint)
        try:
            name = _registered(model.folder) if model.folder else model.name
            threads = None if _is_static(name) else 1  # FastEmbed warns of threads where they have no effect
            folder = str(files.folder)
            encoder = Encoder(
                model, partial(TextEmbedding, name, threads=threads, cache_dir=NO_CACHE_DIR, specific_model_path=folder)
            )
        except Exception as error:
            fingerprint.result()  # a spoilt file explains it better
            raise _unusable(model, error) from error
        encoder.fingerprint = fingerprint.result()
    try:
        encoder.warm_up()
    except ModelUnavailableError:
        raise
    except Exception as error:
        raise _unusable(model, error) from error
    _tell(encoder)
    return encoder


def _tell(encoder: Encoder) -> None:
    """What the model has proven, into the log."""
    if encoder.check and encoder.fingerprint:
        log.info(
            "model_checked",
            model=encoder.name,
            batch_drift=encoder.check.batch_drift,
            batch_invariant=encoder.check.is_batch_invariant,
            batching=encoder.check.batching,
            batching_cost=encoder.check.batching_cost,
            canary_cosine=encoder.check.canary_cosine,
            fingerprint=encoder.fingerprint.digest,
        )


def _is_static(name: str) -> bool:
    return any(facts.model == name for facts in StaticTextEmbedding._list_supported_models())  # noqa: SLF001


def _unusable(model: Model, error: Exception) -> ModelUnavailableError:
    if isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY_WORDS):
        log.error("memory_exhausted", model=model.name, exc_info=error)
        return ModelUnavailableError(model.name, NO_MEMORY)
    log.warning("model_files_unusable", model=model.name, exc_info=error)
    return ModelUnavailableError(model.name, f"its files are missing or broken ({type(error).__name__})")


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
