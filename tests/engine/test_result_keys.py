"""Keys of results: equal for texts with equal results, and different as soon as anything differs that counts."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.fingerprint import ModelFingerprint
from engine.manifest import Prompts
from engine.model_cards import ModelCard
from engine.options import DEFAULTS, EmbedOptions
from engine.result_keys import KEY_BYTES, MAX_STARTED, ResultKeys, window_keys
from engine.runtime import Runtime

RUNTIME = Runtime("1", "1", "1", "cpu")
FINGERPRINT = ModelFingerprint("main", "0" * 64, "0123456789abcdef", RUNTIME)
CARD = ModelCard(prompts=Prompts(query="find: ", document="text: "))
SECRET = b"s" * 32
KEYS = ResultKeys(SECRET, per_caller=False)


def key_of(
    text: str = "one",
    *,
    keys: ResultKeys = KEYS,
    fingerprint: ModelFingerprint = FINGERPRINT,
    card: ModelCard = CARD,
    options: EmbedOptions = DEFAULTS,
    caller: str = "a",
) -> bytes:
    [key] = keys.keys(fingerprint, card, [text], options, (caller,))
    assert len(key) == KEY_BYTES
    return key


@given(st.lists(st.text(), min_size=1, unique=True))
def test_texts_have_equal_keys_only_if_they_are_equal(texts: list[str]) -> None:
    keys = KEYS.keys(FINGERPRINT, CARD, texts, DEFAULTS, ("a",))
    assert len(set(keys)) == len(texts)
    assert keys == [
        ResultKeys(SECRET, per_caller=False).keys(FINGERPRINT, CARD, [text], DEFAULTS, ("b",))[0] for text in texts
    ]


def test_text_that_is_not_valid_unicode_has_a_key() -> None:
    assert key_of("\ud800") != key_of("\ud801")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"text": "One"}, id="text"),
        pytest.param({"keys": ResultKeys(b"t" * 32, per_caller=False)}, id="secret"),
        pytest.param({"fingerprint": replace(FINGERPRINT, digest="1" * 16)}, id="model"),
        pytest.param({"fingerprint": replace(FINGERPRINT, runtime=replace(RUNTIME, cpu="other"))}, id="runtime"),
        pytest.param({"options": EmbedOptions(input_type="query")}, id="prompt"),
        pytest.param({"options": EmbedOptions(truncate="start")}, id="truncated-end"),
        pytest.param({"options": EmbedOptions(max_tokens=4)}, id="tokens"),
        pytest.param({"options": EmbedOptions(long_text="mean")}, id="mean"),
        pytest.param({"options": EmbedOptions(long_text="chunks")}, id="chunks"),
    ],
)
def test_what_changes_the_result_changes_the_key(change: dict[str, Any]) -> None:
    assert key_of(**change) != key_of()


def test_prompt_is_no_part_of_the_text() -> None:
    """Truncation keeps the prompt, so the same characters have another result if they are the text's own."""
    assert key_of("find: one") != key_of("one", options=EmbedOptions(input_type="query"))


def test_type_of_input_without_a_prompt_counts_only_for_models_with_tasks() -> None:
    query, document = EmbedOptions(input_type="query"), EmbedOptions(input_type="document")
    plain, tasked = ModelCard(), ModelCard(uses_tasks=True)
    assert key_of(card=plain, options=query) == key_of(card=plain, options=document) == key_of(card=plain)
    assert key_of(card=tasked, options=query) != key_of(card=tasked, options=document)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(EmbedOptions(dimensions=2, allow_untrained_dimensions=True), id="dimensions"),
        pytest.param(EmbedOptions(normalize=True), id="normalized"),
        pytest.param(EmbedOptions(dtype="int8"), id="int8"),
        pytest.param(EmbedOptions(dtype="binary"), id="binary"),
        pytest.param(EmbedOptions(truncate="end"), id="the-default-end"),
        pytest.param(EmbedOptions(truncate="none"), id="not-truncated"),
        pytest.param(EmbedOptions(clip=True), id="clipped"),
        pytest.param(EmbedOptions(allow_blank=True), id="blank"),
    ],
)
def test_what_is_applied_to_the_result_does_not_change_the_key(options: EmbedOptions) -> None:
    assert key_of(options=options) == key_of()


