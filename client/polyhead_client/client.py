"""The client that blocks: texts in, typed predictions out.

It performs what `polyhead_client.operations` yields; batches, replicas, retries and deadlines are decided there.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Protocol, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from polyhead_client import tracing
from polyhead_client.batches import Batch
from polyhead_client.conversation import Pause, Send, Talk
from polyhead_client.deadline import Deadline
from polyhead_client.errors import PolyheadClientError, mapped
from polyhead_client.grpc_channels import GrpcChannels
from polyhead_client.http_pool import HttpPool
from polyhead_client.http_wire import HttpReply, HttpRequest, decode, encode
from polyhead_client.prediction import Prediction
from polyhead_client.replicas import Replica
from polyhead_client.request import build_parameters, check_count
from polyhead_client.schema import Schema
from polyhead_client.settings import Settings
from polyhead_client.statistics import ModelStatistics
from polyhead_client.stream import CONCURRENCY, stream_in_threads
from polyhead_client.texts import Texts, iterate

T = TypeVar("T")


class Exchange(Protocol):
    """Carries HTTP; `polyhead_client.testing` has a fake."""

    def exchange(self, replica: Replica, request: HttpRequest, deadline: Deadline) -> HttpReply:
        """One request and its answer."""

    def close(self) -> None:
        """No request follows."""


class Client(Settings):
    """Asks one model on one server or several; safe from threads and from gevent's greenlets.

    The arguments are those of `polyhead_client.settings.Settings`.
    """

    def _open(self) -> None:
        self._transport: Exchange | GrpcChannels = (
            GrpcChannels(self._network) if self.protocol == "grpc" else HttpPool(self._network)
        )

    @overload
    def classify(
        self,
        texts: str,
        top_k: int | None = None,
        threshold: float | None = None,
        timeout_s: float | None = None,
        raise_on_error: bool = False,
    ) -> Prediction: ...
    @overload
    def classify(
        self,
        texts: Texts,
        top_k: int | None = None,
        threshold: float | None = None,
        timeout_s: float | None = None,
        raise_on_error: bool = False,
    ) -> list[Prediction]: ...

    def classify(
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
        predictions = self._run("classify", talk)
        return predictions[0] if one else predictions

    def stream(
        self,
        texts: Iterable[Any],
        batch_size: int | None = None,
        concurrency: int = CONCURRENCY,
        top_k: int | None = None,
        threshold: float | None = None,
        timeout_s: float | None = None,
    ) -> Iterator[Prediction]:
        """Classifies texts of any iterable, such as a generator or a file, and gives the predictions in its order.

        At most ``2 * concurrency + 1`` batches are in memory. A batch is sent when it is full or the texts end. What
        goes wrong is raised in its place, after the predictions before it. Closing the iterator (or leaving it to be
        collected) gives up the requests under way; over gRPC it waits for them.

        Args:
            texts: read in the consumer's thread, as far as the window reaches.
            batch_size: texts a request; the client's if None.
            concurrency: requests at a time, each by a thread.
            top_k: as for `classify`.
            threshold: as for `classify`.
            timeout_s: how long each request may take; the client's if None.

        Raises:
            PolyheadClientError: see `polyhead_client.errors`; bad arguments at once.
        """
        patience_s = self._deadline(timeout_s).timeout_s
        parameters = build_parameters(top_k, threshold)
        rows = iterate(texts)
        check_count("concurrency", concurrency)
        if batch_size is not None:
            check_count("batch_size", batch_size)

        def answer(batch: Batch, deadline: Deadline) -> list[Prediction]:
            return self._run("stream", self._operations.batch(batch, parameters, deadline))

        def batches() -> Iterator[Batch]:
            most = batch_size
            if most is None:
                size = self._operations.batch_size(self._deadline(patience_s))
                most = self._run("batch_size", size)
            yield from self._operations.cut(rows, most)

        return stream_in_threads(batches(), answer, concurrency, patience_s)

    def classify_json(
        self,
        texts: Texts,
        top_k: int | None = None,
        threshold: float | None = None,
        timeout_s: float | None = None,
    ) -> list[bytes]:
        """As `classify` of a list, but the server's JSON as it came: for pipes and load tests."""
        talk = self._operations.classify_json(texts, top_k, threshold, self._deadline(timeout_s))
        return self._run("classify", talk)

    def scores(self, texts: Texts, timeout_s: float | None = None) -> NDArray[np.float32]:
        """All heads' calibrated scores.

        Returns:
            float32 ``(n, schema().width)``, columns as in `Schema.column_names`; a row of NaN for a text without an
            answer.

        Raises:
            PolyheadClientError: see `polyhead_client.errors`.
        """
        return self._run("scores", self._operations.scores(texts, self._deadline(timeout_s)))

    def schema(self, timeout_s: float | None = None) -> Schema:
        """The heads of the version that answers now."""
        return self._run("schema", self._operations.schema(self._deadline(timeout_s)))

    def is_ready(self, canary: bool = True, timeout_s: float | None = None) -> bool:
        """Whether a replica answers a canary text now.

        Without `canary` Triton's own word is taken, which stays good when a model process has died or hangs.
        """
        deadline = self._deadline(timeout_s)
        return self._run("is_ready", self._operations.why_not_ready(canary, deadline)) is None

    def wait_until_ready(self, timeout_s: float = 60.0) -> None:
        """Asks again until a replica answers a canary text.

        Raises:
            NotReadyError: none did within `timeout_s`; the message has the last reason.
        """
        seconds = self._deadline(timeout_s).timeout_s
        self._run("wait_until_ready", self._operations.wait_until_ready(seconds, self.timeout_s))

    def statistics(self, timeout_s: float | None = None) -> list[ModelStatistics]:
        """What each replica has counted; polyhead-serve tells only who sends its admin header."""
        return self._run("statistics", self._operations.statistics(self._deadline(timeout_s)))

    def close(self) -> None:
        """Closes the connections; the client cannot be used afterwards."""
        self._closed = True
        self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, name: str, talk: Talk[T]) -> T:
        with tracing.operation(name, self.model):
            try:
                effect = next(talk)
                while True:
                    try:
                        reply = self._perform(effect)
                    except PolyheadClientError as error:
                        effect = talk.throw(error)
                    else:
                        effect = talk.send(reply)
            except StopIteration as done:
                value: T = done.value
                return value
            finally:
                talk.close()

    def _perform(self, effect: Send | Pause) -> Any:
        if isinstance(effect, Send):
            return self._send(effect)
        time.sleep(effect.seconds)
        return None

    def _send(self, send: Send) -> Any:
        call, deadline, address = send.call, send.deadline, send.replica.address
        with (
            tracing.request(call.kind, address, call.model, call.texts, send.attempt) as trace,
            mapped(model=call.model, replica=address, protocol=self.protocol, timeout_s=deadline.timeout_s),
        ):
            headers = {**self._headers, **trace}
            if isinstance(self._transport, GrpcChannels):
                return self._transport.send(send.replica, call, headers, deadline)
            request = encode(call, headers, deadline.remaining_s())
            return decode(call, self._transport.exchange(send.replica, request, deadline))
