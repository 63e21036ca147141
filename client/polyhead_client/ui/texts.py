"""Texts that come into the page: pasted lines, uploaded files, and the golden rows of a checkpoint as examples.

The page takes at most `MOST_TEXTS` texts and `MOST_BYTES` at a time; `polyhead-score` takes any file.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from polyhead_client.errors import UsageError
from polyhead_client.ui.asking import TextOrFields

MOST_TEXTS = 1000
MOST_BYTES = 5 * 1024 * 1024
KINDS = (".csv", ".tsv", ".jsonl", ".txt")
LIMIT = f"at most {MOST_TEXTS:,} texts and {MOST_BYTES // 1024**2} MiB at a time; for more use polyhead-score"
FEW = 100  # examples in the list
SHOWN = 90  # characters of an example


def read_lines(pasted: str) -> list[str]:
    """The lines of a pasted text; blank ones are left out.

    Raises:
        UsageError: there is none, or there are too many.
    """
    return _checked([line for line in pasted.splitlines() if line.strip()], len(pasted.encode(errors="replace")))


def read_file(path: Path, fields: Sequence[str], column: str) -> list[TextOrFields]:
    """The texts of a CSV, TSV, JSON lines or plain text file, in UTF-8.

    Args:
        fields: of the model. Columns with these names become fields; the columns may lack some of them.
        column: which column has the texts if the model has no fields, or the file none of them.

    Raises:
        UsageError: the file cannot be read; the message says what is wrong with it and where.
    """
    kind = path.suffix.lower()
    if kind not in KINDS:
        raise UsageError(f"the file must end with {', '.join(KINDS)}, got {path.name!r}")
    data = path.read_bytes()
    if len(data) > MOST_BYTES:
        raise UsageError(f"the file has {len(data):,} bytes; {LIMIT}")
    try:
        content = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(f"line {line} of the file is not UTF-8; save it as UTF-8") from error
    match kind:
        case ".txt":
            return [*read_lines(content)]
        case ".jsonl":
            rows = _json_rows(content)
        case _:
            rows = _csv_rows(content, "\t" if kind == ".tsv" else ",")
    return _checked([_text(row, number, fields, column) for number, row in rows], len(data))


def _checked(texts: list[Any], size: int) -> list[Any]:
    if not texts:
        raise UsageError("there are no texts")
    if len(texts) > MOST_TEXTS or size > MOST_BYTES:
        raise UsageError(f"there are {len(texts):,} texts; {LIMIT}")
    return texts


def _json_rows(content: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UsageError(f"line {number} of the file is not JSON ({error})") from error


def _csv_rows(content: str, delimiter: str) -> Iterator[tuple[int, dict[str, str]]]:
    csv.field_size_limit(MOST_BYTES)
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    try:
        names = next(reader, [])
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(names):
                raise UsageError(f"line {reader.line_num} of the file has {len(cells)} cells, its header {len(names)}")
            yield reader.line_num, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise UsageError(f"line {reader.line_num} of the file is not CSV ({error})") from error


def _text(row: Any, number: int, fields: Sequence[str], column: str) -> TextOrFields:
    if isinstance(row, str):
        return row
    if not isinstance(row, dict):
        raise UsageError(f"line {number} of the file must be a text or an object, got {json.dumps(row)[:60]}")
    if found := {name: "" if row[name] is None else str(row[name]) for name in fields if name in row}:
        return found
    if column not in row and len(row) == 1:
        (column,) = row
    if column not in row:
        wanted = f"the model's fields {list(fields)} or " if fields else ""
        raise UsageError(f"line {number} of the file has the columns {list(row)}, but needs {wanted}{column!r}")
    if not isinstance(row[column], str):
        raise UsageError(f"line {number} of the file: {column!r} must be a text, got {json.dumps(row[column])[:60]}")
    text: str = row[column]
    return text


def read_golden(path: Path) -> list[TextOrFields]:
    """The first texts, or fields, of the golden rows of a checkpoint.

    Args:
        path: ``golden.jsonl``, or the checkpoint's folder.

    Raises:
        UsageError: it cannot be read or holds something else.
    """
    path = path / "golden.jsonl" if path.is_dir() else path
    try:
        with path.open(encoding="utf-8") as file:
            return [_golden_text(line, f"{path}:{number}") for number, line in enumerate(islice(file, FEW), start=1)]
    except OSError as error:
        raise UsageError(f"golden: {path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"golden: {path} is not UTF-8; give the golden.jsonl of a checkpoint") from error


def _golden_text(line: str, place: str) -> TextOrFields:
    try:
        row = json.loads(line)
        fields = row.get("fields")
        text = row["text"] if fields is None else {name: value or "" for name, value in fields.items()}
    except (ValueError, LookupError, AttributeError, RecursionError) as error:
        raise UsageError(f"golden: {place} is not a golden row; give the golden.jsonl of a checkpoint") from error
    if not all(isinstance(value, str) for value in (text.values() if isinstance(text, dict) else [text])):
        raise UsageError(f"golden: {place} has a text that is no string")
    return text


def example_title(number: int, text: TextOrFields) -> str:
    """An example as the list shows it; the number makes it unique."""
    joined = text if isinstance(text, str) else " | ".join(value for value in text.values() if value)
    line = " ".join(joined.split())
    return f"{number}. {line if len(line) <= SHOWN else f'{line[: SHOWN - 1]}…'}"
