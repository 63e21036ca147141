"""What callers ask of a model, as generators of `polyhead_client.retry`: texts to batches, batches to answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from polyhead_client.batches import Batch, as_list, cut
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
from polyhead_client.request import Call, Deadline, Parameters, build_parameters, infer_call
from polyhead_client.retry import Pause, RetryLoop, Steps
from polyhead_client.schema import ModelSchema

CANARY = b"canary"
TOO_MANY = re.compile(r"batch-size must be <= (\d+)")  # Triton's words when it refuses a longer batch
Column = NDArray[Any]

T = TypeVar("T")


@dataclass
class Operations:
    """The operations of one client on one model; safe for threads, because each generator has one caller.

    Attributes:
        retry_loop: asks the replicas.
        module: ``tritonclient.http`` or ``tritonclient.grpc``.
        model: the model's name.
        version: the model's version; the newest if empty.
        batch_size: texts per request.
        max_request_bytes: longest request.
        largest_batch: what the server takes; None until it has refused a longer batch.
    """

    retry_loop: RetryLoop
    module: ModuleType
    model: str
    version: str
    batch_size: int
    max_request_bytes: int
    largest_batch: int | None = None

    def classify(
        self, texts: Any, top_k: int | None, threshold: float | None, deadline: Deadline, raise_on_error: bool
    ) -> Steps[Any]:
        """One typed answer per text: a Prediction for a str, otherwise a list."""
        one = isinstance(texts, str)
        parameters = build_parameters(top_k, threshold)
        parts = yield from self._column([texts] if one else texts, "PREDICTION", 1, parameters, deadline, _predict)
        predictions = [prediction for part in parts for prediction in part]
        if raise_on_error:
            self._check_answered(predictions)
        return predictions[0] if one else predictions

    def classify_json(
        self, texts: Any, top_k: int | None, threshold: float | None, deadline: Deadline
    ) -> Steps[list[bytes]]:
        """The server's JSON as it came, one per text."""
        parts = yield from self._column(texts, "PREDICTION", 1, build_parameters(top_k, threshold), deadline, _raw)
        return [row for part in parts for row in part]

    def classify_batch(self, batch: Batch, parameters: Parameters, deadline: Deadline) -> Steps[list[Prediction]]:
        """Typed answers to one batch of a stream."""
        parts = yield from self._infer(batch, "PREDICTION", 1, parameters, deadline, _predict)
        return [prediction for part in parts for prediction in part]

    def scores(self, texts: Any, deadline: Deadline) -> Steps[NDArray[np.float32]]:
        """SCORES of all texts, ``(n, schema width)``."""
        parts = yield from self._column(texts, "SCORES", None, {}, deadline, _floats)
        if not parts:
            return np.empty((0, (yield from self.schema(deadline)).width), dtype=np.float32)
        if len({part.shape[1] for part in parts}) > 1:
            raise BadResponseError(
                "SCORES changed its width between two batches, so the model was replaced; ask again", model=self.model
            )
        return np.concatenate(parts)

    def schema(self, deadline: Deadline) -> Steps[ModelSchema]:
        """The heads of the version that answers."""
        return (yield from self.retry_loop.ask(self._canary("SCHEMA"), deadline, _read_schema))

    def why_not_ready(self, canary: bool, deadline: Deadline) -> Steps[PolyheadClientError | None]:
        """None as soon as one replica answers, otherwise the error of the last one. Nothing is retried."""
        call = self._canary("PREDICTION") if canary else Call(self.model, self.version)
        read = _read_canary if canary else _read_ready
        waiting = sorted(self.retry_loop.replicas.all, key=lambda one: one.aside_until)
        reason: PolyheadClientError | None = None
        for asked, replica in enumerate(waiting):
            # A replica that hangs must leave time for the others.
            share = Deadline(max(deadline.remaining_s() / (len(waiting) - asked), 0.001))
            try:
                yield from self.retry_loop.ask_replica(replica, call, share, read)
            except UsageError:
                raise
            except PolyheadClientError as error:
                reason = error
            else:
                return None
        return reason

    def wait_until_ready(self, timeout_s: float, attempt_timeout_s: float) -> Steps[None]:
        """Asks again until a replica answers the canary."""
        deadline = Deadline(timeout_s)
        pause_s = 0.1
        while True:
            attempt_s = min(attempt_timeout_s, max(deadline.remaining_s(), 0.05))
            reason = yield from self.why_not_ready(True, Deadline(attempt_s))
            if reason is None:
                return
            if deadline.remaining_s() <= pause_s:
                names = ", ".join(replica.address for replica in self.retry_loop.replicas.all)
                message = f"{names} was not ready within {timeout_s:g} s; the last attempt failed: {reason}"
                raise NotReadyError(
                    message, model=self.model, replica=reason.replica, status=reason.status
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
    ) -> Steps[list[T]]:
        """One output of all texts, `read` per batch. All texts are checked before the first is sent."""
        batches = list(cut(as_list(texts), self.batch_size, self.max_request_bytes))
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
    ) -> Steps[list[T]]:
        """One output of a batch: one value, or several if the server takes only shorter batches."""
        count, most = len(batch), self.largest_batch
        if most is not None and count > most:
            answers: list[T] = []
            for start in range(0, count, most):
                piece = batch[start : start + most]
                answers += yield from self._infer(piece, output, width, parameters, deadline, read)
            return answers
        call = infer_call(self.model, batch, output, parameters, self.version, self.module)
        try:
            answer = yield from self.retry_loop.ask(
                call, deadline, lambda result: read(take_output(result, output, count, width))
            )
        except RequestRejectedError as error:
            refused = TOO_MANY.search(str(error))
            if refused is None or not 0 < int(refused[1]) < count:
                raise
            self.largest_batch = int(refused[1])
            return (yield from self._infer(batch, output, width, parameters, deadline, read))
        return [answer]

    def _canary(self, output: str) -> Call:
        return infer_call(self.model, [CANARY], output, {}, self.version, self.module)

    def _check_answered(self, predictions: Iterable[Prediction]) -> None:
        for position, prediction in enumerate(predictions):
            if prediction.error is not None:
                message = f"text {position} has no answer: {prediction.error}; correct or drop it"
                error = TextError(message, model=self.model)
                error.position, error.reason = position, prediction.error
                raise error


def take_output(result: Any, name: str, rows: int, width: int | None) -> Column:
    """An output of tritonclient's result, ``(rows, width)``.

    Raises:
        BadResponseError: the output is missing, unreadable or has another shape.
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


def _read_schema(result: Any) -> ModelSchema:
    return ModelSchema.from_json(take_output(result, "SCHEMA", 1, 1)[0, 0])


def _read_canary(result: Any) -> None:
    (prediction,) = _predict(take_output(result, "PREDICTION", 1, 1))
    if prediction.error is not None:
        raise BadResponseError(f"the canary text has no answer: {prediction.error}")


def _read_ready(ready: Any) -> None:
    if ready is not True:
        raise BadResponseError("the server says that the model is not ready")
