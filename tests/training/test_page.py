"""What the report's page says: baselines beside every number, and a way from each number to its rows."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from polyhead.schema import Head, Schema
from polyhead_training.evaluation import plots
from polyhead_training.evaluation.evaluation import Evaluation
from polyhead_training.evaluation.headline import headline_parts, standard_error, verdict
from polyhead_training.evaluation.metrics import answers_of, score_answers
from polyhead_training.evaluation.mistakes import largest_errors_code, mistakes, most_confident
from polyhead_training.evaluation.page import label_table
from polyhead_training.evaluation.report import write_report
from polyhead_training.evaluation.wording import number
from tests.training.evaluations import HISTORY, HOSTILE, evaluation_of, many_heads, suspects_of

SIZES = Schema([Head(name="size", kind="single_label", labels=("general", "petite", 'it\'s "tall"', "unseen"))])
TAGS = Schema([Head(name="tags", kind="multi_label", labels=("a", "b"), thresholds=(0.5, 0.5))])
STARS = Schema([Head(name="stars", kind="regression")])


def evaluated(schema: Schema, labels: list[list[float]], scores: list[list[float]], **fields: Any) -> Evaluation:
    """An evaluation of these labels and scores."""
    given, answered = np.array(labels, np.float32), np.array(scores, np.float32)
    unseen = fields.get("unseen")
    return Evaluation(
        schema=schema,
        max_length=8,
        texts=[f"text {i}" for i in range(len(labels))],
        labels=given,
        scores=answered,
        token_counts=np.full(len(labels), 3, np.int32),
        truncated=np.zeros(len(labels), bool),
        metrics=score_answers(answered, given, schema, unseen),
        **fields,
    )


def sizes(true: list[int], answered: list[int], **fields: Any) -> Evaluation:
    """An evaluation of the head `size`; each answer has the score 0.7."""
    scores = [[0.7 if i == answer else 0.1 for i in range(4)] for answer in answered]
    return evaluated(SIZES, [[label] for label in true], scores, **fields)


def verdict_of(evaluation: Evaluation, baselines: Mapping[str, Mapping[str, float]]) -> tuple[str, tuple[str, ...]]:
    """Level and sentences about the first head."""
    answers = next(iter(answers_of(evaluation.scores, evaluation.labels, evaluation.schema)))
    found = verdict(answers, evaluation.metrics[answers.head.name], baselines)
    return found.level, found.sentences


def test_a_label_that_is_never_answered_is_said() -> None:
    """Whatever the accuracy; labels that do not occur are not named."""
    level, sentences = verdict_of(sizes([0] * 60 + [1] * 30 + [2] * 10, [0] * 100), {"majority": {"accuracy": 0.6}})
    assert level == "bad"
    assert sentences == (
        "Exactly as good as the majority answer.",
        "So these rows do not show that the model is worth serving.",
        'Never answers 2 of the 3 labels in these rows: “petite”, “it\'s "tall"”.',
    )


def test_a_verdict_counts_chance() -> None:
    """The same difference is one on many rows, and chance on few; the linear model comes first."""
    baselines = {"majority": {"accuracy": 0.3}, "linear": {"accuracy": 0.85}}
    many = sizes([0, 1, 2] * 700, [0, 1, 2] * 630 + [1, 2, 0] * 70)  # accuracy 0.9
    assert verdict_of(many, baselines) == (
        "good",
        ("Better than the linear model by 0.050.", "Better than the majority answer by 0.600."),
    )
    few = sizes([0, 1, 2] * 20, [0, 1, 2] * 18 + [1, 2, 0] * 2)
    level, sentences = verdict_of(few, baselines)
    assert level == "unclear"
    assert sentences[0] == "Better than the linear model by 0.050, which 60 rows cannot tell from chance."
    assert "worth serving" in sentences[2]
    assert verdict_of(many, {"linear": {"accuracy": 0.95}})[1][0] == "Worse than the linear model by 0.050."


def test_less_error_is_better() -> None:
    """Of a regression; without a baseline nothing is claimed."""
    random = np.random.default_rng(0)
    true = random.normal(size=400)
    evaluation = evaluated(STARS, true[:, None].tolist(), (true + 1)[:, None].tolist())  # the error is always 1
    level, sentences = verdict_of(evaluation, {"linear": {"mae": 1.25}, "majority": {"mae": 0.5}})
    assert (level, sentences[0]) == ("bad", "Better than the linear model by 0.250.")
    assert sentences[1] == "Worse than the majority answer by 0.500."
    assert verdict_of(evaluation, {}) == ("unclear", ())


def test_the_error_of_a_score_is_that_of_a_mean() -> None:
    """Of accuracy: the deviation of right and wrong, divided by the root of the rows; of F1: as bootstrapped."""
    evaluation = sizes([0, 1] * 50, [0, 1] * 40 + [1, 0] * 10)
    (answers,) = answers_of(evaluation.scores, evaluation.labels, SIZES)
    assert standard_error(headline_parts(answers)) == pytest.approx((0.8 * 0.2 / 99) ** 0.5)
    many, _ = evaluation_of(TAGS, 500)
    (answers,) = answers_of(many.scores, many.labels, TAGS)
    parts, random = headline_parts(answers), np.random.default_rng(0)
    assert parts.sum(axis=0)[0] / parts.sum(axis=0)[1] == pytest.approx(many.metrics["tags"]["micro_f1"])
    drawn = [parts[random.integers(0, 500, 500)].sum(axis=0) for _ in range(2000)]
    assert standard_error(headline_parts(answers)) == pytest.approx(
        np.std([over / under for over, under in drawn]), rel=0.1
    )


def test_numbers_have_few_digits() -> None:
    """Shares have three digits after the point, prices none."""
    values = [0.91234, 1.0, 12345.678, 0.00001234, 3.14159, 0.0, None, 1234567]
    assert [number(value) for value in values] == [
        "0.912",
        "1",
        "12,346",
        "1.234e-05",
        "3.142",
        "0.000",
        "–",
        "1,234,567",
    ]


def test_the_most_confused_pairs_come_first() -> None:
    """With their share of the true label's rows, and examples with their place."""
    evaluation = sizes(
        [0] * 10 + [1] * 4, [0] * 7 + [2] * 3 + [0] * 2 + [1] * 2, files=["rows.csv"] * 14, rows=np.arange(2, 16)
    )
    (answers,) = answers_of(evaluation.scores, evaluation.labels, SIZES)
    found = mistakes(answers, evaluation)
    assert [(kind.label, kind.what, kind.other, kind.count, kind.share) for kind in found] == [
        ("general", "answered as", 'it\'s "tall"', 3, 0.3),
        ("petite", "answered as", "general", 2, 0.5),
    ]
    assert [(row.place, row.text) for row in found[1].rows] == [
        ("rows.csv, row 12", "text 10"),
        ("rows.csv, row 13", "text 11"),
    ]


