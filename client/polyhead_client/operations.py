"""What callers ask of a model, as generators of `polyhead_client.conversation`: texts to batches to answers."""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from polyhead_client.batches import Batch, cut, cut_async
from polyhead_client.conversation import Conversation, Pause, Talk
from polyhead_client.deadline import Deadline
from polyhead_client.errors import (
    TRANSPORT_ERRORS,
    BadResponseError,
    NotReadyError,
    PolyheadClientError,
    RequestRejectedError,
    TextError,
    UsageError,
)
from polyhead_client.prediction import Prediction
from polyhead_client.request import Call, build_parameters, build_request
from polyhead_client.schema import Schema
from polyhead_client.statistics import ModelStatistics
from polyhead_client.texts import as_list

CANARY = b"canary"
USUAL_BATCH_SIZE = 64  # max_batch_size of Polyhead's config.pbtxt, where the server does not tell its own
TOO_MANY = re.compile(r"batch-size must be <= (\d+)")  # how Triton refuses a longer batch
Parameters = dict[str, int | float]
Column = NDArray[Any]

T = TypeVar("T")


class Operations:
    """The operations of one client on one model; safe from threads, each generator being one caller's."""

    def __init__(
        self,
        conversation: Conversation,
        module: ModuleType,
        model: str,
        version: str,
        batch_size: int | None,
        max_request_bytes: int,
    ) -> None:
        self._conversation = conversation
        self._module = module
        self._model = model
        self._version = version
        self._batch_size = batch_size
        self._max_request_bytes = max_request_bytes
        self._refused_above: int | None = None  # learned where a server refused a longer batch

    def classify(
        self, texts: Any, top_k: int | None, threshold: float | None, deadline: Deadline, raise_on_error: bool
    ) -> Talk[list[Prediction]]:
        """Typed answers, one a text."""
        parts = yield from self._column(texts, "PREDICTION", 1, build_parameters(top_k, threshold), deadline, _predict)
        predictions = [prediction for part in parts for prediction in part]
        if raise_on_error:
            self._check_answered(predictions)
        return predictions

    def classify_json(
        self, texts: Any, top_k: int | None, threshold: float | None, deadline: Deadline
    ) -> Talk[list[bytes]]:
        """The server's JSON as it came, one a text."""
        parts = yield from self._column(texts, "PREDICTION", 1, build_parameters(top_k, threshold), deadline, _raw)
        return [row for part in parts for row in part]

    def scores(self, texts: Any, deadline: Deadline) -> Talk[NDArray[np.float32]]:
        """SCORES of all texts, ``(n, schema width)``."""
        parts = yield from self._column(texts, "SCORES", None, {}, deadline, _floats)
        if not parts:
            return np.empty((0, (yield from self.schema(deadline)).width), dtype=np.float32)
        if len({part.shape[1] for part in parts}) > 1:
            raise BadResponseError(
                "SCORES changed its width between two batches, so the model was replaced; ask again", model=self._model
            )
        return np.concatenate(parts)

    def batch(self, batch: Batch, parameters: Parameters, deadline: Deadline) -> Talk[list[Prediction]]:
        """Typed answers to one batch of a stream."""
        parts = yield from self._infer(batch, "PREDICTION", 1, parameters, deadline, _predict)
        return [prediction for part in parts for prediction in part]

    def batch_size(self, deadline: Deadline) -> Talk[int]:
        """Texts a request; asks the server, once, where the user left it to the server."""
        if self._batch_size is None:
            try:
                call = Call("config", self._model, self._version)
                self._batch_size = yield from self._conversation.ask(call, deadline, _read_batch_size)
            except RequestRejectedError:
                self._batch_size = USUAL_BATCH_SIZE  # polyhead-serve closes this API; a refused batch still teaches
        return self._batch_size

    def cut(self, texts: Iterable[object], most_texts: int) -> Iterator[Batch]:
        """Texts as batches that one request can carry."""
        return cut(texts, most_texts, self._max_request_bytes)

    def cut_async(self, texts: AsyncIterable[object], most_texts: int) -> AsyncIterator[Batch]:
        """As `cut`, of an asynchronous iterable."""
        return cut_async(texts, most_texts, self._max_request_bytes)

    def schema(self, deadline: Deadline) -> Talk[Schema]:
        """The heads of the version that answers."""
        call = self._canary("SCHEMA")
        return (yield from self._conversation.ask(call, deadline, _read_schema))

    def statistics(self, deadline: Deadline) -> Talk[list[ModelStatistics]]:
        """Of every replica; the first that does not answer is the error."""
        found: list[ModelStatistics] = []
        call = Call("statistics", self._model, self._version)
        for replica in self._conversation.replicas.all:

            def read(reply: Any, address: str = replica.address) -> list[ModelStatistics]:
                return ModelStatistics.read(reply, address)

            found += yield from self._conversation.ask_replica(replica, call, deadline, read)
        return found

    def why_not_ready(self, canary: bool, deadline: Deadline) -> Talk[PolyheadClientError | None]:
        """None as soon as one replica answers, else what the last one said. Nothing is repeated."""
        call = self._canary("PREDICTION") if canary else Call("ready", self._model, self._version)
        read = _read_canary if canary else _read_ready
        waiting = sorted(self._conversation.replicas.all, key=lambda one: one.aside_until)
        reason: PolyheadClientError | None = None
        for asked, replica in enumerate(waiting):
            # One that hangs must leave time for the others.
            patience = Deadline(max(deadline.remaining_s() / (len(waiting) - asked), 0.001))
            try:
                yield from self._conversation.ask_replica(replica, call, patience, read)
            except UsageError:
                raise
            except PolyheadClientError as error:
                reason = error
            else:
                return None
        return reason

    def wait_until_ready(self, timeout_s: float, patience_s: float) -> Talk[None]:
        """Asks again until a replica answers the canary; one try lasts `patience_s` at most."""
        deadline = Deadline(timeout_s)
        pause_s = 0.1
        while True:
            reason = yield from self.why_not_ready(True, Deadline(min(patience_s, max(deadline.remaining_s(), 0.05))))
            if reason is None:
                return
            if deadline.remaining_s() <= pause_s:
                names = ", ".join(replica.address for replica in self._conversation.replicas.all)
                message = f"{names} was not ready within {timeout_s:g} s; the last try said: {reason}"
                raise NotReadyError(
                    message, model=self._model, replica=reason.replica, status=reason.status
                ) from reason
            yield Pause(pause_s)
            pause_s = min(2 * pause_s, 1.0)

    def _column(
        self,
        texts: Any,
        output: str,
        width: int | None,
        parameters: Parameters,
        deadline: Deadline,
        read: Callable[[Column], T],
    ) -> Talk[list[T]]:
        """One output of all texts, each batch through `read`; all texts are checked before the first is sent."""
        rows = as_list(texts)
        batches = list(self.cut(rows, (yield from self.batch_size(deadline)) if rows else 1))
        answers: list[T] = []
        for batch in batches:
            answers += yield from self._infer(batch, output, width, parameters, deadline, read)
        return answers

    def _infer(
        self,
        batch: Batch,
        output: str,
        width: int | None,
        parameters: Parameters,
        deadline: Deadline,
        read: Callable[[Column], T],
    ) -> Talk[list[T]]:
        count, most = len(batch.rows), self._refused_above
        if most is not None and count > most:
            answers: list[T] = []
            for piece in batch.pieces(most):
                answers += yield from self._infer(piece, output, width, parameters, deadline, read)
            return answers
        request = build_request(self._module, batch.rows, [output], parameters)
        call = Call("infer", self._model, self._version, request, count)

        def take(result: Any) -> T:
            return read(take_output(result, output, count, width))

        try:
            return [(yield from self._conversation.ask(call, deadline, take))]
        except RequestRejectedError as error:
            refused = TOO_MANY.search(str(error))
            if refused is None or not 0 < int(refused[1]) < count:
                raise
            self._refused_above = int(refused[1])
            return (yield from self._infer(batch, output, width, parameters, deadline, read))

    def _canary(self, output: str) -> Call:
        request = build_request(self._module, [CANARY], [output], {})
        return Call("infer", self._model, self._version, request, 1)

    def _check_answered(self, predictions: Iterable[Prediction]) -> None:
        for position, prediction in enumerate(predictions):
            if prediction.error is not None:
                message = f"text {position} has no answer: {prediction.error}; correct or drop it"
                error = TextError(message, model=self._model)
                error.position, error.reason = position, prediction.error
                raise error


