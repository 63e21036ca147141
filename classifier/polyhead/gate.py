"""The gate: a precision may answer only if its scores stay near the golden scores and no clear answer changes.

`check_answers` compares answers from anywhere, for example a server. `Predictor.check_golden` compares its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyhead.decode import DecodeOptions, Scores, best_paths, decode, over_threshold
from polyhead.errors import ToleranceError
from polyhead.golden import GoldenRow, difference
from polyhead.precision import TOLERANCE, Precision
from polyhead.schema import HeadKind, Schema


def check_answers(
    golden: Sequence[GoldenRow],
    tokens: Sequence[tuple[int, bool]],
    scores: Scores,
    precision: Precision,
    schema: Schema,
    place: str,
    answers: Sequence[Mapping[str, Any]] | None = None,
) -> float:
    """Compares answers with golden rows; returns the largest distance of a score.

    Args:
        tokens: per row, how many tokens were read and whether the text was truncated.
        scores: ``(len(golden), schema.width)``.
        place: the file of the golden rows, for messages.
        answers: a server's decoded answers to requests without options. Each must be exactly what its own scores decode
            to, with the names and thresholds of `schema`.

    Raises:
        ToleranceError: a score is further away than the tolerance, an answer changes although it was further
            from its boundary than that, or tokens or truncation differ. Such a model must not be served.
    """
    for number, (row, (count, truncated)) in enumerate(zip(golden, tokens, strict=True), start=1):
        if (count, truncated) != (row.token_count, row.truncated):
            raise ToleranceError(f"{place}:{number}: read {_describe(count, truncated)} here, but the golden row has "
                                 f"{_describe(row.token_count, row.truncated)}")  # fmt: skip
    expected = np.array([row.scores for row in golden], dtype=np.float32)
    tolerance = TOLERANCE[precision]
    distance = distances(scores, expected, schema)
    largest = float(distance.max())
    names = schema.column_names()
    if not largest <= tolerance:  # a NaN is refused too
        row_number, column = divmod(int(distance.argmax()), distance.shape[1])
        raise ToleranceError(
            f"{place}:{row_number + 1}: the engine's {precision} score of {names[column]!r} is off by {largest:.2g}, "
            f"allowed is {tolerance:g}"
        )
    changed = changed_answers(scores, expected, schema, tolerance)
    if changed.any():
        row_number, column = np.argwhere(changed)[0]
        raise ToleranceError(
            f"{place}:{row_number + 1}: in {precision} the engine's answer for {names[column]!r} changes, although the "
            f"golden score was further than {tolerance:g} from the boundary"
        )
    for number, (answer, row_scores) in enumerate(zip(answers or (), scores, strict=answers is not None), start=1):
        if found := difference(answer.get("heads"), decode(row_scores, schema, DecodeOptions())):
            where, given, wanted = found
            raise ToleranceError(
                f"{place}:{number}: the answer has {where or 'heads'} {given}, its scores mean {wanted}"
            )
    return largest


def distances(scores: Scores, expected: Scores, schema: Schema) -> NDArray[np.float64]:
    """How far each score is from the expected one, ``(n, schema.width)``, in the unit of the tolerance.

    A label's score: the difference. A regression's value: the difference divided by the spread of its training targets,
    or by the expected value's distance from their center if that is larger. So the unit of the data does not matter.
    Without a target_scale, the center is 0 and the spread 1. One step of float32 is no difference.
    """
    wanted = expected.astype(np.float64)
    off = np.abs(scores - wanted)
    for head in schema:
        if head.kind == HeadKind.REGRESSION:
            columns = schema.columns[head.name]
            center, spread = head.target_scale or (0.0, 1.0)
            steps = np.spacing(np.abs(expected[:, columns]))
            beyond = np.maximum(0, off[:, columns] - steps)
            off[:, columns] = beyond / np.maximum(spread, np.abs(wanted[:, columns] - center))
    return off


def changed_answers(scores: Scores, expected: Scores, schema: Schema, tolerance: float) -> NDArray[np.bool_]:
    """Marks answers that differ although `expected` was further than `tolerance` from the boundary between them.

    Args:
        scores: ``(n, schema.width)``, at the precision to check.
        expected: ``(n, schema.width)``, in float32.
        schema: the heads of the model.
        tolerance: answers nearer than this to their boundary may change.

    Returns:
        bool ``(n, schema.width)``. For a multi_label head, the columns whose threshold is crossed. For a single_label
        head, the column of the expected label if another label wins, or if it is rejected or no longer rejected.
    """
    changed = np.zeros(scores.shape, dtype=np.bool_)
    for row in range(len(scores)):
        found = best_paths(np.stack([expected[row], scores[row]]), schema)
        paths = [{name: int(labels[place]) for name, labels in found.items()} for place in (0, 1)]
        # A taxonomy's labels win or lose together: by the product of their scores.
        before, after = (math.prod(_scores_on_path(expected[row], schema, path)) for path in paths)
        for head in schema:
            columns = schema.columns[head.name]
            if head.kind == HeadKind.SINGLE_LABEL:
                wanted = paths[0].get(head.name, int(expected[row, columns].argmax()))
                winner = paths[1].get(head.name, int(scores[row, columns].argmax()))
                margin = expected[row, columns][wanted] - expected[row, columns][winner]
                margin = before - after if head.name in paths[0] else margin
                changed[row, columns.start + wanted] = winner != wanted and margin > tolerance
                # How far a certainty may move within the tolerance depends on all scores, so only scores are checked.
                if winner == wanted and (least := head.reject_below) is not None and head.reject_by == "score":
                    scored = expected[row, columns][wanted]
                    differs = over_threshold(scores[row, columns][wanted], least) != over_threshold(scored, least)
                    changed[row, columns.start + wanted] = differs and abs(float(scored) - least) > tolerance
            elif head.thresholds is not None:
                differs = over_threshold(scores[row, columns], head.thresholds) != over_threshold(
                    expected[row, columns], head.thresholds
                )
                is_clear = np.abs(expected[row, columns] - np.array(head.thresholds)) > tolerance
                changed[row, columns] = differs & is_clear
    return changed


def _scores_on_path(scores: Scores, schema: Schema, path: Mapping[str, int]) -> list[float]:
    return [float(scores[schema.columns[name]][label]) for name, label in path.items()]


def _describe(count: int, truncated: bool) -> str:
    return f"{count} tokens{' of a longer text' if truncated else ''}"
