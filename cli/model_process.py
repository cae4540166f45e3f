"""Runs a model in a process of its own: its memory can be measured, and its crash ends nothing else.

Two models can then take turns on one machine. Texts are embedded as the service embeds them on one lane.
"""

import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from cli.console import configure_logging
from engine.catalog import Model
from engine.encoder import load_encoder
from engine.errors import InvalidVectorError, ServiceError
from engine.fingerprint import ModelFingerprint
from engine.model_cards import InputType
from engine.optimised_copy import DAMAGED, CopyState
from engine.optimised_models import CopyFolder
from engine.planner import plan_micro_batches
from engine.self_check import SelfCheckResult
from engine.tokenizer import TokenizedText
from engine.vectors import Matrix, check_finite_nonzero
from host.memory import fix_mmap_threshold

STATM = Path("/proc/self/statm")
LOAD = "load"
"""The first message to the process. Starting it takes longer than loading a small model, and is not measured."""

Answer = TypeVar("Answer")


class ModelProcessError(Exception):
    """The model cannot be used; the message is the reason, without a capital letter and a full stop.

    Attributes:
        texts: indexes of the texts that caused it; empty: it concerns all.
    """

    def __init__(self, message: str, texts: Sequence[int] = ()) -> None:
        super().__init__(message, texts)  # both, so that pickle restores the error in the other process
        self.message = message
        self.texts = texts


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """What a worker loads and how it embeds.

    Attributes:
        input_type: what the texts are; selects the model's prompt or task.
        copies: the optimised copies; None: the model's own files are loaded.
        micro_batch_tokens: maximum number of tokens, padding included, in one run.
    """

    model: Model
    hub_cache_dir: Path
    input_type: InputType | None
    micro_batch_tokens: int
    copies: CopyFolder | None = None


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What is known about a model after loading.

    Attributes:
        memory_bytes: growth of the process by loading; None: unknown on this system.
        notes: what the operator should know about the model's folder, as sentences without a full stop.
        copy: whether it was loaded from its optimised copy.
    """

    seconds: float
    memory_bytes: int | None
    max_tokens: int | None
    check: SelfCheckResult
    fingerprint: ModelFingerprint
    notes: tuple[str, ...] = ()
    copy: CopyState = field(default_factory=lambda: CopyState(is_used=False))


@dataclass(frozen=True, slots=True)
class TimedVectors:
    """The vectors of some texts, and what they cost.

    Attributes:
        vectors: float32, shape ``(texts, dim)``, in the order of the texts.
        wall_s: wall-clock time, tokenising included.
        cpu_s: CPU time of the process.
        truncated: number of texts that were longer than the model's limit.
        memory_bytes: growth of the process since before the model was loaded; None: unknown on this system.
    """

    vectors: Matrix
    wall_s: float
    cpu_s: float
    truncated: int
    memory_bytes: int | None


class Worker(Protocol):
    """A model to load and to run, in this process or in another one."""

    def load(self) -> LoadReport:
        """Load the model; call this once, first. Blocks.

        The model's files should be in the cache: a download would count as loading time.

        Raises:
            ModelProcessError: it cannot be loaded.
        """

    def embed(self, texts: Sequence[str]) -> TimedVectors:
        """Embed *texts*. Blocks.

        Raises:
            ModelProcessError: the model failed, returned an unusable vector, or its process ended.
        """


class ModelWorker:
    """A model in this process."""

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self._start_bytes = resident_bytes()

    def load(self) -> LoadReport:
        started = time.perf_counter()
        try:
            copies = self._config.copies.open(trusts_notes=False) if self._config.copies else None
            encoder = load_encoder(self._config.model, hub_cache_dir=self._config.hub_cache_dir, copies=copies)
        except ServiceError as error:
            raise ModelProcessError(getattr(error, "cause", error.detail)) from error
        seconds = time.perf_counter() - started
        if encoder.self_check is None or encoder.fingerprint is None:
            raise ModelProcessError("it was loaded without a self-check")
        is_damaged = encoder.copy is not None and not encoder.copy.is_intact()
        self._tokenizer = encoder.tokenizer
        self._model = encoder.runnable(self._config.input_type)
        return LoadReport(
            seconds=seconds,
            memory_bytes=self._growth(),
            max_tokens=encoder.max_tokens,
            check=encoder.self_check,
            fingerprint=encoder.fingerprint,
            notes=encoder.notes,
            copy=CopyState(is_used=False, reason=DAMAGED) if is_damaged else encoder.copy_state,
        )

    def embed(self, texts: Sequence[str]) -> TimedVectors:
        prompt = self._config.model.card.prompt_for(self._config.input_type)
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        items = self._tokenizer.tokenize(texts, prompt=prompt)
        vectors = np.empty((len(texts), self._model.dim), dtype=np.float32)
        lengths = [item.length for item in items]
        for run in plan_micro_batches(lengths, self._model.batching, budget_tokens=self._config.micro_batch_tokens):
            try:
                vectors[run] = self._model.encode([items[index] for index in run])
            except Exception as error:
                failing = [index for index in run if self._fails(items[index])]
                raise ModelProcessError(f"it failed ({type(error).__name__})", failing or run) from error
        wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
        try:
            check_finite_nonzero(vectors)
        except InvalidVectorError as error:
            raise ModelProcessError("its vector is not finite, or has a norm of zero", [error.index]) from error
        return TimedVectors(vectors, wall_s, cpu_s, sum(item.is_truncated for item in items), self._growth())

    def _fails(self, item: TokenizedText) -> bool:
        try:
            self._model.encode([item])
        except Exception:  # noqa: BLE001 - the caller reports the error of the whole run
            return True
        return False

    def _growth(self) -> int | None:
        now = resident_bytes()
        return None if now is None or self._start_bytes is None else now - self._start_bytes


class ModelProcess:
    """A model in another process; `start_worker` returns one."""

    def __init__(self, process: BaseProcess, connection: Connection) -> None:
        self._process = process
        self._connection = connection

    def load(self) -> LoadReport:
        return self._ask(LOAD, LoadReport)

    def embed(self, texts: Sequence[str]) -> TimedVectors:
        return self._ask(list(texts), TimedVectors)

    def _ask(self, message: object, kind: type[Answer]) -> Answer:
        try:
            self._connection.send(message)
            answer = self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            raise ModelProcessError(_exit_reason(self._process.exitcode)) from None
        if isinstance(answer, ModelProcessError):
            raise answer
        if not isinstance(answer, kind):
            raise TypeError(type(answer).__name__)
        return answer


@contextmanager
def start_worker(config: WorkerConfig) -> Iterator[Worker]:
    """Start a process for a model, which is not loaded yet. The process ends with the block."""
    spawn = multiprocessing.get_context("spawn")  # a forked process would start with this one's memory
    connection, other_end = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(other_end, config), daemon=True)
    _start_ignoring_ctrl_c(process)
    other_end.close()  # the process has the only copy now, so its end closes the connection
    try:
        yield ModelProcess(process, connection)
        with suppress(ConnectionError):
            connection.send(None)
        process.join()
    finally:
        process.kill()  # if the block failed, it is still working; it has nothing to save
        process.join()
        process.close()
        connection.close()


def resident_bytes() -> int | None:
    """Return the resident memory of this process; None: unknown on this system."""
    with suppress(OSError, ValueError, IndexError, AttributeError):
        return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return None


def _start_ignoring_ctrl_c(process: BaseProcess) -> None:
    """Start a process that ignores SIGINT: a terminal sends Ctrl-C to both, and this process ends the other one."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited by the new process
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, handler)


def _exit_reason(exit_code: int | None) -> str:
    """Say how a process ended that should not have ended."""
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        hint = ", perhaps because memory ran out" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with exit code {exit_code}"


def _serve(connection: Connection, config: WorkerConfig) -> None:
    """Run in the process: load the model at the first message, embed each list of texts, end at None."""
    configure_logging(logging.CRITICAL)  # the answers contain what the command reports
    fix_mmap_threshold()
    worker = ModelWorker(config)
    try:
        for message in iter(connection.recv, None):
            connection.send(worker.load() if message == LOAD else worker.embed(message))
    except ModelProcessError as error:
        connection.send(error)
