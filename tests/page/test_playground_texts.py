"""How the Playground reads texts from lines and files, and cuts them into pieces by token."""

import base64
from typing import Any

import pytest

from tests.support.page_modules import PageModules

LINES = 'import { textsOf } from "./texts.js";\nreturn textsOf(given);'
FILE = """
import { textsOfFile } from "./texts.js";
const file = new File([Buffer.from(given.bytes, "base64")], given.name, { type: given.type ?? "" });
return (await textsOfFile(file).catch((error) => ({ error: error.message, name: error.constructor.name })));
"""


def read(modules: PageModules, name: str, content: str | bytes, media_type: str = "") -> Any:
    raw = content if isinstance(content, bytes) else content.encode()
    return modules.run(FILE, {"name": name, "bytes": base64.b64encode(raw).decode(), "type": media_type})


@pytest.mark.parametrize(
    ("value", "texts", "facts"),
    [
        pytest.param("", [], ([], 0, 0), id="nothing"),
        pytest.param("a\nb", ["a", "b"], ([0, 1], 0, 0), id="two"),
        pytest.param("a\n", ["a"], ([0], 0, 0), id="ends-with-a-line-break"),
        pytest.param("\na\n \t\n\n b \n", ["a", " b "], ([1, 4], 3, 0), id="blank-lines"),
        pytest.param("a\r\nb\rc", ["a", "b", "c"], ([0, 1, 2], 0, 0), id="other-line-breaks"),
        pytest.param("a\na\na", ["a", "a", "a"], ([0, 1, 2], 0, 2), id="repeated"),
        pytest.param("\u3000\n\ufeff\n\x1c\n👩\u200d👧", ["👩\u200d👧"], ([3], 3, 0), id="odd-blanks"),
    ],
)
def test_lines_are_texts(modules: PageModules, value: str, texts: list[str], facts: tuple[list[int], int, int]) -> None:
    """*facts*: the lines of the texts, how many lines are blank, and how many texts repeat an earlier one."""
    lines, blank, repeated = facts
    found = modules.run(LINES, value)
    assert found == {"texts": texts, "lines": lines, "blank": blank, "over": 0, "repeated": repeated}


def test_texts_after_the_first_thousand_are_counted_and_left_out(modules: PageModules) -> None:
    found = modules.run(LINES, "\n".join(f"text {number}" for number in range(1003)))
    assert (len(found["texts"]), found["texts"][-1], found["over"]) == (1000, "text 999", 3)


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        pytest.param("x.txt", "a\nb", ["a", "b"], id="txt"),
        pytest.param("X.TXT", "\ufeffa\r\nb", ["a", "b"], id="byte-order-mark"),
        pytest.param("x.json", '["a", "b"]', ["a", "b"], id="json-strings"),
        pytest.param("x.json", '{"texts": ["a", "b"]}', ["a", "b"], id="json-request"),
        pytest.param("x.json", '[{"id": 1, "text": "a"}, {"content": "b"}]', ["a", "b"], id="json-objects"),
        pytest.param("x.jsonl", '{"text": "a"}\n\n"b"\n', ["a", "b"], id="jsonl"),
        pytest.param("x.csv", "a,1\nb,2\n", ["a", "b"], id="csv-first-column"),
        pytest.param("x.csv", 'id,Text\r\n1,"a, ""x"""\r\n2,b\r\n', ['a, "x"', "b"], id="csv-column-text"),
        pytest.param("x.csv", 'text\n"a\nb"\n', ["a b"], id="csv-line-break-in-a-cell"),
        pytest.param("x.csv", "1,text\n,\n3", ["", ""], id="csv-missing-cells"),
    ],
)
def test_files_contain_texts(modules: PageModules, name: str, content: str, texts: list[str]) -> None:
    assert read(modules, name, content)["texts"] == texts


