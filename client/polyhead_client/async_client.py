"""The client for asyncio: the same surface as `polyhead_client.client.Client`, awaited.

It carries out what `polyhead_client.operations` yields. Batches, replicas, retries and deadlines are decided there.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from contextlib import closing
from typing import Any, Protocol, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from polyhead_client import tracing
from polyhead_client.batches import Batch, Texts, cut_async, iterate
from polyhead_client.errors import PolyheadClientError
from polyhead_client.grpc_transport import AsyncGrpcChannels
from polyhead_client.http_transport import HttpSessions
from polyhead_client.operations import PREDICTION, PREDICTION_JSON
from polyhead_client.prediction import Prediction
from polyhead_client.replicas import Replica
from polyhead_client.request import Deadline, HttpReply, HttpRequest, build_parameters, check_count, decode, encode
from polyhead_client.retry import Pause, Send, Steps
from polyhead_client.schema import ModelSchema
from polyhead_client.settings import Settings
from polyhead_client.stream import CONCURRENCY, stream_in_tasks

T = TypeVar("T")


class AsyncHttpTransport(Protocol):
    """Carries HTTP requests: connections, or the fake of `polyhead_client.testing`. Network failures raise OSError."""

    @abstractmethod
    async def exchange(self, replica: Replica, request: HttpRequest, deadline: Deadline) -> HttpReply: ...

    @abstractmethod
    async def close(self) -> None: ...


class AsyncClient(Settings):
    """Asks one model on one or several servers, with asyncio; one client may serve many tasks.

    The arguments are those of `polyhead_client.settings.Settings`.
    """

    def _open(self) -> None:
        self._transport: AsyncHttpTransport | AsyncGrpcChannels = (
            AsyncGrpcChannels(self._network) if self.protocol == "grpc" else HttpSessions(self._network)
        )

    @overload
    async def classify(
        self,
        texts: str,
        top_k: int | None = None,
        threshold: float | None = None,
        timeout_s: float | None = None,
        raise_on_error: bool = False,
    ) -> Prediction: ...
    @overload
    async def classify(
        self,
        texts: Texts,
        top_k: int | None = None,
        threshold: float | None = None,
        timeout_s: float | None = None,
        raise_on_error: bool = False,
    ) -> list[Prediction]: ...

    async def classify(
        self,
        texts: str | Texts,
        top_k: int | None = None,
        threshold: float | None = None,
        timeout_s: float | None = None,
        raise_on_error: bool = False,
    ) -> Prediction | list[Prediction]:
        """Like `Client.classify`."""
        deadline = self._deadline(timeout_s)
        steps = self._operations.classify(texts, top_k, threshold, deadline, raise_on_error)
        answer: Prediction | list[Prediction] = await self._run("classify", steps)
        return answer

    def stream(
        self,
        texts: Iterable[Any] | AsyncIterable[Any],
        batch_size: int | None = None,
        concurrency: int = CONCURRENCY,
        top_k: int | None = None,
        threshold: float | None = None,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[Prediction, None]:
        """Like `Client.stream`, with tasks; the texts may also come from an asynchronous iterable."""
        request_timeout_s = self._deadline(timeout_s).timeout_s
        parameters = build_parameters(top_k, threshold)
        most_texts = self.batch_size if batch_size is None else check_count("batch_size", batch_size)
        rows = texts if isinstance(texts, AsyncIterable) else iterate(texts)
        batches = cut_async(rows, most_texts, self.max_request_bytes)

        async def answer(batch: Batch, deadline: Deadline) -> list[Prediction]:
            return await self._run("stream", self._operations.ask_batch(batch, PREDICTION, parameters, deadline))

        return stream_in_tasks(batches, answer, check_count("concurrency", concurrency), request_timeout_s)

    async def classify_json(
        self,
        texts: Texts,
        top_k: int | None = None,
        threshold: float | None = None,
        timeout_s: float | None = None,
    ) -> list[bytes]:
        """Like `Client.classify_json`."""
        deadline = self._deadline(timeout_s)
        parameters = build_parameters(top_k, threshold)
        return await self._run("classify", self._operations.ask(texts, PREDICTION_JSON, parameters, deadline))

    async def scores(self, texts: Texts, timeout_s: float | None = None) -> NDArray[np.float32]:
        """Like `Client.scores`."""
        return await self._run("scores", self._operations.scores(texts, self._deadline(timeout_s)))

    async def schema(self, timeout_s: float | None = None) -> ModelSchema:
        """The heads of the version that answers now."""
        return await self._run("schema", self._operations.schema(self._deadline(timeout_s)))

    async def is_ready(self, canary: bool = True, timeout_s: float | None = None) -> bool:
        """Like `Client.is_ready`."""
        deadline = self._deadline(timeout_s)
        return (await self._run("is_ready", self._operations.why_not_ready(canary, deadline))) is None

    async def wait_until_ready(self, timeout_s: float = 60.0) -> None:
        """Like `Client.wait_until_ready`."""
        seconds = self._deadline(timeout_s).timeout_s
        await self._run("wait_until_ready", self._operations.wait_until_ready(seconds, self.timeout_s))

    async def close(self) -> None:
        """Closes the running loop's connections. The client cannot be used afterwards."""
        self._closed = True
        await self._transport.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def _run(self, name: str, steps: Steps[T]) -> T:
        with tracing.span(name, {"polyhead.model": self.model}), closing(steps):
            try:
                step = next(steps)
                while True:
                    try:
                        reply = await self._perform(step)
                    except PolyheadClientError as error:
                        step = steps.throw(error)
                    else:
                        step = steps.send(reply)
            except StopIteration as done:
                value: T = done.value
                return value

    async def _perform(self, step: Send | Pause) -> Any:
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
            return None
        with self._attempt(step) as headers:
            if isinstance(self._transport, AsyncGrpcChannels):
                return await self._transport.send(step.replica, step.call, headers, step.deadline)
            request = encode(step.call, headers, step.deadline.remaining_s())
            return decode(step.call, await self._transport.exchange(step.replica, request, step.deadline))
