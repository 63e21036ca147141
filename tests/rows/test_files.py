"""Formats, options, names and places of input files, and what is said about files that are something else."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import sys
import threading
import tracemalloc
from pathlib import Path

import pyarrow
import pytest
from pyarrow import ipc, parquet
from pydantic import ValidationError

from polyhead_rows.errors import TableError
from polyhead_rows.output import open_output
from polyhead_rows.table_file import BadText, ReadOptions, Row, Start, find_files, open_table, read_texts, text_of


def texts(path: Path | str, column: str = "text", **options: object) -> list[str]:
    """All texts of a file."""
    return list(read_texts(str(path), column, ReadOptions.model_validate(options)))


def write(folder: Path, name: str, content: str | bytes) -> Path:
    """A file."""
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("options", "content"),
    [
        ({}, "id,text\n1,café\n".encode()),
        ({}, "id,text\n1,café\n".encode("utf-8-sig")),
        ({}, "id,text\n1,café\n".encode("utf-16")),
        ({}, b"\xfe\xff" + "id,text\r\n1,café\r\n".encode("utf-16-be")),
        ({"encoding": "utf-16-le"}, "id,text\n1,café\n".encode("utf-16-le")),
        ({"encoding": "cp1252"}, "id,text\n1,café\n".encode("cp1252")),
        ({"encoding": "utf8"}, "id,text\n1,café\n".encode()),
        ({"delimiter": ";"}, "id;text\n1;café\n".encode()),
        ({"delimiter": "\\t"}, "id\ttext\n1\tcafé\n".encode()),
        ({"format": "tsv"}, "id\ttext\n1\tcafé\n".encode()),
        ({"header": False, "columns": ["id", "text"]}, "1,café\n".encode()),
        ({}, "sep=;\nid;text\n1;café\n".encode()),
        ({}, "id,text,,\n1,café,,\n".encode()),
        ({}, "id,text,note,note\n1,café,x,y\n".encode()),
        ({}, "id,text\r1,café\r".encode()),
        ({}, '\n\nid,"text"\n   \n1,"café"\n\n'.encode()),
        ({}, "\n  \nid,text\n1,café\n".encode()),
        ({}, "id,text\r\r\n1,café\r\r\n".encode()),
        ({}, "SEP=;\r\nid;text\r\n1;café\r\n".encode()),
        ({"delimiter": ","}, "sep=;\nid,text\n1,café\n".encode()),
        ({"header": False, "columns": ["id", "text"]}, "sep=;\n1;café\n".encode()),
        ({"encoding": "cp1252"}, "id,text\n1,café\n".encode("utf-8-sig")),
        ({"encoding": "cp1252"}, "id,text\n1,café\n".encode("utf-16")),
    ],
)
def test_the_ways_in_which_people_write_csv(options: dict[str, object], content: bytes, tmp_path: Path) -> None:
    """Byte order marks, encodings, delimiters, line ends, Excel's additions and missing headers."""
    path = write(tmp_path, "a.csv", content)
    assert texts(path, **options) == ["café"]
    packed = write(tmp_path, "a.csv.gz", gzip.compress(content, mtime=0))
    assert texts(packed, **options) == ["café"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "id;text\n1;a\n", "no column 'text'; it has 'id;text'; the first line has one column only, "
         "'id;text': set delimiter = \";\""),
        ("a.csv", "id\ttext\n1\ta\n", 'set format = "tsv"'),
        ("a.tsv", "id,text\n1,a\n", "is it tabs that stand between its cells?"),
        ("a.csv", '{"text":"a"}\n', 'looks like JSON lines: set format = "jsonl"'),
        ("a.csv", "id,text\n1,caf\xe9\n".encode("latin-1"), ":2: column 'text' is not UTF-8: it has byte 0xe9; for a "
         'text of Windows or Excel set encoding = "cp1252"'),
        ("a.csv", '{"id":1,"text":"a"}\n', 'looks like JSON lines: set format = "jsonl"'),
        ("a.csv", '[{"id":1,"text":"a"}]\n', 'looks like a JSON array: set format = "json"'),
        ("a.csv", "<!DOCTYPE html>\n<html></html>\n", "is a web page"),
        ("a.csv", 100_000 * "x" + "\n", "no column 'text'; it has 'xxx"),
        ("a.txt", "version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        ("a.csv", "id,caf\xe9\n1,a\n".encode("latin-1"), "column 2 is not UTF-8"),
        ("a.csv", "id,text\n1,a\n".encode("utf-16-le"), 'set encoding = "utf-16-le"'),
        ("a.csv", "id,text\n1,a\n".encode("utf-16-be"), 'set encoding = "utf-16-be"'),
        ("a.csv", gzip.compress(b"id,text\n", mtime=0), "is compressed with gzip; name it with .gz at the end"),
        ("a.csv", b"PAR1\x15...", 'set format = "parquet"'),
        ("a.csv", "PAR1,BZh\n1,a\n", "no column 'text'; it has 'PAR1', 'BZh'"),
        ("a.csv", bz2.compress(b"id,text\n"), "name it with .bz2 at the end"),
        ("a.csv", lzma.compress(b"id,text\n"), "name it with .xz at the end"),
        ("a.csv", b"PK\x03\x04....", "save its sheet as CSV"),
        ("a.xlsx", b"PK\x03\x04....", "save its sheet as CSV"),
        ("a.csv.gz", b"id,text\n1,a\n", "cannot be read as gzip"),
        ("a.csv", "", "is empty; the first line must name the columns"),
        ("a.csv", " \n\n\t\n", "is empty; the first line must name the columns"),
        ("a.csv", ",,\n1,2,3\n", "the first line names no column; remove it"),
        ("a.csv", 'id,"text\n1,a\n', "the first line must name the columns, but it opens a quote"),
        ("a.csv", "id,text\n1,a\rb\n", ":2: has a carriage return in a cell without quotes"),
        ("a.dat", "id,text\n", "the name must end in one of .csv, .tsv, .jsonl"),
        ("a.jsonl", '[{"text":"a"}]', 'one object per line is wanted; for an array name it .json or set'),
        ("a.jsonl", '[\n{"text":"a"}\n]', 'for an array name it .json or set format = "json"'),
        ("a.json", '{"text":"a"}\n{"text":"b"}\n', 'for one object per line name it .jsonl or set format = "jsonl"'),
        ("a.json", "", "must hold one array of objects; it is empty"),
        ("a.json", '[{"text":"a"}\n{"text":"b"}]', ":2: ',' is expected, got '{'; the array is broken"),
        ("a.json", '[{"text":"a"},\n{"text":}]', ":2: row 2 and those behind it cannot be read: is not JSON"),
        ("a.json", '[{"text":"a"}', ":1: ',' is expected, got the end of the file"),
        ("a.json", '[{"text":"a"}] x', "text behind the end of the array"),
        ("a.json", '[{"text":"a"},\n]', ":2: a comma stands before the end of the array; remove it"),
        ("a.json", "id,text\n1,a\n", "must hold one array of objects; it begins with 'id,text"),
        ("a.json", '{\n "text":"a"\n}\n', "holds objects of several lines; write one object per line"),
        ("a.jsonl", '{\n "text":"a"\n}\n', "holds objects of several lines; write one object per line"),
        ("a.jsonl", '[ {"text":"a"},\n{"text":"b"}]', 'for an array name it .json or set format = "json"'),
        ("a.jsonl", '{"text":"a"},\n', "remove the comma at its end"),
        ("a.jsonl", f'{{"text":{5000 * "9"}}}', "has a whole number of more than 4,300 digits"),
        ("a.json", "[[1]]", "must be an object, got a list"),
        ("a.json", "[1]", ":1: must be an object, got a number"),
        ("a.json", '[{"text":"a"},\n' + 100_000 * "[", ":2: row 2 and those behind it cannot be read: is nested"),
        ("a.parquet", "id,text\n", "begins with b'id,text\\n', not Parquet"),
        ("a.parquet", b"PAR1....PAR1", "cannot be read as Parquet"),
        ("a.arrow", "id,text\n", "cannot be read as Arrow"),
        ("a.arrow", b"PAR1\x15...", 'set format = "parquet"'),
        ("a.arrow", "", "is empty"),
        ("a.feather", b"FEA1....", "Feather of version 1"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_says_what_to_do(name: str, content: str | bytes, said: str, tmp_path: Path) -> None:
    """The error is one line that begins with the file's name."""
    path = write(tmp_path, name, content)
    with pytest.raises(TableError) as caught:
        texts(path)
    assert said in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 500


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"delimiter": ";;"}, "delimiter must be one character"),
        ({"encoding": "utf-99"}, "encoding 'utf-99' is unknown"),
        ({"encoding": ""}, "encoding '' is unknown"),
        ({"header": False}, "header = false needs the names of the columns"),
        ({"columns": ["text"]}, "columns is for files without a header"),
        ({"header": False, "columns": ["a", "a"]}, "columns must differ"),
        ({"format": "xlsx"}, "format"),
        ({"seperator": ";"}, "seperator"),
    ],
)
def test_options_are_checked(options: dict[str, object], said: str) -> None:
    """Each message names the option."""
    with pytest.raises(ValidationError, match=said):
        ReadOptions.model_validate(options)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("a.jsonl", {"delimiter": ";"}, "delimiter is for CSV"),
        ("a.tsv", {"delimiter": ";"}, "delimiter is for CSV"),
        ("a.parquet", {"header": False, "columns": ["a"]}, "header = false is for CSV, TSV and JSON"),
        ("a.parquet", {"encoding": "cp1252"}, "encoding is for text files"),
    ],
)
def test_options_that_do_not_suit_the_format_are_refused(
    name: str, options: dict[str, object], said: str, tmp_path: Path
) -> None:
    """An option is never ignored."""
    with pytest.raises(TableError, match=said):
        open_table(str(tmp_path / name), ReadOptions.model_validate(options))


