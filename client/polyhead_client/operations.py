"""What callers ask of a model, as generators of `polyhead_client.retry`: texts to batches, batches to answers."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from polyhead_client.fields import fields_json, is_table, table_rows
from polyhead_client.prediction import Prediction
from polyhead_client.request import PROBE, Call, Deadline, Parameters, infer_call
from polyhead_client.retry import Pause, RetryLoop, Steps
from polyhead_client.schema import ModelSchema

CANARY = b"canary"
TOO_MANY = re.compile(r"batch-size must be <= (\d+)")  # Triton's words when it refuses a longer batch
NO_SCORE = float(np.finfo(np.float32).min)  # fills the row of SCORES of a text without an answer
FIELDS_S = 30.0  # how long the client trusts the fields that a schema declared
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
SCORES: ModelOutput[NDArray[np.float32]] = ModelOutput("SCORES", None, lambda row: _read_scores(row))
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
    _fields: tuple[str, ...] = ()
    _fields_until: float = 0.0

    def ask_first(
        self, texts: Any, output: ModelOutput[T], parameters: Parameters, deadline: Deadline, keep: bool = True
    ) -> Steps[tuple[list[T], list[Batch]]]:
        """One output of the first batch of the texts, and the batches after it. All texts are checked before that.

        With `keep`, an error has the answers so far.
        """
        rows = table_rows(texts, (yield from self.fields(deadline))) if is_table(texts) else as_list(texts)
        rows = list(rows)
        if any(isinstance(row, Mapping) for row in rows):
            names = yield from self.fields(deadline)
            rows = [
                fields_json(row, position, names) if isinstance(row, Mapping) else row
                for position, row in enumerate(rows)
            ]
        batches = list(cut(rows, self.batch_size, self.max_request_bytes))
        if not batches:
            return [], []
        with keep_answers([], len(rows) if keep and len(batches) > 1 else 0):
            return (yield from self.ask_batch(batches[0], output, parameters, deadline)), batches[1:]

    def check_texts(self, predictions: Sequence[Prediction]) -> None:
        """Raises TextError for the first text without an answer."""
        for position, prediction in enumerate(predictions):
            if prediction.error is not None:
                message = f"text {position} has no answer: {prediction.error}; correct or drop it"
                error = TextError(message, model=self.model)
                error.position, error.reason = position, prediction.error
                raise error

    def stack(self, rows: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        """SCORES of all texts, ``(n, schema width)``."""
        if len({len(row) for row in rows}) > 1:
            raise BadResponseError(
                "SCORES changed its width between two batches, so the model was replaced; ask again", model=self.model
            )
        return np.stack(rows)

    @property
    def known_fields(self) -> tuple[str, ...] | None:
        """The model's fields; None if they must be asked for."""
        return self._fields if time.monotonic() < self._fields_until else None

    def fields(self, deadline: Deadline) -> Steps[tuple[str, ...]]:
        """The names of the fields that the model declares."""
        known = self.known_fields
        if known is None:
            known = (yield from self.schema(deadline)).fields
            self._fields, self._fields_until = known, time.monotonic() + FIELDS_S
        return known

    def schema(self, deadline: Deadline) -> Steps[ModelSchema]:
        """The heads of the version that answers."""
        return (yield from self.ask_batch([CANARY], SCHEMA, {}, deadline))[0]

    def why_not_ready(self, canary: bool, deadline: Deadline) -> Steps[PolyheadClientError | None]:
        """None as soon as one replica answers, otherwise the error of the last one. Nothing is retried."""
        call = self._canary() if canary else Call(self.model, self.version)
        read = _read_canary if canary else _read_ready
        waiting = sorted(self.retry_loop.replicas.all, key=lambda one: one.aside_until)
        reason: PolyheadClientError | None = None
        deadline.begin()
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
        deadline.begin()
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
            read = functools.partial(output.values, rows=count)
            return (yield from self.retry_loop.ask(call, self._canary(), deadline, read))
        except RequestRejectedError as error:
            refused = TOO_MANY.search(str(error))
            if refused is None or not 0 < int(refused[1]) < count:
                raise
            self.largest_batch = int(refused[1])
            return (yield from self.ask_batch(batch, output, parameters, deadline))

    def _canary(self) -> Call:
        return self._call([CANARY], PREDICTION, PROBE)

    def _call(self, rows: Sequence[bytes], output: ModelOutput[Any], parameters: Parameters) -> Call:
        return infer_call(self.model, rows, output.name, parameters, self.version, self.module)


@contextmanager
def keep_answers(answers: Sequence[Any], texts: int) -> Iterator[None]:
    """Adds to an error how many of so many texts were answered, and their answers. Without texts it adds nothing."""
    try:
        yield
    except PolyheadClientError as error:
        if texts:
            error.answers = answers
            error.args = (
                f"{error}; {len(answers):,} of {texts:,} texts were answered and are in error.answers: go on with "
                "texts[len(error.answers):], allow more time with timeout_s, or use stream()",
            )
        raise


def _read_scores(row: NDArray[Any]) -> NDArray[np.float32]:
    scores: NDArray[np.float32] = row.astype(np.float32)
    if scores.size and (scores == NO_SCORE).all():
        scores[:] = np.nan
    return scores


def _read_canary(result: Any) -> None:
    (prediction,) = PREDICTION.values(result, 1)
    if prediction.error is not None:
        raise BadResponseError(f"the canary text has no answer: {prediction.error}")


def _read_ready(ready: Any) -> None:
    if ready is not True:
        raise BadResponseError("the server says that the model is not ready")
