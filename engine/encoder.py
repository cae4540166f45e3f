"""A model in memory: load it, check it, encode one micro-batch.

A text is tokenised once. Its tokens are counted and perhaps truncated, and the model runs exactly these tokens, so the
tokens that are counted are the tokens that the model sees.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import structlog

from engine.catalog import Model
from engine.errors import NO_MEMORY, ModelUnavailableError
from engine.fastembed_adapter import Method, Session, is_out_of_memory, open_folder_session, open_session
from engine.fingerprint import ModelFiles, ModelFingerprint
from engine.folder_files import UnusableModelError, read_object_if_any
from engine.folder_notes import contradictions
from engine.folder_tokenizer import read_tokenizer
from engine.graph_check import check_inputs, check_output, explain
from engine.hub import use_cached_files, use_files
from engine.manifest import Folder
from engine.model_cards import InputType
from engine.model_folders import why_unusable
from engine.planner import Batching
from engine.self_check import MAX_DRIFT, PROBES, SelfCheckResult, drift_of, run_self_check
from engine.tokenizer import TextTokenizer, TokenizedText
from engine.vectors import Matrix

log = structlog.get_logger()


class Sessions:
    """A model's sessions: one with a single thread, and perhaps one that runs a lone text on all cores.

    Lanes that work beside each other use the first. The second is for a text that arrives while nothing else runs:
    sharing one run among threads costs throughput, but a lone text has cores to spare.
    """

    def __init__(self, one_thread: Session) -> None:
        self.one_thread = one_thread
        self.lone_text: Session | None = None

    def run(self, method: Method, items: Sequence[TokenizedText], *, is_lone: bool) -> Matrix:
        session = (self.lone_text if is_lone else None) or self.one_thread
        return session.run(method, items)


class Encoder:
    """A model in memory. Its methods block; several threads may call them at once.

    Attributes:
        seconds_per_token: speed of the model, in seconds of one lane per token of modelled cost; measured by `warm_up`.
        batching: which texts may share a run without changing each other's vectors.
        fingerprint: identifies what makes the vectors; None before `load_encoder` has set it.
        self_check: what `warm_up` has measured; None before that.
        notes: what the operator should know about the model's folder, as sentences without a full stop.
    """

    def __init__(self, model: Model, session: Session) -> None:
        """Wrap a loaded model; `warm_up` checks it."""
        self.model = model
        self.name = model.name
        self.dim = model.dim
        self.seconds_per_token = 0.0
        self.batching: Batching = "mixed"
        self.fingerprint: ModelFingerprint | None = None
        self.self_check: SelfCheckResult | None = None
        self.notes: tuple[str, ...] = ()
        self._sessions = Sessions(session)
        self.tokenizer = TextTokenizer(
            session.tokenizer,
            adds_special_tokens=not session.is_static,
            # For a hub model the catalogue's limit comes from a description in words, so the tokenizer's counts.
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
            items: texts, tokenised for this model.
            is_lone: nothing else runs, so the run may use all cores.

        Returns:
            Float32 vectors of shape ``(len(items), dim)``, in the order of *items*, as FastEmbed returns them.
        """
        return self._sessions.run("embed", items, is_lone=is_lone)

    def runnable(self, input_type: InputType | None) -> "Encoder | TaskEncoder":
        """Return what runs texts of this type: one of the model's tasks if it has tasks, else the model itself."""
        if input_type is None or not self.model.card.uses_tasks:
            return self
        return self._tasks[input_type]

    def warm_up(self) -> None:
        """Run real inference, so that the first caller does not wait for it, and check the model's vectors.

        Raises:
            ModelUnavailableError: the vectors are wrong; see `engine.self_check`.
        """
        self.self_check = run_self_check(self.model, self.tokenizer, self.encode)
        self.batching = self.self_check.batching
        self.seconds_per_token = self.self_check.seconds_per_token
        self._tasks = {
            "query": TaskEncoder(self, self._sessions, "query_embed"),
            "document": TaskEncoder(self, self._sessions, "passage_embed"),
        }

    def open_lone_text_session(self, threads: int) -> None:
        """Open a second session, for lone texts, with *threads* threads. It takes the model's memory once more.

        The session is dropped if its vectors differ from those of the first. Static models have none.
        """
        one_thread = self._sessions.one_thread
        if one_thread.is_static:
            return
        lone_text, items = one_thread.open_lone_text_session(threads), self.tokenizer.tokenize(PROBES[:1])
        drift = drift_of(lone_text.run("embed", items), one_thread.run("embed", items))
        if drift <= MAX_DRIFT:
            self._sessions.lone_text = lone_text
        else:
            log.warning("lone_text_session_dropped", model=self.name, drift=drift)


