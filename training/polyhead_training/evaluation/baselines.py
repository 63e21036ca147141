"""Baselines: what a constant answer and a linear model reach, fitted on the rows that the model was trained on.

``majority`` is the answer, the same for all texts, that is best on the training rows: the most frequent label; of a
multi_label head the most frequent labels, as many as give the best micro F1; of a regression the median for MAE, the
mean for RMSE and R2. ``linear`` is a `LinearModel`; like the model it is calibrated on the validation rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, FiniteFloat

from polyhead.decode import to_scores
from polyhead.schema import Head, HeadKind, Schema
from polyhead_training.config import CalibrationConfig
from polyhead_training.evaluation.calibration import calibrate
from polyhead_training.evaluation.headline import LINEAR, MAJORITY
from polyhead_training.evaluation.linear_model import LinearModel
from polyhead_training.evaluation.metrics import Unseen, answers_of, score_answers, score_head

if TYPE_CHECKING:
    from polyhead_training.data.corpus import Split  # its libraries take seconds to import

Metrics = dict[str, dict[str, float]]  # by head and metric
OF_ANSWERS = {  # metrics that need no scores
    "rows", "accuracy", "balanced_accuracy", "macro_f1", "micro_f1", "weighted_f1", "subset_accuracy", "hamming_loss",
    "mae", "rmse", "r2",
}  # fmt: skip


class Constant(BaseModel):
    """The best constant answer of a head: its labels, or two numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    labels: list[str] = []
    median: FiniteFloat | None = None
    mean: FiniteFloat | None = None


@dataclass(frozen=True)
class Baselines:
    """Fitted baselines.

    Attributes:
        constants: by head; heads without a labelled training row have none.
        linear: None if it is not wanted.
        schema: of the linear model, calibrated.
    """

    constants: dict[str, Constant]
    linear: LinearModel | None = None
    schema: Schema | None = field(default=None)

    @property
    def note(self) -> str:
        """What the linear model was fitted on, if not on everything."""
        return "" if self.linear is None else self.linear.note

    def measure(
        self, texts: Sequence[str], labels: NDArray[np.float32], schema: Schema, unseen: Unseen | None = None
    ) -> dict[str, dict[str, dict[str, float]]]:
        """By head, baseline and metric, on these rows."""
        found = {
            head: {MAJORITY: scores} for head, scores in score_constants(self.constants, labels, schema, unseen).items()
        }
        if self.linear is not None and self.schema is not None and self.linear.heads:
            scores = to_scores(self.linear.logits(texts), self.schema)
            for head, metrics in score_answers(scores, labels, self.schema, unseen).items():
                if head in self.linear.heads:
                    found.setdefault(head, {})[LINEAR] = metrics
        return found


def fit_baselines(
    train: Split,
    validation: Split,
    schema: Schema,
    calibration: CalibrationConfig,
    seed: int = 0,
    show_progress: bool = False,
    linear: LinearModel | None = None,
) -> Baselines:
    """Fits the baselines on the training rows; a linear model that is fitted already is taken as it is."""
    labels = train.labels
    # The linear model has target scales of its own; those of the model belong to its mix with the n-grams.
    plain = Schema([_plain(head) for head in (schema if linear is None else linear.schema)])
    linear = linear or fit_linear(train, plain, seed, show_progress)
    calibrated = plain
    if linear.heads:
        calibrated, _ = calibrate(linear.logits(validation.texts), validation.labels, plain, calibration)
    return Baselines(best_constants(labels, schema), linear, calibrated)


def fit_linear(train: Split, schema: Schema, seed: int = 0, show_progress: bool = False) -> LinearModel:
    """The linear model of the training rows."""
    return LinearModel(schema).fit(lambda rows: train.rows.select(rows)["text"], train.labels, seed, show_progress)


def best_constants(labels: NDArray[np.float32], schema: Schema) -> dict[str, Constant]:
    """The best constant answer of each head that has a labelled row."""
    found = {}
    for head in schema:
        given = labels[:, schema.label_columns[head.name]]
        given = given[~np.isnan(given).any(axis=1)]
        if not len(given):
            continue
        match head.kind:
            case HeadKind.SINGLE_LABEL:
                counts = np.bincount(given[:, 0].astype(np.intp), minlength=head.width)
                found[head.name] = Constant(labels=[head.labels[counts.argmax()]])
            case HeadKind.MULTI_LABEL:
                counts = given.sum(axis=0, dtype=np.float64)
                order = np.argsort(-counts, kind="stable")
                answered = np.arange(1, head.width + 1)
                f1 = 2 * counts[order].cumsum() / (answered * len(given) + max(counts.sum(), 1))
                most = int(f1.argmax()) + 1 if counts.any() else 0
                found[head.name] = Constant(labels=[head.labels[i] for i in order[:most]])
            case HeadKind.REGRESSION:
                numbers = given[:, 0].astype(np.float64)
                found[head.name] = Constant(median=float(np.median(numbers)), mean=float(numbers.mean()))
    return found


def score_constants(
    constants: Mapping[str, Constant], labels: NDArray[np.float32], schema: Schema, unseen: Unseen | None = None
) -> Metrics:
    """The metrics of constant answers, without those that need scores. Heads without a constant are left out."""
    alone = Schema([_plain(head).model_copy(update={"parent": None, "parent_of": None}) for head in schema])
    found = {}
    for answers in answers_of(np.ones((len(labels), schema.width), np.float32), labels, alone, unseen):
        constant, rows = constants.get(answers.head.name), len(answers.true)
        if constant is None:
            continue
        if answers.head.kind == HeadKind.REGRESSION:
            if constant.median is None or constant.mean is None:
                continue  # a stranger's checkpoint
            middle, mean = (  # in float64, so that R2 of the mean is 0
                score_head(replace(answers, scores=np.full((rows, 1), value)))
                for value in (constant.median, constant.mean)
            )
            scores = mean | {key: value for key, value in middle.items() if key == "mae"}
        else:
            is_answered = np.isin(answers.head.labels, constant.labels)
            scores = score_head(replace(answers, chosen=np.tile(is_answered, (rows, 1)).astype(np.int8)))
        found[answers.head.name] = {name: value for name, value in scores.items() if name in OF_ANSWERS}
    return found


def _plain(head: Head) -> Head:
    """The head without what the network's calibration gave it."""
    if head.kind == HeadKind.REGRESSION:
        y_range = None if head.target_scale is None else head.y_range  # then it clips
        return Head(name=head.name, kind=head.kind, target_scale=head.target_scale, y_range=y_range)
    return Head(name=head.name, kind=head.kind, labels=head.labels, parent=head.parent, parent_of=head.parent_of)
