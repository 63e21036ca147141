"""The corpus: texts and label vectors in splits, on disk and mapped into memory, and the schema they follow."""

from __future__ import annotations

import tempfile
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow
from numpy.typing import NDArray

from polyhead.schema import Schema
from polyhead_rows.spelling import shortened
from polyhead_training.config import DataConfig, HeadConfig
from polyhead_training.data.coverage import MEND, check_coverage
from polyhead_training.data.functions import Augmentation
from polyhead_training.data.labels import (
    count_contradictions,
    describe_labels,
    learn_schema,
    refuse_unknown_labels,
    to_vector,
)
from polyhead_training.data.recipe import OUT_OF_SCOPE, Recipe
from polyhead_training.data.shift import called, describe_shift
from polyhead_training.data.sources import Fields, Source, open_files, open_hub
from polyhead_training.data.splits import Parts, clean_train, heads_to_stratify_by, split_rows
from polyhead_training.data.staging import Indices, Staged, joined, stage, write_rows
from polyhead_training.errors import DataError

NAME_LENGTH = 200  # characters of the names of files

Unseen = dict[str, dict[int, list[str]]]
"""By head and row, the labels that the schema lacks."""


@dataclass(frozen=True)
class Split:
    """The rows of one split.

    Attributes:
        rows: ``text`` (never blank), ``labels``, ``source_file`` (an index of `files`) and ``source_row`` (from 1 in
            its file), ``template_fields`` if there is a template, and the requested metadata columns as text;
            memory-mapped. ``group`` if the rows are split by group.
        files: the names of the files.
        origin: where the rows are from, such as ``held out of reviews.csv``.
        in_train: how many rows have a text that a training row has too.
        unseen: of a split that was read for evaluation, by head and row: the labels that the schema lacks.
        dropped: how many rows had a blank text.
        filtered: how many rows were left out by ``where`` and ``filters``.
        bad: how many rows were left out by ``bad_rows = "skip"``.
        notes: lines about the cells of a split that was read for evaluation.
        group_column: the column of the groups by which the rows were split; empty if they were not.
        called: what sentences call these rows.
    """

    rows: datasets.Dataset
    dropped: int = 0
    filtered: int = 0
    bad: int = 0
    notes: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    origin: str = ""
    in_train: int = 0
    unseen: Mapping[str, Mapping[int, Sequence[str]]] = field(default_factory=dict)
    group_column: str = ""
    called: str = "these rows"

    def values(self, column: str) -> Sequence[str | None]:
        """A metadata column, or the groups."""
        found: Sequence[str | None] = self.rows["group" if column == self.group_column else column][:]
        return found

    @property
    def texts(self) -> Sequence[str]:
        """All texts. They are read from disk when they are used."""
        texts: Sequence[str] = self.rows["text"]
        return texts

    @property
    def template_fields(self) -> Sequence[str] | None:
        """The fields that the template made each text of, as JSON; None without a template."""
        return self.rows["template_fields"] if "template_fields" in self.rows.column_names else None

    @property
    def places(self) -> tuple[Sequence[str], NDArray[np.int64]]:
        """The file of each row, and its number there."""
        table = self.rows.select_columns(["source_file", "source_row"]).with_format("arrow")[:]
        return [self.files[index] for index in table["source_file"].to_pylist()], table["source_row"].to_numpy()

    @property
    def labels(self) -> NDArray[np.float32]:
        """``(n, sum of label widths)``: a class index, a number, or 0/1 per label; NaN where unknown."""
        column = self.rows.select_columns(["labels"]).with_format("arrow")[:]["labels"]
        numbers = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return np.asarray(numbers, np.float32).reshape(-1, self.rows.features["labels"].length)

    @property
    def out_of_scope(self) -> dict[str, NDArray[np.bool_]]:
        """By head that such rows were marked for: which rows belong to none of its labels. Their label is unknown."""
        if OUT_OF_SCOPE not in self.rows.column_names:
            return {}
        found = self.rows.select_columns([OUT_OF_SCOPE]).with_format("arrow")[:][OUT_OF_SCOPE].to_pylist()
        return {
            name: np.array([name in row for row in found]) for name in sorted({one for row in found for one in row})
        }

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Corpus:
    """All splits and the schema that their labels follow.

    Attributes:
        similar: rows like those of train, if validation and test have other groups or a later time.
        notes: lines about the data that the user should know: leaks, duplicates, what was left out or added.
    """

    schema: Schema
    train: Split
    validation: Split
    test: Split | None
    notes: tuple[str, ...] = ()
    similar: Split | None = None

    @property
    def splits(self) -> dict[str, Split]:
        """The existing splits, by name."""
        found = {"train": self.train, "validation": self.validation, "test": self.test, "similar": self.similar}
        return {name: split for name, split in found.items() if split is not None}