class TaskEncoder:
    """The same model for one input type, run by the FastEmbed method that sets the model's task.

    It does not refer to its encoder: a reference cycle would delay freeing the model.
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


def load_encoder(model: Model, *, hub_cache_dir: Path) -> Encoder:
    """Load *model*, verify its files and check its vectors.

    Blocks, for minutes if the model has to be downloaded. A corrupt file of the hub is downloaded once more.

    Raises:
        ModelUnavailableError: the model is not in the cache and cannot be downloaded, its files cannot be used, or its
            vectors are wrong.
    """
    return use_files(model, hub_cache_dir, partial(_load, model))


def load_cached_encoder(model: Model, *, hub_cache_dir: Path) -> Encoder:
    """Load *model* as `load_encoder` does, but download nothing. Blocks.

    Raises:
        NotCachedError: its files must be fetched first: some are gone, or were corrupt.
        ModelUnavailableError: its files cannot be used, or its vectors are wrong.
    """
    return use_cached_files(model, hub_cache_dir, partial(_load, model))


def _load(model: Model, files: ModelFiles) -> Encoder:
    """Open the session while another thread reads the files, so only the slower of the two counts.

    Raises:
        CorruptFileError: a file is not the expected one, whether or not it could be opened.
    """
    if model.folder:
        _check_folder(model, model.folder)
    with ThreadPoolExecutor(1, thread_name_prefix="hash") as hashing:
        fingerprint = hashing.submit(lambda: files.fingerprint)
        try:
            if model.folder:
                encoder = _open_folder(model, model.folder)
            else:
                encoder = Encoder(model, open_session(model.name, files.folder))
        except Exception as error:
            fingerprint.result()  # if a file is corrupt, this raises the better explanation
            raise _unusable(model, error) from error
        encoder.fingerprint = fingerprint.result()
    try:
        encoder.warm_up()
    except ModelUnavailableError:
        raise
    except Exception as error:
        raise _unusable(model, error) from error
    _log_self_check(encoder)
    return encoder


def _check_folder(model: Model, folder: Folder) -> None:
    """Look at the beginning of each file, before its hash is compared.

    Raises:
        ModelUnavailableError: a file is missing, or something else, such as a git-lfs pointer.
    """
    if reason := why_unusable(folder):
        raise _unusable(model, UnusableModelError(reason))


def _open_folder(model: Model, folder: Folder) -> Encoder:
    """Open the model in *folder*, whose files may be anything.

    Raises:
        UnusableModelError: they cannot be used.
        Exception: whatever FastEmbed and ONNX Runtime raise.
    """
    tokenizer = read_tokenizer(folder.path, max_tokens=folder.manifest.max_tokens)
    session = open_folder_session(folder, tokenizer.tokenizer)
    model_type = (read_object_if_any(folder.path, "config.json") or {}).get("model_type")
    check_inputs(session.signature, model_type=str(model_type or ""))
    encoder = Encoder(model, session)
    check_output(session.signature, folder.manifest, session.output_shape(encoder.tokenizer.tokenize(PROBES[:1])[0]))
    encoder.notes = (*tokenizer.notes, *contradictions(folder.path, folder.manifest))
    for note in encoder.notes:
        log.warning("model_folder_noted", model=model.name, note=note)
    return encoder


def _log_self_check(encoder: Encoder) -> None:
    if encoder.self_check and encoder.fingerprint:
        log.info(
            "model_checked",
            model=encoder.name,
            batch_drift=encoder.self_check.batch_drift,
            batch_invariant=encoder.self_check.is_batch_invariant,
            batching=encoder.self_check.batching,
            batching_cost=encoder.self_check.batching_cost,
            canary_cosine=encoder.self_check.canary_cosine,
            fingerprint=encoder.fingerprint.digest,
            runtime=encoder.fingerprint.runtime.id,
        )


def _unusable(model: Model, error: Exception) -> ModelUnavailableError:
    if is_out_of_memory(error):
        log.error("memory_exhausted", model=model.name, exc_info=error)
        return ModelUnavailableError(model.name, NO_MEMORY)
    reason = explain(error)
    # A message of ours says all; a foreign one may be explained by its traceback.
    traceback = None if isinstance(error, UnusableModelError) else error
    log.warning("model_files_unusable", model=model.name, reason=reason, exc_info=traceback)
    return ModelUnavailableError(model.name, reason)
