"""The scale of a regression's targets: its two numbers, what it is robust against, and that no unit matters."""

from __future__ import annotations

import json
import math
import re
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyhead.checkpoint import read_checkpoint
from polyhead.decode import to_scores
from polyhead.predictor import Predictor
from polyhead.schema import Head, Schema
from polyhead_training.errors import DataError
from polyhead_training.model.losses import classification_loss, loss_terms
from polyhead_training.model.targets import target_scale, with_target_scales
from tests.training import tiny_run

PRICE = Schema(
    [Head(name="topic", kind="single_label", labels=("a", "b")), Head(name="price", kind="regression", weight=2.0)]
)


def matrix(prices: list[float]) -> np.ndarray:
    """Labels of rows with these prices."""
    return np.array([[place % 2, price] for place, price in enumerate(prices)], dtype=np.float32)


def test_center_and_spread_of_few_rows_by_hand() -> None:
    """Of 1, 2, 3, 4 and 100 rows of each: a hundredth at each end lies within the ones and fours."""
    values = [1.0, 2.0, 3.0, 4.0] * 100
    center, spread = target_scale(np.array(values))
    assert center == pytest.approx(statistics.mean(values))
    assert spread == pytest.approx(statistics.pstdev(values))


def test_a_few_wrong_numbers_move_nothing_much() -> None:
    """One price of a billion among a thousand: its mean would be a million, its standard deviation 32 million."""
    prices = np.random.default_rng(0).normal(100_000, 25_000, 1000)
    spoiled = np.append(prices, 1e9)
    assert spoiled.std() > 3e7
    center, spread = target_scale(spoiled)
    assert center == pytest.approx(prices.mean(), rel=0.01)
    assert spread == pytest.approx(prices.std(), rel=0.05)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([7.0], (7, 7)),  # one row
        ([-3.0, -3.0], (-3, 3)),  # a constant column
        ([0.0, 0.0, 0.0], (0, 1)),
        ([0.0] * 999 + [10.0], (0.01, 10 * math.sqrt(0.001 * 0.999))),  # all the same, apart from the tails
        ([3.0e38, -3.0e38], (0, 3e38 * 0.98)),  # the largest numbers of float32; quantiles lie between the two
        ([1e-45, 0.0], (0.5e-45, 0.5e-45 * 0.98)),  # the smallest
    ],
)
def test_degenerate_columns_have_a_scale(values: list[float], expected: tuple[float, float]) -> None:
    """Never zero, never infinite: always a scale that the schema takes."""
    assert target_scale(np.array(values)) == pytest.approx(expected, rel=1e-6, abs=1e-60)
    labels = matrix(values)
    schema, _ = with_target_scales(PRICE, labels)
    assert Head.model_validate(schema["price"].model_dump()) == schema["price"]


def test_a_column_without_a_number_is_an_error() -> None:
    """Also if numbers stand in held-out rows only; other heads have no scale."""
    with pytest.raises(DataError, match="head 'price': no training row has a number"):
        with_target_scales(PRICE, matrix([math.nan, math.nan]))
    schema, notes = with_target_scales(PRICE, matrix([math.nan, 3, 5]))
    assert schema["topic"] == PRICE["topic"]
    assert (schema["price"].target_scale, notes) == (pytest.approx((4, 0.98)), [])