def test_an_unseen_label_is_a_mistake_with_a_name(tmp_path: Path) -> None:
    """A label that training never saw has its own row in the matrix, and is counted in a sentence."""
    evaluation = sizes([0] * 6 + [-1] * 2, [0] * 8, unseen={"size": {6: ["giant"], 7: ["giant"]}})
    (answers,) = answers_of(evaluation.scores, evaluation.labels, SIZES, evaluation.unseen)
    (kind,) = mistakes(answers, evaluation)
    assert (kind.label, kind.other, kind.count, kind.share) == ("giant", "general", 2, 1.0)
    write_report(tmp_path, evaluation)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "2 rows count as wrong because training never saw the label: “giant” (2)." in page
    rows = pandas.read_parquet(tmp_path / "predictions.parquet")
    assert len(eval(kind.code, {"rows": rows})) == 2


def test_missed_and_wrong_labels_are_counted() -> None:
    """Of a head with several labels; rows without known labels do not count."""
    nan = float("nan")
    labels = [[1, 0], [1, 0], [1, 1], [0, 1], [nan, nan]]
    scores = [[0.9, 0.8], [0.2, 0.1], [0.1, 0.9], [0.1, 0.7], [0.9, 0.9]]
    evaluation = evaluated(TAGS, labels, scores)
    (answers,) = answers_of(evaluation.scores, evaluation.labels, TAGS)
    found = {f"{kind.label} {kind.what}": kind for kind in mistakes(answers, evaluation)}
    assert {what: (kind.count, kind.share) for what, kind in found.items()} == {
        "a missed": (2, pytest.approx(2 / 3)),
        "b answered wrongly": (1, pytest.approx(1 / 3)),
    }
    assert [row.text for row in found["a missed"].rows] == ["text 2", "text 1"]  # the surest first
    assert found["a missed"].rows[0].true == "a, b"


@pytest.mark.parametrize("head", ["kind", "tags"])
def test_the_code_of_a_number_finds_its_rows(tmp_path: Path, head: str) -> None:
    """Each expression on the page gives as many rows of predictions.parquet as the page says."""
    schema = Schema(
        [
            Head(name="kind", kind="single_label", labels=(HOSTILE, *(f'it\'s "{i}"\\' for i in range(5)))),
            Head(name="tags", kind="multi_label", labels=("a", HOSTILE, "c'")),
        ]
    )
    evaluation, _ = evaluation_of(schema, 200)
    evaluation.labels[::7] = np.nan
    write_report(tmp_path, evaluation)
    rows = pandas.read_parquet(tmp_path / "predictions.parquet")
    answers = {part.head.name: part for part in answers_of(evaluation.scores, evaluation.labels, schema)}[head]
    found = mistakes(answers, evaluation)
    page = html.unescape((tmp_path / "index.html").read_text(encoding="utf-8"))
    assert len(found) > 5
    for kind in found:
        assert kind.code in page
        assert len(eval(kind.code, {"rows": rows})) == kind.count, kind.code


