"""A model in a process of its own: its memory is its own, and its crash is nobody else's.

The process gets texts in turns and answers each with their vectors and what they cost, so that two models can take
turns on one machine. A text is treated as the service treats it, on one lane.
"""

import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TypeVar

import numpy as np

from cli.console import configure_logging
from engine.catalog import Model
from engine.encoder import load_encoder
from engine.errors import InvalidVectorError, ServiceError
from engine.fingerprint import ModelFingerprint
from engine.jobs import Batching, Item, Matrix, cut_into_runs
from engine.model_cards import InputType
from engine.self_check import SelfCheckResult
from engine.tokenizer import TokenizedText
from engine.vectors import check_finite_nonzero
from host.memory import fix_mmap_threshold

STATM = Path("/proc/self/statm")
LOAD = "load"
"""What the process is told first; until then it has only started, which takes longer than loading a small model."""

Answer = TypeVar("Answer")


class ModelProcessError(Exception):
    """The model cannot be used; the message says why.

    Attributes:
        texts: those that it is about, as indexes of the turn; empty: it is about all.
    """

    def __init__(self, message: str, texts: Sequence[int] = ()) -> None:
        super().__init__(message, texts)  # both, so that it comes whole out of another process
        self.message = message
        self.texts = texts


@dataclass(frozen=True, slots=True)
class Order:
    """What the process is to do.

    Attributes:
        input_type: what the texts are; the model's own prompt or task for it is used.
        micro_batch_tokens: padded tokens in one run at most.
    """

    model: Model
    hub_cache_dir: Path
    input_type: InputType | None
    micro_batch_tokens: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """What is known of the model once it is in memory.

    Attributes:
        memory_bytes: growth of the process by loading it; None: this system does not tell.
    """

    seconds: float
    memory_bytes: int | None
    max_tokens: int | None
    check: SelfCheckResult
    fingerprint: ModelFingerprint


@dataclass(frozen=True, slots=True)
class Turn:
    """The vectors of some texts, in their order, and what they cost.

    Attributes:
        truncated: of how many texts the model did not see all.
        memory_bytes: growth of the process since before the model was loaded; None: this system does not tell.
    """

    vectors: Matrix
    wall_s: float
    cpu_s: float
    truncated: int
    memory_bytes: int | None


class ModelProcess:
    """Owns the process and its connection; get one by `running`."""

    def __init__(self, process: BaseProcess, connection: Connection) -> None:
        self._process = process
        self._connection = connection

    def load(self) -> Loaded:
        """Load the model; call it once, before all else. Blocks.

        Its files should be there already: a download would count as loading.

        Raises:
            ModelProcessError: it cannot be loaded.
        """
        return self._ask(LOAD, Loaded)

    def embed(self, texts: Sequence[str]) -> Turn:
        """Embed *texts*. Blocks.

        Raises:
            ModelProcessError: the model failed on them, gave a vector that no caller should use, or crashed.
        """
        return self._ask(list(texts), Turn)

    def _ask(self, question: object, kind: type[Answer]) -> Answer:
        try:
            self._connection.send(question)
            answer = self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            raise ModelProcessError(_end_of(self._process.exitcode)) from None
        if isinstance(answer, ModelProcessError):
            raise answer
        if not isinstance(answer, kind):
            raise TypeError(type(answer).__name__)
        return answer


@contextmanager
def running(order: Order) -> Iterator[ModelProcess]:
    """A new process for the model of *order*, not loaded yet; it ends with the block."""
    spawn = multiprocessing.get_context("spawn")  # a fork would begin with memory that is not the model's
    ours, its = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(its, order), daemon=True)
    _start(process)
    its.close()  # so that its end is noticed: the process holds the only other copy
    try:
        yield ModelProcess(process, ours)
        with suppress(ConnectionError):
            ours.send(None)
        process.join()
    finally:
        process.terminate()  # it is still at work where the block has failed
        process.join()
        process.close()
        ours.close()


def resident_bytes() -> int | None:
    """Memory of this process that lies in the machine's memory; None: this system does not tell."""
    with suppress(OSError, ValueError, IndexError, AttributeError):
        return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return None


def runs_of(items: Sequence[Item], batching: Batching, *, budget_tokens: int) -> list[list[int]]:
    """The indexes of *items*, cut into runs as the scheduler would cut them if nothing else waited."""
    lengths = [item.length for item in items]
    longest_first = iter(sorted(range(len(items)), key=lambda index: -lengths[index]))
    cut = cut_into_runs(lengths, batching, budget_tokens=budget_tokens)
    return [[next(longest_first) for _ in range(texts)] for texts, _ in cut]


def _start(process: BaseProcess) -> None:
    """Start it deaf to Ctrl-C, which a terminal sends to both: we answer it, and end the process."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, handler)


def _end_of(exit_code: int | None) -> str:
    """How a process ended that should have gone on."""
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        hint = ", perhaps for want of memory" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with exit code {exit_code}"


def _serve(connection: Connection, order: Order) -> None:
    """The process: load the model when told to, then a turn for each list of texts that comes, until None comes."""
    configure_logging(logging.CRITICAL)  # what there is to say goes into the answers
    fix_mmap_threshold()
    try:
        if connection.recv() != LOAD:
            return
        worker = _Worker(order)
        connection.send(worker.loaded)
        for texts in iter(connection.recv, None):
            connection.send(worker.embed(texts))
    except ModelProcessError as error:
        connection.send(error)


class _Worker:
    """The model, inside its process."""

    def __init__(self, order: Order) -> None:
        self._empty_bytes = resident_bytes()
        started = time.perf_counter()
        try:
            encoder = load_encoder(order.model, hub_cache_dir=order.hub_cache_dir)
        except ServiceError as error:
            raise ModelProcessError(getattr(error, "cause", error.detail)) from error
        seconds = time.perf_counter() - started
        if encoder.self_check is None or encoder.fingerprint is None:
            raise ModelProcessError("it was loaded without a check")
        self.loaded = Loaded(seconds, self._growth(), encoder.max_tokens, encoder.self_check, encoder.fingerprint)
        self._tokenizer = encoder.tokenizer
        self._model = encoder.runnable(order.input_type)
        self._prompt = order.model.card.prompt_for(order.input_type)
        self._budget_tokens = order.micro_batch_tokens

    def embed(self, texts: list[str]) -> Turn:
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        items = self._tokenizer.tokenize(texts, prompt=self._prompt)
        vectors = np.empty((len(texts), self._model.dim), dtype=np.float32)
        for run in runs_of(items, self._model.batching, budget_tokens=self._budget_tokens):
            try:
                vectors[run] = self._model.encode([items[index] for index in run])
            except Exception as error:
                guilty = [index for index in run if self._fails(items[index])]
                raise ModelProcessError(f"it failed ({type(error).__name__})", guilty or run) from error
        wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
        try:
            check_finite_nonzero(vectors)
        except InvalidVectorError as error:
            raise ModelProcessError("its vector is not finite, or has a norm of zero", [error.index]) from error
        return Turn(vectors, wall_s, cpu_s, sum(item.is_truncated for item in items), self._growth())

    def _fails(self, item: TokenizedText) -> bool:
        try:
            self._model.encode([item])
        except Exception:  # noqa: BLE001 - whatever it is, it has been told already
            return True
        return False

    def _growth(self) -> int | None:
        now = resident_bytes()
        return None if now is None or self._empty_bytes is None else now - self._empty_bytes
