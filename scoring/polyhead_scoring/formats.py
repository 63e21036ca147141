"""The formats of input files: each knows how to survey a file, to sample texts from it and to read a partition."""

from __future__ import annotations

from typing import Any, Protocol

import pyarrow

from polyhead_scoring import delimited, jsonl, parquet
from polyhead_scoring.partition import Limits, Partition
from polyhead_scoring.rows import Rows

Columns = Any  # what a format found of a file's columns, for its own `schema_of`


class Format(Protocol):
    """What `jsonl`, `delimited` (CSV) and `parquet` have in common."""

    def survey(self, file: str, text_column: str, limits: Limits) -> tuple[list[Partition], Columns]:
        """Partitions of a file, and what it says of its columns."""

    def schema_of(self, surveyed: list[Columns]) -> pyarrow.Schema:
        """The columns of all files."""

    def sample(self, file: str, text_column: str, rows: int) -> list[str | bytes]:
        """Texts of the first rows."""

    def read(self, partition: Partition, text_column: str, kept: pyarrow.Schema) -> Rows:
        """The rows of a partition."""


FORMATS: dict[str, Format] = {"jsonl": jsonl, "csv": delimited, "parquet": parquet}