def test_the_code_of_a_regression_sorts_by_error(tmp_path: Path) -> None:
    """The largest errors come first."""
    evaluation, _ = evaluation_of(STARS, 50)
    write_report(tmp_path, evaluation)
    rows = pandas.read_parquet(tmp_path / "predictions.parquet")
    found = eval(largest_errors_code(STARS["stars"]), {"rows": rows})
    errors = np.abs(evaluation.scores - evaluation.labels)[:, 0]
    assert found.index.tolist()[:5] == np.argsort(-errors)[:5].tolist()


def test_an_exact_regression_is_no_error() -> None:
    """Only rows that are off are shown."""
    evaluation = evaluated(STARS, [[1], [2]], [[1], [2.5]])
    (answers,) = answers_of(evaluation.scores, evaluation.labels, STARS)
    assert [(row.answer, row.true, row.text) for row in most_confident(answers, evaluation)] == [("2.5", "2", "text 1")]


def test_a_short_window_makes_no_jump() -> None:
    """A window of one step joins the window before it, weighted by its steps."""
    history = [
        {"epoch": 0.5, "step": 50, "loss": 1.0},
        {"epoch": 1.0, "step": 100, "loss": 0.5},
        {"epoch": 1.01, "step": 101, "loss": 9.0},
        {"epoch": 1.5, "step": 150, "loss": 0.5},
    ]
    assert plots.training_losses(history) == [(0.5, 1.0), (1.01, pytest.approx((25 + 9) / 51)), (1.5, 0.5)]
    assert plots.training_losses([{"epoch": 1.0, "loss": 2.0}, {"epoch": 2.0, "loss": 1.0}]) == [(1.0, 2.0), (2.0, 1.0)]
    assert plots.training_losses([{"epoch": 1.0, "eval_loss": 2.0}]) == []


def test_each_head_has_its_own_axis(tmp_path: Path) -> None:
    """A mean absolute error is never drawn on the axis of an accuracy."""
    schema = Schema([Head(name="kind", kind="single_label", labels=("a", "b")), Head(name="stars", kind="regression")])
    evaluation, _ = evaluation_of(schema, 40)
    write_report(tmp_path, evaluation, history=HISTORY)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    (training, kind, stars) = re.split("<h2", page)[1:4]
    drawn = [re.findall(">(accuracy|mae)</text>", part) for part in (training, kind, stars)]
    assert drawn == [[], ["accuracy"], ["mae"]]


def test_the_page_shows_what_was_measured(tmp_path: Path) -> None:
    """Where the rows come from, both baselines beside each number, and labels to check."""
    schema = many_heads(3)
    evaluation, _ = evaluation_of(
        schema,
        60,
        baselines=True,
        measured_on="Measured on 60 held-out rows. Nothing was chosen on them.",
        files=["rows.csv"] * 60,
        rows=np.arange(1, 61),
        splits=["test"] * 60,
        suspects=suspects_of("topic_0", 60),
    )
    write_report(tmp_path, evaluation)
    page = html.unescape((tmp_path / "index.html").read_text(encoding="utf-8"))
    assert "Measured on 60 held-out rows. Nothing was chosen on them." in page
    assert "<th>metric</th><th>model</th><th>linear</th><th>majority</th>" in page
    linear = evaluation.baselines["topic_0"]["linear"]["accuracy"]
    assert f'<span>linear</span><i><b style="width:{100 * linear:.1f}%"></b></i><span>{linear:.3f}</span>' in page
    assert """rows = pandas.read_parquet("predictions.parquet", filters=[("split", "in", ['test'])])""" in page
    assert "The 50 of 60 rows whose label is probably wrong" in page
    assert "rows.csv, row 1\n" in page.replace("</span>", "\n")


def test_five_thousand_labels_make_a_page(tmp_path: Path) -> None:
    """The page names the labels with most mistakes and stays small."""
    labels = tuple(f"label {i}" for i in range(5000))
    schema = Schema([Head(name="many", kind="single_label", labels=labels)])
    evaluation, _ = evaluation_of(schema, 300, texts=["word " * 50])
    write_report(tmp_path, evaluation)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "Confusion: the 12 of 5,000 labels that are confused most" in page
    assert "100 labels with most rows, of 5,000" in page
    assert len(page) < 500_000


def test_a_label_table_counts() -> None:
    """Rows, answers, precision, recall and F1 per label."""
    evaluation = sizes([0, 0, 0, 1], [0, 0, 1, 1])
    (answers,) = answers_of(evaluation.scores, evaluation.labels, SIZES)
    columns, rows = label_table(answers)
    assert columns == ["label", "rows", "answered", "precision", "recall", "F1"]
    assert rows[0] == ["general", 3, 2, 1.0, pytest.approx(2 / 3), pytest.approx(0.8)]
    assert rows[1] == ["petite", 1, 2, 0.5, 1.0, pytest.approx(2 / 3)]
