"""Which labels each split has: what cannot be learnt, measured or chosen by, because a split lacks it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from polyhead.schema import Head, HeadKind, Schema
from polyhead_training.errors import DataError

SHOWN = 5  # labels in a line
MEND = 'split = "stratified" keeps the share of each label'


def check_coverage(
    schema: Schema,
    splits: Mapping[str, NDArray[np.float32]],
    held_out: Collection[str],
    of_split: str = MEND,
    out_of_scope: Mapping[str, Mapping[str, NDArray[np.bool_]]] | None = None,
) -> Iterator[str]:
    """Lines that the user should read before training.

    Args:
        splits: the label matrix of each split.
        held_out: the splits whose rows were taken from train.
        of_split: what to say of the way in which they were taken.
        out_of_scope: by split and head: the rows that belong to none of the head's labels.

    Raises:
        DataError: training has no label of a head, or validation has none of any head.
    """
    known = {name: _known(schema, labels) for name, labels in splits.items()}
    mend = of_split if "validation" in held_out else "add rows to the file of data.validation"
    for head in schema:
        if not known["train"][head.name].any():
            raise DataError(
                f"head {head.name!r}: none of the {len(splits['train'])} training rows has a label of it, so that it "
                f"cannot be learnt{f'; {of_split}' if held_out else ''}"
            )
    without = [head.name for head in schema if not known["validation"][head.name].any()]
    if len(without) == len(known["validation"]):
        raise DataError(
            f"none of the {len(splits['validation'])} validation rows has a label of any head, so that nothing can "
            f"choose the best step; {mend}"
        )
    for name in without:
        yield (
            f"no validation row has a label of head {name!r}: the best step is chosen without it, and nothing of it is "
            f"calibrated or measured; {mend}"
        )
    for name, of_heads in known.items():
        rows, outside = len(splits[name]), (out_of_scope or {}).get(name, {})
        for head_name, mask in outside.items():
            use = "they teach it that no label fits" if name == "train" else "they measure what it does not know"
            yield f"{mask.sum()} of {rows} {name} rows are out of the scope of head {head_name!r}: {use}"
        if bare := rows - int(np.any([*of_heads.values(), *outside.values()], axis=0).sum()):
            yield f"{bare} of {rows} {name} rows have no label of any head; they teach and measure nothing"
    for head in schema:
        if head.kind != HeadKind.REGRESSION:
            counts = {name: _counts(head, schema, labels) for name, labels in splits.items()}
            yield from _unlearnt(head, counts, held_out, of_split)


def _unlearnt(
    head: Head, counts: Mapping[str, NDArray[np.int64]], held_out: Collection[str], of_split: str
) -> Iterator[str]:
    for name in counts:
        if found := [i for i in np.flatnonzero(counts[name]) if name != "train" and not counts["train"][i]]:
            shown = ", ".join(f"{head.labels[i]!r} ({counts[name][i]} rows)" for i in found[:SHOWN])
            more = f" and {len(found) - SHOWN} more labels" if len(found) > SHOWN else ""
            mend = of_split if name in held_out else "add such rows to the file of data.train"
            yield f"head {head.name!r}: {name} has {shown}{more}, but train has none: they cannot be learnt; {mend}"


def _known(schema: Schema, labels: NDArray[np.float32]) -> dict[str, NDArray[np.bool_]]:
    """By head, whether each row has a label."""
    unknown = np.isnan(labels)
    return {name: ~np.asarray(unknown[:, columns].any(axis=1)) for name, columns in schema.label_columns.items()}


def _counts(head: Head, schema: Schema, labels: NDArray[np.float32]) -> NDArray[np.int64]:
    """How many rows have each label of a head."""
    block = labels[:, schema.label_columns[head.name]]
    block = block[~np.isnan(block).any(axis=1)]
    if head.kind == HeadKind.SINGLE_LABEL:
        return np.bincount(block[:, 0].astype(np.int64), minlength=len(head.labels))
    return np.asarray((block > 0).sum(axis=0), np.int64)
