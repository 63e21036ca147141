"""``polyhead-dataset from-log``: the texts of an answer log of which the model was least sure, as a file to label."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow
import typer

from polyhead.files import replaced_file
from polyhead_rows.output import open_output
from polyhead_rows.place import known_names, split_name
from polyhead_training.command_line import one_line_errors
from polyhead_training.data.answer_log import AnswerLogFiles
from polyhead_training.errors import ConfigError, DataError

By = Literal["margin", "score", "rejected"]
EPILOG = """\b
Examples:
  polyhead-dataset from-log /var/log/polyhead to_label.csv
  polyhead-dataset from-log /var/log/polyhead to_label.jsonl --head topic --count 100 --by rejected

\b
Fill in the empty columns, then train with them:
  polyhead-evaluate runs/reviews to_label.csv          # how good the model is on its hardest texts
"""


@dataclass
class LoggedText:
    """A text, and the last answer to it.

    Attributes:
        columns: the text, or the fields that it was made of.
        entry: of the last answer.
        count: how often it is in the log.
    """

    columns: dict[str, str]
    entry: Mapping[str, Any]
    count: int = 1

    def uncertainty(self, head: str, by: By) -> float | None:
        """Lower is less sure; None if it says nothing about this head."""
        answer, scores = self.entry["answers"].get(head), self.entry["scores"].get(head)
        margin = (self.entry.get("margins") or {}).get(head)
        if not scores or margin is None:
            return None
        if isinstance(answer, list):  # of several labels, what counts is the nearest threshold
            return None if by == "rejected" else float(margin)
        if by == "rejected" and answer is not None:
            return None
        return float(margin) if by == "margin" else float(max(scores.values()))


def from_log(
    log: Annotated[list[str], typer.Argument(help="Files of an answer log; paths, globs or folders.")],
    output: Annotated[Path, typer.Argument(help="The file to label: CSV, TSV, JSON lines, JSON, Parquet or Arrow.")],
    count: Annotated[int, typer.Option(help="How many texts.", min=1)] = 200,
    head: Annotated[
        list[str] | None,
        typer.Option(help="Choose texts of which this head is unsure. May be repeated. All heads by default."),
    ] = None,
    by: Annotated[
        By,
        typer.Option(
            help="margin: the best score is close to the second best, or a score is close to its threshold. score: the "
            "best score is low. rejected: only texts that got no label."
        ),
    ] = "margin",
) -> None:
    """Take the texts of which the model was least sure from a server's answer log, as a file to label.

    The least sure come first. Each text is there once, with an empty column per head to fill in, and what the model
    answered beside it. The output must not exist, because somebody may be labelling it.
    """
    with one_line_errors("polyhead-dataset"):
        texts, notes = read_log(log)
        heads = checked_heads(texts, head or [], log)
        chosen = least_sure(texts, heads, by)[:count]
        if not chosen:
            raise DataError(f"{', '.join(log)}: no text was rejected by {', '.join(heads)}")
        write_to_label(output, chosen, heads)
    for note in notes:
        print(f"note: {note}")
    print(f"{output}: {len(chosen)} of {len(texts):,} texts to label for {', '.join(heads)}")


def read_log(patterns: Sequence[str]) -> tuple[list[LoggedText], list[str]]:
    """The texts of a log, each once, and notes about what was left out.

    Raises:
        DataError: it has no texts.
    """
    files, found, without_text = AnswerLogFiles(patterns), dict[str, LoggedText](), 0
    for entry in files:
        text = entry.get("text")
        if not isinstance(text, str):
            without_text += 1
            continue
        known = found.get(text)
        columns = {name: str(value or "") for name, value in (entry.get("fields") or {"text": text}).items()}
        if known is None:
            found[text] = LoggedText(columns, entry)
        elif entry["time"] >= known.entry["time"]:
            found[text] = LoggedText(columns, entry, known.count + 1)
        else:
            known.count += 1
    if not found:
        why = "holds answers without their texts, so there is nothing to label; log them with answer_log_texts plain"
        raise DataError(f"{', '.join(patterns)}: {why if without_text else 'holds no answers'}")
    notes = files.notes()
    if without_text:
        notes.append(f"{without_text} answers were logged without their texts and are left out")
    return list(found.values()), notes


def checked_heads(texts: Sequence[LoggedText], wanted: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The heads to label.

    Raises:
        ConfigError: the log has no such head, or it is a regression, which is never unsure.
    """
    unsure = list(dict.fromkeys(name for text in texts for name in text.entry.get("margins") or {}))
    heads = list(dict.fromkeys(wanted)) or unsure
    if unknown := [name for name in heads if name not in unsure]:
        raise ConfigError(f"--head {shlex.quote(unknown[0])}: the log has answers of {', '.join(unsure) or 'no head'}")
    if not heads:
        raise DataError(
            f"{', '.join(patterns)}: all heads are regressions, of which a model does not say how sure it is"
        )
    return heads


