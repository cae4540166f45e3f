"""Tokenises the texts of a request, and admits the request to the lanes: all of it, or nothing."""

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from engine.admission import Admitted
from engine.fair_queue import Caller
from engine.ledger import Reservation
from engine.options import EmbedOptions
from engine.pipeline import ModelInputs, clip, preprocess
from engine.request_results import RequestResults
from engine.scheduler import Scheduler
from engine.tokenizer import TextTokenizer
from engine.tokenizer_queue import TokenizerQueue, sizes_of

T = TypeVar("T")

MAX_INLINE_CHARACTERS = 1_000
"""Texts with up to this many characters in total are tokenised on the event loop, in at most 1 ms (CJK is slowest).
Longer ones would delay other requests; for shorter ones a switch to a thread and back is not worth its time."""
MAX_INLINE_TEXTS = 64
"""The same for the number of texts, since each has special tokens and perhaps a prompt, however short it is."""
BYTES_PER_TOKEN = 3
"""Estimates the tokens of a long text before it is tokenised. English has 4 to 5 bytes of UTF-8 per token, Chinese 3:
the estimate is rather too high, and corrected before the text waits for a lane."""


class TextAdmission:
    """Tokenises the texts of requests, on the event loop or in the tokenizer thread, and admits the requests."""

    def __init__(self, scheduler: Scheduler, tokenizing: TokenizerQueue) -> None:
        self._scheduler = scheduler
        self._tokenizing = tokenizing

    async def tokenize(
        self, work: Callable[[Sequence[str], int], T], texts: Sequence[str], caller: Caller, *, passes: int = 1
    ) -> list[T]:
        """Call *work* with slices of *texts* and the index of their first text, as `TokenizerQueue.run` does.

        Few texts are one slice, without a switch to the tokenizer thread.

        Raises:
            OverloadedError: too much of the caller's work waits for that thread already.
        """
        if _is_short(texts):
            return [work(texts, 0)]
        with self._tokenizing.reserve(texts, caller, passes=passes) as thread:
            return await self._tokenizing.run(work, texts, thread, passes=passes)

    async def admit(
        self,
        results: RequestResults,
        options: EmbedOptions,
        *,
        caller: Caller,
        deadline_s: float,
        check: Callable[[RequestResults], None],
        is_compact: bool = False,
    ) -> Admitted:
        """Tokenise the texts whose results are missing, and admit them.

        For long texts, reserve the lanes and the thread before any work begins.

        Args:
            results: those of the request; at least one is missing. They get the tokens.
            options: how texts are preprocessed.
            caller: who sent them.
            deadline_s: when the request's time is over, on the event loop's clock.
            check: called with *results* once the lanes accept the request. If it raises, the request fails.
            is_compact: store the tokens in little memory, because they wait for long.

        Returns:
            The admitted request, whose reservation the caller gives back.

        Raises:
            OverloadedError: the caller has too much work queued.
            InvalidInputError: a text cannot be embedded with these options.
        """
        encoder, texts, indexes = results.encoder, results.missing_texts, results.missing_indexes
        tokenizer, runnable = encoder.tokenizer, encoder.runnable(options.input_type)
        prompt = encoder.model.card.prompt_for(options.input_type)
        kept, clipped = clip(tokenizer, texts, options, indexes=indexes) if options.clip else (texts, ())

        def work(some: Sequence[str], first: int) -> ModelInputs:
            inputs = preprocess(tokenizer, some, prompt, options, indexes=indexes[first : first + len(some)])
            if is_compact:
                inputs.compact()
            return inputs

        def finish(inputs: ModelInputs, lanes: Reservation | None = None) -> Admitted:
            for place in clipped:
                inputs.items[place].is_clipped = True
            admitted = self._scheduler.admit(
                runnable, inputs.items, caller=caller, deadline_s=left_s, reservation=lanes
            )
            results.adopt(inputs)
            _check_admitted(admitted, results, check)
            return admitted

        left_s = deadline_s - asyncio.get_running_loop().time()
        if _is_short(kept):
            return finish(work(kept, 0))
        lengths = _estimated_tokens(kept, tokenizer, options)
        with (
            self._scheduler.reserve(runnable, lengths, caller, left_s) as lanes,
            self._tokenizing.reserve(kept, caller) as thread,
        ):
            return finish(ModelInputs.join(await self._tokenizing.run(work, kept, thread)), lanes)


def _check_admitted(admitted: Admitted, results: RequestResults, check: Callable[[RequestResults], None]) -> None:
    """Call *check*, which charges the tokens; if it raises, give back what the request holds."""
    try:
        results.count_tokens()
        check(results)
    except BaseException:
        admitted.reservation.resize(0.0)
        raise


def _is_short(texts: Sequence[str]) -> bool:
    """Return whether *texts* may be tokenised on the event loop."""
    return len(texts) <= MAX_INLINE_TEXTS and sum(map(len, texts)) <= MAX_INLINE_CHARACTERS


def _estimated_tokens(texts: Sequence[str], tokenizer: TextTokenizer, options: EmbedOptions) -> list[int]:
    """Return about how many tokens the model will see of each text."""
    tokens = [size // BYTES_PER_TOKEN + 2 for size in sizes_of(texts)]
    if options.long_text == "truncate" and tokenizer.max_tokens is not None:
        return [min(number, tokenizer.max_tokens) for number in tokens]
    return tokens
