"""What a reader of the scores should know at once: no better than a baseline, labels never answered, unseen labels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from polyhead.schema import HeadKind
from polyhead_rows.spelling import shortened
from polyhead_training.data.labels import mend_of
from polyhead_training.evaluation.evaluation import Evaluation
from polyhead_training.evaluation.metrics import HEADLINE, LOWER_IS_BETTER, answers_of
from polyhead_training.evaluation.numbers import number

SHOWN = 5  # labels in a line
WHAT = {"majority": "the same answer for every text", "linear": "a linear model"}


def notes_of(evaluation: Evaluation) -> list[str]:
    """The lines, of which each names its head."""
    return [*_unseen(evaluation), *_never_answered(evaluation), *_no_better(evaluation), *_suspects(evaluation)]


def _unseen(evaluation: Evaluation) -> Iterator[str]:
    for name, counts in evaluation.unseen_labels.items():
        head, rows = evaluation.schema[name], len(evaluation.unseen[name])
        listed = ", ".join(f"{shortened(repr(label))} ({count})" for label, count in list(counts.items())[:SHOWN])
        more = f", and {len(counts) - SHOWN} more" if len(counts) > SHOWN else ""
        known = evaluation.metrics[name]["rows"]
        mend = mend_of(next(iter(counts)), head)
        given = evaluation.labels[:, evaluation.schema.label_columns[name]]
        if rows == known and not mend and not (given > 0).any():  # rows of a multi_label head may have both
            some = ", ".join(head.labels[:SHOWN])
            mend = f"; the model knows none of the labels: is it the right column? It answers {some}"
        yield (
            f"head {name!r}: {rows} of {number(known)} rows have labels that training never saw; they count as wrong: "
            f"{listed}{more}{mend}"
        )


def _never_answered(evaluation: Evaluation) -> Iterator[str]:
    for answers in answers_of(evaluation.scores, evaluation.labels, evaluation.schema):
        if answers.head.kind == HeadKind.REGRESSION:
            continue
        rows, answered = answers.true.sum(axis=0), answers.chosen.sum(axis=0)
        never = np.flatnonzero((rows > 0) & (answered == 0))
        never = never[np.argsort(-rows[never], kind="stable")]
        if len(never):
            listed = ", ".join(f"{shortened(repr(answers.head.labels[i]))} ({rows[i]} rows)" for i in never[:SHOWN])
            more = f", and {len(never) - SHOWN} more" if len(never) > SHOWN else ""
            yield (
                f"head {answers.head.name!r}: never answers {len(never)} of the {np.count_nonzero(rows)} labels that "
                f"occur: {listed}{more}"
            )


def _no_better(evaluation: Evaluation) -> Iterator[str]:
    for head in evaluation.schema:
        metric = HEADLINE[head.kind]
        reached = evaluation.metrics[head.name].get(metric)
        for name, what in WHAT.items():
            other = evaluation.baselines.get(head.name, {}).get(name, {}).get(metric)
            if reached is None or other is None:
                continue
            if reached >= other if metric in LOWER_IS_BETTER else reached <= other:
                yield (
                    f"head {head.name!r}: the network is no better than {what}: "
                    f"{metric} {number(reached)} against {number(other)}"
                )
                break


def _suspects(evaluation: Evaluation) -> Iterator[str]:
    heads = [suspect.head for suspect in evaluation.suspects]
    for name in dict.fromkeys(heads):
        yield f"head {name!r}: {heads.count(name)} labels in the data are probably wrong; suspects.csv lists them"
