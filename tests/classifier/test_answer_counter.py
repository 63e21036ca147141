"""What a model says, in buckets: the counts are those of the decoded answers, and names and numbers are bounded."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyhead.answer_counter import AnswerCounter
from polyhead.checkpoint import read_checkpoint
from polyhead.decode import DecodeOptions, decode
from polyhead.distribution import Bucket, Distribution, answer_buckets, distribution_of, most_labels, usual_edges
from polyhead.errors import CheckpointError
from polyhead.schema import NO_SCORE, Head, Schema
from tests.tiny import TEXTS, write_distribution

SCHEMA = Schema(
    [
        Head(name="topic", kind="single_label", labels=("news", "sport", "science"), reject_below=0.5),
        Head(name="mood", kind="multi_label", labels=("happy", "sad"), thresholds=(0.5, 0.8)),
        Head(name="stars", kind="regression"),
    ]
)
EDGES = {"stars": [1.0, 2.0]}
LABELS = {"topic": ["sport", "news"], "mood": ["happy", "sad"]}
# topic, mood, stars
ROWS = np.array(
    [
        [0.96, 0.03, 0.01, 0.90, 0.90, 0.5],  # news; happy and sad; sure
        [0.02, 0.97, 0.01, 0.52, 0.10, 1.0],  # sport; happy, near its threshold
        [0.05, 0.05, 0.90, 0.10, 0.77, 1.5],  # science, which is not counted by name; none, near a threshold
        [0.40, 0.30, 0.30, 0.40, 0.10, 9.0],  # rejected, not near the bound; none
        [0.48, 0.42, 0.10, 0.10, 0.10, -3.0],  # rejected, near the bound; none
        [np.nan] * 6,  # no answer
        [0.52, 0.40, 0.08, 1.00, 0.20, 2.0],  # news, near the bound; happy
    ],
    dtype=np.float32,
)
TRUNCATED = [False, False, True, False, False, True, False]
SCRIPTS = ["latin", "latin", "cyrillic", "none", "latin", "", "cjk"]


def counted(counter: AnswerCounter, rows: Any = ROWS, truncated: Any = TRUNCATED, scripts: Any = SCRIPTS) -> Any:
    """The buckets that are not empty: of, head, and bucket with its texts."""
    found: dict[tuple[str, str], dict[str, int]] = {}
    for (of, head, bucket), texts in zip(
        counter.buckets, counter.count(rows, truncated, scripts).tolist(), strict=True
    ):
        if texts:
            found.setdefault((of, head), {})[bucket] = texts
    return found


def test_every_text_is_in_its_buckets() -> None:
    """Counted by hand: labels, rejected answers, scores, texts near a threshold, scripts and truncation."""
    assert counted(AnswerCounter(SCHEMA, LABELS, EDGES)) == {
        ("answers", "topic"): {"news": 2, "sport": 1, "(rest)": 1, "(rejected)": 2},
        ("scores", "topic"): {"0.4": 1, "0.5": 1, "0.6": 1, "0.9": 1, "0.99": 2},
        ("near_threshold", "topic"): {"no": 4, "yes": 2},
        ("answers", "mood"): {"happy": 3, "sad": 1, "(none)": 3},
        ("scores", "mood"): {"0.1": 1, "0.4": 1, "0.6": 1, "0.8": 1, "0.9": 1, "1": 1},
        ("near_threshold", "mood"): {"no": 4, "yes": 2},
        ("scores", "stars"): {"1": 3, "2": 2, "+Inf": 1},
        ("script", ""): {"latin": 3, "cyrillic": 1, "none": 1, "cjk": 1},
        ("truncated", ""): {"no": 5, "yes": 1},
    }


def test_texts_without_an_answer_do_not_count() -> None:
    """Neither NaN nor the wire's number for no score nor an empty batch counts."""
    counter = AnswerCounter(SCHEMA, LABELS, EDGES)
    rows = np.array([[np.nan] * 6, [NO_SCORE] * 6], dtype=np.float32)
    assert counter.count(rows, [False] * 2, ["", ""]).sum() == 0
    assert counter.count(rows[:0], [], []).sum() == 0


