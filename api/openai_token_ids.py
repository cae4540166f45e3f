"""Decodes token ids of OpenAI's vocabulary cl100k_base to text: some clients send ids instead of texts."""

import asyncio
import base64
import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from engine.errors import InvalidInputError
from engine.fair_gate import FairGate
from engine.fair_queue import ANYONE, Caller
from engine.ledger import Account, Reservation

CL100K_BASE = Path(__file__).parents[1] / "vocabularies" / "cl100k_base.tiktoken"
CL100K_BASE_SHA256 = "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"
"""The sha256 that the source of tiktoken states for this file (`tiktoken_ext/openai_public.py`)."""
MAX_INLINE_IDS = 10_000
"""Up to this many ids are decoded on the event loop, in about 1 ms; more of them in a thread."""
SECONDS_PER_ID = 4e-7
"""Measured: 300,000 ids take 0.1 s."""
MAX_WAITING_S = 10.0
"""Maximum seconds of decoding that may wait, as for large bodies. One caller may hold 80 % of it."""

log = structlog.get_logger()


class VocabularyError(Exception):
    """The file of the vocabulary cannot be used."""


@dataclass(frozen=True, slots=True)
class _Table:
    """The bytes of all tokens one after another, and where each begins: 1.1 MB instead of 100,000 objects."""

    content: bytes
    starts: "array[int]"  # Python 3.11 cannot subscript it

    def text_of(self, ids: Sequence[int]) -> str:
        """Return the text of *ids*, without the bytes of characters that are not complete."""
        content, starts = self.content, self.starts
        return b"".join([content[starts[id_] : starts[id_ + 1]] for id_ in ids]).decode(errors="ignore")


class TokenVocabulary:
    """One vocabulary. Its file is read when the first ids arrive, and its sha256 is compared.

    Reading, and decoding of many ids, runs in a thread, one request at a time and fair between callers.
    """

    def __init__(
        self, path: Path = CL100K_BASE, *, sha256: str = CL100K_BASE_SHA256, max_waiting_s: float = MAX_WAITING_S
    ) -> None:
        self._path = path
        self._sha256 = sha256
        self._table: _Table | None = None
        self._gate = FairGate()
        self._account = Account("decode", max_waiting_s)

    async def decode(
        self, pieces: Sequence[Sequence[int]], *, caller: Caller = ANYONE, is_nested: bool = True
    ) -> list[str]:
        """Return the text of each of *pieces*.

        The bytes of a character that was cut at the start or end of a piece are dropped.

        Args:
            pieces: token ids.
            caller: who sent them.
            is_nested: the request contains a list of pieces, not the ids of one piece; for errors.

        Raises:
            InvalidInputError: an id is not in the vocabulary, or the vocabulary cannot be used.
            OverloadedError: too many ids of the caller are waiting.
        """
        number = sum(map(len, pieces))
        if self._table is not None and number <= MAX_INLINE_IDS:
            return _decode(self._table, pieces, is_nested=is_nested)
        with self._reserve(caller, number * SECONDS_PER_ID) as reservation:
            await self._gate.enter(caller, reservation.amount)
            work = asyncio.ensure_future(asyncio.to_thread(self._read_and_decode, pieces, is_nested=is_nested))
            work.add_done_callback(self._leave)
            return await asyncio.shield(work)  # a thread cannot be stopped: the next one must wait for it

    def _reserve(self, caller: Caller, seconds: float) -> Reservation:
        if self._account.held:
            self._account.check(caller, seconds)
        reservation = Reservation((self._account,), caller)
        reservation.resize(seconds)
        return reservation

    def _leave(self, work: "asyncio.Future[list[str]]") -> None:
        self._gate.leave()
        if not work.cancelled():
            work.exception()  # if its caller has disconnected, asyncio would log it as never retrieved

    def _read_and_decode(self, pieces: Sequence[Sequence[int]], *, is_nested: bool) -> list[str]:
        try:
            self._table = self._table or _read(self._path, self._sha256)
        except VocabularyError as error:
            log.error("vocabulary_unusable", file=self._path.name, cause=str(error))  # noqa: TRY400 - expected
            raise InvalidInputError(
                "input: token ids cannot be decoded here, because the vocabulary cl100k_base is not installed. "
                "Send texts. With LangChain, set check_embedding_ctx_length=False.",
                extensions={"field": "input"},
            ) from None
        return _decode(self._table, pieces, is_nested=is_nested)


def _read(path: Path, sha256: str) -> _Table:
    """Read a vocabulary in tiktoken's format: in each line, the bytes of a token in base64, and its id.

    Raises:
        VocabularyError: the file cannot be read, or it has another sha256.
    """
    try:
        lines = path.read_bytes()
    except OSError as error:
        raise VocabularyError(error.strerror or type(error).__name__) from None
    if (actual := hashlib.sha256(lines).hexdigest()) != sha256:
        raise VocabularyError(f"its sha256 is {actual}")
    content, starts = bytearray(), array("I", [0])
    for line in lines.splitlines():  # their ids are 0, 1, 2, ..., because the sha256 is right
        content += base64.b64decode(line.partition(b" ")[0])
        starts.append(len(content))
    return _Table(bytes(content), starts)


def _decode(table: _Table, pieces: Sequence[Sequence[int]], *, is_nested: bool) -> list[str]:
    size = len(table.starts) - 1
    for index, piece in enumerate(pieces):
        if piece and not (min(piece) >= 0 and max(piece) < size):
            place, unknown = next((place, id_) for place, id_ in enumerate(piece) if not 0 <= id_ < size)
            index = index if is_nested else place  # noqa: PLW2901 - of the list that the caller sent
            raise InvalidInputError(
                f"input[{index}]: the token id {unknown if unknown.bit_length() < 64 else 'that was sent'} is not in "  # noqa: PLR2004
                f"the vocabulary cl100k_base, which has the ids 0 to {size - 1} (without special tokens).",
                extensions={"field": "input", "index": index},
            )
    return [table.text_of(piece) for piece in pieces]
