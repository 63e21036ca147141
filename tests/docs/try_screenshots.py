"""Makes the pictures of docs/try.md: ``python -m tests.docs.try_screenshots``, after ``make .browser/.ready``.

A fake server answers, so that the pictures are the same on every machine; only ports and times differ.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from polyhead_client.schema import HeadKind
from polyhead_client.testing import FakeServer
from tests.e2e.page_browser import PageBrowser
from tests.test_arrows import ROOT

PICTURES = ROOT / "docs" / "try"
COLOURS = 96
DESKTOP, PHONE = 1200, 390
HEADS: tuple[dict[str, Any], ...] = (
    {"name": "department", "kind": HeadKind.SINGLE_LABEL, "labels": ["Tops", "Bottoms", "Dresses", "Jackets"],
     "reject_below": 0.5},
    {"name": "class", "kind": HeadKind.SINGLE_LABEL,
     "labels": ["Blouses", "Knits", "Jeans", "Skirts", "Dresses", "Coats"], "parent": "department",
     "parent_of": {"Blouses": "Tops", "Knits": "Tops", "Jeans": "Bottoms", "Skirts": "Bottoms", "Dresses": "Dresses",
                   "Coats": "Jackets"}},
    {"name": "praises", "kind": HeadKind.MULTI_LABEL, "labels": ["fit", "fabric", "colour", "price"],
     "thresholds": [0.5, 0.4, 0.5, 0.3]},
    {"name": "rating", "kind": HeadKind.REGRESSION, "target_scale": [4.2, 1.1]},
)  # fmt: skip
TEXT = "This blouse is soft and the colour is lovely, but the sleeves are too short."
TEXTS = [TEXT, "Jeans that fit. The fabric is thin.", "A warm coat for little money.", "A dress for a wedding."]
WORDS: dict[str, dict[str, float]] = {
    "blouse": {"Tops": 0.5, "Blouses": 0.5}, "sleeves": {"Tops": 0.09, "Blouses": 0.1, "rating": -0.4},
    "soft": {"fabric": 0.5, "rating": 0.3}, "colour": {"colour": 0.4}, "lovely": {"colour": 0.25, "rating": 0.5},
    "short": {"fit": -0.1, "rating": -0.7}, "fit": {"fit": 0.5}, "thin": {"fabric": -0.05, "rating": -0.6},
    "Jeans": {"Bottoms": 0.6, "Jeans": 0.6}, "coat": {"Jackets": 0.62, "Coats": 0.7}, "warm": {"fabric": 0.3},
    "dress": {"Dresses": 0.7},
    "money": {"price": 0.55, "rating": 0.4},
}  # fmt: skip


def answer(text: str, shift: float = 0.0) -> dict[str, Any]:
    """Scores that each word moves; the second model thinks less of fabrics and more of ratings."""
    moved: dict[str, float] = {}
    for word, effects in WORDS.items():
        if word in text:
            for label, effect in effects.items():
                moved[label] = moved.get(label, 0.0) + effect
    said: dict[str, Any] = {"rating": 4.1 + moved.get("rating", 0.0) + shift}
    for head in HEADS[:2]:
        raw = {label: 0.1 + moved.get(label, 0.0) for label in head["labels"]}
        said[head["name"]] = {label: value / sum(raw.values()) for label, value in raw.items()}
    said["praises"] = {label: round(0.15 + moved.get(label, 0.0) - (shift if label == "fabric" else 0), 3)
                       for label in HEADS[2]["labels"]}  # fmt: skip
    return said


@contextmanager
def page(*options: str) -> Iterator[str]:
    """A page that runs while the block does."""
    command = [sys.executable, "-m", "polyhead_client.cli", "ui", "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split()[1]
    finally:
        process.terminate()
        process.wait(timeout=30)
        process.stdout.close()


def keep(browser: PageBrowser, name: str) -> None:
    """Writes the page as a small PNG."""
    browser.evaluate("new Promise(done => setTimeout(done, 500))")
    with tempfile.TemporaryDirectory() as folder:
        browser.screenshot(Path(folder) / "page.png")
        image = Image.open(io.BytesIO((Path(folder) / "page.png").read_bytes())).convert("RGB")
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(PICTURES / f"{name}.png", optimize=True)
    print(name, image.size, (PICTURES / f"{name}.png").stat().st_size)


def classify(browser: PageBrowser) -> None:
    """Asks the text."""
    browser.write("#ph-field-0 textarea", TEXT)
    browser.click("#ph-classify")
    browser.wait_for("document.querySelector('#ph-summary .ph-sides')")
    browser.wait_for("document.querySelector('#ph-head-3')?.checkVisibility()")
    browser.evaluate("document.activeElement.blur()")


def main() -> None:
    """Makes all pictures."""
    settings: dict[str, Any] = {"heads": HEADS, "max_length": 256}
    first, second = FakeServer(answer, **settings), FakeServer(lambda text: answer(text, 0.3), **settings)
    with tempfile.TemporaryDirectory() as folder, first.serve() as one, second.serve() as other:
        golden, lines = Path(folder) / "golden.jsonl", Path(folder) / "reviews.csv"
        golden.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
        lines.write_text("text\n" + "".join(f'"{text}"\n' for text in TEXTS))
        with PageBrowser(Path(folder)) as browser:
            with page("--server", one, "--golden", str(golden)) as address:
                for name, width in (("one-text", DESKTOP), ("phone", PHONE)):
                    browser.visit(address, width)
                    classify(browser)
                    if width == DESKTOP:
                        browser.click("#ph-explain")
                        browser.wait_for("document.querySelector('#ph-reasons details')")
                        browser.evaluate("document.activeElement.blur()")
                    keep(browser, name)
            with page("--server", one, "--compare-server", other) as address:
                browser.visit(address, DESKTOP)
                classify(browser)
                keep(browser, "two-models")
                browser.evaluate("document.querySelectorAll('button[role=tab]')[1].click()")
                browser.wait_for("document.querySelector('#ph-file input[type=file]')")
                browser.upload("#ph-file input[type=file]", lines)
                browser.wait_for("document.querySelector('#ph-file').innerText.includes('reviews')")
                browser.click("#ph-classify-all")
                browser.wait_for("document.querySelector('#ph-table .ph-save')")
                browser.evaluate("document.activeElement.blur()")
                keep(browser, "several-texts")


if __name__ == "__main__":
    main()
