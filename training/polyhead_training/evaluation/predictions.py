"""Every answer of an evaluation beside its true label, as Parquet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from polyhead.decode import DecodeOptions, decode
from polyhead.schema import Head
from polyhead_training.evaluation.evaluation import Evaluation


def write_predictions(path: Path, evaluation: Evaluation) -> None:
    """Writes ``text``, ``token_count``, ``truncated`` and columns a head.

    ``head/label`` and ``head/score`` of a single_label head, ``head/labels`` and ``head/scores`` of a multi_label one,
    ``head/value`` of a regression; ``head/true`` is what the data say, null where they say nothing.
    """
    schema = evaluation.schema
    answers = [decode(row, schema, DecodeOptions()) for row in evaluation.scores]
    columns: dict[str, pa.Array] = {
        "text": pa.array(evaluation.texts, pa.string()),
        "token_count": pa.array(evaluation.token_counts),
        "truncated": pa.array(evaluation.truncated),
    }
    for head in schema:
        found = [answer[head.name] for answer in answers]
        text, number = pa.string(), pa.float32()
        match head.kind:
            case "single_label":
                columns[f"{head.name}/label"] = pa.array([one["labels"][0] for one in found], text)
                columns[f"{head.name}/score"] = pa.array([one["scores"][0] for one in found], number)
            case "multi_label":
                text, number = pa.list_(text), pa.list_(number)
                columns[f"{head.name}/labels"] = pa.array([one["labels"] for one in found], text)
                columns[f"{head.name}/scores"] = pa.array([one["scores"] for one in found], number)
            case "regression":
                text = number
                columns[f"{head.name}/value"] = pa.array([one["value"] for one in found], number)
        given = evaluation.labels[:, schema.label_columns[head.name]]
        columns[f"{head.name}/true"] = pa.array([_true(head, row) for row in given], text)
    parquet.write_table(pa.table(columns), path, compression="zstd")


def _true(head: Head, row: np.ndarray[Any, np.dtype[np.float32]]) -> Any:
    if np.isnan(row).any():
        return None
    match head.kind:
        case "single_label":
            return head.labels[int(row[0])]
        case "multi_label":
            return [label for label, is_true in zip(head.labels, row, strict=True) if is_true]
        case "regression":
            return float(row[0])
