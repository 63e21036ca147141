"""Predictions as tables."""

from __future__ import annotations

import sys

import numpy as np
import pyarrow as pa
import pytest

from polyhead_client import Prediction, UsageError
from polyhead_client.tables import to_arrow, to_pandas
from polyhead_client.testing import FakeServer
from polyhead_rows.answers import answer_table

NAMES = [
    "topic_label", "topic_score", "mood_labels", "mood_scores", "stars_value", "token_count", "truncated", "error",
]  # fmt: skip


def rounded(score: float) -> float:
    """The float32 that a table holds for a score."""
    return float(np.float32(score))


def test_arrow(server: FakeServer) -> None:
    """One row per text, columns by head and kind; a text without an answer has nulls and its reason."""
    with server.client() as client:
        table = to_arrow(client.classify(["a goal", " "]))
    assert table.column_names == NAMES
    assert table.schema.field("mood_scores").type == pa.list_(pa.float32())
    assert table.to_pylist() == [
        {"topic_label": "sport", "topic_score": rounded(0.7), "mood_labels": ["happy"], "mood_scores": [rounded(0.9)],
         "stars_value": 3.25, "token_count": 2, "truncated": False, "error": None},
        {"topic_label": None, "topic_score": None, "mood_labels": None, "mood_scores": None, "stars_value": None,
         "token_count": None, "truncated": None, "error": "the text is empty or blank"},
    ]  # fmt: skip


def test_pandas(server: FakeServer) -> None:
    """The same columns; numbers are numbers, and a text without an answer has no number."""
    with server.client() as client:
        frame = to_pandas(client.classify(["a goal", " "]))
    assert list(frame.columns) == NAMES
    assert frame["topic_label"].tolist()[0] == "sport"
    assert frame["topic_score"].isna().tolist() == [False, True]
    assert frame["mood_labels"][0] == ["happy"]
    assert (frame["truncated"].dtype, frame["token_count"].dtype) == ("boolean", "Int32")
    assert frame["truncated"].isna().tolist() == frame["token_count"].isna().tolist() == [False, True]
    assert (frame["topic_score"].dtype, frame["stars_value"].dtype) == ("float32", "float32")
    assert frame["error"].isna().tolist() == [True, False]


def test_schema_keeps_columns_without_answers(server: FakeServer) -> None:
    """With a schema, columns and types are the same whichever texts have an answer, and without any text."""
    with server.client() as client:
        schema = client.schema()
    blank = to_arrow([Prediction(error="blank")], schema)
    assert blank.column_names == NAMES
    assert blank.schema == to_arrow([], schema).schema
    assert list(to_pandas([], schema).columns) == NAMES
    assert to_arrow([]).column_names == ["token_count", "truncated", "error"]


@pytest.mark.parametrize("top_k", [None, 1, 2])
def test_files_have_the_same_columns(server: FakeServer, top_k: int | None) -> None:
    """Names, order, types, answers and nulls are those of the files that polyhead_rows lays out."""
    with server.client() as client:
        schema, predictions = client.schema(), client.classify(["a goal", " ", "a vote"], top_k)
    heads = [{"name": head.name, "kind": head.kind.value} for head in schema.heads]
    expected = answer_table([prediction.to_json() for prediction in predictions], heads, top_k)
    assert to_arrow(predictions, schema, top_k).equals(expected)
    assert to_arrow([], schema, top_k).schema == expected.schema
    assert list(to_pandas(predictions, schema, top_k).columns) == expected.column_names


@pytest.mark.parametrize(("name", "make"), [("pyarrow", to_arrow), ("pandas", to_pandas)])
def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, name: str, make: object) -> None:
    """Without the library the error says what to install."""
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=f"pip install {name}"):
        make([])  # type: ignore[operator]


def test_a_rejected_label_is_null(server: FakeServer) -> None:
    """Its score and the lists of top_k are there, in the client's tables and in those of files alike."""
    with server.client() as client:
        answers = client.classify(["a goal"], top_k=2, reject_below=0.75)
    expected = {"topic_label": None, "topic_score": rounded(0.7), "topic_labels": ["sport", "news"]}
    heads = server.schema.heads
    described = [{"name": head.name, "kind": head.kind.value} for head in heads]
    for table in (to_arrow(answers, top_k=2), answer_table([one.to_json() for one in answers], described, 2)):
        (row,) = table.to_pylist()
        assert {name: row[name] for name in expected} == expected
    assert to_pandas(answers)["topic_label"].isna().all()
