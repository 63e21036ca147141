"""The report: one page that is safe to open, whatever the texts and labels are."""

from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas
import pytest
import yaml

from polyhead.schema import Head, Schema
from polyhead_training.config import CalibrationConfig
from polyhead_training.evaluation.calibration import calibrate
from polyhead_training.evaluation.report import model_card, write_report
from tests.training.evaluations import HISTORY, HOSTILE, evaluation_of

SCHEMA = Schema(
    [
        Head(name="kind", kind="single_label", labels=(HOSTILE, *(f"label {i}" for i in range(30)))),
        Head(name="tags", kind="multi_label", labels=("a", HOSTILE)),
        Head(name="stars", kind="regression", y_range=(0, 5)),
    ]
)


class Resources(HTMLParser):
    """Collects tags, and everything that a browser would load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.loaded: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called by the parser."""
        self.tags.add(tag)
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "data")]


def test_the_page_is_safe_and_stands_alone(tmp_path: Path) -> None:
    """Texts, labels, slices and names are escaped; nothing is loaded from anywhere; the page is small."""
    evaluation, logits = evaluation_of(SCHEMA, 80)
    _, calibration = calibrate(logits, evaluation.labels, SCHEMA, CalibrationConfig())
    write_report(
        tmp_path,
        evaluation,
        name=HOSTILE,
        source=HOSTILE,
        history=HISTORY,
        calibration=calibration,
        training={"rows": 7},
    )
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    found = Resources(page)
    assert not {"script", "img", "iframe", "link", "object"} & (found.tags - {"image"})
    assert found.loaded
    assert all(value.startswith(("#", "data:image/png;base64,")) for value in found.loaded)
    assert not re.search(r"url\((?!['\"]?#)", page)
    assert "&lt;script&gt;alert(" in page
    assert "東京" in page
    assert len(page) < 3_000_000
    plots = ("Confusion: the 12 of 31", "Reliability", "Precision and recall", "F1 and threshold", "Residuals")
    for part in ("Training", *plots, "Calibration", "Slices", "most confident mistakes", "truncated"):
        assert part in page


def test_numbers_stand_in_json_and_parquet(tmp_path: Path) -> None:
    """Metrics hold no NaN, and predictions have one row per text."""
    evaluation, _ = evaluation_of(SCHEMA, 40)
    write_report(tmp_path, evaluation)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert metrics["heads"] == evaluation.metrics
    assert (metrics["rows"], metrics["truncated"], metrics["dropped"]) == (40, 20, 2)
    table = pandas.read_parquet(tmp_path / "predictions.parquet")
    assert table["text"].tolist() == list(evaluation.texts)
    np.testing.assert_allclose(table["stars_true"], evaluation.labels[:, 3])


def test_one_row_and_unknown_labels_make_a_report(tmp_path: Path) -> None:
    """However little there is to show."""
    for name, known in (("one", True), ("unknown", False)):
        write_report(tmp_path / name, evaluation_of(SCHEMA, 1, known=known)[0])
        assert "<h2" in (tmp_path / name / "index.html").read_text(encoding="utf-8")
    table = pandas.read_parquet(tmp_path / "unknown" / "predictions.parquet")
    assert table[["kind_true", "tags_true", "stars_true"]].isna().all(axis=None)


def test_the_card_has_a_header(tmp_path: Path) -> None:
    """Its YAML is read back whole, with one result per head; labels are no markup."""
    evaluation, _ = evaluation_of(SCHEMA, 40)
    write_report(tmp_path, evaluation, name=HOSTILE, source="rows.csv")
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    _, header, body = card.split("---\n", 2)
    model = yaml.safe_load(header)["model-index"][0]
    assert model["name"] == HOSTILE
    assert [result["task"]["name"] for result in model["results"]] == ["kind", "tags", "stars"]
    assert model["results"][0]["metrics"][0]["value"] == evaluation.metrics["kind"]["accuracy"]
    assert "<script" not in body
    assert "polyhead-client classify" in body


def test_the_card_says_what_is_true(tmp_path: Path) -> None:
    """Of an imported checkpoint not that Polyhead trained it; of each head whether it is calibrated."""
    tuned = Head(name="tuned", kind="multi_label", labels=("a", "b"), thresholds=(0.3, 0.5), temperature=2.5)
    schema = Schema([SCHEMA["kind"], tuned, SCHEMA["stars"]])
    evaluation, logits = evaluation_of(schema, 40)
    _, plain = calibrate(logits, evaluation.labels, SCHEMA, CalibrationConfig(temperature=False, thresholds="fixed"))
    write_report(tmp_path, evaluation, calibration=plain)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "trained with Polyhead" not in card
    assert "\n- `kind` gives one of its labels to any text" in card
    assert card.count("gives one of its labels") == 1
    assert "\n- `kind`: scores are not calibrated.\n" in card
    assert "\n- `tuned`: scores are calibrated with a temperature of 2.5; " in card
    assert "may be too confident; each label has its own threshold.\n" in card
    assert "`stars`:" not in card
    assert "Calibration</h2>" not in (tmp_path / "index.html").read_text(encoding="utf-8")
    write_report(tmp_path, evaluation, training={"rows": 7})
    assert "trained with Polyhead" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_nothing_in_a_name_is_markup() -> None:
    """What cannot stand in a code span is spelled out as entities, letters apart."""
    card = model_card({"name": "`[a](b) *c* _d_|\n# 東", "heads": [], "source": "rows", "training": None})
    title = next(line for line in card.splitlines() if line.startswith("# "))
    assert not set("`[]()*_|") & set(title[2:])
    assert html.unescape(title[2:]) == "`[a](b) *c* _d_|\n# 東"


@pytest.mark.parametrize("value", [0.0, 1.0, 0.25, 1e-5, 1.5e-7, 1e22])
def test_a_score_is_a_number_in_yaml(value: float) -> None:
    """However small, and exactly."""
    head = {
        "name": "a",
        "headline": value,
        "headline_name": "mae",
        "metrics": {},
        "kind": "regression",
        "all_labels": (),
    }
    header = model_card({"name": "a", "heads": [head], "source": "rows", "training": None}).split("---\n")[1]
    assert yaml.safe_load(header)["model-index"][0]["results"][0]["metrics"][0]["value"] == value