def least_sure(texts: Sequence[LoggedText], heads: Sequence[str], by: By) -> list[LoggedText]:
    """The texts, the least sure first.

    Heads count alike although their margins differ: first comes the text of which each head is least sure, then the
    second of each, and so on.
    """
    best: dict[int, tuple[int, float]] = {}
    for head in heads:
        found = [(text.uncertainty(head, by), place) for place, text in enumerate(texts)]
        ranked = sorted((value, place) for value, place in found if value is not None)
        for rank, (value, place) in enumerate(ranked):
            best[place] = min(best.get(place, (rank, value)), (rank, value))
    return [texts[place] for place in sorted(best, key=lambda place: (*best[place], place))]


def write_to_label(output: Path, texts: Sequence[LoggedText], heads: Sequence[str]) -> None:
    """Writes the file, in one step.

    Raises:
        ConfigError: the file exists or has no known ending, or a head has the name of another column.
    """
    if split_name(str(output))[0] in (None, "lines"):
        raise ConfigError(f"{output}: the name must end in one of {known_names()}")
    if output.exists():
        raise ConfigError(f"{output}: exists and is not replaced, because somebody may be labelling it; name another")
    columns = list(_columns(texts, heads))
    names = [name for name, _, _ in columns]
    if doubled := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"two columns would be named {doubled!r}; choose other heads with --head")
    fields = [pyarrow.field(name, kind) for name, kind, _ in columns]
    table = pyarrow.table([pyarrow.array(values, kind) for _, kind, values in columns], schema=pyarrow.schema(fields))
    with replaced_file(output) as part, open_output(part, table.schema) as opened:
        opened.write(table)


def _columns(texts: Sequence[LoggedText], heads: Sequence[str]) -> Iterator[tuple[str, pyarrow.DataType, list[Any]]]:
    """Name, type and values of each column."""
    string, number = pyarrow.string(), pyarrow.float32()
    for name in dict.fromkeys(name for text in texts for name in text.columns):
        yield name, string, [text.columns.get(name) for text in texts]
    for head in heads:
        answers = [text.entry["answers"].get(head) for text in texts]
        is_list = any(isinstance(answer, list) for answer in answers)
        scores = [text.entry["scores"].get(head) or {} for text in texts]
        # A rejected answer is suggested too: a person decides.
        suggested = [
            answer if answer is not None else next(iter(found), None)
            for answer, found in zip(answers, scores, strict=True)
        ]
        yield head, string, [None] * len(texts)
        yield f"{head}_suggested", pyarrow.list_(string) if is_list else string, suggested
        if not is_list:
            yield f"{head}_score", number, [found.get(label) for label, found in zip(suggested, scores, strict=True)]
        yield f"{head}_margin", number, [text.uncertainty(head, "margin") for text in texts]
    yield "times_logged", pyarrow.int64(), [text.count for text in texts]
    for name in ("time", "version", "request_id"):
        yield name, string, [text.entry.get(name) for text in texts]
