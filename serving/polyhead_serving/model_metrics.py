"""The metrics of a model process, which Prometheus reads at Triton's ``/metrics``.

Each value is a message to the server that takes 30 to 50 microseconds. So a thread sends sums a few times per second,
outside the path of the answers. All models of a server share a metric family. To change the kind or the buckets of one,
give it a new name.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from polyhead.encode import EncodedText
from polyhead.scheduler import MicroBatchRecord

SECONDS = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]
TEXTS = [float(2**power) for power in range(11)]  # 1 to 1,024
TOKENS = [float(2**power) for power in range(4, 18)]  # 16 to 131,072
SEND_EVERY_S = 0.25
# Per histogram and sending. If there are more, a random sample is sent, so that the metrics cost little of a core.
MOST_OBSERVATIONS = 8

COUNTERS = {
    "texts": "Texts read",
    "tokens": "Tokens read, after truncation",
    "truncated_texts": "Texts longer than max_length, of which the rest was not read",
    "error_texts": "Texts without an answer: blank, not UTF-8, or with scores that are not finite, for example",
    "plain_texts": "Texts that came as plain text although the model declares fields",
    "merged_texts": "Texts that got the scores of an equal text that waited at the same time",
    "micro_batches": "Computed micro-batches: they show that the model makes progress",
    "answer_log_entries": "Answers written to the answer log",
    "answer_log_removed_files": "Files of the answer log removed because they were too many or too old",
}
REASONS = {
    "refused_requests": ("Requests refused when they arrived, by reason", ("queue_full", "deadline")),
    "dropped_requests": ("Requests accepted but not computed to the end, by reason", ("expired", "cancelled")),
    "answer_log_dropped": (
        "Sampled answers that are not in the answer log, by reason",
        ("queue_full", "disk_full", "disk_error", "too_large", "unwritable"),
    ),
}


@dataclass
class RequestsRecord:
    """What happened to the requests of one call of `execute`, or to one answer.

    Attributes:
        texts: tokenized texts.
        tokens: tokens read by the model or counted for TOKEN_COUNT, after truncation.
        truncated_texts: how many of `texts` were truncated.
        error_texts: how many of `texts` have an error instead of an answer.
        plain_texts: how many of `texts` came as plain text although the model declares fields.
        refused: refused requests per reason.
        stages: seconds per stage: tokenize, decode; only the stages that ran.
    """

    texts: int = 0
    tokens: int = 0
    truncated_texts: int = 0
    error_texts: int = 0
    plain_texts: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    stages: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time that the block takes to a stage."""
        began = time.perf_counter()
        yield
        self.stages[name] = self.stages.get(name, 0.0) + time.perf_counter() - began

    def count(self, encoded: Sequence[EncodedText]) -> None:
        """Counts tokenized texts, their tokens, truncations and errors."""
        self.texts += len(encoded)
        self.tokens += sum(text.token_count for text in encoded)
        self.truncated_texts += sum(text.truncated for text in encoded)
        self.error_texts += sum(text.error is not None for text in encoded)
        self.plain_texts += sum(text.is_plain for text in encoded)


@dataclass(frozen=True)
class InstanceState:
    """How an instance stands.

    Attributes:
        waiting_texts: texts in its queue.
        waiting_tokens: tokens in its queue.
        computed_layers: layers that its engine has computed so far.
    """

    waiting_texts: int = 0
    waiting_tokens: int = 0
    computed_layers: int = 0


