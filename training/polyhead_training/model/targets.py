"""The scale of a regression's targets: center and spread of its training numbers.

The head learns ``(target - center) / spread``. So its loss is about 1 at the start, whatever the numbers' unit is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from polyhead.schema import Head, HeadKind, Schema
from polyhead_training.errors import DataError

TAIL = 0.01  # this share of the numbers at each end is moved to the next number inwards before center and spread
FEW_STEPS = 1000  # of float32 within a spread: fewer round the targets so that it shows
FAR = 20.0  # spreads from the center: numbers further away are probably mistakes


def with_target_scales(schema: Schema, labels: NDArray[np.float32]) -> tuple[Schema, list[str]]:
    """The schema with the target_scale of each regression.

    Args:
        labels: of the training rows, ``(n, sum of label widths)``; NaN where unknown.

    Returns:
        The schema, and lines about numbers that look wrong.

    Raises:
        DataError: no training row has a number for a regression.
    """
    heads, notes = [], []
    for head in schema:
        if head.kind == HeadKind.REGRESSION:
            values = labels[:, schema.label_columns[head.name]][:, 0].astype(np.float64)
            values = values[~np.isnan(values)]
            if not len(values):
                raise DataError(f"head {head.name!r}: no training row has a number; a regression needs at least one")
            head = head.model_copy(update={"target_scale": target_scale(values)})
            notes += _notes(head, values)
        heads.append(head)
    return Schema(heads), notes


def target_scale(values: NDArray[np.float64]) -> tuple[float, float]:
    """Center and spread of numbers: mean and standard deviation, without the influence of a few extreme numbers.

    If the numbers apart from these are all the same, they are mean and standard deviation of all numbers. If all
    numbers are the same, the spread is their distance from 0, or 1.
    """
    lowest, highest = np.quantile(values, (TAIL, 1 - TAIL))
    kept = values.clip(lowest, highest)
    if kept.min() == kept.max():
        kept = values
    center, spread = float(kept.mean()), float(kept.std())
    if values.min() == values.max():
        center = float(values[0])
        spread = abs(center) or 1.0
    return center, spread


def _notes(head: Head, values: NDArray[np.float64]) -> list[str]:
    center, spread = head.target_scale or (0.0, 1.0)
    place = f"head {head.name!r}"
    if values.min() == values.max():
        return [f"{place}: all {len(values)} training rows have the number {center:g}; there is nothing to learn"]
    notes = []
    if spread < FEW_STEPS * np.spacing(np.float32(abs(center))):
        notes.append(
            f"{place}: the numbers differ by about {spread:g} around {center:.9g}, and float32 rounds them to steps of "
            f"{np.spacing(np.float32(abs(center))):g}; subtract a constant from the column"
        )
    if far := int((np.abs(values - center) > FAR * spread).sum()):
        extreme = values[np.abs(values - center).argmax()]
        notes.append(
            f"{place}: {far} training rows are further than {FAR:g} spreads ({spread:g}) from the center {center:g}, "
            f"such as {extreme:g}; are they mistakes?"
        )
    return notes
