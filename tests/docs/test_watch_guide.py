"""docs/watch.md: the names, numbers and scripts that it gives are those of the product."""

from __future__ import annotations

import re
from pathlib import Path

from polyhead import distribution
from polyhead.scripts import MOST_CHARACTERS, SCRIPTS
from polyhead_serving.answer_metrics import SEND_AT_LEAST_EVERY_S
from tests.deploy.prometheus import rules

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "watch.md").read_text(encoding="utf-8")


def test_scripts_and_buckets_are_those_that_are_counted() -> None:
    """Every script and every special bucket is named, and what is counted has a row each."""
    (scripts,) = re.findall(r"^\| `script` \|(.*)$", PAGE, flags=re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", scripts)) == set(SCRIPTS)
    rows = re.findall(r"^\| `(\w+)` \|", PAGE, flags=re.MULTILINE)
    kinds = [distribution.ANSWERS, distribution.SCORES, distribution.NEAR_THRESHOLD, distribution.SCRIPT]
    assert rows == ["of", *kinds, distribution.TRUNCATED]
    for name in (distribution.REST, distribution.EMPTY, distribution.REJECTED):
        assert f"`{name}`" in PAGE


def test_numbers_are_the_products() -> None:
    """Bounds, widths and thresholds."""
    for said in (
        f"at most {distribution.MOST_HEADS} heads, {distribution.MOST_LABELS} labels per head and "
        f"{distribution.MOST_LABELS_OF_ALL} labels in all",
        f"cut after {distribution.MOST_CHARACTERS} characters",
        f"first {MOST_CHARACTERS} characters",
        f"at most {distribution.NEAR} from its threshold",
        f"at most {SEND_AT_LEAST_EVERY_S:.0f} seconds",
    ):
        assert said in PAGE, said
    (alert,) = (rule for rule in rules("alert") if rule["alert"] == "PolyheadDrift")
    assert re.findall(r"> 0\.25\b|>= 300\b", alert["expr"]) == ["> 0.25", ">= 300"]
    assert alert["for"] == "30m"


def test_rules_and_alerts_exist() -> None:
    """Each recorded series and each alert that the page names is a rule."""
    named = set(re.findall(r"`(polyhead:[\w:]+)`", PAGE))
    assert named
    assert named <= {rule["record"] for rule in rules("record")}
    assert set(re.findall(r"\bPolyhead[A-Z]\w+", PAGE)) <= {rule["alert"] for rule in rules("alert")}
