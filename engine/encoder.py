"""A model in memory: load it, check it, encode one micro-batch.

A text is tokenised once. Its tokens are counted and perhaps truncated, and the model runs exactly these tokens, so the
tokens that are counted are the tokens that the model sees.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import structlog

from engine.catalog import Model
from engine.errors import NO_MEMORY, ModelUnavailableError
from engine.fastembed_adapter import Method, Session, is_out_of_memory, open_folder_session, open_session
from engine.file_hashes import CorruptFileError
from engine.fingerprint import ModelFiles, ModelFingerprint, VerifiedFiles
from engine.folder_files import UnusableModelError, read_object_if_any
from engine.folder_notes import contradictions
from engine.folder_tokenizer import read_tokenizer
from engine.graph_check import check_inputs, check_output, explain
from engine.hub import use_cached_files, use_files
from engine.manifest import Folder
from engine.model_cards import InputType
from engine.model_folders import why_unusable
from engine.optimised_copy import NOT_WRITTEN, CopyState, OptimisedCopy
from engine.optimised_models import OptimisedModels
from engine.optimised_record import SourceState
from engine.planner import Batching
from engine.self_check import MAX_DRIFT, PROBES, SelfCheckResult, run_self_check
from engine.sessions import Sessions
from engine.tokenizer import TextTokenizer, TokenizedText
from engine.vectors import Matrix

TASK_METHODS: tuple[Method, Method] = ("query_embed", "passage_embed")
"""How FastEmbed embeds queries and documents with a model that has tasks."""
COMPARED = (*PROBES, " ".join(PROBES * 12))
"""Texts for which an optimised copy must return the same vectors to the last bit: some short ones, and a long one."""

log = structlog.get_logger()


class Encoder:
    """A model in memory. Its methods block; several threads may call them at once.

    Attributes:
        seconds_per_token: speed of the model, in seconds of one lane per token of modelled cost; measured by `warm_up`.
        batching: which texts may share a run without changing each other's vectors.
        fingerprint: identifies what makes the vectors; None before `load_encoder` has set it.
        self_check: what `warm_up` has measured; None before that.
        notes: what the operator should know about the model's folder, as sentences without a full stop.
        files: what it was loaded from; None before `load_encoder` has set it.
        is_trusted: its files were not read: they are as they were when an earlier load verified them.
        file_states: those of its files before they were verified.
        copy: the optimised copy that it runs; None: it runs the model's own files.
        copy_state: whether it runs an optimised copy, and why not.
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
        self.files: ModelFiles | None = None
        self.is_trusted = False
        self.file_states: Mapping[str, SourceState] = {}
        self.copy: OptimisedCopy | None = None
        self.copy_state = CopyState(is_used=False)
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
            "query": TaskEncoder(self, self._sessions, TASK_METHODS[0]),
            "document": TaskEncoder(self, self._sessions, TASK_METHODS[1]),
        }

    def open_lone_text_session(self, threads: int) -> None:
        """Open a second session, for lone texts, with *threads* threads. It takes the model's memory once more.

        The session is dropped if its vectors differ from those of the first. Static models have none.
        """
        if self._sessions.one_thread.is_static:
            return
        drift = self._sessions.open_lone_text(threads, self.tokenizer.tokenize(PROBES[:1]))
        if drift > MAX_DRIFT:
            log.warning("lone_text_session_dropped", model=self.name, drift=drift)

    @property
    def graph(self) -> Path | None:
        """The ONNX file that runs; None: the model is static."""
        session = self._sessions.one_thread
        return None if session.is_static else session.graph

    def adopt(self, copy: OptimisedCopy) -> bool:
        """Run *copy* from now on, if it returns the same vectors to the last bit; else return False.

        Raises:
            Exception: whatever ONNX Runtime raises.
        """
        items = self.tokenizer.tokenize(COMPARED)
        runs = [[item] for item in items] + ([items] if self.batching == "mixed" else [])
        if not self._sessions.adopt(copy.graph, runs, TASK_METHODS if self.model.card.uses_tasks else ("embed",)):
            return False
        self.copy, self.copy_state = copy, copy.state
        return True


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


