"""Baselines, against numbers worked out by hand or computed by scikit-learn alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from polyhead.ngrams import TermReader
from polyhead.schema import Head, HeadKind, Schema
from polyhead_training.config import CalibrationConfig
from polyhead_training.evaluation import linear_model
from polyhead_training.evaluation.baselines import Baselines, Constant, best_constants, fit_baselines, score_constants
from polyhead_training.evaluation.evaluation import Evaluation
from polyhead_training.evaluation.linear_model import LinearModel
from polyhead_training.evaluation.metrics import score_answers
from polyhead_training.evaluation.notes import notes_of
from polyhead_training.evaluation.score_table import score_table

SCHEMA = Schema(
    [
        Head(name="topic", kind="single_label", labels=("a", "b", "c")),
        Head(name="tags", kind="multi_label", labels=("x", "y", "z")),
        Head(name="price", kind="regression"),
    ]
)
TRAIN = np.array(
    [
        [1, 1, 0, 0, 10],
        [1, 1, 1, 0, 20],
        [0, 1, 0, 0, 90],
        [1, 0, 1, 0, math.nan],
        [math.nan, math.nan, math.nan, math.nan, 40],
    ],
    np.float32,
)
TEST = np.array([[1, 1, 0, 0, 20], [2, 0, 0, 1, 50], [0, 1, 1, 0, 30], [1, 0, 1, 0, math.nan]], np.float32)


def test_the_best_constant_answers() -> None:
    """The most frequent label, the labels with the best micro F1, the median and the mean of the training rows."""
    found = best_constants(TRAIN, SCHEMA)
    # x in 3 of 4 rows, y in 2. Answering x: F1 = 2*3/(4+5) = 0.667; x and y: 2*5/(8+5) = 0.769; all: 10/17 = 0.588.
    assert found == {
        "topic": Constant(labels=["b"]),
        "tags": Constant(labels=["x", "y"]),
        "price": Constant(median=30, mean=40),
    }


def test_constant_answers_are_scored_by_hand() -> None:
    """Accuracy and F1 of the label, MAE of the median, RMSE and R2 of the mean; nothing that needs a score."""
    found = score_constants(best_constants(TRAIN, SCHEMA), TEST, SCHEMA)
    assert found["topic"]["rows"] == 4
    assert found["topic"]["accuracy"] == pytest.approx(2 / 4)
    assert found["topic"]["macro_f1"] == pytest.approx((2 * 2 / (4 + 2) + 0 + 0) / 3)
    # x and y for four rows: 8 answers, 4 of them right, 5 labels are true.
    assert found["tags"]["micro_f1"] == pytest.approx(2 * 4 / (8 + 5))
    assert found["tags"]["subset_accuracy"] == pytest.approx(1 / 4)
    assert found["price"]["mae"] == pytest.approx((10 + 20 + 0) / 3)
    assert found["price"]["rmse"] == pytest.approx(math.sqrt((400 + 100 + 100) / 3))
    assert not {"nll", "ece", "auroc", "top_3_accuracy"} & found["topic"].keys()


def test_an_unseen_label_is_wrong_for_a_baseline_too() -> None:
    """The constant answer is measured on the same rows as the network."""
    labels = np.array([[1], [-1], [-1]], np.float32)
    schema = Schema([SCHEMA["topic"]])
    found = score_constants({"topic": Constant(labels=["b"])}, labels, schema, {"topic": {1: ["new"], 2: ["new"]}})
    assert found["topic"]["accuracy"] == pytest.approx(1 / 3)
    assert found["topic"]["macro_f1"] == pytest.approx((2 * 1 / (3 + 1) + 0) / 2)


def test_a_constant_ignores_the_taxonomy() -> None:
    """The majority of each level by itself, though the two labels contradict each other."""
    leaves = {"a1": "a", "a2": "a", "b1": "b"}
    schema = Schema(
        [
            Head(name="area", kind="single_label", labels=("a", "b")),
            Head(name="field", kind="single_label", labels=tuple(leaves), parent="area", parent_of=leaves),
        ]
    )
    labels = np.array([[0, 0], [0, 1], [0, 0], [1, 2], [1, 2], [1, 2], [0, 1]], np.float32)
    found = score_constants(best_constants(labels, schema), labels, schema)
    assert found["area"]["accuracy"] == pytest.approx(4 / 7)
    assert found["field"]["accuracy"] == pytest.approx(3 / 7)


def texts_and_labels(rows: int) -> tuple[list[str], NDArray[np.float32]]:
    """Texts whose words say topic and tags with some noise, and the price in a word of its own."""
    random = np.random.default_rng(0)
    topic, tags = random.integers(0, 3, rows), random.integers(0, 2, (rows, 3))
    words = [["alpha", "beta", "gamma"][i if random.random() < 0.9 else 0] for i in topic]
    texts = [
        f"{word} {' '.join(f'tag{j}' for j in range(3) if tag[j])} price{p} and {random.integers(50)} more"
        for word, tag, p in zip(words, tags, topic, strict=True)
    ]
    return texts, np.column_stack([topic, tags, 1000.0 * topic]).astype(np.float32)


def fitted(texts: Sequence[str], labels: NDArray[np.float32], schema: Schema = SCHEMA) -> LinearModel:
    """A linear model of all rows."""
    return LinearModel(schema).fit(lambda rows: [texts[row] for row in rows], labels)


def test_the_linear_model_is_scikit_learns() -> None:
    """The same answers as TF-IDF and regressions that are written down here; numbers in their own unit."""
    texts, labels = texts_and_labels(300)
    logits = fitted(texts[:200], labels[:200]).logits(texts[200:])
    kinds = [
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+"),
        TfidfVectorizer(ngram_range=(2, 5), sublinear_tf=True, analyzer="char_wb"),
    ]
    train = sparse.hstack([kind.fit_transform(texts[:200]) for kind in kinds]).tocsr()
    test = sparse.hstack([kind.transform(texts[200:]) for kind in kinds]).tocsr()
    expected = LogisticRegression(C=30, max_iter=100).fit(train, labels[:200, 0]).predict(test)
    assert (logits[:, :3].argmax(axis=1) == expected).mean() > 0.98
    for tag in range(3):
        assert ((logits[:, 3 + tag] > 0) == labels[200:, 1 + tag]).mean() > 0.95
    assert np.abs(logits[:, 6] - labels[200:, 4]).mean() < 200


def test_a_fitted_linear_model_keeps_its_scale() -> None:
    """The scale that the mix with n-grams gave the model is not the linear model's."""
    texts, labels = texts_and_labels(300)

    def scaled(center: float, spread: float) -> Schema:
        scale = {"target_scale": (center, spread)}
        return Schema([h.model_copy(update=scale) if h.kind == HeadKind.REGRESSION else h for h in SCHEMA])

    split = cast(Any, SimpleNamespace(labels=labels, texts=texts))
    model = fitted(texts, labels, scaled(1000, 800))
    mixed = scaled(2000, 5)
    found = fit_baselines(split, split, mixed, CalibrationConfig(), linear=model).measure(texts, labels, mixed)
    (name,) = (head.name for head in SCHEMA if head.kind == HeadKind.REGRESSION)
    assert found[name]["linear"]["mae"] < 200 < found[name]["majority"]["mae"]


