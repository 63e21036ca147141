"""What a reader of the scores should know at once: no better than a baseline, labels never answered, unseen labels,
and what it costs that rows are unlike those of training."""

from __future__ import annotations

from collections.abc import Iterator

from polyhead_rows.spelling import shortened
from polyhead_training.data.labels import mend_of
from polyhead_training.evaluation.evaluation import Evaluation
from polyhead_training.evaluation.metrics import HEADLINE
from polyhead_training.evaluation.wording import listed, number


def notes_of(evaluation: Evaluation) -> list[str]:
    """The lines, of which each names its head."""
    return [*_unseen(evaluation), *_verdicts(evaluation), *_shift(evaluation), *_suspects(evaluation)]


def _unseen(evaluation: Evaluation) -> Iterator[str]:
    for name, counts in evaluation.unseen_labels.items():
        head, rows = evaluation.schema[name], len(evaluation.unseen[name])
        named = listed([f"{shortened(repr(label))} ({count})" for label, count in counts.items()])
        known = evaluation.metrics[name]["rows"]
        mend = mend_of(next(iter(counts)), head)
        given = evaluation.labels[:, evaluation.schema.label_columns[name]]
        if rows == known and not mend and not (given > 0).any():  # rows of a multi_label head may have both
            mend = f"; the model knows none of the labels: is it the right column? It answers {listed(head.labels)}"
        yield (
            f"head {name!r}: {rows} of {number(known)} rows have labels that training never saw; they count as wrong: "
            f"{named}{mend}"
        )


def _verdicts(evaluation: Evaluation) -> Iterator[str]:
    """What the page says of each head whose number does not speak for itself."""
    for head, found in zip(evaluation.schema, evaluation.verdicts, strict=True):
        metric, metrics = HEADLINE[head.kind], evaluation.metrics[head.name]
        if found.level != "good" and metric in metrics and found.sentences:
            yield f"head {head.name!r}: {metric} {number(metrics[metric])}. {' '.join(found.sentences)}"


def _shift(evaluation: Evaluation) -> Iterator[str]:
    for name, found in evaluation.shift.items():
        if found.sentences:
            yield f"head {name!r}: {' '.join(found.sentences)}"


def _suspects(evaluation: Evaluation) -> Iterator[str]:
    heads = [suspect.head for suspect in evaluation.suspects]
    for name in dict.fromkeys(heads):
        yield f"head {name!r}: {heads.count(name)} labels in the data are probably wrong; suspects.csv lists them"
