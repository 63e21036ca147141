"""Texts of files whose labels, if any, do not matter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from polyhead.schema import Schema
from polyhead_training.config import DataConfig, HeadConfig
from polyhead_training.data.corpus import read_split

NO_COLUMN = "\0no column"  # no file has it, and a head whose column is absent reads no label


def read_texts(
    paths: str | list[str], config: DataConfig, heads: Sequence[HeadConfig], schema: Schema, scratch: Path
) -> Sequence[str]:
    """The texts of files, read as for training."""
    blind = [head.model_copy(update={"column": NO_COLUMN}) for head in heads]
    return read_split(paths, config, blind, schema, scratch).texts
