"""The linear model: TF-IDF of words, pairs of words and characters in words, with logistic and ridge regressions.

It is what a network must beat, and it becomes the checkpoint's n-grams for the heads that both answer better together
(`polyhead_training.evaluation.mixing`). Bounds keep it at some minutes for any data.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed
from numpy.typing import NDArray
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge

from polyhead.machine import usable_cores
from polyhead.ngrams import CHARACTERS, NGrams, TermReader, Vocabulary
from polyhead.schema import Head, HeadKind, Schema
from polyhead_rows.progress import progress

MOST_ROWS = 50_000  # of training, per head
MOST_LABELS = 300  # of a head: the most frequent ones
MOST_PRODUCTS = 1_500_000_000  # weights of a head's rows times its labels: a step of the solver takes seconds
MOST_TERMS = 60_000  # words and pairs; as many characters
MOST_WEIGHTS = 24_000_000  # of all terms and labels: 96 MB in the checkpoint
FEW_ROWS = 1_000  # with fewer rows, terms that occur once count too
ROWS_PER_CALL = 4_096
STRENGTHS = (30.0, 5.0)  # C of a logistic regression
MOST_STEPS = 60  # of its solver: more change nothing that shows
PENALTIES = (1.0, 4.0)  # of a ridge regression
MOST_TO_CHOOSE = 5_000  # rows on which these are chosen
NEVER = -30.0  # the logit of a label that is not in the sample

Rows = NDArray[np.int64]
Part = tuple[NDArray[np.intp], NDArray[Any], NDArray[Any]]  # columns of the schema; weights (columns, terms); biases


class LinearModel:
    """A fitted linear model.

    Attributes:
        ngrams: it computes the logits; None if the texts have no words.
        heads: the names of the heads that it can answer.
        is_whole: of these, the heads of which it knows all labels that the training rows have.
        note: what it was fitted on, if not on everything.
    """

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.ngrams: NGrams | None = None
        self.heads: set[str] = set()
        self.is_whole: set[str] = set()
        self.note = ""
        self._fewest: int | None = None  # rows of a head that has many labels, if some were left out for that

    def fit(
        self,
        texts_at: Callable[[Rows], Sequence[str]],
        labels: NDArray[np.float32],
        seed: int = 0,
        show_progress: bool = False,
    ) -> LinearModel:
        """Fits all heads that have something to learn.

        Args:
            texts_at: the training texts at some rows.
            labels: of all training rows.
        """
        known: dict[str, NDArray[np.bool_]] = {
            head.name: np.logical_not(np.isnan(labels[:, self.schema.label_columns[head.name]]).any(axis=1))
            for head in self.schema
        }
        draw = np.random.default_rng(seed)
        order = draw.permutation(len(labels))
        samples = {name: np.sort(order[mask[order]][:MOST_ROWS]) for name, mask in known.items()}
        rows = np.unique(np.concatenate(list(samples.values())))
        work = {head.name: min(head.width, MOST_LABELS) for head in self.schema}
        with progress("fitting the linear model", 10 + sum(work.values()), unit="labels", shown=show_progress) as bar:
            vocabulary = _vocabulary(texts_at, rows, self.schema.width)
            bar.advance(5)
            if vocabulary is None:
                self.note = "There is no linear baseline, because the texts have no words."
                return self
            terms = _matrix(vocabulary, texts_at, rows)
            bar.advance(5)
            weights = np.zeros((len(vocabulary.terms), self.schema.width), np.float32)
            bias = np.zeros(self.schema.width, np.float32)
            for head in self.schema:
                places = np.searchsorted(rows, samples[head.name])
                given = labels[samples[head.name]][:, self.schema.label_columns[head.name]]
                parts = self._fit_head(head, terms[places], given, draw, bar.advance) if len(given) else []
                if parts:
                    self.heads.add(head.name)
                    bias[self.schema.columns[head.name]] = NEVER
                for columns, its_weights, its_bias in parts:
                    weights[:, columns], bias[columns] = its_weights.T, its_bias
                if parts and (head.kind == HeadKind.REGRESSION or _labels_that_occur(head, given) <= MOST_LABELS):
                    self.is_whole.add(head.name)
        self.ngrams = NGrams(vocabulary, torch.from_numpy(weights), torch.from_numpy(bias))
        self.note = self._describe({name: int(mask.sum()) for name, mask in known.items()})
        return self

    def logits(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """``(n, schema.width)``, as the network's."""
        found = np.zeros((len(texts), self.schema.width), np.float32)
        if self.ngrams is not None:
            for start in range(0, len(texts), ROWS_PER_CALL):
                part = slice(start, start + ROWS_PER_CALL)
                found[part] = self.ngrams.logits(texts[part])
        return found

    def _fit_head(
        self,
        head: Head,
        terms: sparse.csr_matrix,
        given: NDArray[np.float32],
        draw: np.random.Generator,
        advance: Callable[[int], None],
    ) -> list[Part]:
        first = self.schema.columns[head.name].start
        match head.kind:
            case HeadKind.SINGLE_LABEL:
                classes = given[:, 0].astype(np.intp)
                some = _most_frequent(np.bincount(classes, minlength=head.width))
                rows = self._some_rows(np.flatnonzero(np.isin(classes, some)), len(some), terms, draw)
                terms, classes = terms[rows], classes[rows]
                parts = []
                if len(np.unique(classes)) > 1:
                    strength = _best(STRENGTHS, terms, classes, lambda *data: _logistic(*data, solver="lbfgs"))
                    model = _logistic(strength, terms, classes, solver="lbfgs")
                    weights, bias = _both_sides(model.coef_), _both_sides(model.intercept_)
                    parts = [(first + model.classes_, weights, bias)]
                advance(len(some))
                return parts
            case HeadKind.MULTI_LABEL:
                some = _most_frequent(given.sum(axis=0))
                rows = self._some_rows(np.arange(len(given)), len(some), terms, draw)
                terms, parts = terms[rows], []
                # The solver of a label uses one core, and Python's lock only at its ends.
                labels = (delayed(_yes_or_no)(terms, given[rows, label] > 0) for label in some)
                fitted = Parallel(usable_cores(), prefer="threads", return_as="generator")(labels)
                for label, found in zip(some, fitted, strict=True):
                    parts.append((np.array([first + label]), *found))
                    advance(1)
                return parts
            case HeadKind.REGRESSION:
                center, spread = head.target_scale or (0.0, 1.0)
                numbers = (given[:, 0].astype(np.float64) - center) / spread
                penalty = _best(PENALTIES, terms, numbers, _ridge)
                model = _ridge(penalty, terms, numbers)
                advance(1)
                return [(np.array([first]), model.coef_[None], np.array([model.intercept_]))]

    def _some_rows(self, rows: Rows, labels: int, terms: sparse.csr_matrix, draw: np.random.Generator) -> Rows:
        """As many of the rows as `MOST_PRODUCTS` allows, drawn at random: a file may be sorted by label."""
        most = int(MOST_PRODUCTS / max(labels * terms.nnz / max(terms.shape[0], 1), 1))
        if len(rows) <= most:
            return rows
        self._fewest = most if self._fewest is None else min(self._fewest, most)
        return np.sort(draw.choice(rows, most, replace=False))

    def _describe(self, known: dict[str, int]) -> str:
        limits = []
        if max(known.values()) > MOST_ROWS:
            limits.append(f"at most {MOST_ROWS:,} rows per head")
        if self._fewest is not None:
            limits.append(f"at most {self._fewest:,} rows of a head with many labels")
        if any(head.width > MOST_LABELS for head in self.schema):
            limits.append(f"the {MOST_LABELS} most frequent labels of a head")
        return "" if not limits else f"The linear baseline was fitted on {' and '.join(limits)}."