def take_output(result: Any, name: str, rows: int, width: int | None) -> Column:
    """An output of tritonclient's result, if it has the shape that was asked for.

    Raises:
        BadResponseError: it has not.
    """
    try:
        output: Column | None = result.as_numpy(name)
    except TRANSPORT_ERRORS as error:
        raise BadResponseError(f"output {name} cannot be read: {error}") from error
    if output is None:
        raise BadResponseError(f"the answer lacks output {name}")
    if output.ndim != 2 or output.shape[0] != rows or width not in (None, output.shape[1]):
        raise BadResponseError(f"output {name} has shape {list(output.shape)} for {rows} texts")
    return output


def _raw(column: Column) -> list[bytes]:
    return [row.encode() if isinstance(row, str) else bytes(row) for row in column[:, 0]]


def _predict(column: Column) -> list[Prediction]:
    return [Prediction.from_json(row) for row in column[:, 0]]


def _floats(column: Column) -> NDArray[np.float32]:
    return column.astype(np.float32)


def _read_schema(result: Any) -> Schema:
    return Schema.from_json(take_output(result, "SCHEMA", 1, 1)[0, 0])


def _read_canary(result: Any) -> None:
    (prediction,) = _predict(take_output(result, "PREDICTION", 1, 1))
    if prediction.error is not None:
        raise BadResponseError(f"the canary text has no answer: {prediction.error}")


def _read_ready(ready: Any) -> None:
    if ready is not True:
        raise BadResponseError("the server says that the model is not ready")


def _read_batch_size(config: Any) -> int:
    try:
        return max(int(config.get("max_batch_size", 0)), 1)  # 0: the model takes no batches
    except TRANSPORT_ERRORS as error:
        raise BadResponseError(f"the model's config cannot be read: {error}") from error
