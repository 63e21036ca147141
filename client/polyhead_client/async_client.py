"""The client for asyncio: the same surface as `polyhead_client.client.Client`, awaited.

It carries out what `polyhead_client.operations` yields. Batches, replicas, retries and deadlines are decided there.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Mapping
from contextlib import aclosing, closing, nullcontext
from typing import Any, Protocol, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from polyhead_client import tracing
from polyhead_client.batches import Batch, Fields, Texts, cut_async, iterate
from polyhead_client.errors import PolyheadClientError
from polyhead_client.explain import MOST_TEXTS, explain
from polyhead_client.explanation import Explanation
from polyhead_client.fields import fields_json, is_table, table_rows
from polyhead_client.grpc_transport import AsyncGrpcChannels
from polyhead_client.http_transport import HttpSessions
from polyhead_client.operations import PREDICTION, PREDICTION_JSON, SCORES, ModelOutput, keep_answers
from polyhead_client.prediction import Prediction
from polyhead_client.replicas import Replica
from polyhead_client.request import (
    Deadline,
    HttpReply,
    HttpRequest,
    Parameters,
    build_parameters,
    check_count,
    decode,
    encode,
)
from polyhead_client.retry import Pause, Send, Steps
from polyhead_client.schema import ModelSchema
from polyhead_client.settings import Settings
from polyhead_client.stream import CONCURRENCY, stream_in_tasks
from polyhead_client.turns import TaskTurns

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
        self._turns = TaskTurns(self._most_turns)
        self._transport: AsyncHttpTransport | AsyncGrpcChannels = (
            AsyncGrpcChannels(self._network) if self.protocol == "grpc" else HttpSessions(self._network)
        )

    @overload
    async def classify(
        self,
        texts: str | Fields,
        top_k: int | None = None,
        threshold: float | None = None,
        timeout_s: float | None = None,
        raise_on_error: bool = False,
        reject_below: float | None = None,
        private: bool = False,
    ) -> Prediction: ...
    @overload
    async def classify(
        self,
        texts: Texts,
        top_k: int | None = None,
        threshold: float | None = None,
        timeout_s: float | None = None,
        raise_on_error: bool = False,
        reject_below: float | None = None,
        private: bool = False,
    ) -> list[Prediction]: ...

    async def classify(
        self,
        texts: str | Fields | Texts,
        top_k: int | None = None,
        threshold: float | None = None,
        timeout_s: float | None = None,
        raise_on_error: bool = False,
        reject_below: float | None = None,
        private: bool = False,
    ) -> Prediction | list[Prediction]:
        """Like `Client.classify`."""
        deadline = self._deadline(timeout_s)
        parameters = build_parameters(top_k, threshold, reject_below, private)
        one = isinstance(texts, str | Mapping)
        predictions = await self._ask("classify", [texts] if one else texts, PREDICTION, parameters, deadline)
        if raise_on_error:
            self._operations.check_texts(predictions)
        return predictions[0] if one else predictions

    def stream(
        self,
        texts: Iterable[Any] | AsyncIterable[Any],
        batch_size: int | None = None,
        concurrency: int = CONCURRENCY,
        top_k: int | None = None,
        threshold: float | None = None,
        timeout_s: float | None = None,
        reject_below: float | None = None,
        private: bool = False,
    ) -> AsyncGenerator[Prediction, None]:
        """Like `Client.stream`, with tasks; the texts may also come from an asynchronous iterable."""
        request_timeout_s = self._deadline(timeout_s).timeout_s
        parameters = build_parameters(top_k, threshold, reject_below, private)
        most_texts = self.batch_size if batch_size is None else check_count("batch_size", batch_size)
        rows = texts if isinstance(texts, AsyncIterable) or is_table(texts) else iterate(texts)
        batches = cut_async(self._rows(rows, request_timeout_s), most_texts, self.max_request_bytes)

        async def answer(batch: Batch, deadline: Deadline) -> list[Prediction]:
            steps = self._operations.ask_batch(batch, PREDICTION, parameters, deadline)
            return await self._run("stream", steps, deadline)

        return stream_in_tasks(
            batches, answer, check_count("concurrency", concurrency), lambda: Deadline(request_timeout_s)
        )

    async def classify_json(
        self,
        texts: Texts,
        top_k: int | None = None,
        threshold: float | None = None,
        timeout_s: float | None = None,
        reject_below: float | None = None,
        private: bool = False,
    ) -> list[bytes]:
        """Like `Client.classify_json`."""
        deadline = self._deadline(timeout_s)
        parameters = build_parameters(top_k, threshold, reject_below, private)
        return await self._ask("classify", texts, PREDICTION_JSON, parameters, deadline)

    async def scores(self, texts: Texts, timeout_s: float | None = None, private: bool = False) -> NDArray[np.float32]:
        """Like `Client.scores`."""
        deadline = self._deadline(timeout_s)
        rows = await self._ask("scores", texts, SCORES, build_parameters(private=private), deadline)
        if not rows:
            schema = await self._run("schema", self._operations.schema(deadline), deadline)
            return np.empty((0, schema.width), dtype=np.float32)
        return self._operations.stack(rows)

    async def explain(
        self,
        text: str | Fields,
        head: str | None = None,
        label: str | None = None,
        most_texts: int = MOST_TEXTS,
        timeout_s: float | None = None,
    ) -> Explanation:
        """Like `Client.explain`."""
        deadline = self._deadline(timeout_s)
        with closing(explain(text, head, label, most_texts)) as steps:
            try:
                question = next(steps)
                while True:
                    question = steps.send(
                        await self._ask(
                            "explain", question.texts, question.output, question.parameters, deadline, keep=False
                        )
                    )
            except StopIteration as done:
                explanation: Explanation = done.value
                return explanation

    async def schema(self, timeout_s: float | None = None) -> ModelSchema:
        """The heads of the version that answers now."""
        deadline = self._deadline(timeout_s)
        return await self._run("schema", self._operations.schema(deadline), deadline)

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

    async def _rows(self, texts: Any, timeout_s: float) -> AsyncIterator[object]:
        """Yields texts as they are, and objects of fields as JSON."""
        if is_table(texts):
            texts = table_rows(texts, await self._fields(timeout_s))
        position = 0
        async for row in texts if isinstance(texts, AsyncIterable) else _iterate(texts):
            yield fields_json(row, position, await self._fields(timeout_s)) if isinstance(row, Mapping) else row
            position += 1

    async def _fields(self, timeout_s: float) -> tuple[str, ...]:
        known = self._operations.known_fields
        if known is None:
            deadline = Deadline(timeout_s)
            known = await self._run("schema", self._operations.fields(deadline), deadline)
        return known

    async def _ask(
        self,
        name: str,
        texts: Any,
        output: ModelOutput[T],
        parameters: Parameters,
        deadline: Deadline,
        keep: bool = True,
    ) -> list[T]:
        """One output of all texts; the batches after the first go out side by side.

        With `keep`, an error has the answers so far.
        """
        with tracing.span(name, {"polyhead.model": self.model}):
            first = self._operations.ask_first(texts, output, parameters, deadline, keep)
            values, batches = await self._drive(first, deadline)
            if not batches:
                return values

            async def answer(batch: Batch, part: Deadline) -> list[T]:
                return await self._drive(self._operations.ask_batch(batch, output, parameters, part), part)

            total = len(values) + sum(map(len, batches)) if keep else 0
            stream = stream_in_tasks(_iterate(batches), answer, CONCURRENCY, deadline.part)
            with keep_answers(values, total):
                async with aclosing(stream):
                    async for value in stream:
                        values.append(value)
            return values

    async def _run(self, name: str, steps: Steps[T], deadline: Deadline | None = None) -> T:
        with tracing.span(name, {"polyhead.model": self.model}):
            return await self._drive(steps, deadline)

    async def _drive(self, steps: Steps[T], deadline: Deadline | None) -> T:
        """Carries out the steps, with a deadline in a turn of their own."""
        async with self._turns.take(deadline) if deadline is not None else nullcontext():
            with closing(steps):
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


async def _iterate(values: Iterable[T]) -> AsyncIterator[T]:
    for value in values:
        yield value
