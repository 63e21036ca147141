"""The SDK with a real tritonserver: both protocols with threads, tasks and greenlets, and a replica that is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtest.local_server import LocalServer
from polyhead.predictor import Predictor
from polyhead_client import (
    AsyncClient,
    BadResponseError,
    Client,
    ModelNotFoundError,
    Prediction,
    UnknownNameError,
)
from polyhead_client.testing import FakeServer
from tests.e2e.processes import ONE_THREAD, descendants, shared_memory
from tests.tiny import TEXTS

PROTOCOLS = ("http", "grpc")
LONG = [f"{text} {number}" for number in range(30) for text in TEXTS]  # 300: several batches


@pytest.fixture(params=PROTOCOLS)
def client(served: LocalServer, request: pytest.FixtureRequest) -> Iterator[Client]:
    """A client of each protocol."""
    with Client(served.url(request.param), protocol=request.param) as client:
        yield client


@pytest.fixture(scope="module")
def expected(served: LocalServer) -> dict[str, Prediction]:
    """The answer to each long text, asked alone, one after the other."""
    with Client(served.url("http")) as client:
        return {text: client.classify(text) for text in LONG}


def same(prediction: Prediction, other: Prediction) -> bool:
    """Equal except for the last digits of scores, which depend on the batch."""
    mine, others = prediction.to_json(), other.to_json()
    if mine.keys() != others.keys() or mine.get("error") != others.get("error"):
        return False
    if (prediction.token_count, prediction.truncated) != (other.token_count, other.truncated):
        return False
    for name, head in mine.get("heads", {}).items():
        for field, value in head.items():
            theirs = others["heads"][name][field]
            if field in ("scores", "value"):
                if not np.allclose(value, theirs, atol=1e-5):
                    return False
            elif value != theirs:
                return False
    return True


def test_lists_of_any_length(client: Client, expected: dict[str, Prediction]) -> None:
    """A list longer than max_batch_size is answered in order, also if the client sends batches that are too long."""
    answers = client.classify(LONG)
    assert all(same(answer, expected[text]) for text, answer in zip(LONG, answers, strict=True))
    with Client(client.replicas[0], protocol=client.protocol, batch_size=200) as other:
        again = other.classify(LONG)
        assert all(same(answer, expected[text]) for text, answer in zip(LONG, again, strict=True))
        streamed = list(other.stream(iter(LONG), batch_size=150))
        assert all(same(answer, expected[text]) for text, answer in zip(LONG, streamed, strict=True))


def test_scores_are_the_predictors(client: Client, predictor: Predictor) -> None:
    """scores() has the columns of the schema and the values of the model."""
    scores = client.scores([*TEXTS, " "])
    schema = client.schema()
    assert schema.column_names() == predictor.schema.column_names()
    np.testing.assert_allclose(scores[:-1], predictor.score(predictor.encode(TEXTS)), atol=1e-5)
    assert np.isnan(scores[-1]).all()
    (first,) = client.classify(TEXTS[:1], top_k=1)
    topic = first["topic"]
    assert topic.score == pytest.approx(float(scores[0, schema.column("topic", topic.label)]), abs=1e-5)


def test_errors(client: Client, served: LocalServer) -> None:
    """A wrong model, the other protocol's port and a wrong head each have their own error."""
    assert client.is_ready()
    assert client.is_ready(canary=False)
    client.wait_until_ready(5)
    with Client(client.replicas[0], "no_such_model", client.protocol) as other:
        with pytest.raises(ModelNotFoundError, match="no_such_model"):
            other.classify("text")
        assert not other.is_ready()
        assert not other.is_ready(canary=False)
    with Client(served.url("grpc")) as other, pytest.raises(BadResponseError, match="http port"):
        other.classify("text")
    with pytest.raises(UnknownNameError, match="the heads are"):
        client.classify("text")["tonic"]


def test_the_fake_answers_as_the_server(served: LocalServer) -> None:
    """The fake server, given the model's scores, gives the real server's answers for all options."""
    with Client(served.url("http")) as real:
        schema, rows = real.schema(), real.scores(TEXTS)
        heads = [
            {"name": head.name, "kind": head.kind, "labels": list(head.labels), "thresholds": head.thresholds}
            for head in schema.heads
        ]
        said = {}
        for text, row in zip(TEXTS, rows.tolist(), strict=True):
            columns = {head.name: row[schema.columns[head.name]] for head in schema.heads}
            said[text] = {
                head.name: dict(zip(head.labels, columns[head.name], strict=True))
                if head.labels
                else columns[head.name][0]
                for head in schema.heads
            }
        fake = FakeServer(answer=said, heads=heads, max_length=schema.max_length)
        with fake.client() as pretended:
            assert pretended.schema().heads == schema.heads
            np.testing.assert_allclose(pretended.scores([*TEXTS, " "]), real.scores([*TEXTS, " "]), atol=1e-5)
            for options in ({}, {"top_k": 2}, {"threshold": 0.3}, {"top_k": 1, "threshold": 0.0}, {"threshold": 1.0}):
                texts = [*TEXTS, " "]
                for mine, theirs in zip(
                    pretended.classify(texts, **options), real.classify(texts, **options), strict=True
                ):
                    assert mine.error == theirs.error
                    assert same(_without_counts(mine), _without_counts(theirs)), options


def _without_counts(prediction: Prediction) -> Prediction:
    # The fake counts words, the server tokens.
    return Prediction(prediction.heads, error=prediction.error)