def test_a_header_may_be_very_long(tmp_path: Path) -> None:
    """Of tables with many columns."""
    names = [f"column {n}" for n in range(20_000)]
    path = write(tmp_path, "a.csv", ",".join([*names, "text"]) + "\n" + 20_000 * "," + "a\n")
    assert texts(path) == ["a"]


def test_broken_rows_of_an_array_are_set_aside(tmp_path: Path) -> None:
    """A row that is no object, or not UTF-8, costs no other row; positions are lines."""
    content = b'[{"text": "a"},\n {"n": [1,\n 2], "text": "\xff"},\n 7, {"text": "\xc3\xa9"}]'
    table = open_table(str(write(tmp_path, "a.json", content)))
    rows = list(table.rows())
    assert [(row.line, row.fields and row.fields["text"]) for row in rows] == [(1, "a"), (2, None), (4, None), (4, "é")]
    assert "column 'text' is not UTF-8" in (rows[1].reason or "")
    assert rows[1].raw is not None
    assert rows[1].raw.isprintable()
    assert rows[3].end <= table.total


def test_an_open_quote_costs_one_line_and_no_later_row(tmp_path: Path) -> None:
    """Rows behind it are read, also quoted ones with several lines."""
    content = 'id,text\n1,"open\n2,b\n3,"c, d"\n4,"e\nf"\n5,"g""h"\n'
    rows = list(open_table(str(write(tmp_path, "a.csv", content))).rows())
    assert [row.line for row in rows] == [2, 3, 4, 5, 7]
    assert "up to line 4" in (rows[0].reason or "")
    assert [row.fields["text"] for row in rows[1:] if row.fields] == ["b", "c, d", "e\nf", 'g"h']


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (Row(1, 1, {"text": "a"}, None, 1), "a"),
        (Row(1, 1, {"text": " "}, None, 1), " "),
        (Row(1, None, {"text": "é".encode()}, None, 1), "é"),
        (Row(1, 1, {"text": b"\xff"}, None, 1), BadText("column 'text' is not UTF-8: byte 0xff at 0")),
        (Row(1, 1, {"text": None}, None, 1), BadText("column 'text' is null; a text is needed")),
        (Row(1, 1, {"text": True}, None, 1), BadText("column 'text' must be a string, got true or false")),
        (Row(1, 1, {"text": ["a"]}, None, 1), BadText("column 'text' must be a string, got a list")),
        (Row(1, 1, {"id": 1}, None, 1), BadText("no column 'text'; the row has 'id'")),
        (Row(1, 1, None, "why", 1, "raw"), BadText("why")),
    ],
)
def test_a_rows_text_has_one_meaning(row: Row, said: str | BadText) -> None:
    """A string, blank or not, or UTF-8 bytes; everything else has a reason."""
    assert text_of(row, "text") == said


