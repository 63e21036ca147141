"""The client for asyncio: the same surface as `polyhead_client.client.Client`, awaited.

It performs what `polyhead_client.operations` yields; batches, replicas, retries and deadlines are decided there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from types import TracebackType
from typing import Any, Protocol, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from polyhead_client import tracing
from polyhead_client.batches import Batch
from polyhead_client.conversation import Pause, Send, Talk
from polyhead_client.deadline import Deadline
from polyhead_client.errors import PolyheadClientError, mapped
from polyhead_client.grpc_channels import AsyncGrpcChannels
from polyhead_client.http_async import HttpSessions
from polyhead_client.http_wire import HttpReply, HttpRequest, decode, encode
from polyhead_client.prediction import Prediction
from polyhead_client.replicas import Replica
from polyhead_client.request import build_parameters, check_count
from polyhead_client.schema import Schema
from polyhead_client.settings import Settings
from polyhead_client.statistics import ModelStatistics
from polyhead_client.stream import CONCURRENCY, stream_in_tasks
from polyhead_client.texts import Texts, iterate

T = TypeVar("T")


class AsyncExchange(Protocol):
    """Carries HTTP; `polyhead_client.testing` has a fake."""

    async def exchange(self, replica: Replica, request: HttpRequest, deadline: Deadline) -> HttpReply:
        """One request and its answer."""

    async def close(self) -> None:
        """No request follows."""


class AsyncClient(Settings):
    """Asks one model on one server or several, by asyncio; one client may serve many tasks.

    The arguments are those of `polyhead_client.settings.Settings`.
    """

    def _open(self) -> None:
        self._transport: AsyncExchange | AsyncGrpcChannels = (
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
        """Classifies a text, or several.

        Args:
            texts: a str, or a list or tuple of str of any length, or a column of texts of pandas, Arrow or NumPy.
            top_k: how many labels a single_label head names, and at most how many a multi_label head names.
            threshold: takes the place of the labels' own thresholds in multi_label heads.
            timeout_s: how long the whole call may take; the client's if None.
            raise_on_error: raises TextError for the first text without an answer.

        Returns:
            A prediction for a str; for a list a list, one a text and in its order. A text without an answer (an empty
            one, say) has `Prediction.error` set and spoils no other.

        Raises:
            PolyheadClientError: see `polyhead_client.errors`.
        """
        one = isinstance(texts, str)
        deadline = self._deadline(timeout_s)
        talk = self._operations.classify([texts] if one else texts, top_k, threshold, deadline, raise_on_error)
        predictions = await self._run("classify", talk)
        return predictions[0] if one else predictions

    def stream(
        self,
        texts: Iterable[Any] | AsyncIterable[Any],
        batch_size: int | None = None,
        concurrency: int = CONCURRENCY,
        top_k: int | None = None,
        threshold: float | None = None,
        timeout_s: float | None = None,
    ) -> AsyncIterator[Prediction]:
        """As `Client.stream`, by tasks; the texts may come from an asynchronous iterable too.

        Raises:
            PolyheadClientError: see `polyhead_client.errors`; bad arguments at once.
        """
        patience_s = self._deadline(timeout_s).timeout_s
        parameters = build_parameters(top_k, threshold)
        rows = texts if isinstance(texts, AsyncIterable) else iterate(texts)
        check_count("concurrency", concurrency)
        if batch_size is not None:
            check_count("batch_size", batch_size)

        async def answer(batch: Batch, deadline: Deadline) -> list[Prediction]:
            return await self._run("stream", self._operations.batch(batch, parameters, deadline))

        async def batches() -> AsyncIterator[Batch]:
            most = batch_size
            if most is None:
                size = self._operations.batch_size(self._deadline(patience_s))
                most = await self._run("batch_size", size)
            if isinstance(rows, AsyncIterable):
                async for batch in self._operations.cut_async(rows, most):
                    yield batch
            else:
                for batch in self._operations.cut(rows, most):
                    yield batch

        return stream_in_tasks(batches(), answer, concurrency, patience_s)

    async def classify_json(
        self,
        texts: Texts,
        top_k: int | None = None,
        threshold: float | None = None,
        timeout_s: float | None = None,
    ) -> list[bytes]:
        """As `classify` of a list, but the server's JSON as it came: for pipes and load tests."""
        talk = self._operations.classify_json(texts, top_k, threshold, self._deadline(timeout_s))
        return await self._run("classify", talk)

    async def scores(self, texts: Texts, timeout_s: float | None = None) -> NDArray[np.float32]:
        """All heads' calibrated scores.

        Returns:
            float32 ``(n, schema().width)``, columns as in `Schema.column_names`; a row of NaN for a text without an
            answer.

        Raises:
            PolyheadClientError: see `polyhead_client.errors`.
        """
        return await self._run("scores", self._operations.scores(texts, self._deadline(timeout_s)))

    async def schema(self, timeout_s: float | None = None) -> Schema:
        """The heads of the version that answers now."""
        return await self._run("schema", self._operations.schema(self._deadline(timeout_s)))

    async def is_ready(self, canary: bool = True, timeout_s: float | None = None) -> bool:
        """Whether a replica answers a canary text now.

        Without `canary` Triton's own word is taken, which stays good when a model process has died or hangs.
        """
        deadline = self._deadline(timeout_s)
        return (await self._run("is_ready", self._operations.why_not_ready(canary, deadline))) is None

    async def wait_until_ready(self, timeout_s: float = 60.0) -> None:
        """Asks again until a replica answers a canary text.

        Raises:
            NotReadyError: none did within `timeout_s`; the message has the last reason.
        """
        seconds = self._deadline(timeout_s).timeout_s
        await self._run("wait_until_ready", self._operations.wait_until_ready(seconds, self.timeout_s))

    async def statistics(self, timeout_s: float | None = None) -> list[ModelStatistics]:
        """What each replica has counted; polyhead-serve tells only who sends its admin header."""
        return await self._run("statistics", self._operations.statistics(self._deadline(timeout_s)))

    async def close(self) -> None:
        """Closes the connections; the client cannot be used afterwards."""
        self._closed = True
        await self._transport.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self, name: str, talk: Talk[T]) -> T:
        with tracing.operation(name, self.model):
            try:
                effect = next(talk)
                while True:
                    try:
                        reply = await self._perform(effect)
                    except PolyheadClientError as error:
                        effect = talk.throw(error)
                    else:
                        effect = talk.send(reply)
            except StopIteration as done:
                value: T = done.value
                return value
            finally:
                talk.close()

    async def _perform(self, effect: Send | Pause) -> Any:
        if isinstance(effect, Pause):
            return await asyncio.sleep(effect.seconds)
        return await self._send(effect)

    async def _send(self, send: Send) -> Any:
        call, deadline, address = send.call, send.deadline, send.replica.address
        with (
            tracing.request(call.kind, address, call.model, call.texts, send.attempt) as trace,
            mapped(model=call.model, replica=address, protocol=self.protocol, timeout_s=deadline.timeout_s),
        ):
            headers = {**self._headers, **trace}
            if isinstance(self._transport, AsyncGrpcChannels):
                return await self._transport.send(send.replica, call, headers, deadline)
            request = encode(call, headers, deadline.remaining_s())
            return decode(call, await self._transport.exchange(send.replica, request, deadline))
