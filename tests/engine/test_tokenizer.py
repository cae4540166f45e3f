"""Texts are counted, truncated and split into windows as by tokenizers itself, for three kinds of tokenizers."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from config import BUNDLED_MODELS_DIR
from engine.tokenizer import Side, TextTokenizer
from tests.support.odd_texts import WORDS, any_texts, word_lists

Make = Callable[[], Tokenizer]

MAX_TOKENS = 12
PROMPT = "query: "
DIRECTIONS: dict[Side, str] = {"end": "right", "start": "left"}


def word_pieces() -> Tokenizer:
    """Return the bundled model's tokenizer (WordPiece)."""
    return Tokenizer.from_file(str(BUNDLED_MODELS_DIR / "all-MiniLM-L6-v2" / "tokenizer.json"))


def bytes_of_text() -> Tokenizer:
    """Return a tokenizer of bytes, like GPT-2's: several tokens share one character; one special token, at the end."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*alphabet, "Ġh", "<end>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("Ġ", "h")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <end>", special_tokens=[("<end>", vocabulary["<end>"])]
    )
    return tokenizer


def sentence_pieces() -> Tokenizer:
    """Return a tokenizer whose tokens include the space before them, like XLM-R's: one may span prompt and text."""
    letters = [chr(number) for number in range(ord("a"), ord("z") + 1)]
    pieces = ["<s>", "</s>", "<unk>", "▁", *letters, "▁query", *(f"▁{word}" for word in WORDS)]
    vocabulary = [(piece, -float(number)) for number, piece in enumerate(pieces)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return tokenizer


MAKERS = [word_pieces, bytes_of_text, sentence_pieces]
PLAIN = {make: make() for make in MAKERS}
for _plain in PLAIN.values():
    _plain.no_truncation()
    _plain.no_padding()
OURS = {make: TextTokenizer(make(), adds_special_tokens=True, max_tokens=MAX_TOKENS) for make in MAKERS}
TRUNCATING: dict[tuple[Make, Side], Tokenizer] = {(make, side): make() for make in MAKERS for side in DIRECTIONS}
for (_, _side), _truncating in TRUNCATING.items():
    _truncating.no_padding()
    _truncating.enable_truncation(MAX_TOKENS, direction=DIRECTIONS[_side])

each_tokenizer = pytest.mark.parametrize("make", [pytest.param(make, id=make.__name__) for make in MAKERS])
each_side = pytest.mark.parametrize("side", ["start", "end"])
properties = settings(deadline=None, max_examples=40, derandomize=True)


def ids_of(make: Make, text: str, *, special: bool = True) -> list[int]:
    return list(PLAIN[make].encode(text, add_special_tokens=special).ids)


@each_tokenizer
@properties
@given(texts=st.lists(any_texts, max_size=5))
def test_tokens_are_those_of_the_models_own_tokenizer_in_the_order_given(make: Make, texts: list[str]) -> None:
    items = OURS[make].tokenize(texts)
    assert [item.tokens for item in items] == [len(ids_of(make, text)) for text in texts]
    for item, text in zip(items, texts, strict=True):
        assert item.length == min(item.tokens, MAX_TOKENS)
        assert item.is_truncated == (item.tokens > MAX_TOKENS)
        if not item.is_truncated:
            assert list(item.ids) == ids_of(make, text)


@each_side
@each_tokenizer
@properties
@given(text=any_texts)
def test_truncation_is_that_of_tokenizers_on_either_side(make: Make, side: Side, text: str) -> None:
    [item] = OURS[make].tokenize([text], side=side)
    assert list(item.ids) == list(TRUNCATING[make, side].encode(text).ids)


@each_tokenizer
@properties
@given(text=any_texts)
def test_truncation_at_the_start_keeps_the_prompt_and_the_special_tokens(make: Make, text: str) -> None:
    [item] = OURS[make].tokenize([text], prompt=PROMPT, side="start")
    whole = PLAIN[make].encode(PROMPT + text)
    assert item.tokens == len(whole.ids)
    assert item.length == min(item.tokens, max(MAX_TOKENS, len(ids_of(make, PROMPT)) + 1))
    assert item.ids[-1] == whole.ids[-1]
    inside = sum(
        not is_special and end <= len(PROMPT)
        for (_, end), is_special in zip(whole.offsets, whole.special_tokens_mask, strict=True)
    )
    before = whole.special_tokens_mask.index(0)
    assert list(item.ids[: before + inside]) == whole.ids[: before + inside]
    kept = item.length - before - inside
    assert list(item.ids[before + inside :]) == whole.ids[len(whole.ids) - kept :]


@properties
@given(text=any_texts)
def test_truncation_at_the_end_with_a_prompt_is_that_of_tokenizers(text: str) -> None:
    [item] = OURS[word_pieces].tokenize([text], prompt=PROMPT, side="end")
    assert list(item.ids) == list(TRUNCATING[word_pieces, "end"].encode(PROMPT + text).ids)


@properties
@given(text=any_texts)
def test_prompt_and_text_keep_the_tokens_that_each_has_alone(text: str) -> None:
    """The prompt ends with a space, where WordPiece always splits."""
    prompt = ids_of(word_pieces, PROMPT, special=False)
    own = ids_of(word_pieces, text, special=False)
    size = MAX_TOKENS - 2 - len(prompt)
    cls, sep = ids_of(word_pieces, "")
    [start] = OURS[word_pieces].tokenize([text], prompt=PROMPT, side="start")
    [end] = OURS[word_pieces].tokenize([text], prompt=PROMPT, side="end")
    assert list(start.ids) == [cls, *prompt, *own[-size:], sep]
    assert list(end.ids) == [cls, *prompt, *own[:size], sep]
    assert start.tokens == end.tokens == len(prompt) + len(own) + 2


@each_side
@properties
@given(words=word_lists)
def test_truncation_between_words_is_the_text_truncated_by_hand(side: Side, words: list[str]) -> None:
    size = MAX_TOKENS - 2
    by_hand = words[-size:] if side == "start" else words[:size]
    [item] = OURS[word_pieces].tokenize([" ".join(words)], side=side)
    assert list(item.ids) == ids_of(word_pieces, " ".join(by_hand))


@each_tokenizer
@pytest.mark.parametrize("prompt", [pytest.param("", id="no-prompt"), pytest.param(PROMPT, id="prompt")])
@properties
@given(text=any_texts)
def test_windows_contain_every_token_once_within_the_models_length(make: Make, prompt: str, text: str) -> None:
    [windows] = OURS[make].windows([text], prompt=prompt, with_spans=True)
    whole = PLAIN[make].encode(prompt + text)
    before = whole.special_tokens_mask.index(0) if 0 in whole.special_tokens_mask else len(whole.ids) - 1
    after = sum(whole.special_tokens_mask) - before
    body = [list(window.ids[window.length - after - window.weight : window.length - after]) for window in windows]
    heads = {tuple(window.ids[: window.length - after - window.weight]) for window in windows}
    [head] = heads
    assert [*head, *(number for part in body for number in part), *whole.ids[len(whole.ids) - after :]] == whole.ids
    assert all(window.tokens == len(whole.ids) for window in windows)
    assert all(list(window.ids[window.length - after :]) == whole.ids[len(whole.ids) - after :] for window in windows)
    size = max(1, MAX_TOKENS - len(head) - after)
    assert [window.weight for window in windows[:-1]] == [size] * (len(windows) - 1)
    assert 0 <= windows[-1].weight <= size
    if len(head) + after < MAX_TOKENS:
        assert all(window.length <= MAX_TOKENS for window in windows)


@each_tokenizer
@pytest.mark.parametrize("prompt", [pytest.param("", id="no-prompt"), pytest.param(PROMPT, id="prompt")])
@properties
@given(text=any_texts)
def test_spans_of_windows_ascend_within_the_callers_text(make: Make, prompt: str, text: str) -> None:
    [windows] = OURS[make].windows([text], prompt=prompt, with_spans=True)
    spans = [window.span for window in windows if window.span is not None]
    assert len(spans) == len(windows)
    assert all(0 <= start <= end <= len(text) for start, end in spans)
    filled = [span for span in spans if span != (0, 0)]
    assert [start for start, _ in filled] == sorted(start for start, _ in filled)
    assert [end for _, end in filled] == sorted(end for _, end in filled)


@pytest.mark.parametrize("prompt", [pytest.param("", id="no-prompt"), pytest.param(PROMPT, id="prompt")])
@properties
@given(words=word_lists)
def test_text_of_a_span_has_the_tokens_of_its_window(prompt: str, words: list[str]) -> None:
    text = "  " + "  ".join(words) + " "
    [windows] = OURS[word_pieces].windows([text], prompt=prompt, with_spans=True)
    size = MAX_TOKENS - len(ids_of(word_pieces, prompt))
    assert len(windows) == -(-len(words) // size)
    for number, window in enumerate(windows):
        assert window.span is not None
        part = text[slice(*window.span)]
        assert part.split() == words[number * size : (number + 1) * size]
        assert list(window.ids) == ids_of(word_pieces, prompt + part)


@properties
@given(text=any_texts)
def test_windows_are_the_same_without_their_spans(text: str) -> None:
    for prompt in ("", PROMPT):
        [with_spans] = OURS[word_pieces].windows([text], prompt=prompt, with_spans=True)
        [without] = OURS[word_pieces].windows([text], prompt=prompt)
        assert [(list(item.ids), item.weight) for item in without] == [
            (list(item.ids), item.weight) for item in with_spans
        ]
        assert all(item.span is None for item in without)


def test_windows_of_several_texts_are_separate() -> None:
    texts = ["apple " * 25, "", "house"]
    parts = OURS[word_pieces].windows(texts)
    assert [[item.weight for item in windows] for windows in parts] == [[10, 10, 5], [0], [1]]


@pytest.mark.parametrize("text", ["", " ", "\u200b", "\n\t"])
def test_text_without_tokens_is_one_window_of_special_tokens(text: str) -> None:
    [[window]] = OURS[word_pieces].windows([text], with_spans=True)
    assert (list(window.ids), window.weight, window.span) == (ids_of(word_pieces, ""), 0, (0, 0))


@each_tokenizer
@properties
@given(text=any_texts)
def test_tokens_of_include_every_token_with_its_characters_in_the_callers_text(make: Make, text: str) -> None:
    for prompt in ("", PROMPT):
        [tokens] = OURS[make].tokens_of([text], prompt=prompt)
        whole = PLAIN[make].encode(prompt + text)
        assert [(token.token, token.id) for token in tokens] == list(zip(whole.tokens, whole.ids, strict=True))
        for token, special in zip(tokens, whole.special_tokens_mask, strict=True):
            assert (token.start is None) == (token.end is None)
            assert not special or token.start is None
            if token.start is not None and token.end is not None:
                assert 0 <= token.start <= token.end <= len(text)


@pytest.mark.parametrize("prompt", [pytest.param("", id="no-prompt"), pytest.param(PROMPT, id="prompt")])
@properties
@given(words=word_lists)
def test_characters_of_tokens_slice_the_callers_text(prompt: str, words: list[str]) -> None:
    text = ", ".join(words)
    [tokens] = OURS[word_pieces].tokens_of([text], prompt=prompt)
    spanned = [token for token in tokens if token.start is not None]
    assert [token.token for token in spanned] == [text[token.start : token.end] for token in spanned]
    assert "".join(token.token for token in spanned) == text.replace(" ", "")
    bare = [token.token for token in tokens if token.start is None]
    assert bare == ["[CLS]", *(["query", ":"] if prompt else []), "[SEP]"]


def test_special_tokens_written_in_a_text_belong_to_the_text() -> None:
    """The model's tokenizer reads them as special tokens. They may be truncated; those that the model adds may not."""
    text = "[SEP] " * 20
    cls, sep = ids_of(word_pieces, "")
    [item] = OURS[word_pieces].tokenize([text], side="start")
    assert list(item.ids) == [cls] + [sep] * 11
    [windows] = OURS[word_pieces].windows([text])
    assert [window.weight for window in windows] == [10, 10]


@pytest.mark.parametrize(("direction", "side"), [("left", "start"), ("right", "end")])
def test_without_a_side_truncation_is_as_the_tokenizer_is_set_up(direction: str, side: Side) -> None:
    tokenizer = word_pieces()
    tokenizer.enable_truncation(MAX_TOKENS, direction=direction)
    ours = TextTokenizer(tokenizer, adds_special_tokens=True, max_tokens=None)
    text = " ".join(WORDS * 3)
    assert (ours.default_side, ours.max_tokens) == (side, MAX_TOKENS)
    assert list(ours.tokenize([text])[0].ids) == list(ours.tokenize([text], side=side)[0].ids)
    assert list(ours.tokenize([text])[0].ids) == list(OURS[word_pieces].tokenize([text], side=side)[0].ids)


def test_lower_limit_of_the_tokenizer_wins_over_the_stated_one() -> None:
    tokenizer = word_pieces()
    tokenizer.enable_truncation(7)
    assert TextTokenizer(tokenizer, adds_special_tokens=True, max_tokens=99).max_tokens == 7


def test_model_without_a_limit_truncates_nothing() -> None:
    ours = TextTokenizer(word_pieces(), adds_special_tokens=True, max_tokens=None)
    text = "apple " * 3000
    [item] = ours.tokenize([text], prompt=PROMPT, side="start")
    assert (item.length, item.is_truncated) == (3004, False)
    [[window]] = ours.windows([text], with_spans=True)
    assert (window.length, window.weight, window.span) == (3002, 3000, (0, len(text) - 1))


@pytest.mark.parametrize("side", ["start", "end"])
def test_model_without_special_tokens_gets_no_special_tokens(side: Side) -> None:
    ours = TextTokenizer(word_pieces(), adds_special_tokens=False, max_tokens=5)
    [item] = ours.tokenize([" ".join(WORDS)], side=side)
    own = ids_of(word_pieces, " ".join(WORDS), special=False)
    assert (item.tokens, list(item.ids)) == (10, own[-5:] if side == "start" else own[:5])
    [windows] = ours.windows([" ".join(WORDS)])
    assert [list(window.ids) for window in windows] == [own[:5], own[5:]]
    assert [item.length for item in ours.tokenize([""])] == [0]


INVISIBLE = ("\u200b", "\ufeff", "\u00ad", "\ufe0f", "\x00", "\x07", "\ue000", "\u0301", "\ufffd", "\U000e0041")


@each_tokenizer
@pytest.mark.parametrize("prompt", ["", PROMPT])
def test_text_is_blank_only_if_its_own_tokenizer_leaves_nothing_of_it(make: Make, prompt: str) -> None:
    """A tokenizer of bytes keeps every character; BERT's drops invisible ones; a lone space is no content."""
    texts = ["hello", *INVISIBLE, " ", "▁"]
    blank = [
        text
        for text in texts
        if list(OURS[make].blank([text], OURS[make].windows([text], prompt=prompt), prompt=prompt))
    ]
    assert blank == {word_pieces: [*INVISIBLE, " "], bytes_of_text: [" "], sentence_pieces: [" ", "▁"]}[make]


@each_tokenizer
def test_blank_texts_are_found_behind_their_prompt(make: Make) -> None:
    texts = ["h", "hello", " ", "apple", " "]
    for prompt in ("", PROMPT, "h"):
        assert list(OURS[make].blank(texts, OURS[make].windows(texts, prompt=prompt), prompt=prompt)) == [2, 4]
