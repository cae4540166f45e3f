"""The Playground in a browser, in the words of somebody who uses it."""

from collections.abc import Sequence
from typing import Any

from playwright.sync_api import Locator, Page

FRAMES = """async () => {
    for (let frame = 0; frame < 8; frame += 1) await new Promise(requestAnimationFrame);
}"""
"""Waits until all canvases are painted: one is painted in each frame."""
PIXEL = """(canvas, [x, y]) => {
    const ratio = canvas.width / canvas.clientWidth;
    return [...canvas.getContext("2d").getImageData(x * ratio, y * ratio, 1, 1).data].slice(0, 3);
}"""
GUTTER = 30
"""Width of the numbers beside the heat map, in CSS pixels."""


class Playground:
    """A page that shows the Playground, with its models listed."""

    def __init__(self, page: Page) -> None:
        self.page = page
        page.get_by_role("tab", name="Playground").click()
        page.locator("select[name=model_name] option").first.wait_for(state="attached")
        self.texts = page.get_by_label("Texts", exact=True)
        self.results = page.locator(".pg-results")
        self.status = page.locator(".pg-status")

    def fill(self, texts: Sequence[str]) -> None:
        self.texts.fill("\n".join(texts))

    def start(self) -> None:
        self.page.get_by_role("button", name="Embed", exact=True).click()

    def embed(self, texts: Sequence[str]) -> None:
        """Embed *texts* and wait until the results are shown, or an error is."""
        self.fill(texts)
        self.start()
        self.wait()

    def wait(self) -> None:
        self.page.locator(".pg-form[aria-busy=false]").wait_for()
        self.wait_for_drawing()

    def wait_for_drawing(self) -> None:
        self.page.evaluate(FRAMES)

    def choose(self, name: str, value: str, *, side: int = 0) -> None:
        """Choose the option *name*, such as `dtype`, of the first or second *side*."""
        self.page.locator(f"select[name={name}]").nth(side).select_option(value)

    def compare(self) -> None:
        self.page.get_by_label("Compare two models or options").check()

    def search(self, query: str) -> list[str]:
        """Return the texts found for *query*, best first."""
        self.page.get_by_role("searchbox").fill(query)
        self.page.get_by_role("button", name="Search").click()
        found = self.page.get_by_role("list", name="Results A")
        found.wait_for()
        return found.locator("bdi").all_inner_texts()

    def card(self, title: str) -> Locator:
        return self.page.locator(".pg-card").filter(has=self.page.get_by_role("heading", name=title, exact=True))

    def code(self, language: str) -> str:
        self.page.get_by_text(language, exact=True).click()
        return self.page.locator("pre code").inner_text()

    def cell(self, row: int, column: int, *, count: int, side: int = 0) -> list[int]:
        """Return the colour of a cell of the heat map, near a corner, where no score is written."""
        canvas = self.page.locator("canvas.pg-heat").nth(side)
        size = (canvas.evaluate("(canvas) => canvas.clientWidth") - GUTTER - 1) / count
        place = [GUTTER + (column + 0.15) * size, (row + 0.15) * size]
        return list(canvas.evaluate(PIXEL, place))

    def errors(self) -> list[str]:
        """Return the errors that are shown, in the order of the page."""
        return [text for text in self.page.locator(".field-error").all_inner_texts() if text]

    def download(self, button: str) -> tuple[str, Any]:
        """Press *button* and return the name of the file that the browser saves, and its path."""
        with self.page.expect_download() as saved:
            self.page.get_by_role("button", name=button).click()
        return saved.value.suggested_filename, saved.value.path()
