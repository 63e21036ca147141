"""What a run says about its corpus before it trains."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from polyhead.schema import Head, HeadKind
from polyhead_training.data.corpus import Corpus

LABELS_SHOWN = 5  # from each end


def describe_corpus(corpus: Corpus) -> list[str]:
    """Lines: rows of each split, labels and missing labels of each head, then notes."""
    lines = []
    for name, split in corpus.splits.items():
        blank = f", {split.dropped} more dropped because their text is blank" if split.dropped else ""
        bad = f', {split.bad} bad rows left out by bad_rows = "skip"' if split.bad else ""
        lines.append(f"{name}: {len(split)} rows{blank}{bad}")
    labels = {name: split.labels for name, split in corpus.splits.items()}
    for head in corpus.schema:
        columns = corpus.schema.label_columns[head.name]
        lines += _describe_head(head, {name: matrix[:, columns] for name, matrix in labels.items()})
    return lines + [f"note: {note}" for note in corpus.notes]


def _describe_head(head: Head, blocks: dict[str, NDArray[np.float32]]) -> Iterator[str]:
    yield f"head {head.name}: {head.kind}" + (f", {len(head.labels)} labels" if head.labels else "")
    for name, block in blocks.items():
        if missing := int(np.isnan(block[:, 0]).sum()):
            yield f"  {name}: {missing} of {len(block)} rows have no label"
    known = blocks["train"][~np.isnan(blocks["train"][:, 0])]
    if head.kind == HeadKind.REGRESSION:
        if len(known):
            yield f"  train: from {known.min():g} to {known.max():g}, mean {known.mean():g}"
        return
    if head.kind == HeadKind.SINGLE_LABEL:
        counts = np.bincount(known[:, 0].astype(int), minlength=len(head.labels))
    else:
        counts = known.sum(axis=0, dtype=np.float64).astype(int)
    order = np.argsort(-counts, kind="stable")
    shown = [f"{head.labels[i]} {counts[i]}" for i in order]
    if len(shown) <= 2 * LABELS_SHOWN:
        yield f"  train: {', '.join(shown)}"
    else:
        yield f"  train: most frequent {', '.join(shown[:LABELS_SHOWN])}; rarest {', '.join(shown[-LABELS_SHOWN:])}"
    if bare := [label for label, count in zip(head.labels, counts, strict=True) if not count]:
        more = ", …" if len(bare) > LABELS_SHOWN else ""
        first = ", ".join(bare[:LABELS_SHOWN])
        yield f"  note: no training row has {first}{more} ({len(bare)} of {len(head.labels)} labels)"
