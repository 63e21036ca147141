"""The scores of the quality benchmark, beside numbers counted by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score

from benchmarks.quality.answers import Answer, Answers, above, choose_thresholds, numbers, one_of, read_answers
from benchmarks.quality.page import BEGIN, END, NOTHING, PAGE, tables, write_page
from benchmarks.quality.plot import plot
from benchmarks.quality.scores import (
    make_truth,
    median_run,
    over_seeds,
    score_head_of_all,
    score_outside,
    score_run,
    summarize,
)
from loadtest.result import RESULTS
from polyhead.schema import Head, HeadKind

TOPIC = Head(name="topic", kind=HeadKind.SINGLE_LABEL, labels=("a", "b"))
TAGS = Head(name="tags", kind=HeadKind.MULTI_LABEL, labels=("x", "y"))
STARS = Head(name="stars", kind=HeadKind.REGRESSION)


def says(labels: str) -> Answer:
    """Answers to TOPIC, all of them with a score of 0.75."""
    return one_of(np.array([[0.75, 0.25] if label == "a" else [0.25, 0.75] for label in labels]))


def test_a_run_is_scored_in_rows_with_a_label() -> None:
    """Of four known rows three are right, at a confidence of 0.75; a label of no training row is wrong."""
    truth = make_truth(TOPIC, ["a", "b", None, "b", "c"], ["a"] * 50 + ["b"] * 49)
    scores = score_run(truth, says("abbba"))
    assert scores["accuracy"] == 0.75
    assert scores["ece"] == pytest.approx(0.0)
    # F1 of a: 1 found of 2 answers and 1 true one; of b: 1; of c, which is never found: 0.
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_labels_with_fifty_training_rows_should_be_answered() -> None:
    """Label b has 50 rows and is never answered; with 49 rows it does not count, nor if no test row has it."""
    for count, labels, never in ((50, "ab", 1), (49, "ab", 0), (50, "aa", 0)):
        truth = make_truth(TOPIC, list(labels), ["a"] * 60 + ["b"] * count)
        assert score_run(truth, says("aa"))["never_answered"] == never


def test_multi_label_and_numbers_have_their_own_scores() -> None:
    """Micro F1 of 2 right labels of 3 answers and 3 true ones; the mean error of 1 and 0.5."""
    answer = above(np.array([[0.9, 0.9], [0.9, 0.1]]), np.array([0.5, 0.5]))
    truth = make_truth(TAGS, [["x"], ["x", "y"]], [["x"]])
    assert score_run(truth, answer)["micro_f1"] == pytest.approx(4 / 6)
    truth = make_truth(STARS, [3.0, None, 4.5], [1.0])
    assert score_run(truth, numbers(np.array([4.0, 0.0, 5.0]))) == {"mae": 0.75}


def test_spread_is_the_range_over_seeds() -> None:
    """Mean, lowest and highest of three runs; the median run is the one in the middle."""
    found = over_seeds([{"accuracy": value} for value in (0.5, 0.9, 0.7)])["accuracy"]
    assert (found["mean"], found["low"], found["high"]) == (pytest.approx(0.7), 0.5, 0.9)
    assert median_run([0.5, 0.9, 0.7]) == 2
    assert median_run([0.9, 0.5]) == 1


def test_a_head_is_won_beyond_spread_and_chance() -> None:
    """Ten rows that only the product has right, of 20: McNemar's p is 2 / 2^10. One seed like the peer's is no win."""
    truth = make_truth(TOPIC, ["a"] * 20, ["a", "b"])
    peer, ours = says("a" * 10 + "b" * 10), says("a" * 20)
    weaker = says("a" * 4 + "b" * 16)
    found = score_head_of_all(
        truth, {"polyhead": [ours, ours], "logistic": [weaker], "sgd": [peer], "majority": [ours]}
    )
    assert found["against"]["peer"] == "sgd"
    assert found["against"]["margin"] == pytest.approx(0.5)
    assert found["against"]["p"] == pytest.approx(2 / 2**10)
    assert found["against"]["is_won"]
    lost = score_head_of_all(truth, {"polyhead": [ours, ours, peer], "sgd": [peer]})["against"]
    assert (lost["is_beyond_spread"], lost["is_won"]) == (False, False)
    few = make_truth(TOPIC, ["a"] * 5, ["a", "b"])
    chance = score_head_of_all(few, {"polyhead": [says("aaaaa")], "sgd": [says("bbbbb")]})["against"]
    assert chance["p"] == pytest.approx(2 / 2**5)
    assert (chance["is_beyond_spread"], chance["is_won"]) == (True, False)


def test_less_error_is_a_margin_above_zero() -> None:
    """An error of 0.1 beside one of 0.6, in 40 rows."""
    truth = make_truth(STARS, [float(place) for place in range(40)], [1.0])
    exact = np.arange(40.0)
    runs = {"polyhead": [numbers(exact + 0.1)], "logistic": [numbers(exact - 0.6)]}
    found = score_head_of_all(truth, runs)["against"]
    assert found["margin"] == pytest.approx(0.5, abs=1e-5)
    assert found["is_won"]
    runs = {"polyhead": runs["logistic"], "logistic": runs["polyhead"]}
    found = score_head_of_all(truth, runs)["against"]
    assert found["margin"] == pytest.approx(-0.5, abs=1e-5)
    assert not found["is_won"]


def test_texts_out_of_scope_are_told_by_certainty() -> None:
    """Of 8 pairs 5 are in order; the 95 % coverage of four texts is at 0.615, below which is one of two."""
    inside, outside = np.array([0.9, 0.8, 0.7, 0.6]), np.array([0.5, 0.85])
    assert score_outside(Answers({}, inside, outside)) == {"auroc": 0.625, "rejected": 0.5}
    assert score_outside(Answers()) is None


def test_the_last_line_counts_heads() -> None:
    """Heads without a product or a linear model count as heads, not as won."""
    won = {"against": {"is_won": True, "margin": 0.01}}
    lost = {"against": {"is_won": False, "margin": -0.02}}
    sets = {"one": {"heads": {"a": won, "b": lost}}, "two": {"heads": {"c": {}}}}
    assert summarize(sets, 1.234) == {"heads": 3, "heads_won": 1, "worst_margin": -0.02, "hours": 1.23}
    assert summarize({"two": sets["two"]}, 0.0)["worst_margin"] is None


def test_answers_are_read_as_written(tmp_path: Path) -> None:
    """Scores, answered labels and certainty."""
    written = Answers({"topic": says("ab"), "stars": numbers(np.array([1.5, 2.0]))}, np.ones(2), np.zeros(1))
    written.write(tmp_path / "answers.npz")
    found = read_answers(tmp_path / "answers.npz")
    assert found.heads.keys() == {"topic", "stars"}
    np.testing.assert_array_equal(found.heads["topic"].chosen, [[1, 0], [0, 1]])
    np.testing.assert_array_equal(found.heads["stars"].scores, [[1.5], [2.0]])
    assert found.inside is not None
    assert len(found.inside) == 2


def test_labels_get_thresholds_of_their_own_only_if_that_holds() -> None:
    """Two labels whose best thresholds lie apart get both, and the returned micro F1 is scikit-learn's."""
    draw = np.random.default_rng(0)
    true = draw.integers(0, 2, (400, 2)).astype(np.int8)
    scores = np.where(true > 0, [0.4, 0.9], [0.2, 0.6]) + draw.uniform(-0.05, 0.05, (400, 2))
    thresholds, value = choose_thresholds(scores, true)
    assert 0.25 <= thresholds[0] <= 0.35
    assert 0.65 <= thresholds[1] <= 0.85
    assert value == 1.0
    assert f1_score(true, above(scores, thresholds).chosen, average="micro") == 1.0
    noise = draw.uniform(0, 1, (40, 2))
    shared, _ = choose_thresholds(noise, np.ones((40, 2), np.int8))
    assert shared[0] == shared[1]


