"""The gate: a checkpoint answers at a precision only if its scores stay near the golden ones and no answer flips.

``golden.jsonl`` holds transformers' float32 scores. Training, export and every load at less than float32 check it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from polyhead.checkpoint import Golden
from polyhead.decode import Scores, best_paths, over_threshold
from polyhead.engine import Precision
from polyhead.errors import ToleranceError
from polyhead.schema import Schema

if TYPE_CHECKING:
    from polyhead.predictor import Predictor

# Of a score in [0, 1]; of a regression's value relative to it where it exceeds 1.
TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "bf16": 0.03, "int8": 0.05}


def check_golden(predictor: Predictor, most_tokens: int | None = None) -> float:
    """The largest distance of the predictor's scores from ``golden.jsonl``.

    Args:
        most_tokens: checks as many of the first rows as have that many tokens together, at least one; all if None.

    Raises:
        ToleranceError: the distance exceeds the precision's tolerance, an answer flips that was further than that
            from its boundary, or tokens or truncation differ: this must not be served.
    """
    golden = _first_rows(predictor.checkpoint.golden(), most_tokens)
    encoded = predictor.encode([row.text for row in golden])
    tokens = [(text.token_count, text.truncated) for text in encoded]
    place = str(predictor.checkpoint.path / "golden.jsonl")
    return check_answers(golden, tokens, predictor.score(encoded), predictor.precision, predictor.schema, place)


def check_answers(
    golden: Sequence[Golden],
    tokens: Sequence[tuple[int, bool]],
    scores: Scores,
    precision: Precision,
    schema: Schema,
    place: str,
) -> float:
    """The same for answers from wherever they come, a server among others.

    Args:
        tokens: how many were read of each row's text, and whether it was truncated.
        scores: ``(n, schema.width)``.
        precision: whose tolerance counts.
        place: where the rows stand, for the message.
    """
    for number, (row, (count, truncated)) in enumerate(zip(golden, tokens, strict=True), start=1):
        if (count, truncated) != (row.token_count, row.truncated):
            raise ToleranceError(f"{place}:{number}: {count} tokens here, {row.token_count} there")
    expected = np.array([row.scores for row in golden], dtype=np.float32)
    tolerance = TOLERANCE[precision]
    distance = np.abs(scores - expected) / np.maximum(1, np.abs(expected))
    worst = float(distance.max())
    names = schema.column_names()
    if not worst <= tolerance:
        row_number, column = divmod(int(distance.argmax()), distance.shape[1])
        raise ToleranceError(
            f"{place}:{row_number + 1}: the engine's {precision} score of {names[column]!r} is off by {worst:.2g}, "
            f"allowed is {tolerance:g}"
        )
    flips = flipped(scores, expected, schema, tolerance)
    if flips.any():
        row_number, column = np.argwhere(flips)[0]
        raise ToleranceError(
            f"{place}:{row_number + 1}: in {precision} the engine answers otherwise on {names[column]!r}, "
            f"which was further than {tolerance:g} from its boundary"
        )
    return worst


def flipped(scores: Scores, expected: Scores, schema: Schema, tolerance: float) -> NDArray[np.bool_]:
    """Where an answer differs though `expected` was further than `tolerance` from the boundary between the two.

    Args:
        scores: ``(n, schema.width)``, at the precision in question.
        expected: the same, at float32.

    Returns:
        bool ``(n, schema.width)``: true in a multi_label head's column whose threshold is crossed, and in the column of
        a single_label head's expected label where another one wins.
    """
    flips = np.zeros(scores.shape, dtype=np.bool_)
    for row in range(len(scores)):
        paths = best_paths(expected[row], schema), best_paths(scores[row], schema)
        # A taxonomy's labels win or lose together: by the product of their scores.
        before, after = (math.prod(_on_path(expected[row], schema, path)) for path in paths)
        for head in schema:
            columns = schema.columns[head.name]
            if head.kind == "single_label":
                wanted = paths[0].get(head.name, int(expected[row, columns].argmax()))
                winner = paths[1].get(head.name, int(scores[row, columns].argmax()))
                margin = expected[row, columns][wanted] - expected[row, columns][winner]
                margin = before - after if head.name in paths[0] else margin
                flips[row, columns.start + wanted] = winner != wanted and margin > tolerance
            elif head.thresholds is not None:
                differs = over_threshold(scores[row, columns], head.thresholds) != over_threshold(
                    expected[row, columns], head.thresholds
                )
                far = np.abs(expected[row, columns] - np.array(head.thresholds)) > tolerance
                flips[row, columns] = differs & far
    return flips


def _on_path(scores: Scores, schema: Schema, path: Mapping[str, int]) -> list[float]:
    return [float(scores[schema.columns[name]][label]) for name, label in path.items()]


def _first_rows(golden: Sequence[Golden], most_tokens: int | None) -> Sequence[Golden]:
    if most_tokens is None:
        return golden
    total = np.cumsum([row.token_count for row in golden])
    return golden[: max(1, int(np.searchsorted(total, most_tokens, side="right")))]