def test_files_that_were_joined_are_read(tmp_path: Path) -> None:
    """JSON lines with byte order marks within, and compressed files one behind the other."""
    line = '{"text":"a"}\n'.encode("utf-8-sig")
    packed = {"": line, ".gz": gzip.compress(line, mtime=0), ".bz2": bz2.compress(line), ".xz": lzma.compress(line)}
    for ending, content in packed.items():
        assert texts(write(tmp_path, "a.jsonl" + ending, 2 * content)) == ["a", "a"]


def test_numbers_that_json_does_not_have(tmp_path: Path) -> None:
    """NaN is null, as data frames mean it; infinity stays."""
    path = write(tmp_path, "a.jsonl", '{"a": NaN, "b": Infinity, "c": -Infinity, "d": 12345678901234567890123}\n')
    (row,) = open_table(str(path)).rows()
    assert row.fields == {"a": None, "b": float("inf"), "c": float("-inf"), "d": 12345678901234567890123}


def test_a_name_with_half_of_a_surrogate_pair_is_a_reason(tmp_path: Path) -> None:
    """No file of answers could have such a column."""
    (row,) = open_table(str(write(tmp_path, "a.jsonl", '{"\\ud800": 1}\n'))).rows()
    assert "surrogate pair" in (row.reason or "")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_arrow_files_and_streams(stream: bool, packed: bool, tmp_path: Path) -> None:
    """Both Arrow formats are read, compressed or not; types are kept in batches."""
    schema = pyarrow.schema([("text", pyarrow.string()), ("n", pyarrow.int16())])
    sink = pyarrow.BufferOutputStream()
    with (ipc.new_stream if stream else ipc.new_file)(sink, schema) as writer:
        for start in (0, 3, 6):
            rows = [{"text": str(n), "n": n} for n in range(start, start + 3)]
            writer.write_batch(pyarrow.RecordBatch.from_pylist(rows, schema=schema))
    content = sink.getvalue().to_pybytes()
    path = write(
        tmp_path, "a.arrow.gz" if packed else "a.arrow", gzip.compress(content, mtime=0) if packed else content
    )
    table = open_table(str(path))
    assert (table.total, table.columns, table.can_seek) == (9, ["text", "n"], not stream)
    assert [text_of(row, "text") for row in table.rows(Start(5))] == ["4", "5", "6", "7", "8"]
    batches = list(table.batches(3, 5, ["n"]))
    assert pyarrow.Table.from_batches(batches).to_pydict() == {"n": [2, 3, 4, 5, 6]}
    assert batches[0].schema.field("n").type == pyarrow.int16()
    assert [batch.num_rows for batch in table.batches(2, 3, [])] == [2, 1]
    assert [row.fields for row in table.rows(Start(8), ["none"])] == [{}, {}]


