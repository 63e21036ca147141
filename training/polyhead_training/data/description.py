"""A corpus in words: what ``polyhead-train`` says of the data, in a dry run and before it trains."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from polyhead.schema import Head
from polyhead_training.data.corpus import Corpus, Split

SHOWN = 5  # labels from each end


def describe_corpus(corpus: Corpus) -> list[str]:
    """Lines: rows of each split, labels and missing labels of each head, then what to be aware of."""
    lines = [f"{name}: {len(split)} rows{_dropped(split)}" for name, split in corpus.splits.items()]
    labels = {name: split.labels for name, split in corpus.splits.items()}
    for head in corpus.schema:
        columns = corpus.schema.label_columns[head.name]
        lines += _head_lines(head, {name: matrix[:, columns] for name, matrix in labels.items()})
    return lines + [f"note: {note}" for note in corpus.notes]


def _dropped(split: Split) -> str:
    return f", {split.dropped} more dropped since their text is blank or unreadable" if split.dropped else ""


def _head_lines(head: Head, blocks: dict[str, NDArray[np.float32]]) -> Iterator[str]:
    yield f"head {head.name}: {head.kind}" + (f", {len(head.labels)} labels" if head.labels else "")
    for name, block in blocks.items():
        if missing := int(np.isnan(block[:, 0]).sum()):
            yield f"  {name}: {missing} of {len(block)} rows have no label"
    known = blocks["train"][~np.isnan(blocks["train"][:, 0])]
    if head.kind == "regression":
        if len(known):
            yield f"  train: from {known.min():g} to {known.max():g}, mean {known.mean():g}"
        return
    if head.kind == "single_label":
        counts = np.bincount(known[:, 0].astype(int), minlength=len(head.labels))
    else:
        counts = known.sum(axis=0, dtype=np.float64).astype(int)
    order = np.argsort(-counts, kind="stable")
    shown = [f"{head.labels[i]} {counts[i]}" for i in order]
    if len(shown) <= 2 * SHOWN:
        yield f"  train: {', '.join(shown)}"
    else:
        yield f"  train: most frequent {', '.join(shown[:SHOWN])}; rarest {', '.join(shown[-SHOWN:])}"
    if bare := [label for label, count in zip(head.labels, counts, strict=True) if not count]:
        more = ", …" if len(bare) > SHOWN else ""
        yield f"  note: no training row has {', '.join(bare[:SHOWN])}{more} ({len(bare)} of {len(head.labels)} labels)"
