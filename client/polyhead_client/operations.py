"""What callers ask of a model, as generators of `polyhead_client.retry`: texts to batches, batches to answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Generic, TypeVar

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


@dataclass(frozen=True)
class ModelOutput(Generic[T]):
    """An output of the model, and how one text's row of it becomes a value."""

    name: str
    width: int | None
    read: Callable[[Any], T]

    def values(self, result: Any, rows: int) -> list[T]:
        """One value per text."""
        return [self.read(row) for row in take_output(result, self.name, rows, self.width)]


PREDICTION = ModelOutput("PREDICTION", 1, lambda row: Prediction.from_json(row[0]))
PREDICTION_JSON = ModelOutput(
    "PREDICTION", 1, lambda row: row[0].encode() if isinstance(row[0], str) else bytes(row[0])
)
SCORES: ModelOutput[NDArray[np.float32]] = ModelOutput("SCORES", None, lambda row: row.astype(np.float32))
SCHEMA = ModelOutput("SCHEMA", 1, lambda row: ModelSchema.from_json(row[0]))


@dataclass
class Operations:
    """The operations of one client on one model; safe for threads, because each generator has one caller."""

    retry_loop: RetryLoop
    module: ModuleType  # tritonclient.http or tritonclient.grpc
    model: str
    version: str
    batch_size: int
    max_request_bytes: int
    largest_batch: int | None = None  # what the server takes, once it has refused a longer batch

    def classify(
        self, texts: Any, top_k: int | None, threshold: float | None, deadline: Deadline, raise_on_error: bool
    ) -> Steps[Any]:
        """One typed answer per text: a Prediction for a str, otherwise a list."""
        one = isinstance(texts, str)
        parameters = build_parameters(top_k, threshold)
        predictions = yield from self.ask([texts] if one else texts, PREDICTION, parameters, deadline)
        for position, prediction in enumerate(predictions if raise_on_error else ()):
            if prediction.error is not None:
                message = f"text {position} has no answer: {prediction.error}; correct or drop it"
                error = TextError(message, model=self.model)
                error.position, error.reason = position, prediction.error
                raise error
        return predictions[0] if one else predictions

    def scores(self, texts: Any, deadline: Deadline) -> Steps[NDArray[np.float32]]:
        """SCORES of all texts, ``(n, schema width)``."""
        rows = yield from self.ask(texts, SCORES, {}, deadline)
        if not rows:
            return np.empty((0, (yield from self.schema(deadline)).width), dtype=np.float32)
        if len({len(row) for row in rows}) > 1:
            raise BadResponseError(
                "SCORES changed its width between two batches, so the model was replaced; ask again", model=self.model
            )
        return np.stack(rows)

    def schema(self, deadline: Deadline) -> Steps[ModelSchema]:
        """The heads of the version that answers."""
        return (yield from self.ask_batch([CANARY], SCHEMA, {}, deadline))[0]

    def why_not_ready(self, canary: bool, deadline: Deadline) -> Steps[PolyheadClientError | None]:
        """None as soon as one replica answers, otherwise the error of the last one. Nothing is retried."""
        call = self._call([CANARY], PREDICTION, {}) if canary else Call(self.model, self.version)
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
                raise NotReadyError(message, model=self.model, replica=reason.replica, status=reason.status) from reason
            yield Pause(pause_s)
            pause_s = min(2 * pause_s, 1.0)

    def ask(self, texts: Any, output: ModelOutput[T], parameters: Parameters, deadline: Deadline) -> Steps[list[T]]:
        """One output of all texts. All texts are checked before the first is sent."""
        values: list[T] = []
        for batch in list(cut(as_list(texts), self.batch_size, self.max_request_bytes)):
            values += yield from self.ask_batch(batch, output, parameters, deadline)
        return values

    def ask_batch(
        self, batch: Batch, output: ModelOutput[T], parameters: Parameters, deadline: Deadline
    ) -> Steps[list[T]]:
        """One output of a batch, in several requests if the server takes only shorter batches."""
        count, most = len(batch), self.largest_batch
        if most is not None and count > most:
            values: list[T] = []
            for start in range(0, count, most):
                values += yield from self.ask_batch(batch[start : start + most], output, parameters, deadline)
            return values
        call = self._call(batch, output, parameters)
        try:
            return (yield from self.retry_loop.ask(call, deadline, lambda result: output.values(result, count)))
        except RequestRejectedError as error:
            refused = TOO_MANY.search(str(error))
            if refused is None or not 0 < int(refused[1]) < count:
                raise
            self.largest_batch = int(refused[1])
            return (yield from self.ask_batch(batch, output, parameters, deadline))

    def _call(self, rows: Sequence[bytes], output: ModelOutput[Any], parameters: Parameters) -> Call:
        return infer_call(self.model, rows, output.name, parameters, self.version, self.module)


def _read_canary(result: Any) -> None:
    (prediction,) = PREDICTION.values(result, 1)
    if prediction.error is not None:
        raise BadResponseError(f"the canary text has no answer: {prediction.error}")


def _read_ready(ready: Any) -> None:
    if ready is not True:
        raise BadResponseError("the server says that the model is not ready")