TAXONOMY = Schema(
    [
        Head(
            name="leaf", kind="single_label", labels=("a1", "b1", "a2", "c1", "b2"), parent="root",
            parent_of={"a1": "a", "a2": "a", "b1": "b", "b2": "b", "c1": "c"}, reject_below=0.3, reject_by="certainty",
        ),
        Head(name="root", kind="single_label", labels=("a", "b", "c"), reject_below=0.4),
        Head(name="leaf2", kind="single_label", labels=("x", "y", "z"), parent="root",
            parent_of={"x": "a", "y": "b", "z": "c"}),
        Head(name="alone", kind="single_label", labels=("p", "q"), reject_below=0.7),
        Head(name="tags", kind="multi_label", labels=("t", "u", "v"), thresholds=(0.2, 0.5, 0.9)),
    ]
)  # fmt: skip
TENTHS = st.integers(0, 10).map(lambda tenth: tenth / 10)  # equal scores are likely


@given(st.lists(st.lists(TENTHS, min_size=16, max_size=16), min_size=1, max_size=6))
def test_counts_are_those_of_the_decoded_answers(rows: list[list[float]]) -> None:
    """With taxonomies, rejected levels and equal scores, each head's labels are those of `decode`."""
    scores = np.array(rows, dtype=np.float32)
    expected: Counter[tuple[str, str]] = Counter()
    for row in scores:
        for name, answer in decode(row, TAXONOMY, DecodeOptions()).items():
            if name == "tags":
                expected.update((name, label) for label in answer["labels"] or ["(none)"])
            else:
                label = answer.get("label", answer["labels"][0])
                expected[name, "(rejected)" if label is None else label] += 1
    found = counted(AnswerCounter(TAXONOMY), scores, [False] * len(rows), ["latin"] * len(rows))
    answers = {
        (head, label): n for (of, head), labels in found.items() if of == "answers" for label, n in labels.items()
    }
    assert answers == dict(expected)


def test_names_of_buckets_are_short_and_different() -> None:
    """Long labels are cut, and a label that is called like another bucket gets its number."""
    long = ["x" * 100, "x" * 100 + "y", "(rejected)", "(none)", "plain", "x" * 80 + "…", "a\u2028b\0"]
    head = Head(name="h", kind="single_label", labels=tuple(long), reject_below=0.5)
    names = answer_buckets(head, long, Schema([head]))
    assert names == [
        "x" * 80 + "… #0", "x" * 80 + "… #1", "(rejected) #2", "(none) #3", "plain", "x" * 80 + "…",
        "a\\u2028b\\x00", "(rejected)",
    ]  # fmt: skip


def test_the_number_of_buckets_is_bounded() -> None:
    """Heads with 5,000 labels have 50 by name and one for the rest; a thousand heads are as many buckets as fifty."""
    wide = Schema([Head(name="wide", kind="single_label", labels=tuple(f"label {n}" for n in range(5000)))])
    counter = AnswerCounter(wide)
    assert sum(bucket.of == "answers" for bucket in counter.buckets) == 51
    scores = np.zeros((2, 5000), dtype=np.float32)
    scores[0, 4999] = scores[1, 3] = 1
    found = counted(counter, scores, [False] * 2, ["latin"] * 2)
    assert found["answers", "wide"] == {"(rest)": 1, "label 3": 1}
    many = Schema([Head(name=f"h{n}", kind="multi_label", labels=tuple(map(str, range(100)))) for n in range(1000)])
    assert most_labels(many) == 10
    # 10 labels, rest, none, 12 buckets of scores, near or not; scripts and truncation
    assert len(AnswerCounter(many).buckets) == 50 * (10 + 2 + 12 + 2) + 16 + 2


