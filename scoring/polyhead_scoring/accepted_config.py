"""New golden rows for a checkpoint whose config.json was changed on purpose, for example a threshold.

The rows that there are prove first that the weights are still those of training: with the heads of the config that they
were made with, or with the present ones if they are of format 1. Then they get the answers that the present heads give.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from polyhead.checkpoint import read_checkpoint, renew_golden
from polyhead.errors import CheckpointError, SchemaError
from polyhead.golden import GoldenRow, difference, read_rows
from polyhead.predictor import Predictor
from polyhead.schema import MAY_LACK, Schema

CHANGEABLE = ("format", "heads", "text_template")  # of the polyhead section; the rest decides what the weights mean


def accept_config(folder: Path) -> int:
    """Renews the golden rows of the checkpoint; returns how many there are.

    Scores stay those of transformers, unless a temperature, target_scale or y_range has changed: then they are the
    engine's.

    Raises:
        CheckpointError: the change is not one of heads and template, or the checkpoint is damaged.
        ToleranceError: the weights are not those that the rows were made with.
    """
    checkpoint = read_checkpoint(folder)
    path = folder / "golden.jsonl"
    rows = read_rows(path, checkpoint.schema.width)
    section = checkpoint.section if rows[0].polyhead is None else rows[0].polyhead
    if found := difference(_fixed(section), _fixed(checkpoint.section)):
        place, before, now = found
        raise CheckpointError(
            f"{folder / 'config.json'}: polyhead: {place} was {before} and is {now}; "
            "only heads and text_template can be changed after training"
        )
    try:
        before_heads = Schema.from_json(section.get("heads"), MAY_LACK)
    except SchemaError as error:
        raise CheckpointError(f"{path}:1: polyhead: {error}") from error
    if [head.width for head in before_heads] != [head.width for head in checkpoint.schema]:
        raise CheckpointError(f"{folder / 'config.json'}: heads must have as many labels as those that were trained")
    template = section.get("text_template")
    spec = checkpoint.spec.model_copy(update={"text_template": template})
    as_trained = replace(checkpoint, config=checkpoint.config | {"polyhead": section}, schema=before_heads, spec=spec)
    predictor = Predictor(as_trained, precision="fp32")
    predictor.check_golden()
    encoded = predictor.encode([row.text for row in rows], are_rendered=True)
    if _scales(before_heads) != _scales(checkpoint.schema):
        scores = Predictor(checkpoint, precision="fp32").score(encoded)
        rows = [
            row.model_copy(update={"scores": tuple(map(float, found))}) for row, found in zip(rows, scores, strict=True)
        ]
    if template != checkpoint.spec.text_template:
        rows = [_rendered_again(row, checkpoint.spec.template) for row in rows]
    renew_golden(checkpoint, rows)
    Predictor.load(folder, precision="fp32").check_golden()
    return len(rows)


def _fixed(section: Any) -> dict[str, Any]:
    return {name: value for name, value in section.items() if name not in CHANGEABLE}


def _scales(schema: Schema) -> list[tuple[Any, ...]]:
    """What makes scores of logits."""
    return [(head.kind, head.temperature, head.target_scale, head.y_range) for head in schema]


def _rendered_again(row: GoldenRow, template: Any) -> GoldenRow:
    """The row without its fields if another template no longer makes its text of them."""
    is_same = row.fields is not None and template is not None and template.render(row.fields) == row.text
    return row if is_same else row.model_copy(update={"fields": None})
