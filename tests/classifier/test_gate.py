"""The gate: a precision may answer only if its scores stay near the golden scores and no clear answer changes."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyhead.checkpoint import read_checkpoint
from polyhead.errors import OptionError, ToleranceError
from polyhead.gate import changed_answers, distances
from polyhead.golden import GoldenRow
from polyhead.precision import TOLERANCE, Precision, requested_precision
from polyhead.predictor import Predictor
from polyhead.schema import Head, Schema
from tests.tiny import change_golden, write_tiny_checkpoint

SCHEMA = Schema(
    [
        Head(name="topic", kind="single_label", labels=("a", "b", "c")),
        Head(name="mood", kind="multi_label", labels=("x", "y"), thresholds=(0.5, 0.3)),
        Head(name="stars", kind="regression"),
    ]
)
EXPECTED = np.array([[0.5, 0.45, 0.05, 0.52, 0.9, 3.0]], dtype=np.float32)


def changes(*scores: float, tolerance: float = 0.03) -> list[int]:
    """The columns whose answer changes from EXPECTED."""
    return np.flatnonzero(
        changed_answers(np.array([scores], dtype=np.float32), EXPECTED, SCHEMA, tolerance)[0]
    ).tolist()


def test_equal_scores_change_nothing() -> None:
    """The expected scores themselves change no answer."""
    assert changes(*EXPECTED[0]) == []


def test_a_clear_winner_must_stay() -> None:
    """Another best label counts if the margin was more than the tolerance, and not if it was less."""
    assert changes(0.45, 0.5, 0.05, 0.52, 0.9, 3.0) == [0]
    assert changes(0.45, 0.5, 0.05, 0.52, 0.9, 3.0, tolerance=0.06) == []


def test_a_threshold_is_crossed_only_from_near() -> None:
    """0.52 may fall below the threshold 0.5; 0.9 must not fall below 0.3."""
    assert changes(0.5, 0.45, 0.05, 0.49, 0.2, 3.0) == [4]


def test_a_taxonomy_changes_as_a_path() -> None:
    """Labels of a taxonomy win together: the margin is between the products of the two paths."""
    schema = Schema(
        [
            Head(name="kind", kind="single_label", labels=("animal", "plant")),
            Head(
                name="species",
                kind="single_label",
                labels=("cat", "oak"),
                parent="kind",
                parent_of={"cat": "animal", "oak": "plant"},
            ),
        ]
    )
    expected = np.array([[0.6, 0.4, 0.9, 0.1]], dtype=np.float32)  # animal/cat: 0.54 against 0.04
    other = np.array([[0.4, 0.6, 0.1, 0.9]], dtype=np.float32)
    assert changed_answers(other, expected, schema, 0.1).tolist() == [[True, False, True, False]]
    assert not changed_answers(other, expected, schema, 0.6).any()


def test_the_tolerance_of_a_regression_is_a_share_of_its_spread() -> None:
    """Worked out by hand: of the spread near the center, of the distance from it far away, and of 1 without a scale."""
    schema = Schema(
        [Head(name="price", kind="regression", target_scale=(98_000.0, 27_000.0)), Head(name="x", kind="regression")]
    )
    expected = np.array([[100_000, 0.5], [206_000, -4]], dtype=np.float32)
    scores = np.array([[100_540, 0.51], [203_840, -4.2]], dtype=np.float32)
    np.testing.assert_allclose(distances(scores, expected, schema), [[0.02, 0.01], [0.02, 0.05]], rtol=1e-4)


@given(
    values=st.lists(st.floats(-5, 5), min_size=1, max_size=5),
    off=st.floats(-1, 1),
    center=st.floats(-1e6, 1e6),
    power=st.integers(-20, 20),
)
def test_the_unit_of_the_targets_is_no_matter_of_the_gate(
    values: list[float], off: float, center: float, power: int
) -> None:
    """The same errors on the scale of the targets have the same distance in any unit, apart from float32's rounding."""
    spread = 2.0**power
    plain, other = (
        Schema([Head(name="r", kind="regression", target_scale=scale)]) for scale in ((0, 1), (center, spread))
    )
    z = np.array(values)[:, None]
    moved, wanted = ((center + spread * part).astype(np.float32) for part in (z + off, z))
    found = distances(moved, wanted, other)
    rounding = 2.0**-21 * max(abs(center), 6 * spread) / spread
    np.testing.assert_allclose(found, distances(np.float32(z + off), np.float32(z), plain), atol=rounding + 1e-6)


def test_a_step_of_float32_is_no_difference() -> None:
    """Seconds around 1.7 billion have steps of 128 in float32, more than any tolerance times a spread of 1,000."""
    schema = Schema([Head(name="time", kind="regression", target_scale=(1.7e9, 1000.0))])
    expected = np.array([[1.7e9]], dtype=np.float32)
    assert distances(expected + np.float32(128), expected, schema)[0, 0] == 0
    assert distances(expected + np.float32(1280), expected, schema)[0, 0] == pytest.approx(1.152)