def test_values_have_buckets_without_a_distribution() -> None:
    """Those of y_range, those of the training data, or powers of ten."""
    schema = Schema(
        [
            Head(name="share", kind="regression", y_range=(0, 100)),
            Head(name="price", kind="regression", target_scale=(50.0, 10.0)),
            Head(name="any", kind="regression"),
        ]
    )
    assert usual_edges(schema) == {
        "share": [10, 20, 30, 40, 50, 60, 70, 80, 90],
        "price": [30, 35, 40, 45, 50, 55, 60, 65, 70],
        "any": [-1000, -100, -10, -1, 0, 1, 10, 100, 1000],
    }


def distribution() -> Distribution:
    """That of ROWS."""
    counter = AnswerCounter(SCHEMA, LABELS, EDGES)
    counts = counter.count(ROWS, TRUNCATED, SCRIPTS).tolist()
    return distribution_of(6, LABELS, EDGES, dict(zip(counter.buckets, counts, strict=True)))


def test_a_distribution_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Its buckets are those of a counter that is made from it, in the same order."""
    distribution().write(tmp_path)
    found = Distribution.read(tmp_path / "distribution.json", SCHEMA)
    assert found == distribution()
    assert found.reference() == distribution().reference()
    assert list(found.texts_per_bucket(SCHEMA)) == AnswerCounter.of(SCHEMA, found).buckets
    assert found.texts_per_bucket(SCHEMA)[Bucket("answers", "topic", "(rejected)")] == 2


def test_another_distribution_has_another_reference() -> None:
    """One more text in one bucket is enough."""
    changed = distribution().model_copy(deep=True)
    changed.counts["script"][""]["latin"] += 1
    assert changed.reference() != distribution().reference()
    assert len(changed.reference()) == 8


DAMAGES: dict[str, tuple[Any, str]] = {
    "another head": (lambda d: d["labels"].update(genre=[]), r"labels: must name every counted head.*genre"),
    "a missing head": (lambda d: d["edges"].clear(), r"edges: must name every counted head.*stars"),
    "another label": (lambda d: d["labels"]["topic"].append("chess"), r"head 'topic' has no labels \['chess'\]"),
    "a label twice": (lambda d: d["labels"]["topic"].append("news"), "each once"),
    "edges in disorder": (lambda d: d["edges"].update(stars=[2.0, 1.0]), "in ascending order"),
    "too many edges": (lambda d: d["edges"].update(stars=[float(n) for n in range(21)]), "at most 20"),
    "a bucket is missing": (lambda d: d["counts"]["script"][""].pop("thai"), r"first wrong: .*thai"),
    "an unknown bucket": (lambda d: d["counts"]["script"][""].update(klingon=1), "klingon"),
    "a negative count": (lambda d: d["counts"]["script"][""].update(latin=-1), "greater than or equal to 0"),
    "an unknown field": (lambda d: d.update(sampled=True), "sampled: unknown field"),
    "no texts": (lambda d: d.update(texts=0), "texts: Input should be greater than 0"),
}


@pytest.mark.parametrize(("damage", "said"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_distribution_is_refused(tmp_path: Path, damage: Any, said: str) -> None:
    """One line names the file, what is wrong and what to do."""
    content = distribution().model_dump()
    damage(content)
    path = tmp_path / "distribution.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(CheckpointError, match=said) as caught:
        Distribution.read(path, SCHEMA)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(". Remove this file; polyhead-evaluate writes another one")


def test_a_checkpoint_holds_its_distribution(damaged: Callable[[], Path]) -> None:
    """It is read with the checkpoint, may be missing, and fails the load if it is of other heads."""
    path = damaged()
    assert read_checkpoint(path).distribution is None
    written = write_distribution(path, TEXTS)
    assert read_checkpoint(path).distribution == written
    assert written.texts == len(TEXTS)
    truncated = sum(row.truncated for row in read_checkpoint(path).golden())
    assert written.counts["truncated"][""] == {"no": len(TEXTS) - truncated, "yes": truncated}
    distribution().write(path)
    with pytest.raises(CheckpointError, match=r"distribution\.json: "):
        read_checkpoint(path)