def read_corpus(
    config: DataConfig, heads: Sequence[HeadConfig], scratch: Path, seed: int = 0, show_progress: bool = False
) -> Corpus:
    """Reads all splits into files in `scratch`, which must stay as long as the corpus is used.

    Labels and parents that the heads do not name are learned from all rows of ``train``, including those held out.
    Otherwise a rare label could be held out and unknown.

    Args:
        seed: of a stratified split and of augmentation.

    Raises:
        ConfigError: a function, transform, template or `stratify_by` is wrong.
        DataError: a file, column, row or label does not fit the config. It names it and what is allowed.
        SchemaError: the heads contradict themselves.
    """
    if config.split == "stratified":
        heads_to_stratify_by(config, heads)  # a wrong name is an error even if nothing is held out
    recipe = Recipe(config, heads)
    augmentation = Augmentation(config.augment, config.augment_copies, seed) if config.augment else None
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="staged-", dir=scratch) as staging:
        sources = _stage_sources(config, recipe, Path(staging), show_progress)
        whole = sources["train"]
        parts = split_rows(sources, config, heads, seed)
        notes = [
            f"where and filters: left out {staged.filtered} of {staged.read_rows} rows of {name}"
            for name, staged in sources.items()
            if staged.filtered
        ]
        shift_notes, ranges = describe_shift(parts, config, sources)
        notes += shift_notes
        if recipe.times is not None and (note := recipe.times.note()):
            notes.append(note)
        notes += clean_train(parts, config)
        _check_filled(parts)
        if config.test_share is None and "test" in parts and "test" not in sources:
            source = shortened(whole.source, NAME_LENGTH)
            notes.append(
                f"test: {len(parts['test'][1])} of {len(whole.rows)} rows of {source} are held out, so that the final "
                "scores are of rows on which nothing is chosen; data.test_share = 0 trains on them"
            )
        text_keys = {name: staged.numbers("text_key", indices) for name, (staged, indices) in parts.items()}
        in_train = {name: int(np.isin(keys, text_keys["train"]).sum()) for name, keys in text_keys.items()}
        notes += [note for staged in sources.values() for note in staged.notes]
        scope = f" in {', '.join(sources)} together" if len(sources) > 1 else ""
        notes += describe_labels(recipe.readers, whole.columns(recipe.cells), whole.source, scope)
        schema = learn_schema(recipe.readers, whole.columns(recipe.cells), whole.place_at, whole.source)
        for staged in sources.values():
            columns = staged.columns(recipe.cells)
            refuse_unknown_labels(recipe.readers, columns, schema, staged.place_at, staged.source)
            notes += [
                f"parent_of: {count} rows of {staged.source} contradict that of head {head!r}, "
                f"first {staged.place_at(row)}"
                for head, (count, row) in count_contradictions(heads, columns).items()
            ]
        notes += _upsample(parts, recipe)
        others = [part for name, part in parts.items() if augmentation is not None and name != "train"]
        held_out = {key for part in others for key in part[0].numbers("text_key", part[1]).tolist()}
        splits = {}
        for name, (staged, indices) in parts.items():
            rows = _finish(staged, indices, recipe, schema, augmentation if name == "train" else None, held_out)
            on_disk = write_rows(scratch / f"{name}.arrow", rows, _row_schema(schema, recipe))
            is_source = name == "train" or staged is not whole
            split = _to_split(on_disk, staged) if is_source else Split(on_disk, files=tuple(staged.files))
            origin = f"{'of' if is_source else 'held out of'} {shortened(staged.source, NAME_LENGTH)}"
            if name in ranges:
                origin += f", {ranges[name]}"
            splits[name] = replace(
                split,
                origin=origin,
                in_train=in_train.get(name, 0),
                group_column=config.group_column or "",
                called=called(name, parts, config, sources),
            )
    if augmentation is not None:
        notes.append(augmentation.note)
    labels = {name: split.labels for name, split in splits.items()}
    mend = MEND if config.shift_column is None else f'split = "{config.split}" keeps no label\'s share'
    outside = {name: split.out_of_scope for name, split in splits.items()}
    notes += check_coverage(schema, labels, labels.keys() - sources.keys(), mend, outside)
    notes += [
        f"text_transforms: {transform.name} ran when the texts were read; serving does not apply it"
        for transform in recipe.transforms
    ]
    test, similar = splits.get("test"), splits.get("similar")
    return Corpus(schema, splits["train"], splits["validation"], test, tuple(notes), similar)


