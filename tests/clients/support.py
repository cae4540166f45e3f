"""Runs the programs of tests/clients/programs: each is a small program with one client library, in its environment.

`make clients` makes the environments. Without them tests are skipped, but fail with CI=true.
"""

import hashlib
import json
import os
import select
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from config import BUNDLED_MODELS_DIR
from tests.clients.relay import relayed
from tests.support.logged_process import LoggedProcess
from tests.support.raw_http import PATIENCE_S, WHOLE, connected, send
from tests.support.servers import ROOT, ServerProcess

PROGRAMS = ROOT / "tests" / "clients" / "programs"
ENVIRONMENTS = ROOT / ".cache" / "clients"
PROGRAM_TIMEOUT_S = 150
"""How long a program may take. Much longer than any takes: the import of some takes 20 s on a busy machine."""
TEST_TIMEOUT_S = 240
BUNDLED = "sentence-transformers/all-MiniLM-L6-v2"
TINY = "tiny/one"
UNKNOWN = "sentence-transformers/all-MiniLM-L6"
KEY = "a-key-that-is-long-enough-0123456789"
ANY_KEY = "unused"
"""What clients send that insist on a key, to a server that has none."""
TOLERANCE = 1e-6
NATIVE_BATCH = 32

FEW = (
    "The cat sat on the mat.",
    "A feline rested on a rug.",
    "Stock prices fell sharply on Monday.",
    "How do I reset my password?",
    "Zwölf Boxkämpfer jagen Viktor quer über den Sylter Deich.",
    "Le petit prince vivait sur une planète à peine plus grande que lui.",
    "def add(a, b):\n    return a + b",
    "日本語の文章も送ることができます。",
    "Emoji too: 🚀🎉",
    "one",
    "one two three",
    "A longer paragraph, which is here so that texts differ in length: " + "words and more words, " * 20,
)
"""A dozen texts of different lengths and scripts, in an order that sorting would change."""
NUMBERS = ("zero", "one", "two", "three", "four", "five")
MANY = tuple(" ".join(NUMBERS[number // 6**place % 6] for place in range(1 + number % 5)) for number in range(3000))
"""3,000 texts, for a tiny model that knows these words."""
ODD = ("", "The quick brown fox jumps over the lazy dog. " * 445)
"""An empty text, and one of 20,025 characters: far more than MAX_TEXT_LENGTH, and than the model's input."""

Rows = NDArray[np.float32]


@dataclass(slots=True, eq=False)
class Client:
    """A program of tests/clients/programs, and where it runs.

    Attributes:
        program: the file's name.
        environment: the folder in .cache/clients.
        variables: further environment variables.
        max_texts: how many texts it embeds in one call of 3,000; with more, the user sees `too_many`.
        too_many: a part of that message.
        bad_model, bad_key: a part of what the user sees.
        refused: a part of what the user sees if the server refuses the first request; empty: it is repeated.
        takes_empty: whether the library passes an empty text on.
        requests: how many requests the library makes of these texts; 0: unknown.
        needs_vocabulary: the library fetches a vocabulary of tokens from the web, and finds a copy here.
    """

    program: str
    environment: str
    variables: Mapping[str, str] | None = None
    max_texts: int = 3000
    too_many: str = ""
    bad_model: str = "Did you mean"
    bad_key: str = "401"
    refused: str = ""
    takes_empty: bool = True
    requests: int = 0
    needs_vocabulary: bool = False
    _running: "RunningProgram | None" = field(default=None, init=False, repr=False)

    def __str__(self) -> str:
        return f"{self.environment}-{self.program}"

    def run(
        self, url: str, scenario: str, texts: Sequence[str], *, model: str = BUNDLED, key: str = ANY_KEY
    ) -> "Answer":
        """Run the program with the server at *url*, and return what it printed."""
        return self.start(url, scenario, texts, model=model, key=key).answer()

    def start(
        self, url: str, scenario: str, texts: Sequence[str], *, model: str = BUNDLED, key: str = ANY_KEY
    ) -> "RunningProgram":
        """Let the program begin; `stop` ends it. A Python program goes on for the next run: imports take long."""
        job = {"BASE_URL": url, "MODEL": model, "API_KEY": key}
        if self._running is not None and self._running.process.poll() is None and self.program.endswith(".py"):
            self._running.begin(json.dumps({"job": job, "texts": texts}))
            return self._running
        self.stop()
        variables = {**job, **(self.variables or {})}
        if self.needs_vocabulary:
            variables["TIKTOKEN_CACHE_DIR"] = str(_tiktoken_cache())
        self._running = running = RunningProgram([*self._command(), scenario], variables)
        if self.program.endswith(".py"):
            running.begin(json.dumps({"job": job, "texts": texts}))
        else:
            running.begin(json.dumps(texts))
            running.end_input()
        return running

    def stop(self) -> None:
        """End the program, if it runs."""
        if self._running is not None:
            self._running.stop()
            self._running = None

    def _command(self) -> list[str]:
        folder = ENVIRONMENTS / self.environment
        if not (folder / ".made-from").exists():
            missing = f"{folder.relative_to(ROOT)} is missing: run `make clients`."
            no_go = self.environment == "go" and shutil.which("go") is None  # Debian's is too old for the library
            assert os.environ.get("CI") != "true" or no_go, missing
            pytest.skip(missing)
        program = PROGRAMS / self.program
        match program.suffix:
            case ".py":
                return [str(folder / "bin" / "python"), str(program)]
            case ".mjs":  # Node looks for modules beside the program
                for copied in (program, PROGRAMS / "program.mjs"):
                    beside = folder / f"{copied.name}.{os.getpid()}"
                    shutil.copyfile(copied, beside)
                    beside.replace(folder / copied.name)  # in one step: another pytest worker may run it now
                newer = folder / "node_modules" / ".bin" / "node"
                return [str(newer) if newer.exists() else "node", str(folder / program.name)]
            case ".go":
                return [str(folder / program.stem)]
            case ".java":
                return ["java", "-cp", f"{folder}/target/classes:{folder}/target/lib/*", program.stem]
            case ending:
                raise NotImplementedError(ending)


class RunningProgram(LoggedProcess):
    """A program that runs. What it prints to standard error is in its log, too."""

    def __init__(self, command: Sequence[str], variables: Mapping[str, str]) -> None:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        self._runs = 0
        super().__init__(command, folder=ROOT, environment={**kept, **OFFLINE, **variables})

    def begin(self, line: str) -> None:
        """Write *line* to its standard input."""
        assert self.process.stdin
        self._runs += 1
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def end_input(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()

    def answer(self) -> "Answer":
        """Wait until the last run has printed its object, and return it."""
        self.wait_until(lambda: len(self._answers()) >= self._runs, "answer", timeout_s=PROGRAM_TIMEOUT_S)
        return Answer(json.loads(self._answers()[self._runs - 1]), self.log[:2000])

    def _answers(self) -> list[str]:
        return [line for line in self.lines if line.startswith(('{"vectors"', '{"error"', '{"answers"'))]


VOCABULARY_URL = "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken"
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "ANONYMIZED_TELEMETRY": "False",
    "NO_PROXY": "*",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUTF8": "1",
}
"""What keeps libraries from asking the web when they are imported."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a program printed: its JSON object, and the beginning of its log."""

    printed: Mapping[str, Any]
    log: str

    @property
    def vectors(self) -> Rows:
        assert "vectors" in self.printed, (self.printed, self.log)
        return np.array(self.printed["vectors"], np.float32)

    @property
    def error(self) -> str:
        """The message as the user sees it."""
        assert "error" in self.printed, "The program printed vectors instead of an error."
        return str(self.printed["error"])


@cache
def _tiktoken_cache() -> Path:
    """Return a folder with the vocabulary that the service ships, under the name by which tiktoken looks for it."""
    folder = ENVIRONMENTS / "tiktoken-cache"
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha1(VOCABULARY_URL.encode(), usedforsecurity=False).hexdigest()
    copy = folder / f"{name}.{os.getpid()}"
    shutil.copyfile(ROOT / "vocabularies" / "cl100k_base.tiktoken", copy)
    return Path(copy.replace(folder / name)).parent


def native(
    server: ServerProcess, texts: Sequence[str], *, model: str = BUNDLED, key: str = ANY_KEY, normalize: bool = True
) -> Rows:
    """Return the vectors of the native route."""
    headers = {"Authorization": f"Bearer {key}"}
    rows: list[list[float]] = []
    with httpx.Client(base_url=server.url, headers=headers, timeout=PATIENCE_S) as client:
        for start in range(0, len(texts), NATIVE_BATCH):
            part = list(texts[start : start + NATIVE_BATCH])
            answer = client.post("/embed/batch", json={"texts": part, "model_name": model, "normalize": normalize})
            answer.raise_for_status()
            rows += answer.json()["embeddings"]
    return np.array(rows, np.float32)


def expected_of_odd(server: ServerProcess) -> Rows:
    """Return the vectors of ODD: that of the special tokens alone, and that of what the model's input holds."""
    [text] = native(server, [ODD[1][:8000]])
    return np.stack([vector_of_special_tokens(), text])


def vector_of_special_tokens() -> Rows:
    """Return what the bundled model makes of no text at all, computed by ONNX Runtime alone."""
    folder = BUNDLED_MODELS_DIR / "all-MiniLM-L6-v2"
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    tokens = Tokenizer.from_file(str(folder / "tokenizer.json")).encode("")
    columns = {"input_ids": tokens.ids, "attention_mask": tokens.attention_mask, "token_type_ids": tokens.type_ids}
    names = [each.name for each in session.get_inputs()]
    [rows] = session.run(None, {name: np.array([columns[name]], np.int64) for name in names})
    mean = np.asarray(rows, np.float32)[0].mean(axis=0)
    return np.asarray(mean / np.linalg.norm(mean), np.float32)


def same(vectors: Rows, expected: Rows) -> bool:
    """Say whether both have the same vectors in the same order; print the largest difference if not."""
    assert vectors.shape == expected.shape
    difference = float(np.abs(vectors - expected).max())
    print(f"largest difference: {difference:.2g}")  # noqa: T201 - pytest shows it if the test fails
    return difference <= TOLERANCE


def run_refused(server: ServerProcess, client: Client, **options: Any) -> tuple["Answer", list[int]]:
    """Run *client* with a held server whose queue is full until it has refused the first request.

    Returns:
        What the program printed, and the statuses of all answers that it got.
    """
    command(server, "hold")
    with ExitStack() as stack:
        stack.callback(command, server, "release")
        held = sum(event.get("event") == "run_held" for event in server.events)
        fill(server, stack)
        # The second is of the express lane, which takes small requests once the other lane's run is overdue.
        server.wait_for("run_held", times=held + 2)
        fill(server, stack)
        relay = stack.enter_context(relayed(server.url))
        program = client.start(relay.url, "refused", FEW[:2], **options)
        relay.wait_for_refusal()
        command(server, "release")
        return program.answer(), relay.statuses


def command(server: ServerProcess, line: str) -> None:
    """Send a held server this line, and wait until it has obeyed."""
    done = sum(event.get("event") == "command_done" for event in server.events)
    server.send_line(line)
    server.wait_for("command_done", times=done + 1)


def fill(server: ServerProcess, stack: ExitStack) -> None:
    """Send small requests until some are rejected; rejections come at once, and the other requests are held."""
    connections = [stack.enter_context(connected(server))]
    while not select.select(connections, [], [], 0.2)[0]:
        for _ in range(20):
            connections.append(stack.enter_context(connected(server)))
            send(connections[-1], WHOLE)
