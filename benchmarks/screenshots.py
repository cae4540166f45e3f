"""Take the pictures of the page that README.md shows: the Overview under load, and the Playground with a heat map.

Usage: python benchmarks/screenshots.py [FOLDER]. Needs Chromium and the packages of requirements/test.txt.
"""

import argparse
import io
import random
import shutil
import sys
import threading
from collections.abc import Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in {None, ""}:  # started as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import httpx
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from benchmarks.machine import ROOT
from benchmarks.processes import end_children_on_sigterm, healthy_server
from host.cores import usable_cores

if TYPE_CHECKING:
    from collections.abc import Iterator

IMAGES = ROOT / "docs" / "images"
MAX_BYTES = 200_000
WIDTH = 1280
HEIGHTS = {"overview": 1000, "playground": 1000}
LOAD_S = 66
"""The charts of the Overview show a minute at least."""
CALLERS = 4
WORDS = (ROOT / "benchmarks" / "words.txt").read_text("utf-8").split()
TEXTS = (
    "How do I reset my password?",
    "I forgot my login.",
    "The sign-in page rejects my password",
    "Where is my invoice for March?",
    "Send me a receipt for the last payment",
    "My card was charged twice",
    "The parcel has not arrived yet",
    "How long does shipping to Norway take?",
    "Track my delivery",
    "The app crashes when I open the camera",
    "A crash after the latest update",
    "Please add a dark theme",
)


@contextmanager
def load_on(url: str) -> "Iterator[None]":
    """Send queries and batches to the service until the end of the block, now and then wrong ones."""
    ended = threading.Event()

    def call(seed: int) -> None:
        rng = random.Random(seed)
        with httpx.Client(base_url=url, timeout=30) as client:
            while not ended.wait(rng.uniform(0.01, 0.25)):
                texts = [" ".join(rng.choices(WORDS, k=rng.randint(3, 40))) for _ in range(rng.choice((1, 2, 8)))]
                kind = rng.random()
                with suppress(httpx.HTTPError):
                    if kind < 0.3:
                        client.post("/embed", json={"text": f"a popular query {rng.randint(1, 9)}"})
                    elif kind < 0.6:
                        client.post("/embed", json={"text": texts[0]})
                    elif kind < 0.97:
                        client.post("/embed/batch", json={"texts": texts})
                    else:
                        client.post("/embed", json={"text": ""})

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(CALLERS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def overview(page: Page, url: str) -> None:
    """Open the Overview and wait until its charts are full."""
    with load_on(url):
        page.goto(url)
        page.wait_for_timeout(LOAD_S * 1000)


def playground(page: Page, url: str) -> None:
    """Embed texts in the Playground, and scroll to their similarities."""
    page.goto(f"{url}#playground")
    page.get_by_label("Texts", exact=True).fill("\n".join(TEXTS))
    page.get_by_role("button", name="Embed", exact=True).click()
    heading = page.get_by_role("heading", name="Similarity").first
    heading.wait_for()
    page.wait_for_timeout(500)  # drawing is cut into slices
    plane = page.get_by_label(f"Map of {len(TEXTS)} texts")
    plane.press("Home")  # lists the nearest neighbours of the first text
    plane.evaluate("(canvas) => canvas.blur()")
    heading.evaluate("(heading) => scrollTo(0, heading.closest('.card').getBoundingClientRect().top + scrollY - 66)")


def save(png: bytes, path: Path) -> None:
    """Write a picture, as small as PNG can make it."""
    Image.open(io.BytesIO(png)).convert("RGB").save(path, optimize=True)
    size = path.stat().st_size
    if size > MAX_BYTES:
        sys.exit(f"{path.name} has {size:,} bytes, more than {MAX_BYTES:,}.")
    print(f"{path.name}: {size:,} bytes")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=IMAGES)
    folder: Path = parser.parse_args(arguments).folder
    folder.mkdir(parents=True, exist_ok=True)
    end_children_on_sigterm()
    command = shutil.which("chromium") or shutil.which("google-chrome")
    with healthy_server({"RESULT_CACHE_MB": "64"}, lanes=usable_cores()) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=command, args=["--no-sandbox"])
        for name, show in (("overview", overview), ("playground", playground)):
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHTS[name]})
            show(page, f"http://127.0.0.1:{server.port}/")
            save(page.screenshot(), folder / f"page-{name}.png")
            page.close()
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