def read_split(
    paths: str | list[str],
    config: DataConfig,
    heads: Sequence[HeadConfig],
    schema: Schema,
    scratch: Path,
    metadata: Sequence[str] = (),
    show_progress: bool = False,
    without: Sequence[str] = (),
) -> Split:
    """Reads files for evaluation into a file in `scratch`, like training did (template, transforms, filters).

    Labels that the schema lacks are no error: see `Split.unseen`.

    Args:
        heads: of the config. The column of other heads of the schema is their name.
        metadata: columns to keep.
        without: heads that are left out. Their labels are unknown, NaN, in all rows.

    Raises:
        ConfigError, DataError: as for `read_corpus`.
    """
    recipe = Recipe.of_evaluation(config, schema, heads, metadata, without)
    own = {"text", "labels", "template_fields", "source_file", "source_row", OUT_OF_SCOPE}
    if reserved := sorted(own & set(metadata)):
        raise DataError(f"metadata column {reserved[0]!r}: this name is reserved for the rows' own column")
    scratch.mkdir(parents=True, exist_ok=True)
    source = joined(paths)
    with tempfile.TemporaryDirectory(prefix="staged-", dir=scratch) as staging:
        files = open_files(paths, config)
        path = Path(staging) / "rows.arrow"
        staged = stage(files, recipe, source, path, show_progress=show_progress)
        if not len(staged.rows):
            raise DataError(f"{source}: has no row with a text{_by_filters(staged)}")
        unseen: Unseen = {head.name: {} for head in schema}
        rows = _finish(staged, np.arange(len(staged.rows)), recipe, schema, unseen=unseen)
        on_disk = write_rows(scratch / "evaluation.arrow", rows, _row_schema(schema, recipe))
    notes = [
        f"head {reader.config.name!r}, column {reader.column!r}: {line}"
        for reader in recipe.readers
        for line in reader.notes.lines(reader.config.at_least)
    ]
    return replace(_to_split(on_disk, staged), notes=(*staged.notes, *notes), origin=f"of {source}", unseen=unseen)


def read_texts(paths: str | list[str], config: DataConfig, scratch: Path, show_progress: bool = False) -> Split:
    """The texts of files, read and transformed as for training. The split has no labels.

    Raises:
        ConfigError, DataError: as for `read_corpus`.
    """
    bare = config.model_copy(update={"where": {}, "filters": [], "upsample": [], "split": "hash", "split_column": None})
    scratch.mkdir(parents=True, exist_ok=True)
    path = scratch / "texts.arrow"
    staged = stage(open_files(paths, config), Recipe(bare, ()), joined(paths), path, show_progress=show_progress)
    if not len(staged.rows):
        raise DataError(f"{staged.source}: has no row with a text")
    return _to_split(staged.rows, staged)


