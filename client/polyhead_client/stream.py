"""Streams: several requests at a time answer the batches of an iterable, in order, with a bounded number in memory.

The iterable is read in the consumer's own thread or task, never beyond the window. An error of a text, the iterable or
a request is raised in its place, after the answers to everything before it.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from polyhead_client.batches import Batch
from polyhead_client.prediction import Prediction
from polyhead_client.request import Deadline

CONCURRENCY = 4
AHEAD = 2  # batches in the window per request under way, so that the next is ready for a slow consumer

Answer = list[Prediction]


def stream_in_threads(
    batches: Iterator[Batch],
    answer: Callable[[Batch, Deadline], Answer],
    concurrency: int,
    timeout_s: float,
) -> Iterator[Prediction]:
    """Answers with threads (greenlets, under gevent); closing it gives up the requests under way."""
    window: deque[tuple[Future[Answer], list[Deadline]]] = deque()
    failure: Exception | None = None
    closing = threading.Event()
    executor = ThreadPoolExecutor(concurrency, thread_name_prefix="polyhead-stream")

    def work(batch: Batch, begun: list[Deadline]) -> Answer:
        begun.append(Deadline(timeout_s))  # the time starts when the batch is sent, not while it waits in the window
        if closing.is_set():
            begun[0].cancel()
        return answer(batch, begun[0])

    try:
        more = True
        while more or window:
            while more and len(window) < AHEAD * concurrency:
                try:
                    batch = next(batches, None)
                except Exception as error:  # the caller's iterable may raise anything; raised again below
                    failure, batch = error, None
                if batch is None:
                    more = False
                    break
                begun: list[Deadline] = []
                window.append((executor.submit(contextvars.copy_context().run, work, batch, begun), begun))
            if window:
                yield from window.popleft()[0].result()
        if failure is not None:
            raise failure
    finally:
        closing.set()
        executor.shutdown(wait=False, cancel_futures=True)
        for future, begun in window:
            if not future.done() and begun:
                begun[0].cancel()
        executor.shutdown(wait=True)


async def stream_in_tasks(
    batches: AsyncIterator[Batch],
    answer: Callable[[Batch, Deadline], Awaitable[Answer]],
    concurrency: int,
    timeout_s: float,
) -> AsyncIterator[Prediction]:
    """Answers with asyncio tasks; closing it cancels the requests under way."""
    window: deque[asyncio.Task[Answer]] = deque()
    failure: Exception | None = None

    async def work(batch: Batch) -> Answer:
        return await answer(batch, Deadline(timeout_s))

    try:
        more = True
        while more or window:
            while more and len(window) < concurrency:
                try:
                    batch = await anext(batches, None)
                except Exception as error:  # as above
                    failure, batch = error, None
                if batch is None:
                    more = False
                    break
                window.append(asyncio.create_task(work(batch)))
            if window:
                for prediction in await window.popleft():
                    yield prediction
        if failure is not None:
            raise failure
    finally:
        for task in window:
            task.cancel()
        await asyncio.gather(*window, return_exceptions=True)