RESULT = {
    "heads": 2, "heads_won": 1, "worst_margin": -0.02, "hours": 3.21,
    "methods": {"polyhead": "Polyhead", "sgd": "TF-IDF, one-vs-rest SGD"},
    "missing": {"spacy": "the package spacy is not installed"},
    "sets": {
        "demo": {
            "rows": {"train": 1000, "validation": 100, "test": 200},
            "heads": {
                "topic": {
                    "metric": "accuracy",
                    "methods": {
                        "polyhead": over_seeds([{"accuracy": 0.8, "ece": 0.01}, {"accuracy": 0.9, "ece": 0.02}]),
                        "sgd": over_seeds([{"accuracy": 0.7, "ece": 0.1}]),
                    },
                    "against": {"peer": "sgd", "margin": 0.15, "p": 0.0001, "is_won": True},
                },
                "stars": {
                    "metric": "mae",
                    "methods": {"polyhead": over_seeds([{"mae": 0.52}]), "sgd": over_seeds([{"mae": 0.5}])},
                    "against": {"peer": "sgd", "margin": -0.02, "p": 0.5, "is_won": False},
                },
            },
            "outside": {"sgd": over_seeds([{"auroc": 0.92, "rejected": 0.64}])},
            "runs": {
                "polyhead": [{"seed": 1, "seconds": 3000, "memory_mb": 900, "failed": None},
                             {"seed": 2, "seconds": 3600, "memory_mb": 950, "failed": "was stopped after 60 minutes"}],
                "sgd": [{"seed": 1, "seconds": 20, "memory_mb": 400, "failed": None}],
            },
        }
    },
}  # fmt: skip


