"""An evaluation: the serving engine's answers to the texts of a split, and their metrics, also per slice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from polyhead.decode import are_answers
from polyhead.predictor import NOT_FINITE, Predictor
from polyhead.schema import Head, Schema
from polyhead_rows.progress import progress
from polyhead_training.errors import DataError
from polyhead_training.evaluation.headline import HeadVerdict, verdict
from polyhead_training.evaluation.metrics import HEADLINE, HeadAnswers, Unseen, among, answers_of, score_all
from polyhead_training.evaluation.rejection import out_of_scope_scores
from polyhead_training.evaluation.shift import HeadShift, Reached, head_shift, reached
from polyhead_training.evaluation.slices import SliceOptions, score_slices
from polyhead_training.evaluation.suspects import Suspect, find_suspects

if TYPE_CHECKING:
    from polyhead_client.explanation import Reason
    from polyhead_training.data.answer_log import LoggedScores
    from polyhead_training.data.corpus import Split  # its libraries take seconds to import

TEXTS_PER_CALL = 512


@dataclass(frozen=True)
class Evaluation:
    """The texts, what the engine answered, and how good the answers are.

    Attributes:
        labels: ``(n, sum of label widths)``; NaN where unknown; below 0 where training never saw the label.
        scores: calibrated ``(n, schema.width)``.
        token_counts, truncated: how much of each text was read.
        metrics: by head name.
        slices: by column and value: ``rows`` and ``heads``, which is as `metrics`.
        slice_notes: by column: one sentence about the values that are left out, and the options that show them.
        dropped: how many rows had no usable text.
        failed: the texts whose scores are not finite, because the model's numbers overflow. They are in none of the
            other fields; only their places and labels mean something.
        files, rows, splits: of each text the file, the row there (from 1, without the header) and the split.
        unseen: by head and text: the labels that training never saw.
        out_of_scope: by head: which texts belong to none of its labels; only heads with such texts.
        left_out: the heads that were not evaluated.
        measured_on: one sentence: on which rows, and whether anything was chosen on them.
        baselines: by head, ``majority`` or ``linear``, and metric: see `polyhead_training.evaluation.baselines`.
        baselines_note: one sentence about how they came to be.
        suspects: labels in the data that are probably wrong, the most certain first.
        shift: by head, how these rows compare with rows like those that were trained on; empty if that is not known.
        reasons: by head, text and label: why the most confident mistakes were made.
    """

    schema: Schema
    max_length: int
    texts: Sequence[str]
    labels: NDArray[np.float32]
    scores: NDArray[np.float32]
    token_counts: NDArray[np.int32]
    truncated: NDArray[np.bool_]
    metrics: dict[str, dict[str, float]]
    slices: dict[str, dict[str, Any]] = field(default_factory=dict)
    slice_notes: dict[str, str] = field(default_factory=dict)
    dropped: int = 0
    failed: Evaluation | None = None
    files: Sequence[str] = ()
    rows: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    splits: Sequence[str] = ()
    unseen: Unseen = field(default_factory=dict)
    out_of_scope: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    left_out: Sequence[str] = ()
    measured_on: str = ""
    baselines: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    baselines_note: str = ""
    suspects: list[Suspect] = field(default_factory=list)
    shift: dict[str, HeadShift] = field(default_factory=dict)
    reasons: Mapping[tuple[str, int, str], Reason] = field(default_factory=dict)

    @cached_property
    def answers(self) -> list[HeadAnswers]:
        """What would be served, per head, with the true labels."""
        return list(answers_of(self.scores, self.labels, self.schema, self.unseen))

    @cached_property
    def verdicts(self) -> list[HeadVerdict]:
        """How each head's main number stands beside its baselines."""
        return [
            verdict(part, self.metrics[part.head.name], self.baselines.get(part.head.name, {})) for part in self.answers
        ]

    @property
    def reached(self) -> dict[str, Reached]:
        """By head that has a labelled row: its main metric, and how sure and how right its answers are."""
        found = {part.head.name: reached(part) for part in self.answers}
        return {head: scores for head, scores in found.items() if scores}

    def beside(
        self, similar: Mapping[str, Reached], called: str, if_similar: Mapping[str, Reached] | None = None
    ) -> Evaluation:
        """With `shift`.

        Args:
            similar: what was `reached` on rows like those that were trained on.
            called: what sentences call the rows of this evaluation, such as ``the newest rows``.
            if_similar: see `polyhead_training.evaluation.shift.reached_if_similar`.
        """
        shift = {
            name: head_shift(self.schema[name], similar.get(name, {}), found, (if_similar or {}).get(name, {}), called)
            for name, found in self.reached.items()
            if name not in self.left_out
        }
        return replace(self, shift=shift)

    @property
    def heads(self) -> list[Head]:
        """The heads that were evaluated."""
        return [head for head in self.schema if head.name not in self.left_out]

    @property
    def failed_texts(self) -> Sequence[str]:
        """The texts whose scores are not finite."""
        return () if self.failed is None else self.failed.texts

    @property
    def unseen_labels(self) -> dict[str, dict[str, int]]:
        """By head that has any: the labels that training never saw, with their rows, the most frequent first."""
        found = {
            head: Counter(label for labels in by_row.values() for label in dict.fromkeys(labels))
            for head, by_row in self.unseen.items()
        }
        return {head: dict(labels.most_common()) for head, labels in found.items() if labels}

    def __repr__(self) -> str:
        found = [(head.name, HEADLINE[head.kind], self.metrics[head.name]) for head in self.heads]
        scores = [f"{head} {name} {scores[name]:.3g}" for head, name, scores in found if name in scores]
        return f"<Evaluation of {len(self.texts)} texts: {', '.join(scores)}>"

    def _repr_html_(self) -> str:
        from polyhead_training.evaluation.notebook import figures, scores_table  # matplotlib takes a second to import

        caption = self.measured_on or f"{len(self.texts)} texts"
        return scores_table(self.metrics, self.heads, caption, self.baselines) + figures(self.answers)

    def slice_tables(self) -> list[dict[str, Any]]:
        """Per sliced ``column``: the ``columns`` of its table, and ``rows`` with each head's main score per value."""
        heads = [(head.name, HEADLINE[head.kind]) for head in self.heads]
        return [
            {
                "column": column,
                "columns": [column, "rows", *(f"{name} {metric}" for name, metric in heads)],
                "rows": [
                    [value, found["rows"], *(found["heads"][name].get(metric) for name, metric in heads)]
                    for value, found in values.items()
                ],
                "note": self.slice_notes.get(column, ""),
            }
            for column, values in self.slices.items()
        ]


