"""Both clients with the same blocking methods, so that one test covers both."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from polyhead_client import AsyncClient, Client
from polyhead_client.testing import FakeServer

Ask = Callable[..., Any]


class Blocked:
    """An AsyncClient with blocking methods, on its own event loop."""

    def __init__(self, client: AsyncClient, runner: asyncio.Runner) -> None:
        self.client = client
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.client, name)

        def run(*arguments: Any, **options: Any) -> Any:
            result = method(*arguments, **options)
            if inspect.isasyncgen(result):
                return self._drain(result)
            return self._runner.run(result, context=contextvars.copy_context())

        return run

    def _drain(self, stream: Any) -> Iterator[Any]:
        try:
            while True:
                try:
                    yield self._runner.run(anext(stream), context=contextvars.copy_context())
                except StopAsyncIteration:
                    return
        finally:
            self._runner.run(stream.aclose())


@contextmanager
def blocking(kind: str, fake: FakeServer | None = None, *arguments: Any, **options: Any) -> Iterator[Any]:
    """A client of this kind, with the fake or the network."""
    if kind == "sync":
        with fake.client(*arguments, **options) if fake else Client(*arguments, **options) as client:
            yield client
        return
    with asyncio.Runner() as runner:
        client = fake.async_client(*arguments, **options) if fake else AsyncClient(*arguments, **options)
        try:
            yield Blocked(client, runner)
        finally:
            runner.run(client.close())
