"""Where rows come from: files, which polyhead_rows reads, and data sets of the Hugging Face hub.

Rows are read one at a time, so no file must fit into memory. Class labels of the `datasets` library come by name.
That library is imported inside functions, so that a mistake in the first rows is reported before that takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from polyhead.errors import one_line
from polyhead_rows.errors import TableError
from polyhead_rows.table_file import ReadOptions, Row, find_files, open_table
from polyhead_training.errors import DataError
from polyhead_training.model.hub import hub_access

if TYPE_CHECKING:
    import datasets

Fields = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """One file, or one split of a hub data set.

    Attributes:
        name: for messages.
        rows: can be read once.
        columns: None if each row has its own.
        doubled: names that several columns have; they are in no row.
        total: of all rows, in the unit of `Row.end`; 0 if unknown.
        unit: ``bytes`` or ``rows``.
        hint: what to do if a column is missing.
    """

    name: str
    rows: Generator[Row]
    columns: Sequence[str] | None
    doubled: frozenset[str] = frozenset()
    total: int = 0
    unit: str = "rows"
    hint: str = ""


def file_names(patterns: str | list[str]) -> list[str]:
    """The files of a path, glob, folder or list of them, each once; raises DataError if a pattern matches nothing."""
    try:
        return find_files(patterns)
    except TableError as error:
        raise DataError(str(error)) from error


def open_files(patterns: str | list[str], options: ReadOptions) -> list[Source]:
    """The files that `file_names` finds.

    Raises:
        DataError: a pattern matches nothing, or a file cannot be opened; while rows are read, a file is damaged.
    """
    try:
        return [_open_file(name, options) for name in file_names(patterns)]
    except TableError as error:
        raise DataError(str(error)) from error


def open_hub(name: str, config: str | None) -> dict[str, Source]:
    """The splits train, validation and test that the data set has, as streams.

    Raises:
        DataError: the hub has no such data set, or it cannot be reached and its cache has none.
    """
    import datasets

    place = f"hub data set {name!r}: cannot be loaded"
    with hub_access(name) as unreachable:
        try:
            # Streams do not look into the hub's cache, and without a network there is nothing else to read.
            loaded = datasets.load_dataset(name, config, streaming=unreachable is None)
        except Exception as error:  # the library raises many kinds, each with a cause worth showing
            if unreachable is not None:
                raise DataError(
                    f"{place}: {unreachable}, and it is not in the cache on this machine. Download its files where "
                    'there is a network, and name them in train = "…" instead of hub'
                ) from error
            raise DataError(f"{place} ({one_line(error)})") from error
    if "train" not in loaded:
        raise DataError(f"hub data set {name!r}: has no split 'train', only {sorted(loaded)}")
    splits = [split for split in ("train", "validation", "test") if split in loaded]
    return {
        split: Source(f"{name}[{split}]", _hub_rows(loaded[split], place), loaded[split].column_names)
        for split in splits
    }


def place_of(name: str, number: int, line: int | None) -> str:
    """Where a row is, for messages: ``reviews.csv:3``, its line; or ``reviews.parquet: row 2``."""
    return f"{name}: row {number}" if line is None else f"{name}:{line}"


def _open_file(name: str, options: ReadOptions) -> Source:
    table = open_table(name, options)
    schema = table.arrow_schema
    features: datasets.Features | dict[str, Any] = {}
    if schema is not None and b"huggingface" in (schema.metadata or {}):
        import datasets

        features = datasets.Features.from_arrow_schema(schema)
    unit = "bytes" if schema is None else "rows"
    return Source(name, _file_rows(table.rows(), features), table.columns, table.doubled, table.total, unit, table.hint)


def _file_rows(rows: Generator[Row], features: datasets.Features | dict[str, Any]) -> Generator[Row]:
    name_labels = _label_namer(features) if features else None
    try:
        with closing(rows):
            for row in rows:
                yield row if row.fields is None or name_labels is None else row._replace(fields=name_labels(row.fields))
    except TableError as error:
        raise DataError(str(error)) from error


def _hub_rows(split: Any, place: str) -> Generator[Row]:
    try:
        if split.features is None:  # a stream whose card does not list them: found in its first rows
            split = split._resolve_features()
        name_labels = _label_namer(split.features)
        for number, fields in enumerate(split, start=1):
            yield Row(number, None, name_labels(fields), None, number)
    except Exception as error:
        raise DataError(f"{place} ({one_line(error)})") from error


def _label_namer(features: datasets.Features | dict[str, Any]) -> Callable[[Fields], Fields]:
    """A function that replaces class indices by names, also in lists; an index below 0 is no label."""
    import datasets

    def name(feature: datasets.ClassLabel, index: int | None) -> str | None:
        return None if index is None or index < 0 else feature.int2str(index)

    single = {key: feature for key, feature in features.items() if isinstance(feature, datasets.ClassLabel)}
    several = {
        key: feature.feature
        for key, feature in features.items()
        if isinstance(feature, datasets.List) and isinstance(feature.feature, datasets.ClassLabel)
    }

    def name_labels(fields: Fields) -> Fields:
        for key, feature in single.items():
            fields[key] = name(feature, fields[key])
        for key, feature in several.items():
            fields[key] = None if fields[key] is None else [name(feature, index) for index in fields[key]]
        return fields

    return name_labels
