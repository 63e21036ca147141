"""Texts given as fields: dicts and tables; and lists of many batches."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from polyhead_client import AsyncClient, RequestTimeoutError, UsageError
from polyhead_client.testing import Failure, FakeServer
from tests.client.fake_triton import ANSWER, FakeTriton
from tests.client.surface import Ask

TEMPLATE = "[[{Title}. ]]{Review Text}"
ROW: dict[str, Any] = {"Title": "good", "Review Text": 'a "shirt" 🦜'}


@pytest.fixture
def reviews() -> FakeServer:
    """A model with fields."""
    return FakeServer(text_template=TEMPLATE, answer={'good. a "shirt" 🦜': {"topic": "sport"}})


def sent(server: FakeServer) -> list[Any]:
    """The texts of the requests for predictions, as objects."""
    return [json.loads(text) for asked in server.requests if asked.outputs == ["PREDICTION"] for text in asked.texts]


def test_fields_are_sent_as_objects(ask: Ask, reviews: FakeServer) -> None:
    """classify, scores and stream take dicts besides texts, and the server makes the texts."""
    with ask(reviews) as client:
        schema = client.schema()
        assert client.classify(ROW)["topic"].label == "sport"
        assert [one["topic"].label for one in client.classify([ROW, "plain"])] == ["sport", "news"]
        assert [one["topic"].label for one in client.stream([ROW, "plain"])] == ["sport", "news"]
        assert client.scores([ROW])[0, 1] == 1.0
    assert (schema.text_template, schema.fields) == (TEMPLATE, ("Title", "Review Text"))


def test_values(ask: Ask, reviews: FakeServer) -> None:
    """Numbers and NumPy scalars stay numbers; every kind of missing value becomes null."""
    rows = [{"Title": value, "Review Text": "a"} for value in (None, math.nan, pd.NA, pd.NaT, np.float32("nan"))]
    with ask(reviews) as client:
        client.classify([*rows, {"Title": np.int64(3), "Review Text": 2.5}, {"Title": np.str_("b")}])
    assert [row["Title"] for row in sent(reviews)] == [None] * 5 + [3, "b"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"Titel": "a"}, r"text 1 has unknown field 'Titel'; the model's fields are \['Title', 'Review Text'\]"),
        ({}, "text 1 has no fields"),
        ({"Title": ["a"]}, "text 1: field 'Title' must be a text"),
        ({"Title": math.inf}, "text 1: field 'Title' must be a text, a finite number"),
        ({"Title": "a\ud800"}, "lone surrogate"),
    ],
)
def test_bad_fields_are_refused(ask: Ask, reviews: FakeServer, row: dict[str, Any], words: str) -> None:
    """The error names the text and the field, and nothing was sent."""
    with ask(reviews) as client:
        with pytest.raises(UsageError, match=words):
            client.classify([ROW, row])
        with pytest.raises(UsageError, match=words):
            list(client.stream([ROW, row], batch_size=8))
    assert all("Titel" not in row for row in sent(reviews))


def test_model_without_fields_refuses_them(ask: Ask, server: FakeServer) -> None:
    """Such a model would read the JSON as a text, so the client refuses the dict."""
    with ask(server) as client:
        for call in (client.classify, lambda row: client.classify([row]), lambda row: list(client.stream([row]))):
            with pytest.raises(UsageError, match="the model declares none"):
                call(ROW)
    assert sent(server) == []


def test_tables(ask: Ask, reviews: FakeServer) -> None:
    """The rows of a pandas or Arrow table are objects of the model's fields; other columns are not sent."""
    columns = {"id": [1, 2], "Review Text": ["a", None], "Title": [None, "b"]}
    with ask(reviews) as client:
        for table in (pd.DataFrame(columns), pa.table(columns)):
            assert len(client.classify(table)) == 2
            assert len(list(client.stream(table))) == 2
        with pytest.raises(UsageError, match=r"lacks columns \['Title'\]"):
            client.classify(pd.DataFrame({"Review Text": ["a"]}))
    expected = [{"Title": None, "Review Text": "a"}, {"Title": "b", "Review Text": None}]
    assert sent(reviews) == expected * 4


def test_time_that_runs_out_keeps_the_answers(ask: Ask, server: FakeServer) -> None:
    """The error of a long list has the answers to its first texts, and says how to go on."""
    server.answer = lambda text: {**ANSWER, "token_count": int(text)}
    server.failures, server.failure = [Failure()] * 8, Failure(hang_s=60)  # the ninth request and later ones hang
    with ask(server, batch_size=5) as client:
        texts = [str(number) for number in range(100)]
        with pytest.raises(RequestTimeoutError, match=r"\d+ of 100 texts were answered") as caught:
            client.classify(texts, timeout_s=1)
        answers = list(caught.value.answers)
        assert 5 <= len(answers) <= 40
        server.failure = None
        answers += client.classify(texts[len(answers) :])
    assert [one.token_count for one in answers] == list(range(100))


def test_ten_thousand_calls_at_once(fake: FakeTriton) -> None:
    """Calls wait for their turn, and that time is not part of their deadline: all are answered."""

    async def run() -> None:
        async with AsyncClient(fake.url, max_connections=16, timeout_s=8) as client:
            answers = await asyncio.gather(*(client.classify("text") for _ in range(10_000)))
        assert all(answer.error is None for answer in answers)

    asyncio.run(run())
