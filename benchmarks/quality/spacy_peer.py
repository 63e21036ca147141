"""spaCy's text categorizer as ``add_pipe`` makes it, one per head, from scratch; it has no regression."""

from __future__ import annotations

import random
import time
from typing import Any

import numpy as np
import spacy
from numpy.typing import NDArray
from spacy.training import Example
from spacy.util import fix_random_seed, minibatch

from benchmarks.quality.answers import Answer, Answers, above, choose_thresholds, one_of
from benchmarks.quality.data_sets import OUTSIDE, TEST, TRAIN, VALIDATION
from benchmarks.quality.peer_data import PeerData
from polyhead.schema import Head, HeadKind

EPOCHS = 20
PATIENCE = 3  # epochs without a better validation score
BATCH, DROPOUT = 64, 0.2
SHARE = 0.8  # of the time limit, for the epochs of all heads


def answer(data: PeerData, seed: int, limit_s: float) -> Answers:
    """The answers of the epochs that are best on validation rows."""
    nlp = spacy.blank("en")
    docs = {part: [nlp.make_doc(text) for text in texts] for part, texts in data.texts.items()}
    heads = [head for head in data.heads if head.kind != HeadKind.REGRESSION]
    ends = time.monotonic()
    answers = Answers()
    for head in heads:
        ends += SHARE * limit_s / len(heads)
        fix_random_seed(seed)
        pipe, answers.heads[head.name] = _fit(head, data, docs, seed, ends)
        if head.name == data.rejecting:
            answers.inside, answers.outside = (_scores(pipe, head, docs[p]).max(axis=1) for p in (TEST, OUTSIDE))
    return answers


def _fit(head: Head, data: PeerData, docs: dict[str, list[Any]], seed: int, ends: float) -> tuple[Any, Answer]:
    is_multi = head.kind == HeadKind.MULTI_LABEL
    nlp = spacy.blank("en")
    pipe = nlp.add_pipe("textcat_multilabel" if is_multi else "textcat")
    names = [str(index) for index in range(head.width)]
    for name in names:
        pipe.add_label(name)
    train, validation = data.targets(head, TRAIN), data.targets(head, VALIDATION)
    rows = [doc for doc, is_known in zip(docs[TRAIN], train.known, strict=True) if is_known]
    matrix = train.values if is_multi else np.equal(train.values[:, None], np.arange(head.width))
    examples = [
        Example.from_dict(doc, {"cats": dict(zip(names, map(float, cats), strict=True))})
        for doc, cats in zip(rows, matrix, strict=True)
    ]
    held_out = [doc for doc, is_known in zip(docs[VALIDATION], validation.known, strict=True) if is_known]
    optimizer = nlp.initialize(lambda: examples)
    order = random.Random(seed)
    best, best_value, thresholds, since = b"", -1.0, np.zeros(head.width), 0
    for _ in range(EPOCHS):
        order.shuffle(examples)
        for batch in minibatch(examples, BATCH):
            nlp.update(batch, sgd=optimizer, drop=DROPOUT)
        scores = _scores(pipe, head, held_out)
        if is_multi:
            found, value = choose_thresholds(scores, validation.values)
        else:
            found, value = thresholds, float((scores.argmax(axis=1) == validation.values).mean())
        since += 1
        if value > best_value:
            best, best_value, thresholds, since = pipe.model.to_bytes(), value, found, 0
        if since >= PATIENCE or time.monotonic() > ends:
            break
    pipe.model.from_bytes(best)
    scores = _scores(pipe, head, docs[TEST])
    return pipe, above(scores, thresholds) if is_multi else one_of(scores)


def _scores(pipe: Any, head: Head, docs: list[Any]) -> NDArray[np.float32]:
    """Probabilities ``(rows, labels)``."""
    parts = [np.asarray(pipe.predict(batch)) for batch in minibatch(docs, 256)]
    return np.concatenate([np.empty((0, head.width), np.float32), *parts]).astype(np.float32)