def test_unknown_labels_and_one_class_are_no_error() -> None:
    """Without labels, or with one class only, a head has no linear baseline; what never occurs is not answered."""
    texts, labels = texts_and_labels(60)
    labels[:, 0] = 1
    labels[:, 1:3] = (0, 1)
    labels[:, 4] = math.nan
    model = fitted(texts, labels)
    assert model.heads == {"tags"}
    logits = model.logits(texts)
    assert np.isfinite(logits).all()
    assert (logits[:, 3] < -20).all()
    assert (logits[:, 4] > 20).all()


@pytest.mark.parametrize("texts", [[" ", "\t"] * 5, ["!!!", "???"] * 5, ["東京大学", "大阪城"] * 5, ["a", "b"] * 5])
def test_any_texts_will_do(texts: list[str]) -> None:
    """Texts without characters have no linear baseline, and a sentence says so; scripts without blanks have words."""
    labels = np.tile(np.array([[0, 1, 0, 0, 1], [1, 0, 1, 0, 2]], np.float32), (5, 1))
    model = fitted(texts, labels)
    has_words = not texts[0].isspace()
    assert (len(model.heads), model.note) == (
        (3, "") if has_words else (0, "There is no linear baseline, because the texts have no words.")
    )
    assert (model.logits(texts)[:, :2].argmax(axis=1) == labels[:, 0]).all() or not has_words