def test_data_behind_an_arrow_stream_is_an_error(tmp_path: Path) -> None:
    """Two streams in one file are not half a table."""
    sink = pyarrow.BufferOutputStream()
    with ipc.new_stream(sink, pyarrow.schema([("text", pyarrow.string())])) as writer:
        writer.write_batch(pyarrow.record_batch({"text": ["a"]}))
    path = write(tmp_path, "a.arrow", 2 * sink.getvalue().to_pybytes())
    with pytest.raises(TableError, match="has more than one Arrow stream"):
        open_table(str(path))


def test_a_dot_in_the_name_of_a_column_means_nothing(tmp_path: Path) -> None:
    """Parquet's own reader takes it for a way into a nested column."""
    table = pyarrow.table({"a.b": ["x"], "a": [{"b": "y"}], "text": ["t"]})
    parquet.write_table(table, tmp_path / "a.parquet")
    read = open_table(str(tmp_path / "a.parquet"))
    assert [row.fields for row in read.rows(columns=["text", "a.b"])] == [{"text": "t", "a.b": "x"}]
    (batch,) = read.batches(1, 1, ["a.b"])
    assert batch.schema.names == ["a.b"]


def test_parquet_keeps_types_and_sets_aside_texts_that_are_not_utf8(tmp_path: Path) -> None:
    """Row groups are skipped, doubled names left out, nanoseconds are text."""
    broken = pyarrow.Array.from_buffers(
        pyarrow.string(), 3, pyarrow.array([b"a", b"\xff", b"c"], pyarrow.binary()).buffers()
    )
    times = pyarrow.array([1, 2, 3], pyarrow.timestamp("ns"))
    table = pyarrow.Table.from_arrays([broken, times, times, times], names=["text", "at", "x", "x"])
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    read = open_table(str(tmp_path / "a.parquet"))
    assert (read.columns, read.doubled, read.total) == (["text", "at"], {"x"}, 3)
    rows = list(read.rows())
    assert [text_of(row, "text") for row in rows] == ["a", BadText("column 'text' is not UTF-8: byte 0xff at 0"), "c"]
    assert list(read.rows(Start(3))) == rows[2:]
    assert [row.fields for row in read.rows(columns=["text"])] == [{"text": "a"}, None, {"text": "c"}]
    assert list(read.rows(Start(4))) == []
    assert [(batch.num_rows, batch.num_columns) for batch in read.batches(2, 2, [])] == [(1, 0), (1, 0)]
    assert [row.fields for row in read.rows(columns=["none"])] == 3 * [{}]
    with pytest.raises(TableError, match="several columns are named 'x'"):
        read.check_columns(["x"])


