"""Tables for people: predictions, the schema, statistics."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from polyhead_client.prediction import HeadPrediction, MultiLabel, Prediction, Regression, SingleLabel
from polyhead_client.schema import HeadSchema, Schema
from polyhead_client.statistics import ModelStatistics

LONGEST_TEXT = 60  # characters of a text in the table
MOST_LABELS = 8  # of a head in the schema's table


def print_predictions(texts: Sequence[str], predictions: Sequence[Prediction]) -> None:
    """A row a text and a column a head."""
    heads = list(dict.fromkeys(name for prediction in predictions for name in prediction.heads))
    failed = any(prediction.error is not None for prediction in predictions)
    table = Table(show_lines=any(len(prediction.heads) > 1 for prediction in predictions))
    for name in ("text", *heads, "tokens", *(["error"] if failed else [])):
        table.add_column(_plain(name), overflow="fold")
    for text, prediction in zip(texts, predictions, strict=True):
        shown = text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"
        cells = [_plain(shown), *(_plain(_describe(prediction.heads.get(name))) for name in heads)]
        cells.append(Text(f"{prediction.token_count}{' (truncated)' if prediction.truncated else ''}"))
        if failed:
            cells.append(Text(_printable(prediction.error or ""), style="red"))
        table.add_row(*cells)
    Console().print(table)


def print_schema(schema: Schema) -> None:
    """A row a head."""
    table = Table("head", "kind", "labels", "parent", caption=f"A text is read to {schema.max_length} tokens.")
    for head in schema.heads:
        table.add_row(_plain(head.name), head.kind, _plain(_labels(head)), _plain(head.parent or ""))
    Console().print(table)


def print_statistics(statistics: Sequence[ModelStatistics]) -> None:
    """A row a replica and version."""
    names = ("replica", "version", "texts", "batches", "requests", "failed", "queue ms", "compute ms")
    table = Table(*names)
    for one in statistics:
        counts = (one.inferences, one.executions, one.successes, one.failures)
        times = (one.queue_ms, one.compute_ms)
        table.add_row(
            _plain(one.replica), _plain(one.version), *(f"{n:,}" for n in counts), *(f"{ms:.2f}" for ms in times)
        )
    Console().print(table)


def _labels(head: HeadSchema) -> str:
    if head.kind == "regression":
        return "a number"
    thresholds = head.thresholds or (None,) * len(head.labels)
    shown = [
        label if threshold is None else f"{label} from {threshold:.2f}"
        for label, threshold in zip(head.labels[:MOST_LABELS], thresholds, strict=False)
    ]
    more = len(head.labels) - MOST_LABELS
    return ", ".join(shown) + (f" and {more} more (--json has all)" if more > 0 else "")


def _describe(head: HeadPrediction | None) -> str:
    match head:
        case None:
            return ""
        case SingleLabel(top):
            return "\n".join(f"{one.label} {one.score:.2f}" for one in top)
        case MultiLabel(labels):
            return "\n".join(f"{one.label} {one.score:.2f}" for one in labels) or "none"
        case Regression(value):
            return f"{value:.4g}"


def _plain(text: str) -> Text:
    return Text(_printable(text))


def _printable(text: str) -> str:
    # Texts and labels are data: an escape sequence in them must not reach the terminal.
    return "".join(character if character.isprintable() or character == "\n" else "�" for character in text)
