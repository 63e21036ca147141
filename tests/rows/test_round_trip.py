"""Properties of reading: what was written is read, from any row on; and any bytes end in rows or in one TableError."""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyhead_rows import delimited, json_files, lines
from polyhead_rows.errors import TableError
from polyhead_rows.output import open_output
from polyhead_rows.table_file import ReadOptions, Row, TableFile, open_table, text_of

TEXT_NAMES = ["t.csv", "t.tsv", "t.jsonl", "t.ndjson", "t.json"]
NAMES = [
    *TEXT_NAMES, "t.parquet", "t.arrow", "t.feather",
    *(f"t.{kind}.{packed}" for kind in ("csv", "jsonl", "json") for packed in ("gz", "zst", "bz2", "xz")),
]  # fmt: skip
TEXTS = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('",;\t\r\n\0\ufeff \u2028\x85'), max_size=12)
NAMED = st.lists(TEXTS.filter(str.strip), min_size=1, max_size=3, unique=True)
FORMATS = ["csv", "tsv", "jsonl", "json", "lines", "parquet", "arrow"]
PIECES = (
    b"a", b'"', b'""', b",", b"\n", b"\r", b"\r\n", b"\t", b" ", b"\0", b"\xff", b"\xc3\xa9", b"\xef\xbb\xbf", b"{",
    b"}", b"[", b"]", b":", b'"t"', b"1", b"NaN", b"\\", b"\\ud800", b"\xe2\x80\xa8", b'{"t":"a"}', b"[{}", b"\xff\xfe",
    b"sep=;\n", b"\r\r\n",
)  # fmt: skip
BYTES = st.binary(max_size=80) | st.lists(st.sampled_from(PIECES), max_size=40).map(b"".join)
VALUES = st.fixed_dictionaries(
    {
        "i": st.none() | st.integers(-(2**63), 2**63 - 1),
        "f": st.none() | st.floats(allow_nan=False, allow_infinity=False),
        "b": st.none() | st.booleans(),
        "l": st.none() | st.lists(TEXTS, max_size=2),
    }
)


@st.composite
def _tables(draw: st.DrawFn) -> tuple[list[str], list[dict[str, str]]]:
    names = draw(NAMED)
    rows = draw(st.lists(st.lists(TEXTS, min_size=len(names), max_size=len(names)), max_size=8))
    return names, [dict(zip(names, row, strict=True)) for row in rows]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """One folder for all examples."""
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


@pytest.mark.parametrize("name", NAMES)
@given(table=_tables())
@settings(max_examples=30, deadline=None)
def test_what_is_written_is_read(name: str, table: tuple[list[str], list[dict[str, str]]], folder: Path) -> None:
    """Names and texts come back as they were, in every format and compression."""
    names, rows = table
    schema = pyarrow.schema([(column, pyarrow.string()) for column in names])
    with open_output(folder / name, schema) as output:
        output.write(pyarrow.Table.from_pylist(rows, schema=schema))
    read = open_table(str(folder / name))
    assert read.columns in (names, None)
    found = list(read.rows())
    assert [row.fields for row in found] == rows
    assert [row.number for row in found] == list(range(1, len(rows) + 1))
    assert all(row.end <= read.total for row in found)
    if read.arrow_schema is not None and rows:
        batches = list(read.batches(2, len(rows)))
        assert [row for batch in batches for row in batch.to_pylist()] == rows[1:]
    _check_positions(read, found)


@pytest.mark.parametrize("name", ["t.jsonl", "t.json", "t.parquet", "t.arrow"])
@given(rows=st.lists(VALUES, max_size=4))
@settings(max_examples=30, deadline=None)
def test_values_keep_their_types(name: str, rows: list[dict[str, Any]], folder: Path) -> None:
    """Numbers, truth values, lists and nulls come back as they were."""
    kinds = [pyarrow.int64(), pyarrow.float64(), pyarrow.bool_(), pyarrow.list_(pyarrow.string())]
    schema = pyarrow.schema(list(zip("ifbl", kinds, strict=True)))
    with open_output(folder / name, schema) as output:
        output.write(pyarrow.Table.from_pylist(rows, schema=schema))
    assert [row.fields for row in open_table(str(folder / name)).rows()] == rows


@pytest.mark.parametrize("kind", FORMATS)
@given(data=BYTES, encoding=st.sampled_from([None, None, "cp1252", "utf-16", "shift_jis"]))
@settings(max_examples=150, deadline=None)
def test_any_bytes_end_in_rows_or_in_one_error(kind: str, data: bytes, encoding: str | None, folder: Path) -> None:
    """No other exception; and each row that is read can be read again from its position."""
    path = folder / "any"
    path.write_bytes(data)
    options = ReadOptions.model_validate({"format": kind, "encoding": encoding if kind in FORMATS[:5] else None})
    opened = _read(path, options)
    if isinstance(opened, str):
        assert opened.startswith(str(path))
        assert "\n" not in opened
        return
    table, found = opened
    for row in found:
        assert (row.fields is None) == (row.reason is not None)
        assert row.reason is None or row.reason.isprintable()
        text_of(row, "t")
    _check_positions(table, found)