def load_encoder(model: Model, *, hub_cache_dir: Path, copies: OptimisedModels | None = None) -> Encoder:
    """Load *model*, verify its files and check its vectors.

    Blocks, for minutes if the model has to be downloaded. A corrupt file of the hub is downloaded once more.

    Args:
        model: a model of the catalogue.
        hub_cache_dir: the hub cache.
        copies: the optimised copies, of which the model's own is used; None: none is.

    Raises:
        ModelUnavailableError: the model is not in the cache and cannot be downloaded, its files cannot be used, or its
            vectors are wrong.
    """
    return use_files(model, hub_cache_dir, partial(_load, model, copies))


def load_cached_encoder(model: Model, *, hub_cache_dir: Path, copies: OptimisedModels | None = None) -> Encoder:
    """Load *model* as `load_encoder` does, but download nothing. Blocks.

    Raises:
        NotCachedError: its files must be fetched first: some are gone, or were corrupt.
        ModelUnavailableError: its files cannot be used, or its vectors are wrong.
    """
    return use_cached_files(model, hub_cache_dir, partial(_load, model, copies))


def _load(model: Model, copies: OptimisedModels | None, files: ModelFiles) -> Encoder:
    """Load the model by its optimised copy if there is one, else by its own files.

    Raises:
        CorruptFileError: a file is not the expected one, whether or not it could be opened.
    """
    if model.folder:
        _check_folder(model, model.folder)
    reason = (copies.why_off or ("static models have none" if files.is_static else "")) if copies else "not used here"
    if copies is None or reason:
        encoder = _load_checked(model, files)
        encoder.copy_state = CopyState(is_used=False, reason=reason)
        return encoder
    known = copies.known_sources(files)
    states = {} if known else copies.states_of(files)
    sources = known or (files.verified if copies.has_any() else None)
    copy, failure = copies.find(model.name, sources) if sources else NOT_WRITTEN, None
    if isinstance(copy, OptimisedCopy):
        try:
            encoder = _load_checked(model, files, known, copy)
        except (ModelUnavailableError, CorruptFileError) as error:
            failure = error
        else:
            copies.remember(files, states)
            return encoder
    encoder = _load_checked(model, files)
    if isinstance(copy, OptimisedCopy):  # the model's own files can be used, so it was the copy
        copies.reject(model.name, copy, reason := f"the model cannot run it ({failure})")
        copy = reason
    encoder.copy_state, encoder.file_states = CopyState(is_used=False, reason=copy), states
    copies.remember(files, states)
    return encoder


def _load_checked(
    model: Model, files: ModelFiles, known: VerifiedFiles | None = None, copy: OptimisedCopy | None = None
) -> Encoder:
    """Open the session while another thread reads the files, so only the slower of the two counts. Check the vectors.

    Args:
        model: what to load.
        files: its files.
        known: the result of an earlier verification; None: they are verified now.
        copy: what is opened instead of the model's own graph.

    Raises:
        CorruptFileError: a file is not the expected one, whether or not it could be opened.
    """
    graph = copy.graph if copy else None
    with ThreadPoolExecutor(1, thread_name_prefix="hash") as hashing:
        fingerprint = hashing.submit(lambda: files.fingerprint_of(known) if known else files.fingerprint)
        try:
            if model.folder:
                encoder = _open_folder(model, model.folder, graph)
            else:
                encoder = Encoder(model, open_session(model.name, files.folder, copy=graph))
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
    encoder.files, encoder.is_trusted = files, known is not None
    if copy:
        encoder.copy, encoder.copy_state = copy, copy.state
    _log_self_check(encoder)
    return encoder


def _check_folder(model: Model, folder: Folder) -> None:
    """Look at the beginning of each file, before its hash is compared.

    Raises:
        ModelUnavailableError: a file is missing, or something else, such as a git-lfs pointer.
    """
    if reason := why_unusable(folder):
        raise _unusable(model, UnusableModelError(reason))


def _open_folder(model: Model, folder: Folder, copy: Path | None) -> Encoder:
    """Open the model in *folder*, whose files may be anything.

    Raises:
        UnusableModelError: they cannot be used.
        Exception: whatever FastEmbed and ONNX Runtime raise.
    """
    tokenizer = read_tokenizer(folder.path, max_tokens=folder.manifest.max_tokens)
    session = open_folder_session(folder, tokenizer.tokenizer, copy=copy)
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
