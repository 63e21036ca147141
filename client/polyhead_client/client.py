"""The blocking client: texts in, typed predictions out.

It carries out what `polyhead_client.operations` yields. Batches, replicas, retries and deadlines are decided there.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing, nullcontext
from typing import Any, Protocol, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from polyhead_client import tracing
from polyhead_client.batches import Batch, Fields, Texts, cut, iterate
from polyhead_client.errors import PolyheadClientError
from polyhead_client.explain import MOST_TEXTS, explain
from polyhead_client.explanation import Explanation
from polyhead_client.fields import fields_json, is_table, table_rows
from polyhead_client.grpc_transport import GrpcChannels
from polyhead_client.http_transport import HttpPool
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
from polyhead_client.stream import CONCURRENCY, stream_in_threads
from polyhead_client.turns import LONGEST_WAIT_S, ThreadTurns

T = TypeVar("T")


class HttpTransport(Protocol):
    """Carries HTTP requests: connections, or the fake of `polyhead_client.testing`. Network failures raise OSError."""

    @abstractmethod
    def exchange(self, replica: Replica, request: HttpRequest, deadline: Deadline) -> HttpReply: ...

    @abstractmethod
    def close(self) -> None: ...


class Client(Settings):
    """Asks one model on one or several servers; safe for threads and gevent's greenlets.

    The arguments are those of `polyhead_client.settings.Settings`.
    """

    def _open(self) -> None:
        self._turns = ThreadTurns(self._most_turns)
        self._transport: HttpTransport | GrpcChannels = (
            GrpcChannels(self._network) if self.protocol == "grpc" else HttpPool(self._network)
        )

    @overload
    def classify(
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
    def classify(
        self,
        texts: Texts,
        top_k: int | None = None,
        threshold: float | None = None,
        timeout_s: float | None = None,
        raise_on_error: bool = False,
        reject_below: float | None = None,
        private: bool = False,
    ) -> list[Prediction]: ...

    def classify(
        self,
        texts: str | Fields | Texts,
        top_k: int | None = None,
        threshold: float | None = None,
        timeout_s: float | None = None,
        raise_on_error: bool = False,
        reject_below: float | None = None,
        private: bool = False,
    ) -> Prediction | list[Prediction]:
        """Classifies one text or several.

        Args:
            texts: a str, or a list or tuple of str of any length, or a column of texts of pandas, Arrow or NumPy. If
                the model declares fields, a text may also be a dict of them, and a list a table with their columns.
            top_k: how many labels a single_label head names, and at most how many a multi_label head names.
            threshold: replaces the labels' own thresholds in multi_label heads.
            timeout_s: how long the whole call may take; the client's if None.
            raise_on_error: raises TextError for the first text without an answer.
            reject_below: replaces that of all single_label heads: an answer whose best score is below it has no label.
                0 rejects nothing; None leaves it to the model.
            private: keeps these texts out of the server's answer log, if it has one.

        Returns:
            One prediction for a str or dict; for a list a list, one per text in the same order. A text without an
            answer (an empty one, for example) has `Prediction.error`, and the other texts have their answers.

        Raises:
            PolyheadClientError: see `polyhead_client.errors`.
        """
        deadline = self._deadline(timeout_s)
        parameters = build_parameters(top_k, threshold, reject_below, private)
        one = isinstance(texts, str | Mapping)
        predictions = self._ask("classify", [texts] if one else texts, PREDICTION, parameters, deadline)
        if raise_on_error:
            self._operations.check_texts(predictions)
        return predictions[0] if one else predictions

    def stream(
        self,
        texts: Iterable[Any],
        batch_size: int | None = None,
        concurrency: int = CONCURRENCY,
        top_k: int | None = None,
        threshold: float | None = None,
        timeout_s: float | None = None,
        reject_below: float | None = None,
        private: bool = False,
    ) -> Generator[Prediction, None, None]:
        """Classifies the texts of any iterable, such as a generator or a file, and yields predictions in its order.

        At most ``2 * concurrency + 1`` batches are in memory. A batch is sent when it is full or the texts end.
        An error is raised in its place, after the predictions before it. Closing the iterator, or dropping it, gives up
        the requests under way; over gRPC it waits for them.

        Args:
            texts: read in the consumer's thread, as far as those batches reach.
            batch_size: texts per request; the client's if None.
            concurrency: requests at a time, each in a thread.
            top_k: as for `classify`.
            threshold: as for `classify`.
            timeout_s: how long each request may take; the client's if None.
            reject_below: as for `classify`.
            private: as for `classify`.

        Raises:
            PolyheadClientError: see `polyhead_client.errors`; for bad arguments at once.
        """
        request_timeout_s = self._deadline(timeout_s).timeout_s
        parameters = build_parameters(top_k, threshold, reject_below, private)
        most_texts = self.batch_size if batch_size is None else check_count("batch_size", batch_size)
        rows = texts if is_table(texts) else iterate(texts)
        batches = cut(self._rows(rows, request_timeout_s), most_texts, self.max_request_bytes)

        def answer(batch: Batch, deadline: Deadline) -> list[Prediction]:
            return self._run("stream", self._operations.ask_batch(batch, PREDICTION, parameters, deadline), deadline)

        return stream_in_threads(
            batches, answer, check_count("concurrency", concurrency), lambda: Deadline(request_timeout_s)
        )

    def classify_json(
        self,
        texts: Texts,
        top_k: int | None = None,
        threshold: float | None = None,
        timeout_s: float | None = None,
        reject_below: float | None = None,
        private: bool = False,
    ) -> list[bytes]:
        """Like `classify` of a list, but returns the server's JSON as it came, for pipes and load tests."""
        deadline = self._deadline(timeout_s)
        parameters = build_parameters(top_k, threshold, reject_below, private)
        return self._ask("classify", texts, PREDICTION_JSON, parameters, deadline)

    def scores(self, texts: Texts, timeout_s: float | None = None, private: bool = False) -> NDArray[np.float32]:
        """All heads' calibrated scores.

        Args:
            texts: as for `classify`.
            timeout_s: as for `classify`.
            private: as for `classify`.

        Returns:
            float32 ``(n, schema().width)``, columns as in `ModelSchema.column_names`; a row of NaN for a text without
            an answer.

        Raises:
            PolyheadClientError: see `polyhead_client.errors`.
        """
        deadline = self._deadline(timeout_s)
        rows = self._ask("scores", texts, SCORES, build_parameters(private=private), deadline)
        if not rows:
            schema = self._run("schema", self._operations.schema(deadline), deadline)
            return np.empty((0, schema.width), dtype=np.float32)
        return self._operations.stack(rows)

    def explain(
        self,
        text: str | Fields,
        head: str | None = None,
        label: str | None = None,
        most_texts: int = MOST_TEXTS,
        timeout_s: float | None = None,
    ) -> Explanation:
        """Explains an answer: how much each word moved the score, found by leaving it out.

        In a long text whole sentences are left out first, then the words of the strongest ones. A word that occurs at
        several places is also left out at all of them. The server needs nothing for this: it scores the shorter texts,
        and keeps none of them in its answer log.

        Args:
            text: a str or, if the model declares fields, a dict of them.
            head: explains this head only; all heads if None.
            label: explains the score of this label; what the head answers if None. For a multi_label head these are
                all labels of the answer or, if there are none, the one that is closest to its threshold.
            most_texts: how many texts the server may score for this; at least 64.
            timeout_s: how long the whole call may take; the client's if None.

        Raises:
            TextError: the text has no answer.
            PolyheadClientError: see `polyhead_client.errors`; no effects are returned then.
        """
        deadline = self._deadline(timeout_s)
        with closing(explain(text, head, label, most_texts)) as steps:
            try:
                question = next(steps)
                while True:
                    question = steps.send(
                        self._ask("explain", question.texts, question.output, question.parameters, deadline, keep=False)
                    )
            except StopIteration as done:
                explanation: Explanation = done.value
                return explanation

    def schema(self, timeout_s: float | None = None) -> ModelSchema:
        """The heads of the version that answers now."""
        deadline = self._deadline(timeout_s)
        return self._run("schema", self._operations.schema(deadline), deadline)

    def is_ready(self, canary: bool = True, timeout_s: float | None = None) -> bool:
        """Whether a replica answers a canary text now.

        Without `canary` it asks Triton's own endpoint, which is no sign of health (docs/serving.md#is-it-healthy).
        """
        deadline = self._deadline(timeout_s)
        return self._run("is_ready", self._operations.why_not_ready(canary, deadline)) is None

    def wait_until_ready(self, timeout_s: float = 60.0) -> None:
        """Asks again until a replica answers a canary text.

        Raises:
            NotReadyError: none answered within `timeout_s`; the message has the last reason.
        """
        seconds = self._deadline(timeout_s).timeout_s
        self._run("wait_until_ready", self._operations.wait_until_ready(seconds, self.timeout_s))

    def close(self) -> None:
        """Closes the connections. The client cannot be used afterwards."""
        self._closed = True
        self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _rows(self, texts: Any, timeout_s: float) -> Iterator[object]:
        """Yields texts as they are, and objects of fields as JSON."""
        if is_table(texts):
            texts = table_rows(texts, self._fields(timeout_s))
        for position, row in enumerate(texts):
            yield fields_json(row, position, self._fields(timeout_s)) if isinstance(row, Mapping) else row

    def _fields(self, timeout_s: float) -> tuple[str, ...]:
        known = self._operations.known_fields
        if known is None:
            deadline = Deadline(timeout_s)
            known = self._run("schema", self._operations.fields(deadline), deadline)
        return known

    def _ask(
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
            values, batches = self._drive(first, deadline)
            if not batches:
                return values

            def answer(batch: Batch, part: Deadline) -> list[T]:
                return self._drive(self._operations.ask_batch(batch, output, parameters, part), part)

            total = len(values) + sum(map(len, batches)) if keep else 0
            stream = stream_in_threads(iter(batches), answer, CONCURRENCY, deadline.part)
            with keep_answers(values, total), closing(stream):
                values.extend(stream)
            return values

    def _run(self, name: str, steps: Steps[T], deadline: Deadline | None = None) -> T:
        with tracing.span(name, {"polyhead.model": self.model}):
            return self._drive(steps, deadline)

    def _drive(self, steps: Steps[T], deadline: Deadline | None) -> T:
        """Carries out the steps, with a deadline in a turn of their own."""
        with self._turns.take(deadline) if deadline is not None else nullcontext(), closing(steps):
            try:
                step = next(steps)
                while True:
                    try:
                        reply = self._perform(step)
                    except PolyheadClientError as error:
                        step = steps.throw(error)
                    else:
                        step = steps.send(reply)
            except StopIteration as done:
                value: T = done.value
                return value

    def _perform(self, step: Send | Pause) -> Any:
        if isinstance(step, Pause):
            ends = time.monotonic() + step.seconds
            while (left_s := ends - time.monotonic()) > 0 and not (step.deadline and step.deadline.cancelled):
                time.sleep(min(left_s, LONGEST_WAIT_S))
            return None
        with self._attempt(step) as headers:
            if isinstance(self._transport, GrpcChannels):
                return self._transport.send(step.replica, step.call, headers, step.deadline)
            request = encode(step.call, headers, step.deadline.remaining_s())
            return decode(step.call, self._transport.exchange(step.replica, request, step.deadline))
