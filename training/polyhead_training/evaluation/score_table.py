"""The scores of all heads beside the baselines, as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from polyhead.schema import Schema
from polyhead_training.evaluation.headline import measured_baselines
from polyhead_training.evaluation.metrics import MAIN
from polyhead_training.evaluation.wording import number

Metrics = Mapping[str, Mapping[str, float]]


def score_table(
    schema: Schema,
    metrics: Mapping[str, Metrics],
    baselines: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]],
) -> Table:
    """A row per split, head and main metric.

    Args:
        metrics: by split, head and metric.
        baselines: by split, head, baseline and metric.
    """
    table = Table("split", "head", "rows", "metric", "model", title="Reached")
    names = measured_baselines(of_head for by_head in baselines.values() for of_head in by_head.values())
    for name in names:
        table.add_column(name)
    for split, by_head in metrics.items():
        for head, scores in by_head.items():
            others = baselines.get(split, {}).get(head, {})
            shown = [key for key in MAIN[schema[head].kind] if key in scores]
            for place, key in enumerate(shown or [""]):
                first = (split, head, number(scores.get("rows", 0))) if not place else ("", "", "")
                values = [scores.get(key), *(others.get(name, {}).get(key) for name in names)]
                table.add_row(*first, key, *("" if value is None else number(value) for value in values))
        table.add_section()
    return table
