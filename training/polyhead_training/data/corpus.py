"""The corpus: rows of text and label vectors in splits, on disk and mapped into memory, and the schema they follow."""

from __future__ import annotations

import tempfile
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
from numpy.typing import NDArray

from polyhead.schema import Schema
from polyhead_training.config import DataConfig, HeadConfig
from polyhead_training.data.augmentation import Augmentation
from polyhead_training.data.labels import count_contradictions, learn_schema, to_vector
from polyhead_training.data.rows import Row, Table, open_files, open_hub, write_rows
from polyhead_training.data.splits import find_overlaps, hold_out, is_repeat, position_to_stratify_by
from polyhead_training.data.staging import Indices, Recipe, Staged, joined, stage
from polyhead_training.errors import DataError

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """The rows of one split.

    Attributes:
        rows: ``text`` (never blank), ``labels`` and the metadata columns that were asked for, as text; memory-mapped.
        dropped: how many rows had a blank or unreadable text.
        filtered: how many rows were left out by ``where`` and ``filters``.
    """

    rows: datasets.Dataset
    dropped: int = 0
    filtered: int = 0

    @property
    def texts(self) -> Sequence[str]:
        """All texts, read from disk as they are asked for."""
        return self.rows["text"]

    @property
    def labels(self) -> NDArray[np.float32]:
        """``(n, sum of label widths)``: a class index, a number, or 0/1 a label; NaN where unknown."""
        column = self.rows.select_columns(["labels"]).with_format("arrow")[:]["labels"]
        width = self.rows.features["labels"].length
        return column.combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, width)

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Corpus:
    """All splits and the schema that their labels follow.

    Attributes:
        notes: what the user should know of the data, a line each: leaks, duplicates, what was left out or added.
    """

    schema: Schema
    train: Split
    validation: Split
    test: Split | None
    notes: tuple[str, ...] = ()

    @property
    def splits(self) -> dict[str, Split]:
        """Those that there are, by name."""
        found = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in found.items() if split is not None}


def read_corpus(config: DataConfig, heads: Sequence[HeadConfig], scratch: Path, seed: int = 0) -> Corpus:
    """Reads all splits into files in `scratch`, which must stay as long as the corpus is used.

    Labels and parents that the heads do not name are learned from all rows of ``train``, held-out ones too, lest a rare
    label that was held out be unknown.

    Args:
        seed: of a stratified split and of augmentation.

    Raises:
        ConfigError: a function, transform, template or `stratify_by` is none.
        DataError: a file, column, row or label is not as the config says; names it and what is allowed.
        SchemaError: the heads contradict themselves.
    """
    if config.split == "stratified":
        position_to_stratify_by(config, heads)  # also where nothing is held out
    recipe = Recipe(config, heads)
    augmentation = Augmentation(config.augment, config.augment_copies, seed) if config.augment else None
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="staged-", dir=scratch) as staging:
        sources = _stage_sources(config, recipe, Path(staging))
        whole = sources["train"]
        parts = _to_parts(sources, config, heads, seed)
        notes = [_filtered(name, staged) for name, staged in sources.items() if staged.filtered]
        notes += _clean(parts, config)
        _check_filled(parts)
        schema = learn_schema(heads, _placed(whole, recipe), whole.source)
        for staged in sources.values():
            notes += [
                f"parent_of: {count} rows of {staged.source} contradict that of head {head!r}, first {place}"
                for head, (count, place) in count_contradictions(heads, _placed(staged, recipe)).items()
            ]
        notes += _upsample(parts, recipe)
        others = [part for name, part in parts.items() if augmentation is not None and name != "train"]
        held_out = {key for part in others for key in _text_keys(*part).tolist()}
        splits = {}
        for name, (staged, indices) in parts.items():
            rows = _finish(staged, indices, recipe, schema, augmentation if name == "train" else None, held_out)
            written = write_rows(scratch / f"{name}.arrow", rows, _row_schema(schema))
            is_source = name == "train" or staged is not whole
            splits[name] = Split(written, *((staged.dropped, staged.filtered) if is_source else ()))
    if augmentation is not None:
        notes.append(augmentation.note)
    notes += [
        f"text_transforms: {transform.name} ran on the texts as they were read; serving does not apply it"
        for transform in recipe.transforms
    ]
    return Corpus(schema, splits["train"], splits["validation"], splits.get("test"), tuple(notes))


