"""Streams: order, bounded memory, errors in their place, and closing early."""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from polyhead_client import Client, RequestTimeoutError, ServerFailedError, UsageError
from polyhead_client.testing import Failure, FakeServer
from tests.client.fake_triton import ANSWER, FakeTriton
from tests.client.surface import Ask


def numbered(text: str) -> dict[str, Any]:
    """An answer that shows which text it belongs to."""
    return {**ANSWER, "token_count": int(text)}


def test_order_is_kept_whatever_answers_first(ask: Ask, server: FakeServer) -> None:
    """Predictions come in the texts' order, though requests overtake each other."""
    server.answer = numbered
    server.failures = [Failure(hang_s=random.Random(7).random() / 50) for _ in range(100)]
    with ask(server) as client:
        stream = client.stream((str(number) for number in range(1000)), batch_size=7, concurrency=8)
        assert [prediction.token_count for prediction in stream] == list(range(1000))
    assert {len(asked.texts) for asked in server.requests} == {7, 1000 % 7}


def test_endless_iterables_are_read_in_a_window(ask: Ask, server: FakeServer) -> None:
    """If the consumer is slow, no more is read than the window holds."""
    read = itertools.count()
    with ask(server) as client:
        stream = client.stream((str(next(read)) for _ in itertools.count()), batch_size=5, concurrency=3)
        for _ in range(11):
            next(stream)
        time.sleep(0.1)
        assert next(read) <= 11 + 5 * (2 * 3 + 2)
        stream.close()


def test_requests_go_out_at_a_time(ask: Ask, server: FakeServer) -> None:
    """As many requests as `concurrency` says are under way together."""
    server.failure = Failure(hang_s=0.2)
    began = time.monotonic()
    with ask(server) as client:
        assert len(list(client.stream(["a"] * 8, batch_size=1, concurrency=8))) == 8
    assert time.monotonic() - began < 1.2


def test_faults_come_in_their_place(ask: Ask, server: FakeServer) -> None:
    """A text that cannot be sent is raised after the predictions before it, with its position in the stream."""
    server.answer = numbered
    seen = []
    with ask(server) as client, pytest.raises(UsageError, match="text 12 is missing"):  # noqa: PT012
        for prediction in client.stream([*map(str, range(12)), None, "13"], batch_size=5):
            seen.append(prediction.token_count)
    assert seen == list(range(12))


def test_failing_request_ends_the_stream(ask: Ask, server: FakeServer) -> None:
    """An error of the server is raised, and nothing hangs after it."""

    def answer(text: str) -> dict[str, Any]:
        if text == "50":
            server.failure = Failure(500, "broke")
        return numbered(text)

    server.answer = answer
    with ask(server) as client, pytest.raises(ServerFailedError):
        list(client.stream(map(str, range(1000)), batch_size=10))
    assert len(server.requests) < 30


@pytest.mark.parametrize("texts", ["one text", b"bytes", 7, None])
def test_what_is_no_iterable_of_texts_is_refused_at_once(ask: Ask, server: FakeServer, texts: object) -> None:
    """The call raises the error, not the first step of the iterator."""
    with ask(server) as client, pytest.raises(UsageError, match="iterable of str"):
        client.stream(texts)


@pytest.mark.parametrize("option", [{"concurrency": 0}, {"batch_size": 0}, {"timeout_s": -1}])
def test_bad_options_are_refused_at_once(ask: Ask, server: FakeServer, option: dict[str, int]) -> None:
    """Each option is checked by name."""
    with ask(server) as client, pytest.raises(UsageError, match=next(iter(option))):
        client.stream(["a"], **option)


def test_closing_gives_up_what_is_under_way(fake: FakeTriton) -> None:
    """Closing a stream does not wait for a server that hangs, and leaves no thread behind."""
    with Client(fake.url, timeout_s=20) as client:
        stream = client.stream(("a" for _ in itertools.count()), batch_size=1, concurrency=3)
        next(stream)
        fake.delay_s = 5.0
        next(stream)  # sends another, which hangs
        time.sleep(0.3)
        began = time.monotonic()
        stream.close()
        assert time.monotonic() - began < 3
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("polyhead-stream")]


def test_each_request_has_its_own_deadline(ask: Ask, server: FakeServer) -> None:
    """The timeout is for each request, not for the whole stream."""
    server.failure = Failure(hang_s=0.1)
    with ask(server) as client:
        assert len(list(client.stream(["a"] * 8, batch_size=1, concurrency=1, timeout_s=0.5))) == 8
        server.failure = Failure(hang_s=5)
        with pytest.raises(RequestTimeoutError, match=r"within 0\.2 s"):
            list(client.stream(["a"], timeout_s=0.2))


def test_async_streams_read_async_iterables(server: FakeServer) -> None:
    """Texts may come from an asynchronous generator; its error is raised in its place, and closing cancels."""
    server.answer = numbered

    async def texts(until: int) -> AsyncIterator[str]:
        for number in range(until):
            await asyncio.sleep(0)
            yield str(number)
        if until == 5:
            raise OSError("the source failed")

    async def run() -> None:
        async with server.async_client() as client:
            assert [one.token_count async for one in client.stream(texts(100), batch_size=8)] == list(range(100))
            seen = []
            with pytest.raises(OSError, match="the source failed"):  # noqa: PT012
                async for one in client.stream(texts(5), batch_size=2):
                    seen.append(one.token_count)
            assert seen == list(range(5))
            server.failure = Failure(hang_s=30)
            stream = client.stream(texts(100))
            task = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())


def test_threads_share_a_client_but_not_their_answers(server: FakeServer) -> None:
    """Streams of one client in several threads get the answers to their own texts."""
    server.answer = numbered
    wrong: list[int] = []

    def work(client: Client, first: int) -> None:
        def texts() -> Iterator[str]:
            return (str(first + number) for number in range(300))

        got = [prediction.token_count for prediction in client.stream(texts(), batch_size=9)]
        if got != [first + number for number in range(300)]:
            wrong.append(first)

    with server.client() as client:
        threads = [threading.Thread(target=work, args=(client, 1000 * number)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
