"""The wrong answers of an evaluation: the most confident ones, and the rows behind each number of the report.

A `Mistakes` is all wrong answers of one kind: one label answered instead of another one, a label that was missed, or a
label that was answered wrongly. Its ``code`` finds all of its rows in ``predictions.parquet``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from polyhead.schema import Head, HeadKind
from polyhead_training.evaluation.evaluation import Evaluation
from polyhead_training.evaluation.metrics import HeadAnswers
from polyhead_training.evaluation.wording import number, shorten

if TYPE_CHECKING:
    from polyhead_client.explanation import Reason

MOST_CONFIDENT = 12
MOST_KINDS = 60  # per head
MOST_ROWS = 4  # shown per kind
LONGEST_TEXT = 5_000  # characters of a text that can be unfolded
LONGEST_EXAMPLE = 600  # characters of the text of an example


@dataclass(frozen=True)
class WrongRow:
    """A row with a wrong answer.

    Attributes:
        place: file and row; empty if unknown.
        answer, true: as a person reads them.
        reason: what the words did to the score of the wrong label, if that was found out.
    """

    place: str
    answer: str
    true: str
    text: str
    reason: Reason | None = None


@dataclass(frozen=True)
class Mistakes:
    """Wrong answers of one kind.

    Attributes:
        true, answered: indices of the labels; the one that does not apply is None.
        label, what, other: what happened, for example ``a``, ``answered as``, ``b``; `other` may be empty.
        count: of all rows of this kind.
        share: of the rows that have the true label or, if a label was answered wrongly, of the rows that got it.
        share_of: says which rows these are.
        rows: examples, the most confident ones first.
        code: an expression in pandas.
    """

    true: int | None
    answered: int | None
    label: str
    what: str
    other: str
    count: int
    share: float
    share_of: str
    rows: list[WrongRow]
    code: str


def place_of(evaluation: Evaluation, index: int) -> str:
    """Where a text comes from: its file and its row, as error messages count rows."""
    if not len(evaluation.files):
        return ""
    return f"{evaluation.files[index]}, row {int(evaluation.rows[index]):,}"


def most_confident(answers: HeadAnswers, evaluation: Evaluation) -> list[WrongRow]:
    """Wrong answers, the most confident first. Of a regression, the largest errors."""
    head, true, scores = answers.head, answers.true, answers.scores.astype(np.float64)
    if not len(true):
        return []
    show = _row_maker(answers, evaluation, LONGEST_TEXT)
    if head.kind == HeadKind.REGRESSION:
        order = np.argsort(-np.abs(scores - true)[:, 0], kind="stable")[:MOST_CONFIDENT]
        order = order[scores[order, 0] != true[order, 0]]
        return [show(row, number(scores[row, 0]), number(true[row, 0])) for row in order.tolist()]
    known = np.flatnonzero(answers.known)
    found = []
    for row, label in confident_places(answers):
        is_chosen, name = answers.chosen[row, label], head.labels[label]
        right = "not this label" if is_chosen else name
        if head.kind == HeadKind.SINGLE_LABEL:
            (right,) = answers.true_labels(row)
        mistake = show(row, f"{'' if is_chosen else 'not '}{name} ({scores[row, label]:.3f})", right)
        found.append(replace(mistake, reason=evaluation.reasons.get((head.name, int(known[row]), name))))
    return found


def confident_places(answers: HeadAnswers) -> list[tuple[int, int]]:
    """Rows and labels of the wrong answers of a head with labels, the most confident first."""
    if not len(answers.true):
        return []
    wrong = answers.chosen != answers.true
    if answers.head.kind == HeadKind.SINGLE_LABEL:
        wrong &= answers.chosen == 1  # the true label was not answered; that is not a second mistake
    scores = answers.scores.astype(np.float64)
    certainty = np.where(answers.chosen[wrong], scores[wrong], 1 - scores[wrong])
    places = np.argwhere(wrong)[np.argsort(-certainty, kind="stable")[:MOST_CONFIDENT]]
    return [(row, label) for row, label in places.tolist()]


def mistakes(answers: HeadAnswers, evaluation: Evaluation) -> list[Mistakes]:
    """The most frequent kinds of wrong answers. Empty for a regression."""
    if not len(answers.true):
        return []
    match answers.head.kind:
        case HeadKind.SINGLE_LABEL:
            return list(_confused(answers, evaluation))
        case HeadKind.MULTI_LABEL:
            return list(_missed_and_extra(answers, evaluation))
        case HeadKind.REGRESSION:
            return []


def true_places(answers: HeadAnswers) -> tuple[NDArray[np.intp], list[str]]:
    """The true label of each row of a single_label head, and the names of all labels: the unseen ones come last."""
    names = [*answers.head.labels, *answers.unseen_labels]
    places = answers.true.argmax(axis=1)
    for row, (label,) in answers.unseen.items():
        places[row] = names.index(label, answers.head.width)
    return places, names


def _confused(answers: HeadAnswers, evaluation: Evaluation) -> Iterator[Mistakes]:
    head, show = answers.head, _row_maker(answers, evaluation, LONGEST_EXAMPLE)
    true, names_of = true_places(answers)
    answered, width = answers.chosen.argmax(axis=1), len(names_of)
    score = answers.scores[np.arange(len(answered)), answered]
    (wrong,) = np.nonzero(true != answered)
    pairs, counts = np.unique(true[wrong] * width + answered[wrong], return_counts=True)
    rows_of = np.bincount(true, minlength=width)
    for place in np.argsort(-counts, kind="stable")[:MOST_KINDS]:
        right, named = divmod(int(pairs[place]), width)
        rows = wrong[(true[wrong] == right) & (answered[wrong] == named)]
        rows = rows[np.argsort(-score[rows], kind="stable")[:MOST_ROWS]]
        names = names_of[right], names_of[named]
        yield Mistakes(
            true=right,
            answered=named,
            label=names[0],
            what="answered as",
            other=names[1],
            count=int(counts[place]),
            share=float(counts[place] / rows_of[right]),
            share_of=f"of its {rows_of[right]:,} rows",
            rows=[show(row, f"{names[1]} ({score[row]:.3f})", names[0]) for row in rows.tolist()],
            code=_all_rows(_single(head, "true", names[0]), _single(head, "label", names[1])),
        )


def _missed_and_extra(answers: HeadAnswers, evaluation: Evaluation) -> Iterator[Mistakes]:
    head, show = answers.head, _row_maker(answers, evaluation, LONGEST_EXAMPLE)
    true, chosen = answers.true == 1, answers.chosen == 1
    missed, extra = true & ~chosen, chosen & ~true
    counts = np.stack([missed.sum(axis=0), extra.sum(axis=0)])  # (2, labels)
    for place in np.argsort(-counts, axis=None, kind="stable")[:MOST_KINDS]:
        is_extra, label = divmod(int(place), head.width)
        count = int(counts[is_extra, label])
        if not count:
            return
        name, score = head.labels[label], answers.scores[:, label]
        (rows,) = np.nonzero((extra if is_extra else missed)[:, label])
        rows = rows[np.argsort(-score[rows] if is_extra else score[rows], kind="stable")[:MOST_ROWS]]
        of = int((chosen if is_extra else true)[:, label].sum())
        in_true, in_answer = _listed(head, "true", name), _listed(head, "labels", name)
        tests = [in_true, f"~{in_answer}"]
        if is_extra:  # rows with unknown labels are not wrong
            tests = [f"rows[{head.name + '_true'!r}].notna()", f"~{in_true}", in_answer]
        yield Mistakes(
            true=None if is_extra else label,
            answered=label if is_extra else None,
            label=name,
            what="answered wrongly" if is_extra else "missed",
            other="",
            count=count,
            share=count / of,
            share_of=f"of the {of:,} texts that got it" if is_extra else f"of its {of:,} rows",
            rows=[
                show(row, f"{name} ({score[row]:.3f})", ", ".join(answers.true_labels(row)) or "no label")
                for row in rows.tolist()
            ],
            code=_all_rows(*tests),
        )


def largest_errors_code(head: Head) -> str:
    """An expression in pandas: the rows of a regression with the largest errors first."""
    true, value = f"{head.name}_true", f"{head.name}_value"
    return f"rows.assign(error=(rows[{value!r}] - rows[{true!r}]).abs()).nlargest(20, 'error')"


def _all_rows(*tests: str) -> str:
    return "rows[" + " & ".join(f"({test})" for test in tests) + "]"


def _single(head: Head, part: str, label: str) -> str:
    return f"rows[{f'{head.name}_{part}'!r}] == {label!r}"


def _listed(head: Head, part: str, label: str) -> str:
    return f"(rows[{f'{head.name}_{part}'!r}].explode() == {label!r}).groupby(level=0).any()"


def _row_maker(answers: HeadAnswers, evaluation: Evaluation, length: int) -> Callable[[int, str, str], WrongRow]:
    known = np.flatnonzero(answers.known)

    def show(row: int, answer: str, true: str) -> WrongRow:
        index = int(known[row])
        return WrongRow(place_of(evaluation, index), answer, true, shorten(evaluation.texts[index], length))

    return show