@pytest.mark.parametrize("packed", ["gz", "zst", "bz2", "xz"])
@given(data=BYTES, cut=st.integers(0, 200))
@settings(max_examples=40, deadline=None)
def test_a_damaged_compressed_file_ends_in_an_error(packed: str, data: bytes, cut: int, folder: Path) -> None:
    """Cut off or never compressed: one TableError that names the file."""
    path = folder / f"whole.jsonl.{packed}"
    schema = pyarrow.schema([("t", pyarrow.string())])
    with open_output(path, schema) as output:
        output.write(pyarrow.Table.from_pylist([{"t": "x" * 50}] * 3, schema=schema))
    content = path.read_bytes()
    path.write_bytes(content[: min(cut, len(content) - 1)] or data)
    opened = _read(path)
    if isinstance(opened, str):
        assert opened.startswith(str(path))
    else:
        assert not path.read_bytes()  # part files are often empty


@given(data=st.lists(st.sampled_from([b"a", b'"', b'""', b",", b"\n", b" "]), max_size=30).map(b"".join))
@settings(max_examples=300, deadline=None)
def test_good_csv_means_what_the_standard_library_reads(data: bytes, folder: Path) -> None:
    """If Python's strict reader has no complaint, the rows are the same."""
    path = folder / "good.csv"
    path.write_bytes(data)
    try:
        wanted = [cells for cells in csv.reader(io.StringIO(data.decode(), newline=""), strict=True) if cells]
    except csv.Error:
        return
    table = open_table(str(path), ReadOptions(header=False, columns=("a", "b")))
    found = [list(row.fields.values()) for row in table.rows() if row.fields is not None]
    assert found == [cells[:2] for cells in wanted if len(cells) >= 2 and not any(cells[2:])]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "lines"])
def test_long_rows_are_never_held_in_memory(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line over the limit is a bad row, and the next one is read; an open quote costs its line."""
    for module in (delimited, json_files, lines):
        monkeypatch.setattr(module, "LONGEST_LINE", 1000)
    path = folder / "long"
    long = "x" * 100_000
    contents = {
        "csv": f't\na\n{long}\nc\n"open\nd,""\n{long}\ne\n' + 5000 * '"",\n',
        "jsonl": f'{{"t":"a"}}\n{{"t":"{long}"}}\n{{"t":"c"}}\n',
        "lines": f"a\n{long}\nc\n",
        "json": f'[{{"t":"a"}},{{"t":"{long * 10}"}},{{"t":"c"}}]',
    }
    path.write_text(contents[kind], encoding="utf-8")
    table = open_table(str(path), ReadOptions.model_validate({"format": kind}))
    if kind == "json":
        with pytest.raises(TableError, match="row 2 and those behind it"):
            list(table.rows())
        return
    found = list(table.rows())
    assert found[0].fields is not None
    assert found[2].fields is not None
    assert "at most 1,000" in (found[1].reason or "")
    if kind == "csv":
        assert [row.line for row in found[3:8]] == [5, 6, 7, 8, 9]
        assert "opens a quote" in (found[3].reason or "")
        assert len(found) == 7 + 5000
    _check_positions(table, found[:10], found)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "lines"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_line_at_the_limit_costs_no_other_row(
    kind: str, end: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it is just within or just over it."""
    for module in (delimited, json_files, lines):
        monkeypatch.setattr(module, "LONGEST_LINE", 100)
    for size in [*range(80, 120), *range(190, 220)]:
        rows = ["a", size * "x", "c"]
        written = [f'{{"t":"{row}"}}' for row in rows] if kind == "jsonl" else (["t"] if kind == "csv" else []) + rows
        path = folder / "limit"
        path.write_text(end.join([*written, ""]), encoding="utf-8", newline="")
        found = list(open_table(str(path), ReadOptions.model_validate({"format": kind})).rows())
        assert [row.fields is not None for row in (found[0], found[2])] == [True, True]
        assert len(found) == 3


def _read(path: Path, options: ReadOptions | None = None) -> tuple[TableFile, list[Row]] | str:
    """The table and its rows, or the one error that reading may end in."""
    try:
        table = open_table(str(path), options or ReadOptions())
        return table, list(table.rows())
    except TableError as error:
        return str(error)


def _check_positions(table: TableFile, some: list[Row], found: list[Row] | None = None) -> None:
    """Reading from behind each of the rows gives exactly the rest."""
    found = some if found is None else found
    for place, row in enumerate(some, start=1):
        rest = list(table.rows(row.after))
        if table.can_seek or table.format in ("parquet", "arrow"):
            assert rest == found[place:]
        else:
            assert [one._replace(end=0) for one in rest] == [one._replace(end=0) for one in found[place:]]
