"""Token ids of cl100k_base become the texts that tiktoken made them from."""

import asyncio
import base64
import json
import shutil
from pathlib import Path

import pytest

from api.openai_token_ids import CL100K_BASE, MAX_INLINE_IDS, SECONDS_PER_ID, TokenVocabulary
from engine.errors import InvalidInputError, OverloadedError
from tests.support.servers import ROOT

REFERENCE = json.loads((ROOT / "tests" / "reference" / "cl100k_base.json").read_text("utf-8"))["texts"]
SIZE = 100_256


@pytest.fixture(scope="module")
def vocabulary() -> TokenVocabulary:
    return TokenVocabulary()


def token_bytes() -> list[bytes]:
    return [base64.b64decode(line.split()[0]) for line in CL100K_BASE.read_bytes().splitlines()]


async def test_ids_become_the_texts_that_tiktoken_made_them_from(vocabulary: TokenVocabulary) -> None:
    assert await vocabulary.decode([case["ids"] for case in REFERENCE]) == [case["text"] for case in REFERENCE]


async def test_every_token_has_the_bytes_of_the_file(vocabulary: TokenVocabulary) -> None:
    expected = [token.decode(errors="ignore") for token in token_bytes()]
    assert await vocabulary.decode([[number] for number in range(SIZE)]) == expected


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        pytest.param([9468, 239], "", id="three-of-four-bytes"),
        pytest.param([9906, 9468], "Hello", id="cut-at-the-end"),
        pytest.param([239, 102, 9906], "Hello", id="cut-at-the-start"),
        pytest.param([], "", id="no-ids"),
    ],
)
async def test_bytes_of_a_character_that_is_cut_are_dropped(
    vocabulary: TokenVocabulary, ids: list[int], text: str
) -> None:
    assert await vocabulary.decode([ids]) == [text]


@pytest.mark.parametrize(
    ("pieces", "is_nested", "start"),
    [
        pytest.param([[1], [SIZE]], True, "input[1]: the token id 100256 ", id="first-beyond"),
        pytest.param([[1, 2, 100_257]], False, "input[2]: the token id 100257 ", id="endoftext-in-a-bare-list"),
        pytest.param([[1, -1]], True, "input[0]: the token id -1 ", id="negative"),
        pytest.param([[10**40]], True, "input[0]: the token id that was sent ", id="huge"),
    ],
)
async def test_ids_outside_the_vocabulary_are_rejected(
    vocabulary: TokenVocabulary, *, pieces: list[list[int]], is_nested: bool, start: str
) -> None:
    for _ in range(2):  # once in the thread that reads the file, once on the event loop
        with pytest.raises(InvalidInputError, match="which has the ids 0 to 100255 ") as caught:
            await vocabulary.decode(pieces, is_nested=is_nested)
        assert caught.value.detail.startswith(start)
        assert caught.value.extensions["field"] == "input"


async def test_many_ids_are_decoded_as_few_are(vocabulary: TokenVocabulary) -> None:
    ids = [number % SIZE for number in range(3 * MAX_INLINE_IDS)]
    tokens = token_bytes()
    assert await vocabulary.decode([ids]) == [b"".join(tokens[number] for number in ids).decode(errors="ignore")]


async def test_requests_that_arrive_together_read_the_file_once(tmp_path: Path) -> None:
    """The file disappears after the first reading: a second one would fail."""
    copy = tmp_path / "copy.tiktoken"
    shutil.copy(CL100K_BASE, copy)
    vocabulary = TokenVocabulary(copy)
    found = await asyncio.gather(*(vocabulary.decode([[9906]]) for _ in range(8)))
    copy.unlink()
    assert [*found, await vocabulary.decode([[1917]])] == [["Hello"]] * 8 + [[" world"]]


async def test_callers_that_disconnect_do_not_block_the_others(vocabulary: TokenVocabulary) -> None:
    ids = list(range(MAX_INLINE_IDS + 1))
    tasks = [asyncio.create_task(vocabulary.decode([ids])) for _ in range(4)]
    await asyncio.sleep(0)  # the first one is in the thread now
    for task in tasks[:2]:
        task.cancel()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(text, asyncio.CancelledError) for text in found] == [True, True, False, False]
    assert await vocabulary.decode([ids]) == found[3]


async def test_more_waiting_ids_than_a_callers_share_are_rejected_at_once() -> None:
    ids = list(range(MAX_INLINE_IDS + 1))
    vocabulary = TokenVocabulary(max_waiting_s=2 * len(ids) * SECONDS_PER_ID)
    found = await asyncio.gather(*(vocabulary.decode([ids]) for _ in range(3)), return_exceptions=True)
    assert [isinstance(text, OverloadedError) for text in found] == [False, True, True]
    assert len(await vocabulary.decode([ids])) == 1


@pytest.mark.parametrize("content", [None, b"IQ== 0\n"], ids=["no-file", "another-file"])
async def test_without_the_vocabulary_the_error_names_the_setting_of_langchain(
    content: bytes | None, tmp_path: Path
) -> None:
    path = tmp_path / "cl100k_base.tiktoken"
    if content is not None:
        path.write_bytes(content)
    vocabulary = TokenVocabulary(path)
    with pytest.raises(InvalidInputError, match="check_embedding_ctx_length=False") as caught:
        await vocabulary.decode([[1]])
    assert caught.value.extensions == {"field": "input"}
    shutil.copy(CL100K_BASE, path)  # an operator adds it
    assert await vocabulary.decode([[9906]]) == ["Hello"]
