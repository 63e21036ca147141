"""Golden rows: real texts with the scores of transformers and with what a caller gets. ``golden.jsonl`` holds them.

Scores prove the weights. They do not prove what a caller sees of them: with two label names exchanged in config.json
the scores are the same. So a row also holds the decoded answer and, if the model has a template, the fields that it
renders; and the first row holds the whole ``polyhead`` section of config.json, because no answer shows a threshold that
no text comes near. A section of later versions is compared as it is, whatever fields it has.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from polyhead.checkpoint_files import parse_json, read_text
from polyhead.decode import DecodeOptions, Scores, are_answers, decode
from polyhead.errors import CheckpointError, describe, shortened
from polyhead.schema import Schema
from polyhead.template import FieldError, Template

Section = Mapping[str, Any]


class GoldenRow(BaseModel):
    """A text and its expected answer.

    Attributes:
        scores: what transformers computed for the text in float32, calibrated.
        token_count, truncated: as in an answer.
        fields: of the template, if the text is made of these.
        heads: the answer to a request without options; checkpoints of format 1 lack it.
        polyhead: config.json's section, in the first row only; checkpoints of format 1 lack it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    text: str
    scores: tuple[float, ...]
    token_count: int = Field(gt=0)
    truncated: bool
    fields: dict[str, str | None] | None = None
    heads: dict[str, dict[str, Any]] | None = None
    polyhead: dict[str, Any] | None = None

    @property
    def element(self) -> str:
        """What a client sends for this row: the fields as JSON, or the text."""
        return self.text if self.fields is None else json.dumps(self.fields, ensure_ascii=False)


def complete_rows(rows: Iterable[GoldenRow], section: Section, schema: Schema) -> Iterator[GoldenRow]:
    """The rows with the answers that their scores decode to, and with the section in the first one."""
    for number, row in enumerate(rows):
        yield row.model_copy(update={"heads": answer_of(row, schema), "polyhead": None if number else dict(section)})


def row_line(row: GoldenRow) -> str:
    """The row as a line of ``golden.jsonl``."""
    fields = {name: value for name, value in row.model_dump(mode="json").items() if value is not None}
    return json.dumps(fields, ensure_ascii=False) + "\n"


def answer_of(row: GoldenRow, schema: Schema) -> dict[str, dict[str, Any]]:
    """The answer that the row's scores decode to; raises CheckpointError if they are not as many as the schema's."""
    if len(row.scores) != schema.width:
        raise CheckpointError(f"scores must be {schema.width} numbers, got {len(row.scores)}")
    return decode(_scores(row), schema, DecodeOptions())


def read_rows(path: Path, width: int) -> list[GoldenRow]:
    """Reads ``golden.jsonl``.

    Args:
        width: number of scores per row.

    Raises:
        CheckpointError: a line breaks the contract; the message names it.
    """
    rows: list[GoldenRow] = []
    text = read_text(path).removesuffix("\n")
    # ``splitlines`` would also split at U+2028 and similar characters inside a text.
    for number, line in enumerate(text.split("\n") if text else [], start=1):
        parse_json(f"{path}:{number}", line)  # strict, as config.json: no name twice, no NaN
        try:
            row = GoldenRow.model_validate_json(line)
        except ValidationError as error:
            raise CheckpointError(f"{path}:{number}: {describe(error)}") from error
        if len(row.scores) != width:
            raise CheckpointError(f"{path}:{number}: scores must be {width} numbers, got {len(row.scores)}")
        if not are_answers(_scores(row)):
            raise CheckpointError(f"{path}:{number}: scores must be finite numbers of float32")
        rows.append(row)
    if not rows:
        raise CheckpointError(f"{path}: has no rows")
    return rows


def prove_view(
    rows: Sequence[GoldenRow],
    path: Path,
    section: Section,
    schema: Schema,
    template: Template | None,
    is_complete: bool,
) -> None:
    """Proves what a caller sees of the rows' scores. This needs no model.

    Args:
        path: of the rows, for messages.
        section: the ``polyhead`` section of config.json, as it is there.
        is_complete: whether the rows must prove all of it; rows of format 1 cannot.

    Raises:
        CheckpointError: a row contradicts config.json, or lacks what proves it; the message names the line.
    """
    for number, row in enumerate(rows, start=1):
        try:
            _check_row(row, section, schema, template)
        except ValueError as error:
            raise CheckpointError(f"{path}:{number}: {error}") from error
        needed = {"polyhead": row.polyhead} if number == 1 else {}
        for name, found in (needed | {"heads": row.heads}).items():
            if is_complete and found is None:
                raise CheckpointError(
                    f"{path}:{number}: {name}: this field is missing; without it nothing proves what a caller sees"
                )


def _scores(row: GoldenRow) -> Scores:
    with np.errstate(over="ignore"):
        return np.array(row.scores, dtype=np.float32)


def _check_row(row: GoldenRow, section: Section, schema: Schema, template: Template | None) -> None:
    """Raises ValueError if the row is not what config.json means."""
    if row.polyhead is not None and (found := difference(row.polyhead, section)) is not None:
        place, golden, given = found
        raise ValueError(
            f"config.json's polyhead section has {place} {given}, but the golden rows were made with {golden}"
        )
    if row.heads is not None and (found := difference(row.heads, answer_of(row, schema))) is not None:
        place, golden, given = found
        raise ValueError(f"heads: with config.json the scores give {place} {given}, but the row has {golden}")
    if row.fields is not None:
        try:
            rendered = None if template is None else template.render(row.fields)
        except FieldError as error:
            raise ValueError(f"fields: {error}") from error
        if rendered != row.text:
            raise ValueError(
                f"fields: text_template makes {shortened(rendered)} of them, but the text is {shortened(row.text)}"
            )


def difference(one: Any, other: Any, place: str = "") -> tuple[str, str, str] | None:
    """Where two JSON values first differ, and what each has there; None if they are equal."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        pairs = [
            (str(name), one.get(name, MISSING), other.get(name, MISSING))
            for name in [*one, *(n for n in other if n not in one)]
        ]
    elif (
        isinstance(one, Sequence)
        and isinstance(other, Sequence)
        and not isinstance(one, str)
        and len(one) == len(other)
    ):
        pairs = [(str(number), *both) for number, both in enumerate(zip(one, other, strict=True))]
    else:
        is_same = one == other and isinstance(one, bool) == isinstance(other, bool)
        return None if is_same else (place, shortened(one), shortened(other))
    for name, first, second in pairs:
        if (found := difference(first, second, f"{place}.{name}" if place else name)) is not None:
            return found
    return None


class _Missing:
    def __repr__(self) -> str:
        return "(nothing)"


MISSING = _Missing()