def test_no_number_is_near_nan() -> None:
    """A score that is not a number is never within the tolerance."""
    scores = np.full((1, 6), np.nan, dtype=np.float32)
    assert np.isnan(distances(scores, EXPECTED, SCHEMA)).all()


def test_prices_are_served_in_every_precision(tmp_path: Path) -> None:
    """A model that answers 50,000 to 160,000 passes like one that answers -2 to 2; a price off by 20 % does not."""
    price = Schema([Head(name="price", kind="regression", target_scale=(100_000.0, 27_000.0))])
    write_tiny_checkpoint(tmp_path / "c", schema=price)
    for precision in ("fp32", "bf16", "int8"):
        assert Predictor.load(tmp_path / "c", precision=precision).check_golden() <= TOLERANCE[precision]
    change_golden(tmp_path / "c", lambda rows: [moved(row, 20_000) for row in rows])
    for precision in ("fp32", "bf16", "int8"):
        with pytest.raises(ToleranceError, match="'price/value' is off by"):
            Predictor.load(tmp_path / "c", precision=precision)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_each_precision_keeps_its_tolerance(base_checkpoint: Path, precision: Precision) -> None:
    """A good checkpoint passes at every precision; below float32 the distance is not zero."""
    worst = Predictor.load(base_checkpoint, precision=precision).check_golden()
    assert worst <= TOLERANCE[precision]
    assert precision == "fp32" or worst > 1e-5


def with_moved_scores(path: Path, amount: float) -> Path:
    """A checkpoint whose golden scores are off by `amount` in one column."""
    write_tiny_checkpoint(path)
    change_golden(path, lambda rows: [moved(row, amount) for row in rows])
    return path


def moved(row: GoldenRow, amount: float) -> GoldenRow:
    """The row with another score in its first column."""
    return row.model_copy(update={"scores": (row.scores[0] + amount, *row.scores[1:])})


def test_a_named_precision_that_fails_is_refused(tmp_path: Path) -> None:
    """A named precision that leaves the tolerance is an error with the row, the label and what is allowed."""
    path = with_moved_scores(tmp_path / "c", 0.2)
    with pytest.raises(ToleranceError, match=r"golden.jsonl:\d+: the engine's bf16 score of 'topic/news' .* 0.03"):
        Predictor.load(path, precision="bf16")


def test_auto_falls_back_to_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If bf16 is fast but leaves the tolerance, auto serves float32 and logs the reason; float32 is checked too."""
    monkeypatch.setattr("polyhead.predictor.fastest_precision", lambda device: "bf16")
    write_tiny_checkpoint(tmp_path / "sound")
    assert Predictor.load(tmp_path / "sound", precision="auto").precision == "bf16"
    monkeypatch.setitem(TOLERANCE, "bf16", 1e-9)
    with caplog.at_level(logging.WARNING):
        assert Predictor.load(tmp_path / "sound", precision="auto").precision == "fp32"
    assert "serving in fp32" in caplog.text
    with pytest.raises(ToleranceError, match="the engine's fp32 score"):
        Predictor.load(with_moved_scores(tmp_path / "c", 0.2), precision="auto")


def test_the_environment_names_the_precision(base_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """POLYHEAD_PRECISION decides if the caller names no precision; an empty variable is the same as none."""
    monkeypatch.setenv("POLYHEAD_PRECISION", "int8")
    assert Predictor.load(base_checkpoint).precision == "int8"
    assert Predictor.load(base_checkpoint, precision="fp32").precision == "fp32"
    monkeypatch.setenv("POLYHEAD_PRECISION", "")
    assert requested_precision(None) == "auto"


def test_load_checks_only_the_first_rows(tmp_path: Path) -> None:
    """With a limit on tokens the first row is checked, and not the last."""
    path = tmp_path / "c"
    write_tiny_checkpoint(path)
    change_golden(path, lambda rows: [*rows[:-1], moved(rows[-1], 0.5)])
    predictor = Predictor(read_checkpoint(path))
    assert predictor.check_golden(most_tokens=1) < 1e-5
    with pytest.raises(ToleranceError, match=f"golden.jsonl:{len(predictor.checkpoint.golden())}"):
        predictor.check_golden()


def test_an_unknown_precision_is_refused(base_checkpoint: Path) -> None:
    """The error names the allowed precisions."""
    with pytest.raises(OptionError, match=r"precision must be one of .*'auto', 'fp32', 'bf16', 'int8'.* got 'fp4'"):
        Predictor.load(base_checkpoint, precision="fp4")


@pytest.mark.parametrize(("score", "is_changed"), [(0.58, True), (0.599, False), (0.61, False)])
def test_a_clear_answer_must_not_be_rejected(score: float, is_changed: bool) -> None:
    """The golden score is 0.605 and the bound 0.6; with a tolerance of 0.004 the answer is clear."""
    schema = Schema([Head(name="s", kind="single_label", labels=("x", "y"), reject_below=0.6)])
    golden = np.array([[0.605, 0.395]], dtype=np.float32)
    served = np.array([[score, 1 - score]], dtype=np.float32)
    found = changed_answers(served, golden, schema, 0.004 if score < 0.59 else 0.006)
    assert found.tolist() == [[is_changed, False]]