def read_split(
    paths: str | list[str],
    config: DataConfig,
    heads: Sequence[HeadConfig],
    schema: Schema,
    scratch: Path,
    metadata: Sequence[str] = (),
) -> Split:
    """Reads files as training read them (template, transforms, filters), for evaluation, into a file in `scratch`.

    A head whose column a file lacks is unknown, NaN, in all its rows.

    Args:
        heads: of the config; a head of the schema that is not among them has its name for a column.
        metadata: columns to keep.

    Raises:
        ConfigError, DataError: as for `read_corpus`.
    """
    by_name = {head.name: head for head in heads}
    configs = [by_name.get(head.name) or HeadConfig(name=head.name, kind=head.kind) for head in schema]
    recipe = Recipe(config, configs, metadata)
    if reserved := sorted({"text", "labels"} & set(metadata)):
        raise DataError(f"metadata column {reserved[0]!r}: this name is taken by the rows' own column")
    scratch.mkdir(parents=True, exist_ok=True)
    source = joined(paths)
    with tempfile.TemporaryDirectory(prefix="staged-", dir=scratch) as staging:
        staged = stage(open_files(paths), recipe, source, Path(staging) / "rows.arrow", lenient=True)
        if not len(staged.rows):
            raise DataError(f"{source}: has no row with a text{_left_out(staged)}")
        rows = _finish(staged, np.arange(len(staged.rows)), recipe, schema)
        written = write_rows(scratch / "evaluation.arrow", rows, _row_schema(schema, metadata))
    return Split(written, staged.dropped, staged.filtered)


def _stage_sources(config: DataConfig, recipe: Recipe, folder: Path) -> dict[str, Staged]:
    """What the config names: train and, where they are given, validation and test."""
    sources: dict[str, tuple[str, Iterable[Table]]]
    if config.hub is not None:
        sources = {name: (table.name, [table]) for name, table in open_hub(config.hub, config.hub_config).items()}
    else:
        files = {"train": config.train, "validation": config.validation, "test": config.test}
        # All are opened before any is read: a name that matches nothing is said at once.
        sources = {name: (joined(paths), open_files(paths)) for name, paths in files.items() if paths is not None}
    for_train = [up.column for up in config.upsample]
    if config.split_column is not None:
        for_train.append(config.split_column)
    return {
        name: stage(tables, recipe, source, folder / f"{name}.arrow", for_train if name == "train" else ())
        for name, (source, tables) in sources.items()
    }


def _to_parts(
    sources: Mapping[str, Staged], config: DataConfig, heads: Sequence[HeadConfig], seed: int
) -> dict[str, tuple[Staged, Indices]]:
    """The rows of each split; what is not given is held out of train."""
    parts = {name: (staged, np.arange(len(staged.rows))) for name, staged in sources.items()}
    whole = sources["train"]
    shares = {"validation": config.validation_share, "test": config.test_share}
    shares = {name: share for name, share in shares.items() if name not in sources and share}
    if shares and len(whole.rows):  # else `_check_filled` says that there are none
        held = hold_out(whole, config, heads, shares, seed)
        parts |= {name: (whole, indices) for name, indices in held.items()}
    return {name: parts[name] for name in SPLITS if name in parts}


def _placed(staged: Staged, recipe: Recipe) -> Iterator[tuple[str, list[Any]]]:
    return ((staged.place_of(row), [row[cell] for cell in recipe.cells]) for row in staged.read(recipe.cells))


def _text_keys(staged: Staged, indices: Indices) -> NDArray[np.int64]:
    return staged.numbers("text_key")[indices]


