"""What a model says, as metrics: ``polyhead_distribution_total``, and ``polyhead_distribution_expected`` beside it.

Nothing of a text is kept: scores, the script, and whether the text was cut, until they are counted a moment later. Each
value is a message to the server (`polyhead_serving.model_metrics`), so a thread sends what has changed, and takes at
most a small share of its time for it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from polyhead.answer_counter import AnswerCounter
from polyhead.decode import Scores
from polyhead.distribution import Distribution
from polyhead.encode import EncodedText
from polyhead.terminal import printable

SEND_EVERY_S = 1.0
SEND_AT_LEAST_EVERY_S = 30.0
MOST_OF_THE_TIME = 0.001  # that this thread computes
# Counting many texts at once is cheap. More are not kept, so that memory is bounded.
MOST_REQUESTS = 4096
MOST_SCORES = 1 << 20


class AnswerMetrics:
    """The counted answers of one model instance. After the first error it logs it and counts nothing more.

    Args:
        family: ``pb_utils.MetricFamily``.
        labels: labels of all metrics: model and version.
        counter: counts in the buckets of `expected`.
        expected: the checkpoint's distribution of validation rows, if it has one.
        log: logs one line.
    """

    def __init__(
        self,
        family: Any,
        labels: Mapping[str, str],
        counter: AnswerCounter,
        expected: Distribution | None,
        log: Callable[[str], None],
    ) -> None:
        self._counter = counter
        self._log = log
        # Scores of some texts, whether each was cut, and their scripts. A deque needs no lock.
        self._waiting: deque[tuple[Scores, list[bool], list[str]]] = deque()
        self._waiting_scores = 0  # about so many numbers
        self._lock = threading.Lock()  # of `_counts`
        self._counts = np.zeros(len(counter.buckets), dtype=np.int64)  # since the last sending
        self._metrics: list[Any] = []  # one per bucket
        self._expected: list[Any] = []
        self._families: list[Any] = []  # a family must live longer than its metrics
        self._closing = threading.Event()
        self._is_over = False
        self._thread = threading.Thread(target=self._send_all, name="polyhead-answer-metrics", daemon=True)
        try:
            self._create(family, dict(labels), expected)
        except Exception as error:
            self._give_up(error)
            return
        self._thread.start()

    def add(self, encoded: Sequence[EncodedText], scores: Scores) -> None:
        """Counts the answers to some texts, soon. Never waits for the server and never raises.

        Args:
            scores: ``(n, schema.width)``; NaN for a text with an error. They must not be changed afterwards.
        """
        if self._is_over:
            return
        self._waiting.append((scores, [text.truncated for text in encoded], [text.script for text in encoded]))
        self._waiting_scores += scores.size
        if self._waiting_scores >= MOST_SCORES or len(self._waiting) >= MOST_REQUESTS:
            try:
                self._count()
            except Exception as error:
                self._give_up(error)

    def close(self) -> None:
        """Sends what is left."""
        self._is_over = True
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(5)

    def _create(self, family: Any, labels: dict[str, str], expected: Distribution | None) -> None:
        about = "Texts by what the model said of them (docs/watch.md)"
        counter = family(name="polyhead_distribution_total", description=about, kind=family.COUNTER)
        about = "Validation rows by what the model said of them, in the same buckets (docs/watch.md)"
        gauge = family(name="polyhead_distribution_expected", description=about, kind=family.GAUGE)
        self._families = [counter, gauge]
        # Replicas with different checkpoints under one version number are compared apart, each with its own rows.
        labels["reference"] = "" if expected is None else expected.reference()
        texts = {} if expected is None else expected.texts_per_bucket(self._counter.schema)
        for bucket in self._counter.buckets:
            all_labels = {**labels, "of": bucket.of, "head": printable(bucket.head), "bucket": bucket.bucket}
            self._metrics.append(counter.Metric(labels=all_labels))
            if bucket in texts:
                self._expected.append(gauge.Metric(labels=all_labels))
                self._expected[-1].set(texts[bucket])

    def _send_all(self) -> None:
        pause_s = SEND_EVERY_S
        try:
            while not self._closing.wait(pause_s):
                began = time.thread_time()
                self._send()
                took_s = time.thread_time() - began
                pause_s = min(max(SEND_EVERY_S, took_s / MOST_OF_THE_TIME), SEND_AT_LEAST_EVERY_S)
            self._send()
        except Exception as error:
            self._give_up(error)

    def _send(self) -> None:
        self._count()
        with self._lock:
            counts, self._counts = self._counts, np.zeros_like(self._counts)
        for place in np.flatnonzero(counts):
            self._metrics[place].increment(int(counts[place]))

    def _count(self) -> None:
        scores: list[Scores] = []
        truncated: list[bool] = []
        scripts: list[str] = []
        self._waiting_scores = 0
        for _ in range(len(self._waiting)):
            try:
                some, are_cut, of_scripts = self._waiting.popleft()
            except IndexError:  # another thread has counted them
                break
            scores.append(some)
            truncated += are_cut
            scripts += of_scripts
        if scores:
            counts = self._counter.count(np.concatenate(scores), truncated, scripts)
            with self._lock:
                self._counts += counts

    def _give_up(self, error: Exception) -> None:
        self._is_over = True
        self._closing.set()
        self._waiting.clear()
        self._log(f"polyhead counts no more answers: {error!r}")
