"""Opens tables of texts, whatever their format: the way in for every command that reads files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from polyhead_rows.arrow_files import ArrowFile, ParquetFile
from polyhead_rows.byte_source import ByteSource
from polyhead_rows.delimited import DelimitedFile
from polyhead_rows.errors import TableError
from polyhead_rows.json_files import JsonArrayFile, JsonLinesFile
from polyhead_rows.lines import LinesFile
from polyhead_rows.place import STDIN, find_files, known_names, split_name
from polyhead_rows.table import BadText, ReadOptions, Row, Start, TableFile, text_of
from polyhead_rows.wrong_file import WORKBOOK, WORKBOOK_NAMES, check_content

__all__ = ["BadText", "ReadOptions", "Row", "Start", "TableFile", "find_files", "open_table", "read_texts", "text_of"]

TEXT_FORMATS = ("csv", "tsv", "jsonl", "json", "lines")


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
    check_content(source, kind)
    match kind:
        case "csv" | "tsv":
            return DelimitedFile(source, options, kind)
        case "jsonl":
            return JsonLinesFile(source)
        case "json":
            return JsonArrayFile(source)
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
        for row in table.rows(columns=[column]):
            text = text_of(row, column)
            if isinstance(text, BadText):
                raise TableError(f"{table.place_of(row)}: {text.reason}")
            yield text


def _check_options(name: str, kind: str, options: ReadOptions) -> None:
    if options.delimiter is not None and kind != "csv":
        raise TableError(f"{name}: delimiter is for CSV files, this one is {kind}")
    if not options.header and kind not in ("csv", "tsv"):
        raise TableError(f"{name}: header = false is for CSV and TSV files, this one is {kind}")
    if options.encoding is not None and kind not in TEXT_FORMATS:
        raise TableError(f"{name}: encoding is for text files, this one is {kind}")