def test_what_was_done_to_a_file_is_said(modules: PageModules) -> None:
    assert read(modules, "x.csv", "id,text\n1,a")["note"] == "x.csv (column “text”)"
    assert read(modules, "x.csv", "a,1")["note"] == "x.csv (first column)"
    assert read(modules, "x.json", '["a\\n b", "c"]') == {
        "texts": ["a b", "c"],
        "note": "x.json: line breaks within one text became spaces",
    }


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        pytest.param("x.pdf", "a", "x.pdf: this page reads .txt, .json, .jsonl and .csv files.", id="other-kind"),
        pytest.param("x.txt", b"\xff\xfe\x00", "x.txt: the file is not UTF-8 text.", id="not-utf-8"),
        pytest.param(
            "x.txt", b"a" * 6_000_000, "x.txt: 5.7 MB are more than the 5 MB this page reads.", id="too-large"
        ),
        pytest.param("x.json", "[1]", 'x.json: entry 1 is neither a string nor an object with "text".', id="number"),
        pytest.param("x.json", "[null]", 'x.json: entry 1 is neither a string nor an object with "text".', id="null"),
        pytest.param(
            "x.json", "null", 'x.json: expected a JSON array of strings, or of objects with "text".', id="no-list"
        ),
        pytest.param("x.json", "[", "x.json is not valid JSON.", id="broken-json"),
        pytest.param("x.jsonl", '"a"\n{', "x.jsonl: line 2 is not valid JSON.", id="broken-jsonl"),
        pytest.param("x.csv", 'a\n"b', "x.csv: row 2 has a stray double quote.", id="broken-csv"),
    ],
)
def test_files_without_texts_are_rejected_in_words(
    modules: PageModules, name: str, content: str | bytes, words: str
) -> None:
    assert read(modules, name, content) == {"error": words, "name": "FileError"}


PIECES = 'import { piecesOf } from "./tokens.js";\nreturn piecesOf(given.text, given.tokens, given.max);'


def token(name: str, start: int | None = None, end: int | None = None) -> dict[str, Any]:
    return {"token": name, "id": 7, "start": start, "end": end}


def characters(found: Any) -> list[str]:
    return [piece["characters"] for piece in found["pieces"]]


def test_positions_count_code_points(modules: PageModules) -> None:
    tokens = [token("[CLS]"), token("[UNK]", 0, 3), token("שלום", 4, 8), token("[SEP]")]
    found = modules.run(PIECES, {"text": "👩\u200d👧 שלום!", "tokens": tokens, "max": None})
    assert characters(found) == ["[CLS]", "👩\u200d👧", " ", "שלום", "[SEP]", "!"]
    assert [piece.get("isSpecial", False) for piece in found["pieces"]] == [True, False, False, False, True, False]
    assert (found["cut"], found["left"]) == (None, 0)


def test_tokens_within_one_character_are_named(modules: PageModules) -> None:
    """Vocabularies of bytes cut an emoji into several tokens with the same characters."""
    found = modules.run(
        PIECES, {"text": "👧a", "tokens": [token("ðŁ", 0, 1), token("ĳ§", 0, 1), token("a", 1, 2)], "max": None}
    )
    assert characters(found) == ["👧", "ĳ§", "a"]


@pytest.mark.parametrize(("limit", "seen"), [(5, None), (4, ["[CLS]", "a", " ", "b"]), (2, ["[CLS]"])])
def test_the_cut_is_before_the_first_token_that_the_model_does_not_see(
    modules: PageModules, limit: int, seen: list[str] | None
) -> None:
    """The last special token keeps its place: of five tokens and a limit of four, the third word is lost."""
    tokens = [token("[CLS]"), token("a", 0, 1), token("b", 2, 3), token("c", 4, 5), token("[SEP]")]
    found = modules.run(PIECES, {"text": "a b c", "tokens": tokens, "max": limit})
    assert (found["cut"] is None) == (seen is None)
    if seen is not None:
        assert characters(found)[: found["cut"]] == seen


def test_pieces_of_a_long_text_have_a_limit_and_include_the_cut(modules: PageModules) -> None:
    tokens = [token("[CLS]"), *(token("a", i, i + 1) for i in range(5000)), token("[SEP]")]
    found = modules.run(PIECES, {"text": "a" * 5000, "tokens": tokens, "max": 2048})
    assert found["cut"] == 2047
    assert found["left"] == 5002 - len(found["pieces"]) == 5002 - 2087