@pytest.mark.parametrize(
    ("prices", "words"),
    [
        ([5, 5, 5], "all 3 training rows have the number 5; there is nothing to learn"),
        ([1.7e9, 1.7e9 + 1280, math.nan], "float32 rounds them to steps of 128; subtract a constant"),
        (
            [*np.linspace(1, 2, 500), 1e6],
            r"1 training rows are further than 20 spreads .* such as 1e\+06; are they mistakes",
        ),
    ],
)
def test_numbers_that_look_wrong_are_said(prices: list[float], words: str) -> None:
    """A constant, numbers too close together for float32, and numbers far away."""
    _, (note,) = with_target_scales(PRICE, matrix(prices))
    assert "head 'price': " in note
    assert re.search(words, note), note


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10**6), rows=st.integers(1, 30), factor=st.floats(1e-6, 1e6), shift=st.floats(-1e3, 1e3)
)  # fmt: skip
def test_another_unit_changes_nothing_but_the_unit(seed: int, rows: int, factor: float, shift: float) -> None:
    """Targets times a factor plus a shift of up to 1,000 spreads: equal loss, and answers in the other unit."""
    random = np.random.default_rng(seed)
    prices = random.normal(size=rows)
    if rows == 1:
        return  # the spread of one number is its distance from 0
    given, moved = (matrix(list(values)) for values in (prices, factor * (prices + shift)))
    logits = torch.from_numpy(random.normal(size=(rows, 3)).astype(np.float32))
    (plain, _), (other, _) = (with_target_scales(PRICE, labels) for labels in (given, moved))
    rounding = 2e-6 * (1 + abs(shift)) / plain["price"].target_scale[1]  # type: ignore[index]
    losses = [
        classification_loss(logits, torch.from_numpy(labels), loss_terms(schema)).item()
        for schema, labels in ((plain, given), (other, moved))
    ]
    assert losses[1] == pytest.approx(losses[0], rel=20 * rounding, abs=20 * rounding)
    answers, moved_answers = (to_scores(logits.numpy(), schema)[:, 2].astype(float) for schema in (plain, other))
    error = 1e-5 * factor * (1 + abs(shift) + np.abs(answers).max())
    np.testing.assert_allclose(moved_answers, factor * (answers + shift), atol=error)


def run_with(folder: Path, change: Any = lambda stars: stars, more: str = "") -> Path:
    """A checkpoint of the tiny run whose numbers are changed."""
    path = tiny_run.write_run(folder, more=more)
    rows = [row | {"stars": None if row["stars"] is None else change(row["stars"])} for row in tiny_run.rows()]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tiny_run.trained(path)


def test_a_unit_changes_no_weight(tmp_path: Path) -> None:
    """Stars, and 1,024 times the stars plus 65,536: the same bits of every weight, and answers in the other unit."""
    plain, other = run_with(tmp_path / "a"), run_with(tmp_path / "b", lambda stars: 1024 * stars + 65_536)
    before, after = tiny_run.weights(plain), tiny_run.weights(other)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    center, spread = read_checkpoint(plain).schema["stars"].target_scale or (0, 0)
    scale = read_checkpoint(other).schema["stars"].target_scale
    assert scale == pytest.approx((1024 * center + 65_536, 1024 * spread), rel=1e-12)
    (stars,), (price,) = (Predictor.load(path).predict(["cats run well"]) for path in (plain, other))
    assert price["heads"]["topic"] == stars["heads"]["topic"]
    assert price["heads"]["stars"]["value"] == pytest.approx(1024 * stars["heads"]["stars"]["value"] + 65_536)
    errors = [tiny_run.metrics(path)["validation"]["stars"] for path in (plain, other)]
    assert errors[1]["mae"] == pytest.approx(1024 * errors[0]["mae"], rel=1e-4)  # in the unit of the data
    assert errors[1]["r2"] == pytest.approx(errors[0]["r2"], abs=1e-4)
    assert tiny_run.history(other, "eval_loss") == tiny_run.history(plain, "eval_loss")


def test_a_range_holds_in_the_datas_unit(tmp_path: Path) -> None:
    """Golden rows and answers of a head with y_range lie in it, and the checkpoint proves them."""
    checkpoint = run_with(tmp_path, lambda stars: 50_000 + 20_000 * stars, more="y_range = [50_000, 130_000]")
    head = read_checkpoint(checkpoint).schema["stars"]
    assert head.y_range == (50_000, 130_000)
    assert all(50_000 <= row.scores[-1] <= 130_000 for row in read_checkpoint(checkpoint).golden())


def test_a_price_leaves_the_other_head_alone(tmp_path: Path) -> None:
    """Beside prices of 50,000 to 130,000 the topic head is as good as beside the same numbers from 0 to 4."""
    scores = [
        tiny_run.metrics(run_with(tmp_path / name, change))["validation"]["topic"]
        for name, change in (("stars", lambda stars: stars), ("price", lambda stars: 50_000 + 20_000 * stars))
    ]
    assert scores[1]["accuracy"] == scores[0]["accuracy"]
    assert scores[1]["nll"] == pytest.approx(scores[0]["nll"], abs=1e-3)
