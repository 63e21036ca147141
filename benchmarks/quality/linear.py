"""The linear peers: TF-IDF of words and pairs, and the majority answer.

Single-label heads of ``logistic`` are one multinomial regression, those of ``sgd`` one classifier against the rest per
label. Multi-label heads are one classifier per label with both. Numbers are ridge regression with both. The setting of
the grid that is best on validation rows answers the test rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge, SGDClassifier

from benchmarks.quality.answers import Answer, Answers, above, choose_thresholds, numbers, one_of
from benchmarks.quality.data_sets import OUTSIDE, TEST, TRAIN, VALIDATION
from benchmarks.quality.methods import LOGISTIC, MAJORITY, SGD
from benchmarks.quality.peer_data import PeerData, Targets
from polyhead.schema import Head, HeadKind

FEWEST = {LOGISTIC: (2,), SGD: (1, 2)}  # texts with a word or pair; of all words, logistic regression takes too long
STRENGTHS = (1.0, 3.0, 10.0, 30.0)  # C of logistic regression
LOSSES, PENALTIES = ("modified_huber", "log_loss"), (3e-6, 1e-5, 3e-5, 1e-4)  # of SGD
RIDGES = (0.3, 1.0, 3.0, 10.0)
STEPS = 300  # of logistic regression at most
LEAST_SURE = -1e9

Words = Any  # a sparse matrix of rows and words
Features = dict[str, Words]  # by part


@dataclass(frozen=True)
class Fitted:
    """A model with one setting of the grid.

    Attributes:
        scores: of rows: probabilities of labels ``(rows, labels)``, or numbers ``(rows,)``.
        decide: what the answer of a single_label head is the largest of.
    """

    scores: Callable[[Words], NDArray[Any]]
    decide: Callable[[Words], NDArray[Any]]


def answer(data: PeerData, peer: str, seed: int) -> Answers:
    """The peer's answers to the test rows."""
    if peer == MAJORITY:
        return _constant(data)
    features = [_features(data, fewest) for fewest in FEWEST[peer]]
    found = Answers()
    for head in data.heads:
        train = data.targets(head, TRAIN)
        models = (
            (words, fitted)
            for words in features
            for fitted in _models(head, peer, words[TRAIN][train.known], train.values, seed)
        )
        words, fitted, found.heads[head.name] = _chosen(head, models, data.targets(head, VALIDATION))
        if head.name == data.rejecting:
            found.inside, found.outside = (fitted.decide(words[part]).max(axis=1) for part in (TEST, OUTSIDE))
    return found


def _features(data: PeerData, fewest: int) -> Features:
    """TF-IDF of the words and pairs that at least so many training texts have."""
    vectorizer = TfidfVectorizer(
        sublinear_tf=True, ngram_range=(1, 2), min_df=fewest, strip_accents="unicode", token_pattern=r"(?u)\b\w+\b",
        dtype=np.float32,
    )  # fmt: skip
    vectorizer.fit(data.texts[TRAIN])
    return {part: vectorizer.transform(texts).tocsr() for part, texts in data.texts.items()}


def _models(head: Head, peer: str, words: Words, given: NDArray[Any], seed: int) -> Iterable[Fitted]:
    """A model per setting of the grid."""
    if head.kind == HeadKind.REGRESSION:
        for alpha in RIDGES:
            yield _ridge(words, given, alpha)
        return
    for make in _classifiers(peer, head, seed):
        if head.kind == HeadKind.MULTI_LABEL:
            models = [_fit(make(), words, column) for column in given.T]
            scores = _per_label(models)
            yield Fitted(scores, scores)
        else:
            yield _of_all_labels(head, _fit(make(), words, given))


def _classifiers(peer: str, head: Head, seed: int) -> Iterable[Callable[[], Any]]:
    if peer == SGD:
        for loss in LOSSES:
            for alpha in PENALTIES:
                yield partial(SGDClassifier, loss=loss, alpha=alpha, random_state=seed)
        return
    solver = "liblinear" if head.kind == HeadKind.MULTI_LABEL else "lbfgs"
    for strength in STRENGTHS:
        yield partial(LogisticRegression, C=strength, solver=solver, max_iter=STEPS, random_state=seed)


