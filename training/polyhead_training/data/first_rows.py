"""The first row of each file, checked before torch and transformers are imported, so that a mistake shows at once.

Of JSON files, rows are looked through until all needed columns are seen. Everything is read again later: what is fine
here may still be wrong in another row.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from polyhead.encode import UnreadableTextError
from polyhead.schema import Schema
from polyhead_rows.place import STDIN, is_pipe
from polyhead_rows.table import Row, column_of
from polyhead_training.config import DataConfig, HeadConfig, TrainingConfig
from polyhead_training.data.recipe import Recipe
from polyhead_training.data.sources import Source, file_names, open_files, open_hub, place_of
from polyhead_training.data.staging import checked_rows, joined, stage
from polyhead_training.errors import BadRowError
from polyhead_training.model.hub import why_unreachable


def check_training_files(config: TrainingConfig) -> None:
    """Checks the files that a training config names, and the first row of each file of rows.

    Raises:
        ConfigError, DataError: as reading all rows raises them.
    """
    data = config.data
    if data.hub is not None and not Path(data.hub).exists() and why_unreachable() is not None:
        open_hub(data.hub, data.hub_config)  # only the cache may have it
    for paths, also in ((data.train, data.train_columns), (data.validation, []), (data.test, [])):
        if paths is not None:
            _check(paths, Recipe(data, config.heads), also)
    if config.warm_start is not None and config.warm_start.texts:
        file_names(config.warm_start.texts)


def check_texts(paths: str | list[str], config: DataConfig) -> None:
    """As `check_training_files`, for files of which only the texts are read."""
    _check(paths, Recipe(config, ()))


def check_evaluation_files(
    paths: list[str],
    config: DataConfig,
    heads: Sequence[HeadConfig],
    schema: Schema,
    metadata: Sequence[str],
    without: Sequence[str],
) -> None:
    """As `check_training_files`, for the files of an evaluation.

    Args:
        metadata: other columns that are needed.
        without: heads whose columns are not read.
    """
    _check(paths, Recipe.of_evaluation(config, schema, heads, metadata, without))


def _check(paths: str | list[str], recipe: Recipe, also: Sequence[str] = ()) -> None:
    # What comes through a pipe can be read only once.
    names = [name for name in file_names(paths) if name != STDIN and not is_pipe(name)]
    needed = [*recipe.columns, *also, *recipe.head_columns]
    sources = open_files(names, recipe.config) if names else []
    if not all(_begins_well(source, recipe, needed, also) for source in sources):
        with tempfile.TemporaryDirectory(prefix="polyhead-first-rows-") as scratch:
            rows = Path(scratch) / "rows.arrow"
            stage(open_files(names, recipe.config), recipe, joined(paths), rows, also, show_progress=True)


def _begins_well(source: Source, recipe: Recipe, needed: Sequence[str], also: Sequence[str]) -> bool:
    """Whether the first row can be used, or need not be. If not, reading all rows says how many are like it.

    Raises:
        DataError: a needed column is missing, or is there twice.
    """
    unseen = list(needed) if source.columns is None else []  # rows of JSON have columns of their own
    with closing(checked_rows(source, needed, False, recipe.hint)) as rows:
        for place, row in enumerate(rows):
            if place == 0 and not _is_usable(row, recipe, place_of(source.name, row.number, row.line), also):
                return False
            unseen = [column for column in unseen if column_of(column, row.fields or ()) is None]
            if not unseen:
                break
    return True


def _is_usable(row: Row, recipe: Recipe, place: str, also: Sequence[str]) -> bool:
    try:
        recipe.read(row, place, also)
    except UnreadableTextError:
        pass
    except BadRowError:
        return recipe.config.bad_rows == "skip"
    return True