def _vocabulary(texts_at: Callable[[Rows], Sequence[str]], rows: Rows, width: int) -> Vocabulary | None:
    """The most frequent terms of the texts; None if they have none."""
    reader, counts = TermReader(learns=True), np.zeros(0, np.int64)
    for start in range(0, len(rows), ROWS_PER_CALL):
        read = [np.unique(reader.read(text)) for text in texts_at(rows[start : start + ROWS_PER_CALL])]
        found = np.bincount(np.concatenate(read).astype(np.int64), minlength=len(reader.ids))
        found[: len(counts)] += counts
        counts = found
    terms = list(reader.ids)
    is_characters = np.fromiter((term.startswith(CHARACTERS) for term in terms), bool, len(terms))
    fewest = 1 if len(rows) < FEW_ROWS else 2
    most = max(min(MOST_TERMS, MOST_WEIGHTS // (2 * width)), 1)
    chosen = []
    for kind in (False, True):
        numbers = np.flatnonzero((is_characters == kind) & (counts >= fewest + (kind and fewest > 1)))
        chosen.append(numbers[np.argsort(-counts[numbers], kind="stable")[:most]])
    numbers = np.concatenate(chosen)
    if not len(numbers):
        return None
    rarity = np.log((1 + len(rows)) / (1 + counts[numbers])) + 1
    return Vocabulary([terms[number] for number in numbers], rarity.astype(np.float32))


def _matrix(vocabulary: Vocabulary, texts_at: Callable[[Rows], Sequence[str]], rows: Rows) -> sparse.csr_matrix:
    parts = []
    for start in range(0, len(rows), ROWS_PER_CALL):
        found = vocabulary.weigh(texts_at(rows[start : start + ROWS_PER_CALL]))
        shape = (len(found.starts) - 1, len(vocabulary.terms))
        parts.append(sparse.csr_matrix((found.weights, found.terms.astype(np.int32), found.starts), shape))
    return sparse.vstack(parts).tocsr()


def _labels_that_occur(head: Head, given: NDArray[np.float32]) -> int:
    return len(np.unique(given)) if head.kind == HeadKind.SINGLE_LABEL else int(given.any(axis=0).sum())


def _most_frequent(counts: NDArray[Any]) -> NDArray[np.intp]:
    """The labels that occur, at most `MOST_LABELS`, in index order."""
    some = np.argsort(-counts, kind="stable")[:MOST_LABELS]
    return np.sort(some[counts[some] > 0])


def _best(
    options: Sequence[float], terms: sparse.csr_matrix, given: NDArray[Any], fit: Callable[[float, Any, Any], Any]
) -> float:
    """The option with the best score (accuracy or R2) on a fifth of some rows."""
    rows = np.arange(0, len(given), max(len(given) // MOST_TO_CHOOSE, 1))
    held_out, rest = rows[::5], np.delete(rows, slice(None, None, 5))
    if len(np.unique(given[rest])) < 2:
        return options[0]
    return max(
        options, key=lambda option: fit(option, terms[rest], given[rest]).score(terms[held_out], given[held_out])
    )


def _logistic(strength: float, terms: sparse.csr_matrix, given: NDArray[Any], *, solver: str) -> LogisticRegression:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a baseline may stop early
        return LogisticRegression(C=strength, solver=solver, max_iter=MOST_STEPS, random_state=0).fit(terms, given)


def _both_sides(found: NDArray[Any]) -> NDArray[Any]:
    """A row per class, also for two classes, of which scikit-learn gives one."""
    return found if len(found) > 1 else np.concatenate([-found / 2, found / 2])


def _yes_or_no(terms: sparse.csr_matrix, given: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[Any]]:
    if given.all() or not given.any():
        return np.zeros((1, terms.shape[1])), np.array([-NEVER if given.all() else NEVER])
    model = _logistic(STRENGTHS[1], terms, given, solver="liblinear")
    return model.coef_, model.intercept_


def _ridge(penalty: float, terms: sparse.csr_matrix, given: NDArray[np.float64]) -> Ridge:
    return Ridge(alpha=penalty, solver="sparse_cg").fit(terms, given)