def _fit(model: Any, words: Words, given: NDArray[Any]) -> Any:
    """The fitted model; None if all rows have one label."""
    if len(np.unique(given)) < 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(words, given)


def _of_all_labels(head: Head, model: Any) -> Fitted:
    def spread(found: NDArray[Any], fill: float) -> NDArray[Any]:
        """A column per label, also for two labels, of which scikit-learn decides with one column."""
        if found.ndim == 1:
            found = np.stack([-found, found], axis=1)
        full = np.full((len(found), head.width), fill)
        full[:, model.classes_] = found
        return full

    def decide(words: Words) -> NDArray[Any]:
        # The probability of a logistic regression says better than its logit whether a text belongs to a label.
        is_sgd = isinstance(model, SGDClassifier)
        return spread(model.decision_function(words) if is_sgd else model.predict_proba(words), LEAST_SURE)

    return Fitted(lambda words: spread(model.predict_proba(words), 0.0), decide)


def _per_label(models: Sequence[Any]) -> Callable[[Words], NDArray[Any]]:
    def scores(words: Words) -> NDArray[Any]:
        rows = words.shape[0]
        columns = [np.zeros(rows) if model is None else model.predict_proba(words)[:, 1] for model in models]
        return np.stack(columns, axis=1)

    return scores


def _ridge(words: Words, given: NDArray[Any], alpha: float) -> Fitted:
    middle, lowest, highest = given.mean(), given.min(), given.max()
    model = Ridge(alpha=alpha, solver="sparse_cg").fit(words, given - middle)

    def predict(words: Words) -> NDArray[Any]:
        return np.asarray(np.clip(model.predict(words) + middle, lowest, highest))

    return Fitted(predict, predict)


def _chosen(
    head: Head, models: Iterable[tuple[Features, Fitted]], validation: Targets
) -> tuple[Features, Fitted, Answer]:
    """The model that is best on validation rows, its features, and its answers to test rows."""
    best, best_value, thresholds = None, -np.inf, np.zeros(head.width)
    for features, fitted in models:
        words, true, found = features[VALIDATION][validation.known], validation.values, thresholds
        match head.kind:
            case HeadKind.SINGLE_LABEL:
                value = float((fitted.decide(words).argmax(axis=1) == true).mean())
            case HeadKind.MULTI_LABEL:
                found, value = choose_thresholds(fitted.scores(words), true)
            case HeadKind.REGRESSION:
                value = -float(np.abs(fitted.scores(words) - true).mean())
        if value > best_value:
            best, best_value, thresholds = (features, fitted), value, found
    assert best is not None
    features, fitted = best
    scores = fitted.scores(features[TEST])
    match head.kind:
        case HeadKind.SINGLE_LABEL:
            return *best, one_of(scores, fitted.decide(features[TEST]).argmax(axis=1))
        case HeadKind.MULTI_LABEL:
            return *best, above(scores, thresholds)
        case HeadKind.REGRESSION:
            return *best, numbers(scores)


def _constant(data: PeerData) -> Answers:
    """The most frequent label, as many of the most frequent labels as are best for micro F1, or the median."""
    found, rows = Answers(), len(data.texts[TEST])
    for head in data.heads:
        given = data.targets(head, TRAIN).values
        match head.kind:
            case HeadKind.SINGLE_LABEL:
                shares = np.bincount(given, minlength=head.width) / len(given)
                found.heads[head.name] = one_of(np.tile(shares, (rows, 1)))
            case HeadKind.MULTI_LABEL:
                counts = given.sum(axis=0)
                ordered = np.sort(counts)[::-1]
                f1 = 2 * ordered.cumsum() / (np.arange(1, head.width + 1) * len(given) + counts.sum())
                least = ordered[f1.argmax()] / len(given)
                found.heads[head.name] = above(np.tile(counts / len(given), (rows, 1)), np.full(head.width, least))
            case HeadKind.REGRESSION:
                found.heads[head.name] = numbers(np.full(rows, np.median(given)))
    return found