def _stage_sources(config: DataConfig, recipe: Recipe, folder: Path, show_progress: bool) -> dict[str, Staged]:
    """What the config names: train and, if given, validation and test."""
    sources: dict[str, tuple[str, list[Source]]]
    if config.hub is not None:
        sources = {name: (split.name, [split]) for name, split in open_hub(config.hub, config.hub_config).items()}
    else:
        files = {"train": config.train, "validation": config.validation, "test": config.test}
        # All are opened before any is read: a name that matches nothing is an error at once.
        found = {name: paths for name, paths in files.items() if paths is not None}
        sources = {name: (joined(paths), open_files(paths, config)) for name, paths in found.items()}
    return {
        name: stage(
            opened,
            recipe,
            source,
            folder / f"{name}.arrow",
            config.train_columns if name == "train" else (),
            show_progress=show_progress,
        )
        for name, (source, opened) in sources.items()
    }


def _to_split(rows: datasets.Dataset, staged: Staged) -> Split:
    return Split(rows, staged.dropped, staged.filtered, staged.bad, files=tuple(staged.files))


def _by_filters(staged: Staged) -> str:
    return f" ({staged.filtered} were left out by where and filters)" if staged.filtered else ""


def _check_filled(parts: Parts) -> None:
    for name, (staged, indices) in parts.items():
        if not len(staged.rows):
            raise DataError(f"{staged.source}: the {name} split has no row with a text{_by_filters(staged)}")
        if not len(indices):
            hint = f"raise data.{name}_share, or name a file in data.{name}"
            if name == "train":
                hint = "see data.validation_share, data.test_share and data.drop_leaks"
            raise DataError(f"{staged.source}: of {len(staged.rows)} rows none is left for {name}; {hint}")


def _upsample(parts: Parts, recipe: Recipe) -> list[str]:
    if not recipe.config.upsample:
        return []
    staged, train = parts["train"]
    times = staged.numbers("times", train)
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
    unseen: Unseen | None = None,
) -> Iterator[Fields]:
    """Rows as a `Split` holds them. No copy of a row has a text whose key is held out."""
    columns = [reader.column for reader in recipe.readers]
    metadata = {name: f"metadata_{i}" for i, name in enumerate(recipe.metadata)}
    if recipe.template is not None:
        metadata["template_fields"] = "template_fields"
    if recipe.has_groups:
        metadata["group"] = "group"
    if recipe.has_scope:
        metadata[OUT_OF_SCOPE] = OUT_OF_SCOPE
    for number, row in enumerate(staged.read(["text", *recipe.cells, *metadata.values()], indices)):
        place = staged.place_of(row)
        found: dict[str, list[str]] = {}
        cells = [row[cell] for cell in recipe.cells]
        labels = to_vector(cells, schema, columns, place, None if unseen is None else found)
        if unseen is not None:
            for head, names in found.items():
                unseen[head][number] = names
        finished = {"text": row["text"], "labels": labels, "source_file": row["file"], "source_row": row["row"]}
        finished |= {name: row[key] for name, key in metadata.items()}
        yield finished
        if augmentation is not None:
            yield from augmentation.copies_of(finished, number, place, lambda text: recipe.text_key(text) in held_out)


def _row_schema(schema: Schema, recipe: Recipe) -> pyarrow.Schema:
    fields = [("text", pyarrow.string()), ("labels", pyarrow.list_(pyarrow.float32(), schema.label_width))]
    fields += [("source_file", pyarrow.int32()), ("source_row", pyarrow.int64())]
    others = [*recipe.metadata, *([] if recipe.template is None else ["template_fields"])]
    others += ["group"] if recipe.has_groups else []
    fields += [(name, pyarrow.string()) for name in others]
    return pyarrow.schema(fields + ([(OUT_OF_SCOPE, pyarrow.list_(pyarrow.string()))] if recipe.has_scope else []))
