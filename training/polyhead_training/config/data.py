"""``[data]``: which rows are read, what of them is text, and how they are split."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from polyhead_rows.table_file import ReadOptions
from polyhead_training.config.section import Section

OF_SPLIT = {"split_column": "hash", "stratify_by": "stratified", "group_column": "group", "time_column": "time"}
COLUMN_OF = {"group": "group_column", "time": "time_column"}  # splits into rows that are unlike each other


class UpsampleConfig(Section):
    """Repeats the training rows whose `column` holds one of `values`, until each is there `times` times.

    The values are compared with the file, before label_transforms.

    Attributes:
        column: where the values are looked for.
        values: rows with one of these are repeated.
        times: how often each of these rows is there in the end.
    """

    column: str = Field(examples=["topic"])
    values: list[str] = Field(min_length=1, examples=[["rare topic"]])
    times: int = Field(ge=2, le=10_000, examples=[3])


class DataConfig(Section, ReadOptions):
    """Where the rows come from, files or a data set of the hub, and what is done to them.

    Attributes:
        train: files of training rows: a path, a glob, a folder, or a list of these.
        validation, test: as `train`. Without them, rows of `train` are held out.
        hub: instead of files, a data set of the Hugging Face hub with its own splits.
        hub_config: the name of one of the data set's configurations.
        bad_rows: what to do with rows that cannot be read, have no text, or have an unusable label cell. ``stop`` ends
            the run at the first one and says how many there are; ``skip`` leaves them out and counts them.
        text_column: the column of the text; ``doc.body`` is the field of an object.
        text_template: instead of `text_column`: joins columns. The checkpoint keeps it, and the server renders with it.
        any_text: accepts a text column whose texts are all numbers, or all spelled lists and objects.
        text_transforms: by name: ``strip``, ``collapse_whitespace``, ``lowercase``, ``strip_accents``, ``nfc``,
            ``nfkc``. These become part of the tokenizer, so serving applies them too. A ``package.module:function``
            (text to text) runs only in training and evaluation.
        where: keeps the rows that have this value, or one of these values, in that column, before label_transforms.
        filters: names of ``package.module:function``; keeps the rows, given as dicts, for which each returns true.
        split: how validation or test rows are held out if no files are given for them. ``hash`` never moves a row when
            data is added; ``stratified`` keeps the share of each label of all heads (of a regression: of each tenth of
            its numbers), or of the head `stratify_by`; ``group`` has no group in two splits; ``time`` trains on the
            oldest rows, validates on newer ones and tests on the newest.
        split_column: the column that is hashed; by default the text.
        stratify_by: the head whose labels keep their shares.
        group_column: the column of the groups: sources, customers, authors. Rows with an empty cell are trained on.
        time_column: the column of the times: ISO dates and times, the times of Parquet and Arrow, or numbers: years,
            ``20240131``, or seconds, milli-, micro- or nanoseconds since 1970. A time without a zone is UTC.
        validation_share, test_share: of the training rows. Without `test_share`, a tenth is held out for the test if
            there are at least 1,000 training rows and no test rows are given.
        similar_share: of the rows that ``group`` or ``time`` leave for training: held out by a hash of the text, to
            measure what it costs that validation and test rows are unlike them. By default a tenth if there are at
            least 1,000 training rows.
        drop_leaks: removes training rows whose text is also in validation or test. Otherwise they are only counted.
        drop_duplicates: removes training rows whose text and labels occurred before.
        augment: names of ``package.module:function``, called as ``function(text, random.Random)``. Each adds
            `augment_copies` copies of each training row, with the text that the function returns.
        augment_copies: how many changed copies of each row a function adds.
    """

    bad_rows: Literal["stop", "skip"] = "stop"
    train: str | list[str] | None = Field(default=None, examples=["reviews.csv", ["a.csv", "more/*.csv"]])
    validation: str | list[str] | None = Field(default=None, examples=["validation.csv"])
    test: str | list[str] | None = Field(default=None, examples=["test.csv"])
    hub: str | None = Field(default=None, examples=["owner/name"])
    hub_config: str | None = Field(default=None, examples=["plain_text"])
    text_column: str = Field(default="text", examples=["Review Text"])
    text_template: str | None = Field(default=None, examples=["[[{title}. ]]{body}"])
    any_text: bool = False
    text_transforms: list[str] = Field(default=[], examples=[["strip", "lowercase"]])
    where: dict[str, str | list[str]] = Field(default={}, examples=[{"language": "en", "source": ["web", "app"]}])
    filters: list[str] = Field(default=[], examples=[["my_package.rows:is_long_enough"]])
    split: Literal["hash", "stratified", "group", "time"] = "hash"
    split_column: str | None = Field(default=None, examples=["customer_id"])
    stratify_by: str | None = Field(default=None, examples=["topic"])
    group_column: str | None = Field(default=None, examples=["source"])
    time_column: str | None = Field(default=None, examples=["created_at"])
    validation_share: float = Field(default=0.1, gt=0, lt=1)
    test_share: float | None = Field(default=None, ge=0, lt=1, examples=[0.2])
    similar_share: float | None = Field(default=None, ge=0, lt=1, examples=[0.1])
    drop_leaks: bool = False
    drop_duplicates: bool = False
    upsample: list[UpsampleConfig] = Field(default=[])
    augment: list[str] = Field(default=[], examples=[["my_package.texts:drop_words"]])
    augment_copies: int = Field(default=1, ge=1)

    @field_validator("train", "validation", "test")
    @classmethod
    def _name_files(cls, paths: str | list[str] | None) -> str | list[str] | None:
        if paths is not None and not paths:
            raise ValueError("must name at least one file")
        return paths

    @model_validator(mode="after")
    def _agree(self) -> DataConfig:
        if (self.train is None) == (self.hub is None):
            raise ValueError("give either train (files) or hub (a data set's name)")
        for name, field in ReadOptions.model_fields.items():
            if self.hub is not None and getattr(self, name) != field.default:
                raise ValueError(f"{name} says how files are read and does not go with hub")
        if self.hub is not None and (self.validation is not None or self.test is not None):
            raise ValueError("validation and test are files and go with train; a hub data set brings its own splits")
        if self.hub is None and self.hub_config is not None:
            raise ValueError("hub_config goes with hub")
        if self.text_template is not None and self.text_column != "text":
            raise ValueError("give either text_column or text_template")
        for key, split in OF_SPLIT.items():
            if self.split != split and getattr(self, key) is not None:
                raise ValueError(f"{key} goes with split = {split!r}")
        if self.split in COLUMN_OF and self.shift_column is None:
            raise ValueError(f"split = {self.split!r} needs {COLUMN_OF[self.split]}")
        if self.similar_share is not None and self.split not in COLUMN_OF:
            raise ValueError("similar_share goes with split = 'group' and split = 'time'")
        if self.validation_share + (self.test_share or 0) >= 1:
            raise ValueError("validation_share and test_share leave no row for training")
        return self

    @property
    def train_columns(self) -> list[str]:
        """The columns that only rows of train need."""
        columns = [up.column for up in self.upsample]
        return columns + [column for column in (self.split_column, self.shift_column) if column is not None]

    @property
    def shift_column(self) -> str | None:
        """The column of the groups or of the times by which the rows are split; None if they are not."""
        return self.group_column if self.split == "group" else self.time_column