def test_the_page_has_the_numbers_of_the_result(tmp_path: Path) -> None:
    """Means with half their range, the test beside the better linear model, costs, and what did not run."""
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n{BEGIN}\nold\n{END}\n\nAfter.\n", encoding="utf-8")
    write_page(page, RESULT)
    text = page.read_text(encoding="utf-8")
    assert (
        "| demo topic | accuracy | 0.850 ± 0.050 | 0.700 | +0.150 (TF-IDF, one-vs-rest SGD) | < 0.001 | yes |" in text
    )
    assert (
        "| demo stars | mean absolute error | 0.520 | 0.500 | -0.020 (TF-IDF, one-vs-rest SGD) | 0.500 | no |" in text
    )
    assert "| demo, texts out of scope | AUROC |  | 0.920 |" in text
    assert "| demo | 1,000 | 100 | 200 | 3,300 s, 950 MB | 20 s, 400 MB |" in text
    assert "`polyhead` on demo, seed 2: was stopped after 60 minutes." in text
    assert "`spacy` did not run: the package spacy is not installed." in text
    assert text.startswith("# Title\n")
    assert text.endswith("After.\n")
    assert "old" not in text


def test_the_committed_page_is_of_the_committed_result() -> None:
    """The tables of docs/quality.md are those of quality.json."""
    committed = RESULTS / "quality.json"
    result = json.loads(committed.read_text(encoding="utf-8")) if committed.exists() else None
    assert f"{BEGIN}\n\n{tables(result)}\n\n{END}" in PAGE.read_text(encoding="utf-8")
    assert tables(None) == NOTHING


def test_the_plot_has_an_axis_of_shares_and_one_of_errors() -> None:
    """Each head has a line; the legend names every method once."""
    figure = plot(RESULT)
    shares, errors = figure.axes
    assert [label.get_text() for label in shares.get_yticklabels()] == ["demo topic, accuracy"]
    assert [label.get_text() for label in errors.get_yticklabels()] == ["demo stars, mean absolute error"]
    assert [text.get_text() for text in shares.get_legend().get_texts()] == ["Polyhead", "TF-IDF, one-vs-rest SGD"]