def evaluate(
    predictor: Predictor,
    split: Split,
    slices: Sequence[str] = (),
    say: Callable[[str], None] = lambda _: None,
    show_progress: bool = False,
    name: str = "evaluation",
    slice_options: SliceOptions | None = None,
    with_suspects: bool = True,
    logged: LoggedScores | None = None,
) -> Evaluation:
    """Answers all texts of a split as serving does, and measures the answers.

    Args:
        slices: metadata columns of the split. The metrics are also given for each of their values.
        say: gets one line about the texts.
        name: of the split.
        with_suspects: looks for labels that are probably wrong.
        logged: takes the scores from an answer log; rows without a logged answer are left out.
    """
    schema, texts, labels = predictor.schema, list(split.texts), split.labels
    scores = np.empty((len(texts), schema.width), dtype=np.float32)
    counts, truncated = np.zeros(len(texts), dtype=np.int32), np.zeros(len(texts), dtype=bool)
    with progress("answering", len(texts), unit="texts", shown=show_progress) as bar:
        for start in range(0, len(texts), TEXTS_PER_CALL):
            part = slice(start, start + TEXTS_PER_CALL)
            encoded = predictor.encode(texts[part], are_rendered=True)
            scores[part] = predictor.score(encoded) if logged is None else logged.scores(texts[part])
            counts[part] = [text.token_count for text in encoded]
            truncated[part] = [text.truncated for text in encoded]
            bar.advance(len(encoded))
    read = (counts > 0) & are_answers(scores)
    failed = (counts > 0) & ~read if logged is None else np.zeros_like(read)
    if not read.any():
        raise DataError(f"no row has a text that can be {'answered: ' + NOT_FINITE if failed.any() else 'read'}")
    dropped = split.dropped + split.bad + int((counts == 0).sum())
    say(
        f"{read.sum()} texts answered, {truncated[read].sum()} of them truncated to {predictor.max_length} tokens, "
        f"{dropped} unreadable"
        + (f' ({split.bad} of them bad rows, left out by bad_rows = "skip")' if split.bad else "")
        + (f", {split.filtered} left out by where and filters" if split.filtered else "")
        + (f", {failed.sum()} left out because {NOT_FINITE}" if failed.any() else "")
    )

    outside = split.out_of_scope

    def part_of(rows: NDArray[np.bool_]) -> Evaluation:
        indices = np.flatnonzero(rows)
        files, numbers = split.places
        return Evaluation(
            schema=schema,
            max_length=predictor.max_length,
            texts=[texts[index] for index in indices],
            labels=labels[indices],
            scores=scores[indices],
            token_counts=counts[indices],
            truncated=truncated[indices],
            metrics={},
            files=[files[index] for index in indices.tolist()],
            rows=numbers[indices],
            splits=[name] * len(indices),
            unseen={head: among(by_row, indices) for head, by_row in split.unseen.items()},
            out_of_scope={head: mask[indices] for head, mask in outside.items() if mask[indices].any()},
        )

    found = part_of(read)
    by_column, notes = {}, {}
    for column in slices:
        values = np.asarray(split.values(column), dtype=object)[read]
        by_column[column], notes[column] = score_slices(
            values, found.scores, found.labels, schema, found.unseen, slice_options or SliceOptions(), column
        )
    measured = score_all(found.answers, schema)
    outside_scores = out_of_scope_scores(found.scores, found.labels, schema, found.out_of_scope)
    return replace(
        found,
        metrics={head: scores | outside_scores.get(head, {}) for head, scores in measured.items()},
        slices=by_column,
        slice_notes={column: note for column, note in notes.items() if note},
        dropped=dropped,
        failed=part_of(failed) if failed.any() else None,
        suspects=find_suspects(found.answers) if with_suspects else [],
    )
