"""How the pages look in a real browser, at the widths of a telephone, a tablet and a laptop."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from polyhead.schema import Head, Schema
from polyhead_training.compare_command import app
from polyhead_training.config import CalibrationConfig
from polyhead_training.evaluation.calibration import calibrate
from polyhead_training.evaluation.report import write_report
from tests.training.browser import Browser
from tests.training.evaluations import (
    HISTORY,
    HOSTILE,
    LONG,
    RIGHT_TO_LEFT,
    evaluation_of,
    many_heads,
    suspects_of,
    with_made_up_reasons,
)

WIDTHS = (420, 800, 1280)
FACTS = (Path(__file__).parent / "layout.js").read_text(encoding="utf-8")
TEXTS = (
    "The parcel arrived with a broken lid, and the courier left it in the rain.",
    f"{RIGHT_TO_LEFT} {HOSTILE}",
    "A long text about a payment. " * 60,
    "w" * 3000,
)
OPENED = "document.querySelectorAll('details').forEach((each) => { each.open = true })"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all pages."""
    with Browser(tmp_path_factory.mktemp("browser")) as started:
        yield started


def write_comparison(folder: Path) -> Path:
    """A comparison of three runs with long names, long texts and labels from right to left."""
    runs = []
    for place, name in enumerate(("first", "a-run-with-a-rather-long-name-2024-11-27", "third")):
        random = np.random.default_rng(place)
        right = random.random(120) < (0.5, 0.9, 0.55)[place]
        columns = {
            "file": ["a-folder-with-a-long-name/and-another-one/reviews-2024.csv"] * 120,
            "row": list(range(120)),
            "text": [f"{TEXTS[i % len(TEXTS)]} {i}" for i in range(120)],
            "topic_label": [RIGHT_TO_LEFT if each else LONG for each in right],
            "topic_true": [RIGHT_TO_LEFT] * 120,
            "a_price_with_a_long_name_value": random.normal(100_000, 5_000, 120).tolist(),
            "a_price_with_a_long_name_true": [100_000.0] * 120,
        }
        (folder / name).mkdir(parents=True)
        pyarrow.parquet.write_table(pyarrow.table(columns), folder / name / "predictions.parquet")
        runs.append(str(folder / name))
    result = CliRunner().invoke(app, [*runs, "--output", str(folder / "comparison")])
    assert result.exit_code == 0, result.output
    return folder / "comparison" / "index.html"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports of every shape."""
    folder = tmp_path_factory.mktemp("pages")
    intents = tuple(f"intent_{i}_with_a_name" for i in range(77))
    usual = Schema(
        [
            Head(name="kind", kind="single_label", labels=("billing", "account", "delivery", LONG, RIGHT_TO_LEFT)),
            Head(name="tags", kind="multi_label", labels=("a", "b", LONG), thresholds=(0.3, 0.5, 0.5)),
            Head(name="stars", kind="regression", y_range=(0, 5)),
            Head(name="intent", kind="single_label", labels=intents),
        ]
    )
    schemas = {"usual": (usual, 300), "many": (many_heads(15), 40), "one": (usual, 1), "unknown": (usual, 3)}
    for name, (schema, rows) in schemas.items():
        evaluation, logits = evaluation_of(
            schema,
            rows,
            known=name != "unknown",
            texts=TEXTS,
            baselines=name != "unknown",
            measured_on="Measured on held-out test rows. Nothing was chosen on them.",
            files=["a-folder-with-a-long-name/and-another-one/reviews-2024.csv"] * rows,
            rows=np.arange(rows),
            splits=["test"] * rows,
            suspects=suspects_of("kind", min(rows, 9)) if name == "usual" else (),
        )
        found = calibrate(logits, evaluation.labels, schema, CalibrationConfig())[1] if rows > 1 else None
        if name != "unknown":
            evaluation = with_made_up_reasons(evaluation)
        write_report(
            folder / name, evaluation, history=HISTORY, calibration=found, training={"rows": 7, "seconds": 3.5}
        )
    return {name: folder / name / "index.html" for name in schemas} | {"comparison": write_comparison(folder / "runs")}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["usual", "many", "one", "unknown", "comparison"])
@pytest.mark.parametrize("is_open", [False, True], ids=["folded", "unfolded"])
def test_nothing_is_cut_off(browser: Browser, pages: dict[str, Path], name: str, width: int, is_open: bool) -> None:
    """No part leaves the page, scrolls sideways, is clipped, or has letters below 11 pixels; no two letters overlap."""
    browser.open(pages[name], width)
    if is_open:
        browser.evaluate(OPENED)
    facts = browser.evaluate(FACTS)
    assert facts.pop("overflow") <= 0
    assert {kind: found[:5] for kind, found in facts.items() if found} == {}


def test_a_number_leads_to_its_rows(browser: Browser, pages: dict[str, Path]) -> None:
    """A click on a cell of the confusion matrix or on a label unfolds the rows behind it."""
    for selector in (".matrix a", "td a"):
        browser.open(pages["usual"], 1280)
        shown = browser.evaluate(
            f"(() => {{ const link = document.querySelector({selector!r}); link.click();"
            "return new Promise((done) => setTimeout(() => { const found = document.querySelector(link.hash);"
            "done([found.checkVisibility({contentVisibilityAuto: true}), found.getBoundingClientRect().height,"
            "found.querySelectorAll('.row').length]) }, 200)) })()"
        )
        assert shown[0] is True
        assert shown[1] > 50
        assert shown[2] >= 1


def test_dark_mode_has_light_letters(browser: Browser, pages: dict[str, Path]) -> None:
    """Page, plots and words of the verdicts stand out from the background at both times of day (WCAG 2.1, 4.5 to 1)."""
    contrast = """(() => {
      const light = (colour) => { const part = colour.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
        .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * part[0] + 0.7152 * part[1] + 0.0722 * part[2] };
      // What shines through a translucent background counts too.
      const back = (e) => { const layers = [];
        for (; e; e = e.parentElement) { const part = getComputedStyle(e).backgroundColor.match(/[\\d.]+/g).map(Number);
          layers.push(part); if (part.length === 3 || part[3] === 1) break }
        const mixed = layers.reduceRight((under, part) => { const a = part.length === 3 ? 1 : part[3];
          return under.map((v, i) => a * part[i] + (1 - a) * v) }, [255, 255, 255]);
        return `rgb(${mixed.join(", ")})` };
      let worst = [99, ""];
      for (const e of document.querySelectorAll("p, b, a, td, th, h1, h2, h3, summary, span, svg text")) {
        if (e.closest(".matrix td") || !e.textContent.trim()) continue;
        const style = getComputedStyle(e), svg = e instanceof SVGElement;
        const a = light(svg ? style.fill : style.color), b = light(back(svg ? e.closest("figure") : e));
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < worst[0]) worst = [ratio, e.tagName + " " + e.textContent.slice(0, 30)];
      }
      return worst })()"""
    for scheme in ("light", "dark"):
        browser.open(pages["usual"], 800, scheme=scheme)
        ratio, where = browser.evaluate(contrast)
        assert ratio >= 4.5, (scheme, where)


def test_a_printer_gets_what_is_folded(browser: Browser, pages: dict[str, Path]) -> None:
    """Nothing is wider than the paper, and folded rows are printed."""
    browser.open(pages["usual"], 718, media="print")  # A4 at 96 dots per inch, with margins of a centimetre
    facts = browser.evaluate(FACTS)
    assert facts["overflow"] <= 0
    assert facts["outside"] == facts["clipped"] == []
    height = "document.querySelector('.row').getBoundingClientRect().height"
    assert browser.evaluate(height) > 20
