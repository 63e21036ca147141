"""Texts of files whose labels, if any, do not matter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from polyhead_training.config import DataConfig
from polyhead_training.data.rows import open_files
from polyhead_training.data.staging import Recipe, joined, stage
from polyhead_training.errors import DataError


def read_texts(paths: str | list[str], config: DataConfig, scratch: Path) -> Sequence[str]:
    """The texts of files, read and transformed as for training; nothing else of a row is read.

    Raises:
        ConfigError, DataError: as for `polyhead_training.data.corpus.read_corpus`.
    """
    bare = config.model_copy(update={"where": {}, "filters": [], "upsample": [], "split_column": None})
    scratch.mkdir(parents=True, exist_ok=True)
    staged = stage(open_files(paths), Recipe(bare, ()), joined(paths), scratch / "texts.arrow")
    if not len(staged.rows):
        raise DataError(f"{staged.source}: has no row with a text")
    return staged.rows["text"]
