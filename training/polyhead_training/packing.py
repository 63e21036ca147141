"""Batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def collate(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch, padded on the right to its longest: ``input_ids`` and ``attention_mask`` (n, length), ``labels``."""
    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for position, row in enumerate(rows):
        ids[position, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
        mask[position, : len(row["input_ids"])] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([row["labels"] for row in rows])}