def _filtered(name: str, staged: Staged) -> str:
    total = staged.filtered + staged.dropped + len(staged.rows)
    return f"where and filters: left out {staged.filtered} of {total} rows of {name}"


def _left_out(staged: Staged) -> str:
    return f" ({staged.filtered} were left out by where and filters)" if staged.filtered else ""


def _check_filled(parts: dict[str, tuple[Staged, Indices]]) -> None:
    for name, (staged, indices) in parts.items():
        if not len(staged.rows):
            raise DataError(f"{staged.source}: the {name} split has no row with a text{_left_out(staged)}")
        if not len(indices):
            hint = f"data.{name}_share"
            if name == "train":
                hint = "data.validation_share, data.test_share and data.drop_leaks"
            raise DataError(f"{staged.source}: of {len(staged.rows)} rows none is left for {name}; see {hint}")


def _clean(parts: dict[str, tuple[Staged, Indices]], config: DataConfig) -> list[str]:
    """Counts leaks and duplicates, and takes from train what the config wants dropped."""
    keys = {name: _text_keys(*part) for name, part in parts.items()}
    notes = []
    staged, train = parts["train"]
    leaked = np.isin(keys["train"], np.concatenate([keys[name] for name in parts if name != "train"] or [[]]))
    for overlap in find_overlaps(keys):
        note = f"leak: {overlap.rows} of {len(keys[overlap.split])} {overlap.split} rows have the text of a row in "
        note += overlap.other
        if overlap.other == "train" and not config.drop_leaks:
            note += "; data.drop_leaks = true takes such rows out of train"
        notes.append(note)
    if config.drop_leaks and leaked.any():
        notes.append(f"drop_leaks: took {leaked.sum()} of {len(train)} rows out of train")
        train = train[~leaked]
    repeats = is_repeat(_text_keys(staged, train))
    if repeats.any():
        twins = is_repeat(staged.numbers("row_key")[train])
        note = (
            f"duplicates: {repeats.sum()} of {len(train)} training rows repeat an earlier text, {twins.sum()} of them "
        )
        note += "with the same labels"
        if twins.any():
            note += "; these were dropped" if config.drop_duplicates else "; data.drop_duplicates = true drops these"
        notes.append(note)
        if config.drop_duplicates:
            train = train[~twins]
    parts["train"] = staged, train
    return notes


def _upsample(parts: dict[str, tuple[Staged, Indices]], recipe: Recipe) -> list[str]:
    if not recipe.config.upsample:
        return []
    staged, train = parts["train"]
    times = staged.numbers("times")[train]
    parts["train"] = staged, np.repeat(train, times)
    notes = [f"upsample: repeats {(times > 1).sum()} of {len(train)} training rows, {times.sum()} rows in all"]
    return notes + [f"upsample: no row has one of {up.values} in column {up.column!r}" for up in recipe.idle_upsample]


def _finish(
    staged: Staged,
    indices: Indices,
    recipe: Recipe,
    schema: Schema,
    augmentation: Augmentation | None = None,
    held_out: Container[int] = (),
) -> Iterator[Row]:
    """Rows as a `Split` holds them; no copy of a row has a text whose key is held out."""
    columns = [reader.column for reader in recipe.readers]
    metadata = {name: f"metadata_{i}" for i, name in enumerate(recipe.metadata)}
    for number, row in enumerate(staged.read(["text", *recipe.cells, *metadata.values()], indices)):
        place = staged.place_of(row)
        labels = to_vector([row[cell] for cell in recipe.cells], schema, columns, place)
        finished = {"text": row["text"], "labels": labels} | {name: row[key] for name, key in metadata.items()}
        yield finished
        if augmentation is not None:
            yield from augmentation.copies_of(finished, number, place, lambda text: recipe.text_key(text) in held_out)


def _row_schema(schema: Schema, metadata: Sequence[str] = ()) -> pyarrow.Schema:
    fields = [("text", pyarrow.string()), ("labels", pyarrow.list_(pyarrow.float32(), schema.label_width))]
    return pyarrow.schema(fields + [(name, pyarrow.string()) for name in metadata])
