"""The metrics of what a model says: exact counts, few messages, and no harm to answers."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyhead.answer_counter import AnswerCounter
from polyhead.distribution import Distribution
from polyhead.encode import EncodedText
from polyhead_serving import answer_metrics
from polyhead_serving.answer_metrics import AnswerMetrics
from polyhead_serving.canary import PROBE_ID
from tests.serving import fake_triton_python_backend_utils as pb_utils
from tests.serving.fake_triton_python_backend_utils import MetricFamily, Request, texts
from tests.serving.served_model import only, predictions, start
from tests.tiny import SCHEMA, TEXTS, write_distribution

COUNTED, EXPECTED = "polyhead_distribution_total", "polyhead_distribution_expected"


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MetricFamily, "registry", {})


@pytest.fixture
def repository(served_repository: Path, tmp_path: Path) -> Path:
    """A repository whose checkpoint has a distribution of TEXTS."""
    copy = Path(shutil.copytree(served_repository, tmp_path / "repository"))
    write_distribution(copy / "gpt2_classifier" / "1" / "checkpoint", TEXTS)
    return copy


def counts(**labels: str) -> dict[str, float]:
    """What was counted per bucket, without empty ones."""
    wanted = set(labels.items())
    found = {}
    for key, values in MetricFamily.registry[COUNTED].values.items():
        if wanted <= set(key) and values:
            found[dict(key)["bucket"]] = sum(values)
    return found


def test_the_model_counts_what_it_says(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels are those of the answers. Scripts and truncation count too; errors, options and our own checks do not."""
    model = start(repository, monkeypatch, at_once_s="60")
    rows = ["Rain.", "Дождь.", "word " * 200, " ", "12"]
    answers = predictions(only(model, Request(texts(*[row.encode() for row in rows]))))
    only(model, Request(texts(b"Rain."), '{"reject_below": 1.0, "threshold": 0.0}', outputs=("PREDICTION",)))
    only(model, Request(texts(b"Rain."), id=PROBE_ID))
    only(model, Request(texts(b"Rain."), outputs=("TOKEN_COUNT",)))
    model.finalize()
    said: dict[str, float] = {}
    for answer in [*answers, answers[0]]:
        if "heads" in answer:
            label = answer["heads"]["topic"]["labels"][0]
            said[label] = said.get(label, 0) + 1
    assert counts(of="answers", head="topic", model="gpt2_classifier", version="1") == said
    assert sum(said.values()) == 5
    assert counts(of="script", head="") == {"latin": 3, "cyrillic": 1, "none": 1}
    assert counts(of="truncated") == {"no": 4, "yes": 1}
    assert sum(counts(of="scores", head="stars").values()) == 5


def test_the_validation_rows_are_beside_it(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each bucket has its number of validation rows, under the same labels as the counted texts."""
    start(repository, monkeypatch, at_once_s="60").finalize()
    expected = Distribution.read(repository / "gpt2_classifier" / "1" / "checkpoint" / "distribution.json", SCHEMA)
    gauges = MetricFamily.registry[EXPECTED].values
    assert gauges.keys() == MetricFamily.registry[COUNTED].values.keys()
    (latin,) = MetricFamily.value(EXPECTED, of="script", bucket="latin", reference=expected.reference())
    assert latin == expected.counts["script"][""]["latin"] == len(TEXTS)
    assert MetricFamily.value(EXPECTED, of="truncated", bucket="yes") == [expected.counts["truncated"][""]["yes"]]


def test_a_checkpoint_without_distribution_is_counted_too(model: Any) -> None:
    """Then nothing is expected, and the reference is empty."""
    only(model, Request(texts(b"Rain.")))
    model.finalize()
    assert counts(of="script", reference="") == {"latin": 1}
    assert MetricFamily.registry[EXPECTED].values == {}


def test_a_metric_that_fails_does_no_harm(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the name is taken, one line says so and requests are answered."""
    pb_utils.MetricFamily(COUNTED, "", MetricFamily.GAUGE)
    model = start(repository, monkeypatch, at_once_s="60")
    assert only(model, Request(texts(b"Rain."))).error is None
    model.finalize()
    assert len([line for line in pb_utils.Logger.lines if "counts no more answers" in line]) == 1


class Counting:
    """A family whose metrics only count the messages to the server."""

    COUNTER, GAUGE = range(2)

    def __init__(self) -> None:
        self.messages = 0
        self.counted = 0

    def __call__(self, name: str, description: str, kind: int) -> Counting:
        return self

    def Metric(self, labels: dict[str, str]) -> Counting:  # noqa: N802 - Triton's name
        """Itself."""
        assert all(isinstance(value, str) for value in labels.values())
        return self

    def increment(self, value: int) -> None:
        """One message."""
        self.messages += 1
        self.counted += value


@pytest.fixture
def metrics() -> Iterator[tuple[AnswerMetrics, Counting]]:
    """Metrics of the tiny schema, and the family that they send to."""
    family = Counting()
    lines: list[str] = []
    running = AnswerMetrics(family, {"model": "m", "version": "1"}, AnswerCounter(SCHEMA), None, lines.append)
    yield running, family
    running.close()
    assert lines == []


SCORES = np.full((1, SCHEMA.width), 0.25, dtype=np.float32)
ENCODED = [EncodedText([1], script="latin")]


def test_messages_do_not_grow_with_the_texts(metrics: tuple[AnswerMetrics, Counting]) -> None:
    """Ten thousand texts are as many messages as one: one per bucket and sending."""
    running, family = metrics
    for _ in range(10_000):
        running.add(ENCODED, SCORES)
    assert family.messages <= 3 * len(AnswerCounter(SCHEMA).buckets)  # a sending per second
    running.close()
    # of each text: answers and scores of topic and mood, near a threshold, stars, script, truncated
    assert family.counted == 8 * 10_000


def test_texts_that_wait_are_bounded(metrics: tuple[AnswerMetrics, Counting], monkeypatch: pytest.MonkeyPatch) -> None:
    """With too many of them, the thread that brings one counts all, so no more are kept."""
    monkeypatch.setattr(answer_metrics, "MOST_REQUESTS", 10)
    running, _ = metrics
    for number in range(25):
        running.add(ENCODED, SCORES)
        assert len(running._waiting) < 10, number
    monkeypatch.setattr(answer_metrics, "MOST_REQUESTS", 1000)
    monkeypatch.setattr(answer_metrics, "MOST_SCORES", 5 * SCHEMA.width)
    for number in range(25):
        running.add(ENCODED, SCORES)
        assert len(running._waiting) < 10, number


def test_threads_count_together(metrics: tuple[AnswerMetrics, Counting]) -> None:
    """Nothing is lost if several threads answer at the same time."""
    running, family = metrics
    threads = [threading.Thread(target=lambda: [running.add(ENCODED, SCORES) for _ in range(500)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    running.close()
    assert family.counted == 8 * 2000


def test_after_the_end_nothing_is_kept(metrics: tuple[AnswerMetrics, Counting]) -> None:
    """A closed one takes no more texts."""
    running, _ = metrics
    running.close()
    running.add(ENCODED, SCORES)
    assert not running._waiting