def test_large_data_are_sampled_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows and labels are bounded, whatever there is; labels beyond are never answered."""
    monkeypatch.setattr(linear_model, "MOST_ROWS", 50)
    monkeypatch.setattr(linear_model, "MOST_LABELS", 2)
    texts, labels = texts_and_labels(300)
    read: list[int] = []
    model = LinearModel(SCHEMA).fit(lambda rows: [read.append(row) or texts[row] for row in rows], labels)  # type: ignore[func-returns-value]
    assert len(set(read)) == 50
    assert model.note == (
        "The linear baseline was fitted on at most 50 rows per head and the 2 most frequent labels of a head."
    )
    rare = np.bincount(labels[np.unique(read), 0].astype(int), minlength=3).argmin()
    assert (model.logits(texts)[:, rare] < -20).all()


def test_a_sorted_file_loses_no_label(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are left out for the sake of many labels are drawn from the whole file, and the note says so."""
    texts, labels = texts_and_labels(300)
    order = np.lexsort((labels[:, 1], labels[:, 0]))
    texts, labels = [texts[row] for row in order], labels[order]
    reader = TermReader(learns=True)
    per_row = np.mean([len(set(reader.read(text))) for text in texts])
    monkeypatch.setattr(linear_model, "MOST_PRODUCTS", 3 * 100.5 * per_row)
    model = fitted(texts, labels)
    assert model.note == "The linear baseline was fitted on at most 100 rows of a head with many labels."
    logits = model.logits(texts)
    assert set(logits[:, :3].argmax(axis=1)) == {0, 1, 2}
    assert (logits[:, :3].argmax(axis=1) == labels[:, 0]).mean() > 0.8
    assert ((logits[:, 3] > 0) == labels[:, 1]).mean() > 0.9


def evaluation_of(labels: NDArray[np.float32], scores: NDArray[np.float32], schema: Schema = SCHEMA) -> Evaluation:
    """With baselines fitted on the same rows."""
    texts, _ = texts_and_labels(len(labels))
    baselines = Baselines(best_constants(labels, schema), fitted(texts, labels, schema), schema)
    return Evaluation(
        schema=schema,
        max_length=8,
        texts=texts,
        labels=labels,
        scores=scores,
        token_counts=np.full(len(labels), 5, np.int32),
        truncated=np.zeros(len(labels), bool),
        metrics=score_answers(scores, labels, schema),
        baselines=baselines.measure(texts, labels, schema),
    )


def test_a_model_that_is_not_worth_serving_is_named() -> None:
    """No better than one answer for all texts, no better than a linear model, or better; and what is never answered."""
    _, labels = texts_and_labels(120)
    always = np.tile(np.array([0.9, 0.05, 0.05, 0.6, 0.6, 0.1, 1e6], np.float32), (120, 1))
    notes = notes_of(evaluation_of(labels, always))
    majority = np.bincount(labels[:, 0].astype(int)).max() / 120
    assert any(
        note.startswith("head 'topic': accuracy 0.300. Worse than the linear model by 0.700. ")
        and f"Worse than the majority answer by {majority - 0.3:.3f}, which 120 rows cannot tell from chance." in note
        and "Never answers 2 of the 3 labels in these rows: " in note
        for note in notes
    )
    assert any(
        "head 'tags': " in note and note.endswith("Never answers 1 of the 3 labels in these rows: “z”.")
        for note in notes
    )
    assert any(note.startswith("head 'price': mae 998,933. Worse than the linear model") for note in notes)
    perfect = np.column_stack([*(labels[:, 0] == i for i in range(3)), labels[:, 1:4], labels[:, 4]]).astype(np.float32)
    notes = notes_of(evaluation_of(labels, perfect))
    assert [note.partition(". ")[2].partition(" Better")[0] for note in notes] == [
        "Exactly as good as the linear model."
    ] * 2


def test_the_table_shows_both_baselines() -> None:
    """A row per main metric, and a column per baseline if there is one."""
    _, labels = texts_and_labels(120)
    evaluation = evaluation_of(labels, np.tile(np.array([0.9, 0.05, 0.05, 0.6, 0.6, 0.1, 1e6], np.float32), (120, 1)))
    table = score_table(SCHEMA, {"test": evaluation.metrics}, {"test": evaluation.baselines})
    assert [column.header for column in table.columns] == [
        "split", "head", "rows", "metric", "model", "linear", "majority",
    ]  # fmt: skip
    cells = [list(column.cells) for column in table.columns]
    assert cells[3][:3] == ["accuracy", "macro_f1", "ece"]
    assert cells[6][0] == f"{np.bincount(labels[:, 0].astype(int)).max() / 120:.3f}"
    assert len(score_table(SCHEMA, {"test": evaluation.metrics}, {}).columns) == 5
