"""The fake server that users write their tests with."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from polyhead_client import (
    Client,
    MultiLabel,
    RequestTimeoutError,
    RetryPolicy,
    ServerOverloadedError,
    ServerUnreachableError,
    SingleLabel,
)
from polyhead_client.testing import Failure, FakeServer


def test_answers_by_text() -> None:
    """Answers may be labels, scores, or missing; PREDICTION and SCORES agree."""
    fake = FakeServer(
        answer={
            "a goal": {"topic": "sport", "mood": ["happy", "sad"], "stars": 4.5},
            "a law": {"topic": {"news": 0.7, "science": 0.2}, "mood": {"sad": 0.45, "happy": 0.45}},
        }
    )
    with fake.client() as client:
        goal, law, other = client.classify(["a goal", "a law", "else"], top_k=2)
        scores = client.scores(["a goal", "a law", "else"])
    assert isinstance(law["topic"], SingleLabel)
    assert [(one.label, one.score) for one in law["topic"].top] == [("news", 0.7), ("science", 0.2)]
    assert isinstance(goal["mood"], MultiLabel)
    assert goal["mood"].names == ("happy", "sad")
    assert law["mood"].names == ("sad",)  # happy's threshold is 0.5
    assert goal["stars"].value == 4.5
    assert (other["topic"].label, other["mood"].names, other["stars"].value) == ("news", (), 0.0)
    said = [[0, 1, 0, 1, 1, 4.5], [0.7, 0, 0.2, 0.45, 0.45, 0], [1, 0, 0, 0, 0, 0]]
    np.testing.assert_allclose(scores, said, rtol=1e-6)


def test_a_label_that_is_not_in_the_heads_is_the_tests_fault() -> None:
    """A wrong label in a test's answer is an AssertionError."""
    with FakeServer(answer={"a": {"topic": "spurt"}}).client() as client, pytest.raises(AssertionError, match="spurt"):
        client.classify("a")


def test_it_counts_what_it_was_asked() -> None:
    """A test can read texts, options and headers of the requests."""
    fake = FakeServer()
    with fake.client(model="m", api_key="k") as client:
        client.classify(["a", "b"], threshold=0.2)
    (asked,) = fake.requests
    assert (asked.texts, asked.parameters, asked.model) == (["a", "b"], {"threshold": 0.2}, "m")
    assert asked.headers["authorization"] == "Bearer k"


def test_failures() -> None:
    """Failures come in order, then `failure`, then answers."""
    fake = FakeServer(failures=[Failure(503, "busy"), Failure(refused=True)], failure=Failure(hang_s=9))
    with fake.client(retry=RetryPolicy(max_attempts=1)) as client:
        with pytest.raises(ServerOverloadedError, match="busy"):
            client.classify("a")
        with pytest.raises(ServerUnreachableError):
            client.classify("a")
        began = time.monotonic()
        with pytest.raises(RequestTimeoutError):
            client.classify("a", timeout_s=0.1)
        assert time.monotonic() - began < 2
        fake.failure = None
        assert client.classify("a").error is None


def test_async() -> None:
    """The same fake serves an AsyncClient."""

    async def run() -> None:
        async with FakeServer(answer={"a": {"topic": "science"}}).async_client() as client:
            assert (await client.classify("a"))["topic"].label == "science"  # type: ignore[union-attr]

    asyncio.run(run())


def test_behind_a_port() -> None:
    """Programs that are given an address get the same answers over a real connection."""
    fake = FakeServer(answer={"a": {"topic": "science"}})
    with fake.serve() as address, Client(address) as client, fake.client() as direct:
        assert client.classify(["a", " ", "b"]) == direct.classify(["a", " ", "b"])
        assert client.schema() == direct.schema() == fake.schema
        assert client.is_ready(canary=False)


def test_the_fake_rejects_as_the_server_does() -> None:
    """By the best label's score or by certainty, with the head's bound or the request's."""
    topic = {"name": "topic", "kind": "single_label", "labels": ["x", "y"], "reject_below": 0.6}
    answer = {"a": {"topic": {"x": 0.64, "y": 0.36}}}
    with FakeServer(answer, heads=[topic]).client() as client:
        assert client.classify("a")["topic"].label == "x"
        assert client.classify("a", reject_below=0.7)["topic"].label is None
    with FakeServer(answer, heads=[topic | {"reject_by": "certainty"}]).client() as client:
        found = client.classify("a")["topic"]
        assert (found.label, found.certainty) == (None, 0.510204)
