"""Opens tables of texts in any format. Every command that reads files uses it.

If the content does not fit the file name, the error says what the file seems to be and what to do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import closing

from polyhead_rows.arrow_files import ArrowFile, ParquetFile
from polyhead_rows.byte_source import UTF8_BOM, ByteSource
from polyhead_rows.delimited import DelimitedFile
from polyhead_rows.errors import TableError
from polyhead_rows.json_files import JsonArrayFile, JsonLinesFile
from polyhead_rows.lines import LinesFile
from polyhead_rows.place import STDIN, find_files, known_names, split_name, split_part
from polyhead_rows.table import BadText, ReadOptions, Row, Start, TableFile, text_of

__all__ = ["BadText", "ReadOptions", "Row", "Start", "TableFile", "find_files", "open_table", "read_texts", "text_of"]

TEXT_FORMATS = ("csv", "tsv", "jsonl", "json", "lines")
WORKBOOK = 'is a workbook or an archive; save its sheet as CSV ("CSV UTF-8" in Excel)'
MAGIC = {
    b"PAR1\x15": 'holds Parquet; name it .parquet or set format = "parquet"',
    b"ARROW1\0\0": 'holds Arrow; name it .arrow or set format = "arrow"',
    b"\x1f\x8b": "is compressed with gzip; name it with .gz at the end",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd; name it with .zst at the end",
    b"BZh91AY&SY": "is compressed with bzip2; name it with .bz2 at the end",
    b"\xfd7zXZ\0": "is compressed with xz; name it with .xz at the end",
    b"PK\x03\x04": WORKBOOK,
    b"\xd0\xcf\x11\xe0": WORKBOOK,
    b"\x89HDF": "holds HDF5; write it as Parquet",
    b"FEA1": "is Feather of version 1; write it as version 2",
    b"version https://git-lfs": "is a pointer of Git LFS; get the file with git lfs pull",
    b"<!DOCTYPE html": "is a web page; download the file itself",
    b"<!doctype html": "is a web page; download the file itself",
    b"SQLite format 3\0": "is a SQLite database; write its table as CSV",
}
PARTS = re.compile(r'\{\s*"([\w.\- ]+)"\s*:\s*\[\s*[\[{]')
WORKBOOK_NAMES = (".xlsx", ".xls", ".xlsm", ".ods", ".numbers", ".zip")
SAMPLE = 4096  # bytes


def open_table(name: str, options: ReadOptions = ReadOptions()) -> TableFile:  # noqa: B008 - it is frozen
    """One file; ``-`` is standard input, which is JSON lines unless the options name another format.

    Raises:
        TableError: it is not there, is no such table, or the options do not suit its format.
    """
    named, compression = split_name(name)
    kind = options.format or ("jsonl" if name == STDIN else named)
    if kind is None:
        if name.lower().endswith(WORKBOOK_NAMES):
            raise TableError(f"{name}: {WORKBOOK}")
        raise TableError(f"{name}: the name must end in one of {known_names()}; or set format")
    _check_options(name, kind, options)
    source = ByteSource(name, compression, options.encoding)
    _check_content(source, kind)
    match kind:
        case "csv" | "tsv":
            return DelimitedFile(source, options, kind)
        case "jsonl":
            return JsonLinesFile(source, options)
        case "json":
            return JsonArrayFile(source, options)
        case "lines":
            return LinesFile(source)
        case "parquet":
            return ParquetFile(source, compression)
        case _:
            return ArrowFile(source, compression)


def read_texts(
    patterns: str | Sequence[str], column: str, options: ReadOptions = ReadOptions()  # noqa: B008 - it is frozen
) -> Iterator[str]:  # fmt: skip
    """The texts of one column of all files, one at a time.

    Raises:
        TableError: a file cannot be read, or a row has no text; the message names file, line and reason.
    """
    for name in find_files(patterns):
        table = open_table(name, options)
        table.check_columns([column])
        with closing(table.rows(columns=[column])) as rows:
            for row in rows:
                text = text_of(row, column)
                if isinstance(text, BadText):
                    raise TableError(f"{table.place_of(row)}: {text.reason}")
                yield text


def _check_options(name: str, kind: str, options: ReadOptions) -> None:
    if options.delimiter is not None and kind != "csv":
        raise TableError(f"{name}: delimiter is for CSV files, this one is {kind}")
    if not options.header and kind not in ("csv", "tsv", "json", "jsonl"):
        raise TableError(f"{name}: header = false is for CSV, TSV and JSON files, this one is {kind}")
    if options.encoding is not None and kind not in TEXT_FORMATS:
        raise TableError(f"{name}: encoding is for text files, this one is {kind}")


def _check_content(source: ByteSource, kind: str) -> None:
    """Refuses a file whose first bytes do not suit its format, and says what it seems to be."""
    head = source.head
    found = next((what for magic, what in MAGIC.items() if head.startswith(magic)), None)
    if kind == "parquet":
        unlike = f"begins with {head[:8]!r}, not Parquet" if head else "is empty"
        found = None if head.startswith(b"PAR1") else found or unlike
    elif kind == "arrow":
        found = None if head.startswith(b"ARROW1") else found if head else "is empty"
    else:
        binary = found or _utf16(head[:SAMPLE]) if source.encoding is None else None
        found = binary or _not_json(source, kind)
    if found is not None:
        raise TableError(f"{source.name}: {found}")


def _not_json(source: ByteSource, kind: str) -> str | None:
    text = source.head_text.removeprefix(UTF8_BOM).decode("utf-8", "replace").lstrip(" \t\r\n")
    if kind == "json" and split_part(source.name)[1] is not None:
        return None if text.startswith("{") else "must hold an object of arrays, because its name has a part behind #"
    if kind == "json" and (found := PARTS.match(text)):
        return f"holds an object of arrays; name the one with the rows, such as {source.name}#{found[1]}"
    if kind in ("json", "jsonl") and re.match(r"\{\s*\n", text):
        return "holds objects of several lines; write one object per line (jq -c does that)"
    if kind == "jsonl" and re.match(r"\[\s*(\{|\n)", text):
        wanted = 'for an array name it .json or set format = "json"'
        return f"holds one JSON array; one object per line is wanted; {wanted}"
    if kind == "json" and not text.startswith("["):
        seen = f"it begins with {text[:20]!r}" if text else "it is empty"
        if text.startswith("{"):
            seen = 'for one object per line name it .jsonl or set format = "jsonl"'
        return f"must hold one array of objects; {seen}"
    return None


def _utf16(head: bytes) -> str | None:
    """Nearly every second byte of Latin text in UTF-16 is zero, also at the ends of lines."""
    even, odd = head[::2].count(0), head[1::2].count(0)
    if len(head) < 8 or min(even, odd) or max(even, odd) < 0.4 * len(head):
        return None
    encoding = "utf-16-le" if odd else "utf-16-be"
    if head.decode(encoding, "ignore").count("\n") != head.count(b"\n"):
        return None
    return f'looks like UTF-16 without a byte order mark; set encoding = "{encoding}"'
