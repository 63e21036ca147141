"""fastText (Joulin et al. 2016, arXiv:1607.01759) with word pairs, one model per head; it has no regression."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import fasttext
import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.answers import Answer, Answers, above, choose_thresholds, one_of
from benchmarks.quality.data_sets import OUTSIDE, TEST, TRAIN, VALIDATION
from benchmarks.quality.peer_data import PeerData
from polyhead.schema import Head, HeadKind

RATES, EPOCHS = (0.25, 1.0), (10, 30)  # the grid
BUCKETS = 200_000  # of word pairs
PREFIX = "__label__"
_TOKEN = re.compile(r"\w+|[^\w\s]")


def answer(data: PeerData, seed: int) -> Answers:
    """The answers of the models that are best on validation rows."""
    texts = {part: [" ".join(_TOKEN.findall(text.lower())) for text in found] for part, found in data.texts.items()}
    answers = Answers()
    for head in data.heads:
        if head.kind == HeadKind.REGRESSION:
            continue
        model, answers.heads[head.name] = _fit(head, data, texts, seed)
        if head.name == data.rejecting:
            answers.inside, answers.outside = (_scores(model, head, texts[p]).max(axis=1) for p in (TEST, OUTSIDE))
    return answers


def _fit(head: Head, data: PeerData, texts: dict[str, list[str]], seed: int) -> tuple[Any, Answer]:
    validation = data.targets(head, VALIDATION)
    known = [text for text, is_known in zip(texts[VALIDATION], validation.known, strict=True) if is_known]
    best, best_value, thresholds = None, -1.0, np.zeros(head.width)
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "train.txt"
        _write(rows, head, data, texts[TRAIN])
        for rate in RATES:
            for epochs in EPOCHS:
                model = fasttext.train_supervised(
                    str(rows), lr=rate, epoch=epochs, wordNgrams=2, minCount=1, bucket=BUCKETS, thread=1, seed=seed,
                    loss="ova" if head.kind == HeadKind.MULTI_LABEL else "softmax", verbose=0,
                )  # fmt: skip
                scores = _scores(model, head, known)
                if head.kind == HeadKind.MULTI_LABEL:
                    found, value = choose_thresholds(scores, validation.values)
                else:
                    found, value = thresholds, float((scores.argmax(axis=1) == validation.values).mean())
                if value > best_value:
                    best, best_value, thresholds = model, value, found
    scores = _scores(best, head, texts[TEST])
    return best, above(scores, thresholds) if head.kind == HeadKind.MULTI_LABEL else one_of(scores)


def _write(path: Path, head: Head, data: PeerData, texts: list[str]) -> None:
    """A line per row: its labels by index, then its words."""
    train = data.targets(head, TRAIN)
    known = [text for text, is_known in zip(texts, train.known, strict=True) if is_known]
    with path.open("w", encoding="utf-8") as file:
        for text, value in zip(known, train.values, strict=True):
            indices = np.flatnonzero(value) if head.kind == HeadKind.MULTI_LABEL else [value]
            file.write(" ".join([*(f"{PREFIX}{index}" for index in indices), text]) + "\n")


def _scores(model: Any, head: Head, texts: list[str]) -> NDArray[np.float32]:
    """Probabilities ``(rows, labels)``."""
    found = np.zeros((len(texts), head.width), np.float32)
    for row, (labels, values) in enumerate(zip(*model.predict(texts, k=-1), strict=True)):
        found[row, [int(label.removeprefix(PREFIX)) for label in labels]] = values
    return np.clip(found, 0.0, 1.0)  # fastText adds 1e-5
