"""Rows and their answers, in the rows' order and with a bounded number in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain

from polyhead_client.bulk.row import Row
from polyhead_client.client import Client
from polyhead_client.errors import RequestRejectedError
from polyhead_client.prediction import Prediction

MOST_SPOILED = 10_000  # rows without a text that wait for the answers before them
CANARY = "canary"
Answered = tuple[Row, Prediction]


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of every text; as for `Client.stream`."""

    batch_size: int = 64
    workers: int = 4
    top_k: int | None = None
    threshold: float | None = None


def answer_rows(client: Client, rows: Iterator[Row], question: Question) -> Iterator[Answered]:
    """Every row once, with its answer; a row without a text has its reason as the error.

    Where the server rejects a batch, its texts are asked one by one, and those that it rejects alone have that as their
    error, unless it rejects a harmless text too.

    Raises:
        PolyheadClientError: see `Client.stream`; rows before it have been given.
    """
    waiting: deque[Row] = deque()
    more = True

    def texts() -> Iterator[str]:
        nonlocal more
        spoiled = 0
        for row in rows:
            waiting.append(row)
            if row.text is not None:
                yield row.text
                continue
            spoiled += 1
            if spoiled >= MOST_SPOILED:
                return
        more = False

    while more:
        stream = client.stream(texts(), question.batch_size, question.workers, question.top_k, question.threshold)
        try:
            with closing(stream):  # type: ignore[type-var] # it is a generator
                for prediction in stream:
                    yield from _spoiled(waiting)
                    yield waiting.popleft(), prediction
        except RequestRejectedError as error:
            if error.status in ("401", "403", "UNAUTHENTICATED", "PERMISSION_DENIED"):
                raise
            for _ in range(min(question.batch_size, len(waiting))):
                yield from _spoiled(waiting)
                if waiting:
                    yield waiting[0], _ask_alone(client, waiting[0], question)
                    waiting.popleft()
            rows, more = chain(list(waiting), rows), True
            waiting.clear()
        else:
            yield from _spoiled(waiting)


def _spoiled(waiting: deque[Row]) -> Iterator[Answered]:
    while waiting and waiting[0].text is None:
        row = waiting.popleft()
        yield row, Prediction(error=row.reason)


def _ask_alone(client: Client, row: Row, question: Question) -> Prediction:
    assert row.text is not None
    try:
        return client.classify(row.text, question.top_k, question.threshold)
    except RequestRejectedError as error:
        client.classify(CANARY, question.top_k, question.threshold)  # raises if it is not the text's fault
        return Prediction(error=str(error))