def test_text_that_is_clipped_has_a_key_of_its_own() -> None:
    def keys_of(*, clip: bool) -> list[bytes]:
        options = EmbedOptions(clip=clip)
        return KEYS.keys(FINGERPRINT, CARD, ["three", "threes"], options, ("a",), max_characters=5)

    clipped, whole = keys_of(clip=True), keys_of(clip=False)
    assert clipped[0] == whole[0]
    assert clipped[1] != whole[1]


def test_model_that_cuts_texts_at_the_start_shares_keys_with_requests_for_that() -> None:
    def key(options: EmbedOptions) -> list[bytes]:
        return KEYS.keys(FINGERPRINT, CARD, ["one"], options, ("a",), default_side="start")

    assert key(DEFAULTS) == key(EmbedOptions(truncate="start")) != key(EmbedOptions(truncate="end"))
    assert key(DEFAULTS) != [key_of()]


def test_callers_share_keys_unless_each_has_their_own() -> None:
    own = ResultKeys(SECRET, per_caller=True)
    assert key_of(caller="a") == key_of(caller="b")
    assert len({key_of(keys=own, caller="a"), key_of(keys=own, caller="b"), key_of()}) == 3
    assert key_of(keys=own, caller="a") == key_of(keys=own, caller="a")


def test_keys_stay_the_same_when_many_callers_come_between() -> None:
    own = ResultKeys(SECRET, per_caller=True)
    first = key_of(keys=own)
    assert len({key_of(keys=own, caller=str(number)) for number in range(2 * MAX_STARTED)}) == 2 * MAX_STARTED
    assert key_of(keys=own) == first


def test_windows_of_a_text_have_keys_of_their_own() -> None:
    assert len({*window_keys(key_of(), 3), *window_keys(key_of("two"), 3), key_of()}) == 7
    assert window_keys(key_of(), 3)[:2] == window_keys(key_of(), 2)


def test_namespace_is_that_of_model_and_runtime() -> None:
    assert FINGERPRINT.namespace == f"0123456789abcdef:{RUNTIME.id}"


NO_ZERO = st.binary(max_size=4).map(lambda part: part.replace(b"\0", b""))
REQUESTS = st.tuples(st.text(max_size=3), st.lists(NO_ZERO, max_size=3), st.binary(max_size=4))


@pytest.mark.parametrize("per_caller", [True, False])
@given(first=REQUESTS, second=REQUESTS)
def test_answers_to_different_requests_have_different_keys(
    first: tuple[str, list[bytes], bytes], second: tuple[str, list[bytes], bytes], *, per_caller: bool
) -> None:
    keys = ResultKeys(bytes(32), per_caller=per_caller)
    found = [keys.answer_key((caller,), *parts, body) for caller, parts, body in (first, second)]
    is_same = first[1:] == second[1:] and (not per_caller or first[0] == second[0])
    assert (found[0] == found[1]) is is_same


def test_parts_of_a_request_cannot_be_moved_into_one_another() -> None:
    keys = ResultKeys(bytes(32), per_caller=True)
    splits: list[Any] = [
        (("a\0/embed",), b"/x", b"", b"body"),
        (("a",), b"/embed", b"/x", b"\0body"),
        (("a",), b"/embed", b"/x", b"", b"body"),
        (("1",), b"a", b""),
        (("",), b"1\0a"),
    ]
    assert len({keys.answer_key(*split) for split in splits}) == len(splits)


def test_key_of_an_answer_is_not_that_of_a_result_and_depends_on_the_secret() -> None:
    assert (
        len({ResultKeys(bytes([number]) * 32, per_caller=False).answer_key(("a",), b"b") for number in range(3)}) == 3
    )
