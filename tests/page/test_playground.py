"""The Playground in a real browser, on a real server with the bundled model."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from playwright.sync_api import Page, Route, expect

from tests.support.playground_page import Playground
from tests.support.servers import ServerProcess

AUDIT = Path(__file__).with_name("audit.js").read_text().rstrip().removesuffix(";")

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]

MINUS = "\N{MINUS SIGN}"
READBACK = "willReadFrequently"
"""What Chromium warns of when a test reads the pixels of a canvas."""
KEY = "a-key-for-tests-0123456789"
TEXTS = [
    "How do I reset my password?",
    "I forgot my login and cannot sign in.",
    "Bananas ripen on the kitchen table.",
    "Donaudampfschifffahrtsgesellschaft",
    "كيف أعيد تعيين كلمة المرور؟",
    "👨\u200d👩\u200d👧 on holiday",
]

Open = Callable[..., Playground]


@pytest.fixture
def playground(open_page: Callable[..., Page], server_with: Callable[..., ServerProcess]) -> Open:
    """Opens the Playground of a server with the settings given."""

    def open_playground(settings: dict[str, str] | None = None, **options: Any) -> Playground:
        return Playground(open_page(f"{server_with(**(settings or {})).url}/", **options))

    return open_playground


def vectors_of(playground: Playground, texts: list[str], **options: Any) -> Any:
    base = playground.page.url.partition("#")[0]
    answer = httpx.post(f"{base}embed/batch", json={"texts": texts, **options}, timeout=30)
    return np.array(answer.raise_for_status().json()["embeddings"])


def lightness(colour: list[int]) -> float:
    return float(np.dot(colour, [0.2126, 0.7152, 0.0722]))


def test_embeds_and_says_what_was_done(playground: Open) -> None:
    shown = playground({"RESULT_CACHE_MB": "8"})
    shown.embed([*TEXTS, "", TEXTS[0]])
    assert shown.errors() == []
    assert shown.page.get_by_text("7 texts, 1 repeated, 1 blank line left out.").is_visible()
    summary = shown.page.locator(".pg-summary").inner_text()
    assert summary.startswith("sentence-transformers/all-MiniLM-L6-v2 · 7 texts · 384 dimensions, float32 · ")
    assert re.search(r" · \d+ ms in the service \(.*infer \d", summary)
    shown.start()
    shown.wait()
    expect(shown.page.locator(".pg-summary")).to_contain_text("from the cache")
    again = shown.page.locator(".pg-summary").inner_text()
    assert re.search(r" · 7 from the cache · \d+ ms in the service \(cache \d", again)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_similar_pairs_stand_out_on_the_heat_map(playground: Open, theme: str) -> None:
    shown = playground(theme=theme, expected=[READBACK])
    shown.embed(TEXTS)
    background = 255.0 if theme == "light" else 0.0
    contrasts = [abs(lightness(shown.cell(0, other, count=len(TEXTS))) - background) for other in (0, 1, 2)]
    assert contrasts == sorted(contrasts, reverse=True)
    assert contrasts[1] > contrasts[2] + 30
    assert shown.cell(0, 1, count=len(TEXTS)) == shown.cell(1, 0, count=len(TEXTS))


def test_heat_map_is_drawn_anew_when_the_theme_changes(playground: Open) -> None:
    shown = playground(theme="light", expected=[READBACK])
    shown.embed(TEXTS)
    before = lightness(shown.cell(0, 2, count=len(TEXTS)))
    shown.page.emulate_media(color_scheme="dark")
    shown.wait_for_drawing()
    assert lightness(shown.cell(0, 2, count=len(TEXTS))) < before - 60


def test_keys_read_the_pairs_of_the_heat_map_and_the_texts_of_the_map(playground: Open) -> None:
    shown = playground()
    shown.embed(TEXTS)
    units = vectors_of(shown, TEXTS)
    heat = shown.page.get_by_label("Similarity of 6 texts, as a map of colours")
    heat.focus()
    heat.press("ArrowRight")
    heat.press("ArrowDown")
    heat.press("ArrowRight")
    cosine = f"{units[1] @ units[2]:.2f}".replace("-", MINUS)
    expect(shown.card("Similarity").locator(".pg-readout")).to_contain_text(cosine)
    expect(shown.card("Similarity").locator("[aria-live]")).to_contain_text(f"Texts 2 and 3: {cosine}.")
    plane = shown.page.get_by_label("Map of 6 texts")
    plane.focus()
    plane.press("ArrowRight")
    order = [int(index) for index in np.argsort(-(units @ units[0]))[1:]]
    nearest = shown.page.get_by_role("list", name="Nearest neighbours").locator("bdi")
    assert nearest.all_inner_texts() == [TEXTS[index] for index in order]


def test_pointer_reads_a_pair(playground: Open) -> None:
    shown = playground()
    shown.embed(TEXTS)
    heat = shown.page.locator("canvas.pg-heat")
    width = heat.evaluate("(canvas) => canvas.clientWidth")
    heat.hover(position={"x": 30 + 1.5 * (width - 31) / 6, "y": 2.5 * (width - 31) / 6})
    expect(shown.card("Similarity").locator(".pg-readout bdi")).to_have_text([TEXTS[2], TEXTS[1]])


def test_tables_name_the_most_and_the_least_similar_pair(playground: Open) -> None:
    shown = playground()
    shown.embed(TEXTS)
    units = vectors_of(shown, TEXTS)
    cosines = sorted(float(units[a] @ units[b]) for a in range(6) for b in range(a + 1, 6))
    for caption, cosine in (("Most similar", cosines[-1]), ("Least similar", cosines[0])):
        first = shown.page.get_by_role("table", name=caption).locator("tbody td").first
        expect(first).to_have_text(f"{cosine:.2f}".replace("-", MINUS))


def test_tokens_are_pieces_and_the_cut_is_marked(playground: Open) -> None:
    shown = playground()
    shown.embed([TEXTS[3], "word " * 400, TEXTS[5]])
    rows = shown.card("Tokens and vectors").locator(".pg-text")
    expect(rows.nth(0).locator(".pg-token").first).to_have_text("Dona")
    assert "".join(rows.nth(0).locator(".pg-token").all_inner_texts()) == TEXTS[3]
    expect(rows.nth(1).locator(".pg-cut")).to_have_count(1)
    expect(rows.nth(1).locator(".pg-token:not(.pg-beyond)")).to_have_count(254)
    expect(rows.nth(1)).to_contain_text("402 tokens, cut")
    expect(rows.nth(2).locator(".pg-token").first).to_have_text("👨\u200d👩\u200d👧")


def test_strips_have_a_column_per_number_in_two_directions_of_colour(playground: Open) -> None:
    shown = playground()
    shown.embed(TEXTS[:1])
    strip = shown.page.locator("canvas.pg-strip")
    assert strip.get_attribute("width") == "384"
    drawn = strip.evaluate("(canvas) => [...canvas.getContext('2d').getImageData(0, 0, 384, 1).data]")
    colours = np.reshape(drawn, (384, 4)).astype(int)
    [vector] = vectors_of(shown, TEXTS[:1])
    high, low = np.argmax(vector), np.argmin(vector)
    assert colours[high, 2] > colours[high, 0]  # blue
    assert colours[low, 0] > colours[low, 2]  # orange


def test_search_ranks_the_texts_and_puts_the_query_on_the_map(playground: Open) -> None:
    shown = playground()
    shown.embed(TEXTS)
    before = shown.page.locator("canvas.pg-map").evaluate("(canvas) => canvas.toDataURL()")
    assert shown.search("cannot log in")[0] == TEXTS[1]
    shown.wait_for_drawing()
    assert shown.page.locator("canvas.pg-map").evaluate("(canvas) => canvas.toDataURL()") != before


def test_two_sets_of_options_are_shown_side_by_side(playground: Open) -> None:
    shown = playground(expected=[READBACK])
    shown.compare()
    shown.choose("dtype", "ubinary", side=1)
    shown.embed(TEXTS)
    expect(shown.page.locator("canvas.pg-heat")).to_have_count(2)
    expect(shown.card("Similarity")).to_contain_text(
        re.compile(r"A and B agree on the nearest neighbour of \d of 6 texts")
    )
    expect(shown.page.locator(".pg-summary p").nth(1)).to_contain_text("384 dimensions, ubinary")
    assert shown.cell(0, 2, count=6, side=0) != shown.cell(0, 2, count=6, side=1)
    shown.page.get_by_label("Map of 6 texts").first.press("End")
    expect(shown.card("Map").locator(".pg-chosen bdi")).to_have_text([TEXTS[5], TEXTS[5]])


def test_two_models_are_shown_side_by_side(playground: Open, tiny_models: Path) -> None:
    shown = playground({"MODELS_DIR": str(tiny_models), "REQUIRED_MODELS": "tiny/one"})
    shown.compare()
    shown.choose("model_name", "tiny/two", side=1)
    shown.embed(["one two", "two three"])
    assert shown.errors() == []
    names = [line.split(" · ")[0] for line in shown.page.locator(".pg-summary p").all_inner_texts()]
    assert names == ["A: tiny/one", "B: tiny/two"]
    expect(shown.page.locator("canvas.pg-map")).to_have_count(2)
    rows = shown.page.locator(".pg-text")
    expect(rows.first.locator("canvas.pg-strip")).to_have_count(2)
    expect(rows.first.locator(".pg-tokens")).to_have_count(2)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "uint8", "binary", "ubinary"])
def test_downloads_are_what_the_service_answers(playground: Open, dtype: str) -> None:
    shown = playground()
    shown.choose("dtype", dtype)
    shown.embed(TEXTS)
    expected = vectors_of(shown, TEXTS, dtype=dtype)
    name, path = shown.download("Download .npy")
    assert name == f"all-MiniLM-L6-v2-{dtype}-6x384.npy"
    matrix = np.load(path, allow_pickle=False)
    assert matrix.dtype == np.dtype({"binary": "int8", "ubinary": "uint8"}.get(dtype, dtype))
    assert np.allclose(matrix, expected, atol=1e-6)
    name, path = shown.download("Download JSON")
    saved = json.loads(Path(path).read_text("utf-8"))
    assert saved["texts"] == TEXTS
    assert np.allclose(saved["embeddings"], expected, atol=1e-6)


def test_files_fill_the_texts(playground: Open) -> None:
    shown = playground()
    content = b"id,text\n1,first\n2,second\n"
    shown.page.locator("input[type=file]").set_input_files({"name": "x.csv", "mimeType": "text/csv", "buffer": content})
    expect(shown.texts).to_have_value("first\nsecond")
    expect(shown.page.get_by_text("x.csv (column “text”). 2 texts.")).to_be_visible()
    shown.page.locator("input[type=file]").set_input_files({"name": "x.pdf", "mimeType": "", "buffer": b"%PDF"})
    expect(shown.page.get_by_text("x.pdf: this page reads .txt, .json, .jsonl and .csv files.")).to_be_visible()


def test_a_dropped_file_fills_the_texts(playground: Open) -> None:
    shown = playground()
    files = shown.page.evaluate_handle("""() => {
        const dropped = new DataTransfer();
        dropped.items.add(new File(["first\\nsecond"], "x.txt", { type: "text/plain" }));
        return dropped;
    }""")
    shown.texts.dispatch_event("drop", {"dataTransfer": files})
    expect(shown.texts).to_have_value("first\nsecond")


def test_an_error_about_a_text_names_its_line(playground: Open) -> None:
    shown = playground(expected=["status of 400"])
    shown.embed(["first", "", "x" * 100_000, "last"])
    assert shown.errors() == ["Line 3: 100000 characters are more than the 8192 allowed in one text. Show the line"]
    shown.page.get_by_role("button", name="Show the line").click()
    assert shown.texts.evaluate("(area) => [area.selectionStart, area.selectionEnd]") == [7, 100_007]


def test_without_texts_the_page_says_so_beside_them(playground: Open) -> None:
    shown = playground()
    shown.fill([" ", ""])
    shown.start()
    assert shown.errors() == ["Enter at least one text."]
    assert shown.texts.get_attribute("aria-invalid") == "true"


def test_an_error_about_a_model_is_beside_the_model_in_the_words_of_the_service(playground: Open) -> None:
    """There is no hub here, so a model that must be downloaded is not available."""
    shown = playground(expected=["status of 503"])
    shown.choose("model_name", "BAAI/bge-small-en-v1.5")
    shown.embed(TEXTS)
    error = shown.page.locator("select[name=model_name] ~ .field-error").first
    expect(error).to_contain_text("BAAI/bge-small-en-v1.5")
    assert shown.errors() == [error.inner_text()]


def test_only_dimensions_that_the_model_was_trained_for_are_offered(playground: Open) -> None:
    shown = playground()
    dimensions = shown.page.locator("select[name=dimensions]").first.locator("option")
    expect(dimensions).to_have_text(["384 (all)"])
    shown.choose("model_name", "nomic-ai/nomic-embed-text-v1.5")
    expect(dimensions.filter(has_text="256")).to_have_count(1)
    sizes = [text.split()[0] for text in dimensions.all_inner_texts()]
    assert sizes[:3] == ["768", "64", "96"]
    assert "32" not in sizes


def test_batches_follow_the_limit_of_the_service(playground: Open) -> None:
    shown = playground({"MAX_BATCH_SIZE": "5"}, expected=["status of 400"])
    shown.embed([f"text {number}" for number in range(12)])
    assert shown.errors() == []
    assert "12 texts" in shown.page.locator(".pg-summary").inner_text()


def hold_first(playground: Playground) -> list[Route]:
    """Hold the first request for vectors until the test continues it; the others pass."""
    held: list[Route] = []

    def decide(route: Route) -> None:
        if held:
            route.continue_()
        else:
            held.append(route)

    playground.page.route("**/embed/batch", decide)
    return held


def test_a_cancelled_request_leaves_the_results_from_before(playground: Open) -> None:
    shown = playground()
    shown.embed(TEXTS)
    hold_first(shown)
    shown.fill(["other", "texts"])
    expect(shown.page.get_by_text("Texts or options have changed since.")).to_be_visible()
    shown.start()
    shown.page.get_by_role("button", name="Cancel").click()
    shown.wait()
    assert shown.status.inner_text() == "Cancelled. Below are the results from before."
    assert "6 texts" in shown.page.locator(".pg-summary").inner_text()


def test_an_older_request_never_replaces_a_newer_one(playground: Open) -> None:
    shown = playground()
    held = hold_first(shown)
    shown.fill(TEXTS)
    shown.start()
    expect(shown.page.get_by_role("button", name="Cancel")).to_be_visible()
    shown.embed(["newer", "texts"])
    held[0].fulfill(json={"embeddings": [], "tokens": [], "truncated": [], "dimension": 1, "model_name": "old"})
    shown.wait_for_drawing()
    assert "2 texts" in shown.page.locator(".pg-summary").inner_text()
    assert shown.status.inner_text() == "Done."


def test_a_service_that_is_down_is_an_error_in_words(playground: Open) -> None:
    shown = playground(expected=["ERR_FAILED"])
    shown.page.route("**/embed/batch", lambda route: route.abort())
    shown.embed(TEXTS)
    assert shown.errors() == ["The service does not answer."]
    shown.page.unroute("**/embed/batch")
    shown.start()
    shown.wait()
    assert shown.errors() == []


def test_with_a_key_the_code_has_a_placeholder(playground: Open) -> None:
    shown = playground({"API_KEYS": KEY}, expected=["status of 401"])
    shown.fill(TEXTS)
    shown.start()
    shown.page.get_by_label("API key or token").fill(KEY)
    shown.page.get_by_role("button", name="Use this key").click()
    shown.wait()
    for language in ("curl", "Python", "JavaScript", "OpenAI client"):
        code = shown.code(language)
        assert "YOUR_API_KEY" in code
        assert KEY not in code
        assert shown.page.url.partition("#")[0] in code


def test_nothing_that_was_typed_is_stored_or_in_the_address(playground: Open) -> None:
    shown = playground()
    shown.embed(TEXTS)
    shown.search("a secret")
    stored = shown.page.evaluate("() => JSON.stringify([{ ...localStorage }, { ...sessionStorage }, document.cookie])")
    assert not any(text in stored + shown.page.url for text in ("password", "secret", "Donau"))


def test_works_behind_a_prefix(playground: Open) -> None:
    shown = playground()
    base = shown.page.url.partition("#")[0]

    def without_prefix(route: Route) -> None:
        route.fulfill(response=route.fetch(url=route.request.url.replace(f"{base}ai/", base)))

    shown.page.route(f"{base}ai/**", without_prefix)
    shown.page.route(re.compile(f"{re.escape(base)}(?!ai/)"), lambda route: route.abort())
    shown.page.goto(f"{base}ai/")
    behind = Playground(shown.page)
    behind.embed(TEXTS)
    assert behind.errors() == []
    assert behind.search("cannot log in")[0] == TEXTS[1]
    assert f"{base}ai/embed/batch" in behind.code("curl")
    assert f"{base}ai/v1" in behind.code("OpenAI client")


@pytest.mark.parametrize("count", [1, 12, 500])
@pytest.mark.parametrize("width", [360, 1280])
def test_any_number_of_texts_fits_any_width(playground: Open, count: int, width: int) -> None:
    shown = playground(width=width)
    shown.embed([f"{number} {TEXTS[number % 6]} {'long' * (number % 7) * 20}" for number in range(count)])
    assert shown.errors() == []
    assert shown.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    rows = shown.page.locator(".pg-text")
    expect(rows).to_have_count(min(count, 12))
    if count > 12:
        shown.page.get_by_role("button", name="Show 50 more of 488").click()
        expect(rows).to_have_count(62)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_results_are_named_and_readable(playground: Open, theme: str) -> None:
    shown = playground(theme=theme)
    shown.compare()
    shown.choose("dtype", "int8", side=1)
    shown.embed([*TEXTS, "word " * 400])
    shown.search("cannot log in")
    expect(shown.page.locator(".pg-cut")).to_have_count(1)
    for check in ("unnamed", "brokenReferences", "skippedHeadings", "lowContrast"):
        assert shown.page.evaluate(f"() => {AUDIT}.{check}()") == [], check
