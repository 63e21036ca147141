"""The linear baseline: TF-IDF of words and word pairs, with logistic regressions and ridge regression, in seconds.

Its bounds keep it at seconds for any data: it samples rows and labels, and reads the beginning of a text.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge

from polyhead.schema import Head, HeadKind, Schema
from polyhead_rows.progress import progress

MOST_ROWS = 20_000  # of training, per head
MOST_LABELS = 300  # of a head: the most frequent ones
MOST_CELLS = 2_000_000  # rows times labels of a head
MOST_CHARACTERS = 4_000  # of a text
MOST_WORDS = 50_000
FEW_ROWS = 1_000  # with fewer rows, words that occur once count too
ROWS_PER_CALL = 4_096
STRENGTHS = (10.0, 1.0)  # C of a logistic regression; a multi_label head takes the first
MOST_TO_CHOOSE = 5_000  # rows on which C is chosen
NEVER = -30.0  # the logit of a label that is not in the sample

# A word; or one character of a script that has no blanks between words.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")

Rows = NDArray[np.int64]


class LinearModel:
    """A fitted linear model.

    Attributes:
        heads: the names of the heads that it can answer.
        note: what it was fitted on.
    """

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.heads: set[str] = set()
        self.note = ""
        self._vectorizer: TfidfVectorizer | None = None
        self._fewest: int | None = None  # rows of a head that has many labels, if some were left out for that
        self._parts: dict[str, list[tuple[NDArray[np.intp], Any]]] = {}  # by head: columns and the model of each

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
        with progress("fitting the linear baseline", 1 + sum(work.values()), unit="labels", shown=show_progress) as bar:
            words = self._read(texts_at, rows)
            bar.advance(1)
            if words is None:
                self.note = "There is no linear baseline, because the texts have no words."
                return self
            for head in self.schema:
                places = np.searchsorted(rows, samples[head.name])
                given = labels[samples[head.name]][:, self.schema.label_columns[head.name]]
                self._fit_head(head, words[places], given, draw, bar.advance)
        self.note = self._describe({name: int(mask.sum()) for name, mask in known.items()})
        return self

    def logits(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """``(n, schema.width)``; of a regression its number."""
        found = np.full((len(texts), self.schema.width), NEVER, np.float32)
        for head in self.schema:
            if head.name not in self.heads:
                found[:, self.schema.columns[head.name]] = 0
        if self._vectorizer is None:
            return found
        for start in range(0, len(texts), ROWS_PER_CALL):
            part = slice(start, start + ROWS_PER_CALL)
            words = self._vectorizer.transform([text[:MOST_CHARACTERS] for text in texts[part]])
            for models in self._parts.values():
                for columns, model in models:
                    found[part, columns] = model(words)
        return found

    def _read(self, texts_at: Callable[[Rows], Sequence[str]], rows: Rows) -> sparse.csr_matrix | None:
        """TF-IDF of the sampled rows; None if they have no words."""
        self._vectorizer = TfidfVectorizer(
            tokenizer=_WORD.findall,
            token_pattern=None,
            ngram_range=(1, 2),
            min_df=1 if len(rows) < FEW_ROWS else 2,
            max_features=MOST_WORDS,
            sublinear_tf=True,
            dtype=np.float32,
        )
        texts = (
            text[:MOST_CHARACTERS]
            for start in range(0, len(rows), ROWS_PER_CALL)
            for text in texts_at(rows[start : start + ROWS_PER_CALL])
        )
        try:
            return self._vectorizer.fit_transform(texts).tocsr()
        except ValueError:  # an empty vocabulary
            self._vectorizer = None
            return None

    def _fit_head(
        self,
        head: Head,
        words: sparse.csr_matrix,
        given: NDArray[np.float32],
        draw: np.random.Generator,
        advance: Callable[[int], None],
    ) -> None:
        first = self.schema.columns[head.name].start
        parts: list[tuple[NDArray[np.intp], Any]] = []
        if not len(given):
            return
        match head.kind:
            case HeadKind.SINGLE_LABEL:
                classes = given[:, 0].astype(np.intp)
                some = _most_frequent(np.bincount(classes, minlength=head.width))
                rows = self._some_rows(np.flatnonzero(np.isin(classes, some)), len(some), draw)
                if len(np.unique(classes[rows])) > 1:
                    strength = _best_strength(words[rows], classes[rows])
                    model = _logistic(words[rows], classes[rows], "lbfgs", strength)
                    parts.append((first + model.classes_, lambda words: _both_sides(model.decision_function(words))))
                advance(len(some))
            case HeadKind.MULTI_LABEL:
                some = _most_frequent(given.sum(axis=0))
                rows = self._some_rows(np.arange(len(given)), len(some), draw)
                words, given = words[rows], given[rows]
                for label in some:
                    parts.append((np.array([first + label]), _yes_or_no(words, given[:, label] > 0)))
                    advance(1)
            case HeadKind.REGRESSION:
                parts.append((np.array([first]), _ridge(words, given[:, 0].astype(np.float64), head.y_range)))
                advance(1)
        if parts:
            self._parts[head.name] = parts
            self.heads.add(head.name)

    def _some_rows(self, rows: Rows, labels: int, draw: np.random.Generator) -> Rows:
        """As many of the rows as `MOST_CELLS` allows, drawn at random: a file may be sorted by label."""
        most = MOST_CELLS // max(labels, 1)
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


def _most_frequent(counts: NDArray[Any]) -> NDArray[np.intp]:
    """The labels that occur, at most `MOST_LABELS`, in index order."""
    some = np.argsort(-counts, kind="stable")[:MOST_LABELS]
    return np.sort(some[counts[some] > 0])


def _best_strength(words: sparse.csr_matrix, given: NDArray[np.intp]) -> float:
    """The C with the best accuracy on a fifth of some rows."""
    rows = np.arange(0, len(given), max(len(given) // MOST_TO_CHOOSE, 1))
    held_out, rest = rows[::5], np.delete(rows, slice(None, None, 5))
    if len(np.unique(given[rest])) < 2:
        return STRENGTHS[0]

    def accuracy(strength: float) -> float:
        return float(_logistic(words[rest], given[rest], "lbfgs", strength).score(words[held_out], given[held_out]))

    return max(STRENGTHS, key=accuracy)


def _logistic(words: sparse.csr_matrix, given: NDArray[Any], solver: str, strength: float) -> LogisticRegression:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a baseline may stop early
        return LogisticRegression(C=strength, solver=solver, max_iter=100, random_state=0).fit(words, given)


def _both_sides(decision: NDArray[Any]) -> NDArray[Any]:
    """A column per class, also for two classes, of which scikit-learn gives one."""
    return decision if decision.ndim == 2 else np.stack([-decision / 2, decision / 2], axis=1)


def _yes_or_no(words: sparse.csr_matrix, given: NDArray[np.bool_]) -> Callable[[Any], Any]:
    if given.all() or not given.any():
        logit = -NEVER if given.all() else NEVER
        return lambda words: np.full((words.shape[0], 1), logit)
    model = _logistic(words, given, "liblinear", STRENGTHS[0])
    return lambda words: model.decision_function(words)[:, None]


def _ridge(
    words: sparse.csr_matrix, given: NDArray[np.float64], y_range: tuple[float, float] | None
) -> Callable[[Any], Any]:
    mean, scale = given.mean(), given.std() or 1.0
    model = Ridge(alpha=1.0, solver="sparse_cg").fit(words, (given - mean) / scale)

    def predict(words: Any) -> NDArray[Any]:
        found: NDArray[Any] = (model.predict(words) * scale + mean)[:, None]
        return found if y_range is None else np.clip(found, *y_range)

    return predict