class ModelMetrics:
    """The metrics of one model instance. After the first error they log it and send nothing more.

    Args:
        family: ``pb_utils.MetricFamily``.
        labels: labels of all metrics: model and version.
        engine: more labels of the gauge ``polyhead_instances``: precision and device.
        read_state: returns how the instance stands now.
        log: logs one line.
        has_fallen_back: whether the fastest precision was too inexact for the model, so that it computes in float32.
    """

    def __init__(
        self,
        family: Any,
        labels: Mapping[str, str],
        engine: Mapping[str, str],
        read_state: Callable[[], InstanceState],
        log: Callable[[str], None],
        has_fallen_back: bool = False,
    ) -> None:
        self._read_state = read_state
        self._log = log
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()  # by name and reason, since the last sending
        self._observations: dict[tuple[str, str], _Sample] = {}
        self._sent = InstanceState()
        self._metrics: dict[tuple[str, str], Any] = {}  # by name, and stage or reason
        self._families: list[Any] = []  # a family must live longer than its metrics
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._send_all, name="polyhead-metrics", daemon=True)
        try:
            self._create(family, dict(labels), dict(engine), has_fallen_back)
        except Exception as error:
            self._give_up(error)
            return
        self._thread.start()

    def record_requests(self, record: RequestsRecord) -> None:
        """Adds the numbers of a call of `execute`. Never waits for the server and never raises."""
        if not self._thread.is_alive():
            return
        with self._lock:
            for name in ("texts", "tokens", "truncated_texts", "error_texts", "plain_texts"):
                self._counts[name, ""] += getattr(record, name)
            for reason, count in record.refused.items():
                self._counts["refused_requests", reason] += count
            self._counts["progress", "tokenize"] += record.texts > 0
            for stage, seconds in record.stages.items():
                self._observe("stage_seconds", stage, seconds)

    def record_micro_batch(self, record: MicroBatchRecord) -> None:
        """Adds the numbers of a micro-batch. Never waits for the server and never raises."""
        if not self._thread.is_alive():
            return
        with self._lock:
            self._counts["dropped_requests", "expired"] += record.expired_requests
            self._counts["dropped_requests", "cancelled"] += record.cancelled_requests
            self._counts["merged_texts", ""] += record.merged_texts
            for wait_s in record.waits_s:
                self._observe("queue_seconds", "", wait_s)
            if record.texts:
                self._counts["micro_batches", ""] += 1
                self._observe("stage_seconds", "compute", record.compute_s)
                self._observe("micro_batch_texts", "", record.texts)
                self._observe("micro_batch_tokens", "", record.tokens)

    def record_answer_log(self, counts: Mapping[tuple[str, str], int]) -> None:
        """Adds counts of the answer log, by name and reason. Never waits for the server and never raises."""
        if not self._thread.is_alive():
            return
        with self._lock:
            self._counts.update(counts)

    def close(self) -> None:
        """Sends what is left and takes this instance out of the gauges that count instances."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(5)

    def _create(self, family: Any, labels: dict[str, str], engine: dict[str, str], has_fallen_back: bool) -> None:
        def add(name: str, kind: int, about: str) -> Any:
            self._families.append(family(name=f"polyhead_{name}", description=about, kind=kind))
            return self._families[-1]

        stage = add("stage_seconds", family.HISTOGRAM, "Seconds in a stage: of a call of model.py, or of a micro-batch")
        for name in ("tokenize", "compute", "decode"):
            self._metrics["stage_seconds", name] = stage.Metric(labels={**labels, "stage": name}, buckets=SECONDS)
        histograms = {
            "queue_seconds": ("Seconds from a request's arrival until its last text begins to be computed", SECONDS),
            "micro_batch_texts": ("Texts in a micro-batch", TEXTS),
            "micro_batch_tokens": ("Tokens in a micro-batch", TOKENS),
        }
        for name, (about, buckets) in histograms.items():
            self._metrics[name, ""] = add(name, family.HISTOGRAM, about).Metric(labels=labels, buckets=buckets)
        for name, about in COUNTERS.items():
            self._metrics[name, ""] = add(f"{name}_total", family.COUNTER, about).Metric(labels=labels)
        for name, (about, reasons) in REASONS.items():
            counter = add(f"{name}_total", family.COUNTER, about)
            for reason in reasons:
                self._metrics[name, reason] = counter.Metric(labels={**labels, "reason": reason})
        for unit in ("texts", "tokens"):
            gauge = add(f"waiting_{unit}", family.GAUGE, f"{unit.capitalize()} that wait in the model's queue")
            self._metrics[f"waiting_{unit}", ""] = gauge.Metric(labels=labels)
        counter = add("progress_total", family.COUNTER, "Steps of work: groups of tokenized texts, computed layers")
        for stage_name in ("tokenize", "compute"):
            self._metrics["progress", stage_name] = counter.Metric(labels={**labels, "stage": stage_name})
        about = "Serving model instances, by precision and device"
        instances = add("instances", family.GAUGE, about).Metric(labels={**labels, **engine})
        about = "Of these, instances that compute in float32 because the golden rows refused the fastest precision"
        fallback = add("fallback_instances", family.GAUGE, about).Metric(labels=labels)
        self._gauges = [instances, *([fallback] if has_fallen_back else [])]
        # Incremented, not set: when a version is loaded again, the new instance starts before the old one ends.
        for gauge in self._gauges:
            gauge.increment(1)

    def _observe(self, name: str, part: str, value: float) -> None:
        self._observations.setdefault((name, part), _Sample()).add(value)

    def _send_all(self) -> None:
        try:
            while not self._closing.wait(SEND_EVERY_S):
                self._send(self._read_state())
            self._send(InstanceState(computed_layers=self._sent.computed_layers))
            for gauge in self._gauges:
                gauge.increment(-1)
        except Exception as error:
            self._give_up(error)

    def _send(self, state: InstanceState) -> None:
        with self._lock:
            counts, self._counts = self._counts, Counter()
            observations, self._observations = self._observations, {}
        for key, count in counts.items():
            if count:
                self._metrics[key].increment(count)
        for key, sample in observations.items():
            for value in sample.values:
                self._metrics[key].observe(value)
        # By differences, because all instances of a model share these metrics.
        sent, self._sent = self._sent, state
        for name in ("waiting_texts", "waiting_tokens"):
            if change := getattr(state, name) - getattr(sent, name):
                self._metrics[name, ""].increment(change)
        if layers := state.computed_layers - sent.computed_layers:
            self._metrics["progress", "compute"].increment(layers)

    def _give_up(self, error: Exception) -> None:
        self._log(f"polyhead sends no more metrics: {error}")


class _Sample:
    """At most MOST_OBSERVATIONS values, each of those added equally likely (Vitter 1985, algorithm R)."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self._added = 0

    def add(self, value: float) -> None:
        self._added += 1
        if len(self.values) < MOST_OBSERVATIONS:
            self.values.append(value)
        elif (place := random.randrange(self._added)) < MOST_OBSERVATIONS:
            self.values[place] = value
