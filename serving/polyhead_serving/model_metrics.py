"""The metrics of a model process, which Prometheus reads at Triton's ``/metrics``.

Each value is a message to the server that takes 30 to 50 microseconds, so a thread sends them outside the path of the
answers. All models of a server share a metric family. To change the kind or the buckets of one, give it a new name.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from polyhead.encode import EncodedText

SECONDS = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0]
TEXTS = [float(2**power) for power in range(9)]  # 1 to 256
TOKENS = [float(2**power) for power in range(4, 17)]  # 16 to 65,536
WAITING_BATCHES = 1024  # records that may wait to be sent; more are dropped


@dataclass
class BatchRecord:
    """What happened in one batch.

    Attributes:
        texts: tokenized texts.
        tokens: tokens read by the model or counted for TOKEN_COUNT, after truncation.
        truncated_texts: how many of `texts` were truncated.
        error_texts: how many of `texts` have an error instead of an answer.
        cancelled_requests: requests dropped before their texts were computed.
        parts: scored parts. Each part has a record of its own, as soon as it is done.
        stages: seconds per stage: tokenize, compute, decode; only the stages that ran.
    """

    texts: int = 0
    tokens: int = 0
    truncated_texts: int = 0
    error_texts: int = 0
    cancelled_requests: int = 0
    parts: int = 0
    stages: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time that the block takes to a stage."""
        began = time.perf_counter()
        yield
        self.stages[name] = self.stages.get(name, 0.0) + time.perf_counter() - began

    def count(self, encoded: Sequence[EncodedText]) -> None:
        """Counts tokenized texts, their tokens, truncations and errors."""
        self.texts = len(encoded)
        self.tokens = sum(text.token_count for text in encoded)
        self.truncated_texts = sum(text.truncated for text in encoded)
        self.error_texts = sum(text.error is not None for text in encoded)


class ModelMetrics:
    """The metrics of one model instance. After the first error they log it and send nothing more.

    Args:
        family: ``pb_utils.MetricFamily``.
        labels: labels of all metrics: model and version.
        engine: more labels of the gauge ``polyhead_instances``: precision and device.
        log: logs one line.
    """

    def __init__(
        self, family: Any, labels: Mapping[str, str], engine: Mapping[str, str], log: Callable[[str], None]
    ) -> None:
        self._log = log
        self._records: queue.Queue[BatchRecord | None] = queue.Queue(WAITING_BATCHES)
        self._families: list[Any] = []  # a family must live longer than its metrics
        self._thread = threading.Thread(target=self._send_all, daemon=True)
        try:
            self._create(family, dict(labels), dict(engine))
        except Exception as error:
            self._give_up(error)
            return
        self._thread.start()

    def record(self, batch: BatchRecord) -> None:
        """Queues a batch's numbers. Never waits and never raises."""
        if self._thread.is_alive():
            with contextlib.suppress(queue.Full):
                self._records.put_nowait(batch)

    def close(self) -> None:
        """Sends the queued records and takes this instance out of ``polyhead_instances``."""
        if self._thread.is_alive():
            with contextlib.suppress(queue.Full):
                self._records.put(None, timeout=5)
            self._thread.join(5)

    def _create(self, family: Any, labels: dict[str, str], engine: dict[str, str]) -> None:
        def add(name: str, kind: int, about: str) -> Any:
            self._families.append(family(name=f"polyhead_{name}", description=about, kind=kind))
            return self._families[-1]

        stage = add("stage_seconds", family.HISTOGRAM, "Seconds per batch in a stage of model.py")
        self._stages = {
            name: stage.Metric(labels={**labels, "stage": name}, buckets=SECONDS)
            for name in ("tokenize", "compute", "decode")
        }
        sizes = {"texts": ("Texts in a batch", TEXTS), "tokens": ("Tokens in a batch", TOKENS)}
        self._sizes = {
            name: add(f"batch_{name}", family.HISTOGRAM, about).Metric(labels=labels, buckets=buckets)
            for name, (about, buckets) in sizes.items()
        }
        counts = {
            "texts": "Texts read",
            "tokens": "Tokens read, after truncation",
            "truncated_texts": "Texts longer than max_length, of which the rest was not read",
            "error_texts": "Texts without an answer: blank, or not UTF-8",
            "parts": "Scored parts of batches: they show that a long batch makes progress",
            "cancelled_requests": "Requests cancelled by their client before they were computed",
        }
        self._counts = {
            name: add(f"{name}_total", family.COUNTER, about).Metric(labels=labels) for name, about in counts.items()
        }
        about = "Serving model instances, by precision and device"
        self._instances = add("instances", family.GAUGE, about).Metric(labels={**labels, **engine})
        # Incremented, not set: when a version is loaded again, the new instance starts before the old one ends.
        self._instances.increment(1)

    def _send_all(self) -> None:
        try:
            while (batch := self._records.get()) is not None:
                self._send(batch)
            self._instances.increment(-1)
        except Exception as error:
            self._give_up(error)

    def _send(self, batch: BatchRecord) -> None:
        for name, count in self._counts.items():
            if value := getattr(batch, name):
                count.increment(value)
        if batch.texts:
            for name, size in self._sizes.items():
                size.observe(getattr(batch, name))
        for name, seconds in batch.stages.items():
            self._stages[name].observe(seconds)

    def _give_up(self, error: Exception) -> None:
        self._log(f"polyhead sends no more metrics: {error}")