def test_threads(client: Client, expected: dict[str, Prediction]) -> None:
    """Each thread of one client gets the answers to its own texts."""
    wrong: list[object] = []

    def work(first: int) -> None:
        try:
            for start in range(first, len(LONG), 40):
                texts = LONG[start : start + 7]
                if not all(same(one, expected[text]) for text, one in zip(texts, client.classify(texts), strict=True)):
                    wrong.append(texts)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(3 * number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_tasks(served: LocalServer, protocol: Any, expected: dict[str, Prediction]) -> None:
    """Each task of one AsyncClient gets the answers to its own texts, as lists and as a stream."""

    async def ask(client: AsyncClient, start: int) -> bool:
        texts = LONG[start : start + 7]
        answers = await client.classify(texts)
        return all(same(one, expected[text]) for text, one in zip(texts, answers, strict=True))

    async def run() -> None:
        async with AsyncClient(served.url(protocol), protocol=protocol) as client:
            assert all(await asyncio.gather(*(ask(client, start) for start in range(0, 290, 5))))
            streamed = [one async for one in client.stream(LONG, batch_size=16, concurrency=6)]
            assert all(same(one, expected[text]) for text, one in zip(LONG, streamed, strict=True))
            assert await client.is_ready()
            assert (await client.schema()).column_names()

    asyncio.run(run())


GEVENT = """
from gevent import monkey
monkey.patch_all()
import json, sys
import gevent
from polyhead_client import Client, Prediction

url, protocol = sys.argv[1:]
texts, answers = json.load(sys.stdin)
client = Client(url, protocol=protocol)
ticks = []
def tick():
    while True:
        ticks.append(1)
        gevent.sleep(0.005)
ticker = gevent.spawn(tick)
def work(start):
    for _ in range(3):
        for got, expected in zip(client.classify(texts[start : start + 5]), answers[start : start + 5], strict=True):
            assert (got.token_count, got["topic"].label) == tuple(expected), (got, expected)
gevent.joinall([gevent.spawn(work, start) for start in range(0, 250, 10)], raise_error=True)
streamed = [[one.token_count, one["topic"].label] for one in client.stream(iter(texts), batch_size=16, concurrency=4)]
assert streamed == answers
assert len(ticks) > 10, len(ticks)
ticker.kill()
client.close()
print("all right")
"""


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_greenlets(served: LocalServer, protocol: str, expected: dict[str, Prediction]) -> None:
    """In a patched process each greenlet of one client gets its own answers, and none blocks the hub."""
    import json

    answers = [[expected[text].token_count, expected[text]["topic"].label] for text in LONG]
    command = [sys.executable, "-W", "ignore", "-c", GEVENT, served.url(protocol), protocol]
    given = json.dumps([LONG, answers])
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "all right\n", done.stderr


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_replica_is_killed_under_load(
    served: LocalServer, repository: Path, protocol: Any, expected: dict[str, Prediction]
) -> None:
    """One of two replicas is killed while threads, tasks and a stream ask: no text is lost, no answer is mixed up."""
    wrong: list[object] = []
    answered = 0
    stop = threading.Event()
    with LocalServer(repository, environment=ONE_THREAD) as doomed:
        urls = [served.url(protocol), doomed.url(protocol)]
        with Client(urls, protocol=protocol, batch_size=8) as client, Client(served.url("http")) as probe:

            def work(first: int) -> None:
                nonlocal answered
                start = first
                while not stop.is_set():
                    texts = (LONG + LONG)[start % 300 : start % 300 + 12]
                    try:
                        for text, one in zip(texts, client.classify(texts), strict=True):
                            if not same(one, expected[text]):
                                wrong.append((text, one))
                        answered += len(texts)
                    except Exception as error:
                        wrong.append(error)
                    start += 12

            def read() -> None:
                try:
                    texts = LONG * 4
                    for text, one in zip(texts, client.stream(iter(texts), batch_size=4, concurrency=4), strict=True):
                        if not same(one, expected[text]):
                            wrong.append((text, one))
                except Exception as error:
                    wrong.append(error)

            async def ask_in_tasks() -> None:
                async def ask(client: AsyncClient, start: int) -> None:
                    while not stop.is_set():
                        texts = LONG[start : start + 12]
                        for text, one in zip(texts, await client.classify(texts), strict=True):
                            if not same(one, expected[text]):
                                wrong.append((text, one))

                try:
                    async with AsyncClient(urls, protocol=protocol, batch_size=8) as client:
                        await asyncio.gather(*(ask(client, 20 * number) for number in range(6)))
                except Exception as error:
                    wrong.append(error)

            threads = [threading.Thread(target=work, args=(25 * number,)) for number in range(6)]
            threads += [threading.Thread(target=read), threading.Thread(target=lambda: asyncio.run(ask_in_tasks()))]
            for thread in threads:
                thread.start()
            time.sleep(1.5)
            before = answered
            # All processes at once, as when a machine dies. Otherwise the model process first fails requests.
            for pid in [doomed.process.pid, *descendants(doomed.process.pid)]:
                os.kill(pid, signal.SIGSTOP)
            for pid in [doomed.process.pid, *descendants(doomed.process.pid)]:
                os.kill(pid, signal.SIGKILL)
            time.sleep(2)
            stop.set()
            for thread in threads:
                thread.join(60)
            assert not any(thread.is_alive() for thread in threads)
            assert probe.is_ready()
        for region in shared_memory(doomed):
            region.unlink()
    assert wrong == []
    assert before > 0
    assert answered > before