def test_files_are_found_by_path_glob_folder_and_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, each once; hidden files and files that are no tables are left out of folders."""
    monkeypatch.chdir(tmp_path)
    for name in ("b.csv", "a.csv", "sub/c.jsonl.gz", "sub/.d.csv", "_e/f.csv", "g.md", "[h].csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_files("*.csv") == ["[h].csv", "a.csv", "b.csv"]
    assert find_files("[h].csv") == ["[h].csv"]
    assert find_files([".", "a.csv"]) == ["./[h].csv", "./a.csv", "./b.csv", "./sub/c.jsonl.gz"]
    assert find_files(f"file://{tmp_path}/sub") == [f"file://{tmp_path}/sub/c.jsonl.gz"]
    assert find_files("-") == ["-"]
    for pattern, said in [("x*.csv", "no such file"), ("x.csv", "paths are relative to"), ("file:///x.csv", "no such"),
                          ("nowhere://x", "cannot be reached"), (300 * "x" + ".csv", "name too long")]:  # fmt: skip
        with pytest.raises(TableError, match=f"(?i){said}"):
            find_files(pattern)
    (tmp_path / "empty").mkdir()
    with pytest.raises(TableError, match="the folder has no table"):
        find_files("empty")
    with pytest.raises(TableError, match=r"is a folder; name its files, such as sub/\*\.csv"):
        open_table("sub", ReadOptions(format="csv"))
    with pytest.raises(TableError, match="no such file"):
        open_table("none.csv")


def test_no_table_of_a_folder_is_left_out_or_read_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links to files and folders count once, also in a circle; a broken link is no empty table."""
    monkeypatch.chdir(tmp_path)
    for name in ("data/a.csv", "data/readme.txt", "else/b.csv", "out/c.csv/part.csv", "texts/d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    for link, target in [("data/more", "../else"), ("data/latest.csv", "a.csv"), ("data/up", ".."), ("else/x", ".")]:
        (tmp_path / link).symlink_to(target)
    assert find_files("data") == ["data/a.csv", "data/more/b.csv"]
    assert find_files(["data/a.csv", "./data/a.csv", "data/latest.csv"]) == ["data/a.csv"]
    assert find_files(["data/*.csv", "out/*.csv"]) == ["data/a.csv", "out/c.csv/part.csv"]
    assert find_files("texts") == ["texts/d.txt"]
    (tmp_path / "data" / "broken.csv").symlink_to("gone")
    with pytest.raises(TableError, match=r"data/broken\.csv: no such file"):
        list(read_texts("data/b*.csv", "text"))
    assert "data/broken.csv" in find_files("data")
    with pytest.raises(TableError, match="the name of an input is empty"):
        find_files("")


@pytest.mark.parametrize("name", ["a.csv", "a.csv.zst", "a.jsonl", "a.json", "a.parquet"])
def test_a_uri_is_read_like_a_path(name: str, tmp_path: Path) -> None:
    """Also from a position in the file."""
    schema = pyarrow.schema([("text", pyarrow.string())])
    with open_output(f"file://{tmp_path}/{name}", schema) as output:
        output.write(pyarrow.Table.from_pylist([{"text": "a"}, {"text": "b"}], schema=schema))
    table = open_table(f"file://{tmp_path}/{name}")
    first, second = table.rows()
    assert (text_of(first, "text"), list(table.rows(first.after))) == ("a", [second])


@pytest.mark.parametrize(
    ("content", "options"),
    [
        (b'{"text":"a"}\n{"text":"b"}\n', {}),
        (b"text\na\nb\n", {"format": "csv"}),
        ("text\na\nb\n".encode("utf-16"), {"format": "csv"}),
        (b'[{"text":"a"},{"text":"b"}]', {"format": "json"}),
        (b"a\nb\n", {"format": "lines"}),
    ],
)
def test_standard_input_is_read_once(
    content: bytes, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is JSON lines unless another format is named."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    table = open_table("-", ReadOptions.model_validate(options))
    assert [text_of(row, "text") for row in table.rows()] == ["a", "b"]
    with pytest.raises(TableError, match="can be read once only"):
        list(table.rows())


def test_standard_input_may_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is in a service."""
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(TableError, match="standard input is closed"):
        open_table("-")


def test_a_pipe_is_read_as_it_comes(tmp_path: Path) -> None:
    """As a shell gives it for <(command); also a format that must be sought."""
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table({"text": ["a", "b"]}), sink)
    for kind, content in [("csv", b"text\na\nb\n"), ("parquet", sink.getvalue().to_pybytes())]:
        path = tmp_path / f"pipe-{kind}"
        os.mkfifo(path)
        writer = threading.Thread(target=path.write_bytes, args=(content,))
        writer.start()
        assert texts(path, format=kind) == ["a", "b"]
        writer.join()


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.jsonl", "a.json"])
def test_memory_stays_small(name: str, tmp_path: Path) -> None:
    """A file is never held as a whole."""
    lines = {"csv": "text\n" + 20_000 * f'"{200 * "x"}"\n', "jsonl": 20_000 * f'{{"text":"{200 * "x"}"}}\n'}
    lines["json"] = "[" + ",".join(20_000 * [f'{{"text":"{200 * "x"}"}}']) + "]"
    content = lines[name.split(".")[1]].encode()
    path = write(tmp_path, name, gzip.compress(content, mtime=0) if name.endswith("gz") else content)
    del lines, content
    table = open_table(str(path))
    tracemalloc.start()
    try:
        assert sum(1 for _ in table.rows()) == 20_000
        assert tracemalloc.get_traced_memory()[1] < 3 * 2**20
    finally:
        tracemalloc.stop()


def test_a_start_can_be_stored(tmp_path: Path) -> None:
    """It is plain numbers."""
    table = open_table(str(write(tmp_path, "a.jsonl", '{"text":"a"}\n\n{"text":"b"}\n')))
    first, second = table.rows()
    stored = json.loads(json.dumps(first.after))
    assert list(table.rows(Start(*stored))) == [second]
    assert table.place_of(second) == f"{tmp_path}/a.jsonl:3"
