"""Streams: several requests at a time answer the batches of an iterable, in order, with a bounded number in memory.

The iterable is read in the consumer's own thread or task, never beyond the window. An error of a text, the iterable or
a request is raised in its place, after the answers to everything before it.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from polyhead_client.batches import Batch
from polyhead_client.request import Deadline

CONCURRENCY = 4
AHEAD = 2  # batches in the window per request under way, so that the next is ready for a slow consumer

T = TypeVar("T")


def stream_in_threads(
    batches: Iterator[Batch],
    answer: Callable[[Batch, Deadline], list[T]],
    concurrency: int,
    new_deadline: Callable[[], Deadline],
) -> Generator[T, None, None]:
    """Answers with threads (greenlets, under gevent); closing it gives up the requests under way."""
    window: deque[tuple[Future[list[T]], Deadline]] = deque()
    failure: Exception | None = None
    executor = ThreadPoolExecutor(concurrency, thread_name_prefix="polyhead-stream")

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
                deadline = new_deadline()
                window.append((executor.submit(contextvars.copy_context().run, answer, batch, deadline), deadline))
            if window:
                yield from window[0][0].result()
                window.popleft()
        if failure is not None:
            raise failure
    finally:
        for _, deadline in window:
            deadline.cancel()
        executor.shutdown(cancel_futures=True)


async def stream_in_tasks(
    batches: AsyncIterator[Batch],
    answer: Callable[[Batch, Deadline], Awaitable[list[T]]],
    concurrency: int,
    new_deadline: Callable[[], Deadline],
) -> AsyncGenerator[T, None]:
    """Answers with asyncio tasks; closing it cancels the requests under way."""
    window: deque[asyncio.Task[list[T]]] = deque()
    failure: Exception | None = None

    async def work(batch: Batch) -> list[T]:
        return await answer(batch, new_deadline())

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
                for value in await window.popleft():
                    yield value
        if failure is not None:
            raise failure
    finally:
        for task in window:
            task.cancel()
        await asyncio.gather(*window, return_exceptions=True)
