"""The training config: one TOML file, validated once. ``polyhead-train --example`` prints ``EXAMPLE``."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from polyhead.errors import describe
from polyhead.schema import Architecture, HeadKind
from polyhead_rows.errors import TableError
from polyhead_rows.names import read_names
from polyhead_rows.table_file import ReadOptions
from polyhead_training.config_keys import hint, sections
from polyhead_training.errors import ConfigError

EXAMPLE = """\
output = "runs/reviews"              # the checkpoint folder

[data]
train = "reviews.csv"                # CSV, TSV, JSON lines, JSON, Parquet or Arrow: a path, a glob, or a list
# delimiter = ";"                    # if a CSV does not use commas
# validation = "..."                 # without it, a tenth of train, chosen by a hash of the text
# test = "..."                       # without it, another tenth if train has 1,000 rows or more; test_share = 0: none
# hub = "owner/name"                 # instead of files: a data set of the Hugging Face hub
text_column = "text"                 # or text_template = "[[{title}. ]]{body}"

[model]                              # from scratch, with a new byte-level BPE tokenizer;
max_length = 256                     # or pretrained = "gpt2" instead of the next line
gpt2 = { n_layer = 2, n_embd = 192, n_head = 4, vocab_size = 8000 }

[[heads]]
name = "topic"
kind = "single_label"                # or multi_label, regression

[[heads]]
name = "tags"
kind = "multi_label"
column = "labels"                    # if its name is not the head's
separator = ";"                      # between the labels of one CSV cell
# columns = ["toxic", "insult"]      # instead of column: one column of 0 and 1 per label

[training]
epochs = 3
learning_rate = 1e-3
"""


_Config = TypeVar("_Config", bound=BaseModel)


class Section(BaseModel):
    """A part of a TOML file."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _know_fields(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and (unknown := [name for name in fields if name not in cls.model_fields]):
            meant = hint(unknown[0], cls, dict(sections(cls.file())))
            raise ValueError(f"unknown field {unknown[0]!r}{meant}; allowed are {', '.join(cls.model_fields)}")
        return fields

    @classmethod
    def file(cls) -> type[BaseModel]:
        """The model of the file that this is a part of."""
        return TrainingConfig


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
            its numbers), or of the head `stratify_by`.
        split_column: the column that is hashed; by default the text.
        stratify_by: the head whose labels keep their shares.
        validation_share, test_share: of the training rows. Without `test_share`, a tenth is held out for the test if
            there are at least 1,000 training rows and no test rows are given.
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
    split: Literal["hash", "stratified"] = "hash"
    split_column: str | None = Field(default=None, examples=["customer_id"])
    stratify_by: str | None = Field(default=None, examples=["topic"])
    validation_share: float = Field(default=0.1, gt=0, lt=1)
    test_share: float | None = Field(default=None, ge=0, lt=1, examples=[0.2])
    drop_leaks: bool = False
    drop_duplicates: bool = False
    upsample: list[UpsampleConfig] = []
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
        if self.split == "stratified" and self.split_column is not None:
            raise ValueError("split_column goes with split = 'hash'")
        if self.split == "hash" and self.stratify_by is not None:
            raise ValueError("stratify_by goes with split = 'stratified'")
        if self.validation_share + (self.test_share or 0) >= 1:
            raise ValueError("validation_share and test_share leave no row for training")
        return self


OF_LABELS = (
    "columns",
    "positions",
    "names",
    "unnamed",
    "empty_cells",
    "at_least",
    "pattern",
    "as_written",
)  # of HeadConfig


class HeadConfig(Section):
    """One head, the column that holds its labels, and its part of the loss.

    Attributes:
        name: of the head in answers and metrics.
        kind: what it answers: one of n labels, any of n labels, or a number.
        column: by default the head's name; ``doc.label`` is the field of an object.
        columns: instead of `column`: one column per label, with 0 or 1. Their names are the labels.
        positions: names of the positions, if a cell is a vector of 0 and 1.
        labels: in index order; by default the sorted labels of all rows of train, including those held out.
        names: what ids or spellings are called: a list from 0 on, a table, or a file (`polyhead_rows.names`).
        unnamed: what a label is that `names` lacks: an ``error``, or ``keep`` it. By default it is kept only if `names`
            is a table here that has other keys than numbers.
        missing: texts that mean unknown, whatever their case, instead of those in `polyhead_training.data.scalars`.
        empty_cells: what an empty text means: ``no_labels`` (the default of a multi_label head with one column) or
            ``unknown``.
        at_least: a share between 0 and 1 counts as the label from here on.
        as_written: takes a text as it is: brackets, quotes, tags, bullets and so on are letters, and only `separator`
            cuts it. By default `polyhead_rows.spelling` and `polyhead_training.data.text_forms` read it.
        pattern: a regular expression that finds the labels in a text, or its one group does.
        label_transforms: ``strip``, ``lowercase``, ``whole_number`` (``1.0`` becomes ``1``) or
            ``package.module:function`` (label to label).
        separator: between the labels of a multi_label head if a cell is text.
        weight: of the head's loss in the sum.
        parent: the head of the level above in a taxonomy.
        parent_of: for each label, the label of `parent` that it belongs to. By default it is learned from the same rows
            as `labels`.
        y_range: regression only: the lowest and the highest value that the head can answer.
        class_weights: single_label only: the weight of each label's rows, or ``balanced``: n / (labels * its rows).
        positive_weights: multi_label only: the weight of each label's positive rows, or ``balanced``: negative /
            positive rows.
        label_smoothing: single_label and multi_label only (Szegedy et al. 2016, arXiv:1512.00567).
    """

    name: str = Field(examples=["topic"])
    kind: HeadKind
    column: str | None = Field(default=None, examples=["Topic"])
    columns: list[str] | None = Field(default=None, min_length=2, examples=[["toxic", "insult"]])
    positions: list[str] | None = Field(default=None, min_length=2, examples=[["news", "sport", "science"]])
    labels: list[str] | None = Field(default=None, examples=[["news", "sport", "science"]])
    names: list[str] | dict[str, str] | str | None = Field(default=None, examples=[{"27": "neutral"}, "labels.txt"])
    unnamed: Literal["error", "keep"] | None = None
    missing: list[str] | None = Field(default=None, examples=[["tbd", "-1"]])
    empty_cells: Literal["no_labels", "unknown"] | None = None
    at_least: float = Field(default=0.5, gt=0, le=1)
    as_written: bool = False
    pattern: str | None = Field(default=None, examples=[r"#(\w+)"])
    label_transforms: list[str] = Field(default=[], examples=[["lowercase"]])
    separator: str = Field(default=",", min_length=1, examples=[";"])
    weight: float = Field(default=1.0, ge=0, examples=[0.5])
    parent: str | None = Field(default=None, examples=["country"])
    parent_of: dict[str, str] | None = Field(default=None, examples=[{"Sydney": "Australia", "Utrecht": "Netherlands"}])
    y_range: tuple[float, float] | None = Field(default=None, examples=[(1.0, 5.0)])
    class_weights: Literal["balanced"] | dict[str, float] | None = None
    positive_weights: Literal["balanced"] | dict[str, float] | None = None
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, examples=[0.05])

    @model_validator(mode="after")
    def _agree(self) -> HeadConfig:
        for field, kinds in {
            "y_range": (HeadKind.REGRESSION,),
            "class_weights": (HeadKind.SINGLE_LABEL,),
            "positive_weights": (HeadKind.MULTI_LABEL,),
            "label_smoothing": (HeadKind.SINGLE_LABEL, HeadKind.MULTI_LABEL),
            "label_transforms": (HeadKind.SINGLE_LABEL, HeadKind.MULTI_LABEL),
            "separator": (HeadKind.SINGLE_LABEL, HeadKind.MULTI_LABEL),
            **dict.fromkeys(OF_LABELS, (HeadKind.SINGLE_LABEL, HeadKind.MULTI_LABEL)),
        }.items():
            if getattr(self, field) != type(self).model_fields[field].default and self.kind not in kinds:
                raise ValueError(f"{field} goes with kind {' or '.join(kinds)}, not {self.kind}")
        if len([name for name in ("column", "columns") if getattr(self, name) is not None]) > 1:
            raise ValueError("give either column or columns")
        if self.columns is not None and (self.positions is not None or self.pattern is not None):
            raise ValueError("columns have a cell per label; positions and pattern are for one cell with all labels")
        if self.positions is not None and (self.pattern is not None or self.names is not None):
            raise ValueError("positions says what vectors mean; names and pattern are for labels in cells")
        for field in ("columns", "positions"):
            if len(set(found := getattr(self, field) or [])) < len(found):
                raise ValueError(f"{field} must differ, got {found}")
        self._check_pattern()
        if self.y_range is not None and not self.y_range[0] < self.y_range[1]:
            raise ValueError(f"y_range must be two numbers, the lower first, got {list(self.y_range)}")
        if self.parent_of is not None and self.parent is None:
            raise ValueError("parent_of goes with parent")
        return self

    def _check_pattern(self) -> None:
        if self.pattern is None:
            return
        try:
            groups = re.compile(self.pattern).groups
        except re.error as error:
            raise ValueError(f"pattern {self.pattern!r} is no regular expression: {error}") from error
        if groups > 1:
            raise ValueError(f"pattern {self.pattern!r} must have one group, or none; (?:...) groups nothing")


class ModelConfig(Section):
    """Architecture, head, and where the body's weights come from.

    Attributes:
        architecture: ``base`` reads the topmost hidden state of the last token, ``hidden_state_concat`` the last
            `layer2concat` ones.
        layer2concat: how many hidden states; hidden_state_concat only.
        head_class: ``Linear``, ``ConcatHeadSimple``, ``ConcatHeadExtended`` or ``package.module:Class``. By default
            ``Linear`` with base and ``ConcatHeadSimple`` with hidden_state_concat.
        head_args: arguments of the head class.
        max_length: how many tokens of a text are read.
        pretrained: a local path or hub name of GPT-2 weights and their tokenizer. Without it, training is from scratch.
        gpt2: fields of transformers' GPT2Config for a model from scratch (``vocab_size`` is also the tokenizer's); with
            `pretrained` only the dropouts.
    """

    architecture: Architecture = "base"
    layer2concat: int = Field(default=4, ge=1)
    head_class: str | None = Field(default=None, examples=["ConcatHeadExtended"])
    head_args: dict[str, Any] = Field(default={}, examples=[{"classifier_dropout": 0.2}])
    max_length: int = Field(default=256, ge=1, examples=[128])
    pretrained: str | None = Field(default=None, examples=["gpt2", "models/my-gpt2"])
    gpt2: dict[str, Any] = Field(default={}, examples=[{"n_layer": 2, "n_embd": 192, "n_head": 4, "vocab_size": 8000}])

    @model_validator(mode="after")
    def _agree(self) -> ModelConfig:
        if self.pretrained is not None and (
            shape := sorted(set(self.gpt2) - {"resid_pdrop", "embd_pdrop", "attn_pdrop"})
        ):
            raise ValueError(f"gpt2.{shape[0]} describes a model from scratch; it does not go with pretrained")
        return self

    @property
    def head(self) -> str:
        """The head class's name; by default ``Linear`` for base and ``ConcatHeadSimple`` for hidden_state_concat."""
        return self.head_class or ("Linear" if self.architecture == "base" else "ConcatHeadSimple")


class WarmStartConfig(Section):
    """Trains the body as a causal language model on the same texts before the heads are trained.

    Attributes:
        epochs: how often each text is read.
        learning_rate: the highest one; it follows a cosine.
        batch_size: blocks of max_length tokens per step.
        texts: more files to learn from. Only their text is read.
    """

    epochs: float = Field(default=1, gt=0)
    learning_rate: float = Field(default=1e-3, gt=0)
    batch_size: int = Field(default=32, ge=1)
    texts: str | list[str] = Field(default=[], examples=["unlabelled/*.jsonl"])


class LoraConfig(Section):
    """Low-rank adapters on the body (Hu et al. 2021, arXiv:2106.09685) through peft, merged into the weights.

    Attributes:
        r: the rank.
        alpha: the adapters' output is multiplied by alpha / r.
        dropout: of the adapters' input.
        target_modules: the linear layers that get an adapter.
    """

    r: int = Field(default=8, ge=1)
    alpha: float = Field(default=16, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1, examples=[0.1])
    target_modules: list[str] = ["c_attn", "c_proj", "c_fc"]


class EarlyStoppingConfig(Section):
    """Stops if `training.best_metric` has not improved by `min_delta` for `patience` evaluations.

    Attributes:
        patience: evaluations without an improvement.
        min_delta: a smaller change is no improvement.
    """

    patience: int = Field(default=3, ge=1)
    min_delta: float = Field(default=0.0, ge=0, examples=[0.001])


class FitConfig(Section):
    """How transformers' Trainer fits. Names and meanings are the same as in its TrainingArguments.

    Attributes:
        epochs: how often each row is read.
        max_steps: replaces `epochs` if given.
        batch_size: rows per step and process.
        gradient_accumulation_steps: batches whose gradients are added up before a step.
        learning_rate: the highest one, after the warm-up.
        lr_scheduler_type: any of transformers' schedulers.
        lr_scheduler_kwargs: arguments of the scheduler, as these of ``cosine_with_restarts``.
        warmup_ratio: the share of all steps in which the learning rate rises.
        weight_decay: of AdamW.
        max_grad_norm: longer gradients are shortened to this.
        optim: any of transformers' optimizers.
        precision: ``auto`` is bf16 on a GPU that has it, fp16 on other GPUs, and fp32 on a CPU.
        train_sampling_strategy: ``group_by_length`` puts texts of similar length into one batch.
        best_metric: chooses the best checkpoint and ends early stopping: ``loss`` or ``head/metric``.
        eval_steps: steps between evaluations; by default one epoch.
        freeze_layers: the embeddings and this many of the lowest blocks keep their weights.
        layer_lr_decay: the learning rate of each layer is this fraction of the layer above's (Howard and Ruder 2018,
            arXiv:1801.06146).
        gradient_checkpointing: computes activations again instead of keeping them: less memory, more time.
        report_to: trackers, such as ``tensorboard``, which writes to ``<output>.training/logs``. Logs of earlier runs
            are kept there.
    """

    epochs: float = Field(default=3, gt=0)
    max_steps: int | None = Field(default=None, ge=1, examples=[2000])
    batch_size: int = Field(default=32, ge=1)
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    lr_scheduler_type: str = Field(default="linear", examples=["cosine_with_restarts"])
    lr_scheduler_kwargs: dict[str, Any] = Field(default={}, examples=[{"num_cycles": 3}])
    warmup_ratio: float = Field(default=0.05, ge=0, lt=1)
    weight_decay: float = Field(default=0.01, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    optim: str = "adamw_torch_fused"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    train_sampling_strategy: Literal["random", "group_by_length"] = "random"
    eval_steps: int | None = Field(default=None, ge=1, examples=[500])
    best_metric: str = Field(default="loss", examples=["topic/macro_f1"])
    early_stopping: EarlyStoppingConfig | None = None
    freeze_layers: int = Field(default=0, ge=0, examples=[6])
    layer_lr_decay: float = Field(default=1.0, gt=0, le=1, examples=[0.9])
    gradient_checkpointing: bool = False
    report_to: list[str] = Field(default=[], examples=[["tensorboard"]])


class CalibrationConfig(Section):
    """What is fitted on the validation rows after training and stored in the checkpoint, if it helps in other rows.

    Attributes:
        temperature: one per head (Guo et al. 2017, arXiv:1706.04599), with the least negative log-likelihood.
        thresholds: of multi_label heads. ``f1`` gives each label the threshold with its best F1, which is good for
            macro F1; with few positive validation rows it is near that of all labels. ``micro_f1`` gives all labels the
            one threshold with the best micro F1. Labels that either would answer in more than three times their rows
            get a higher one. ``fixed`` keeps 0.5.
    """

    temperature: bool = True
    thresholds: Literal["f1", "micro_f1", "fixed"] = "f1"


class ReportConfig(Section):
    """What the report holds besides the scores.

    Attributes:
        baselines: what a constant answer and a linear model reach, fitted on the same training rows.
        suspects: labels of validation and test rows that are probably wrong.
    """

    baselines: bool = True
    suspects: bool = True


class TrainingConfig(Section):
    """The keys above the first table.

    Attributes:
        output: the checkpoint's folder. Until the end, the unfinished run is in ``<output>.training``.
        seed: of weights, order of rows, dropout, stratified splits and augmentation.
        golden_rows: how many texts with their scores the checkpoint keeps as a proof; see `polyhead.golden`.
    """

    output: Path = Field(examples=[Path("runs/reviews")])
    seed: int = Field(default=0, ge=0)
    golden_rows: int = Field(default=256, ge=1)
    data: DataConfig
    model: ModelConfig = ModelConfig()
    warm_start: WarmStartConfig | None = None
    heads: list[HeadConfig] = Field(min_length=1)
    lora: LoraConfig | None = None
    training: FitConfig = FitConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    report: ReportConfig = ReportConfig()

    @model_validator(mode="after")
    def _agree(self) -> TrainingConfig:
        names = [head.name for head in self.heads]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"heads: names must be unique, {twice!r} occurs twice")
        for head in self.heads:
            others = [other.name for other in self.heads if other.kind == HeadKind.SINGLE_LABEL and other is not head]
            if head.parent is not None and head.parent not in others:
                raise ValueError(
                    f"heads: {head.name!r}: parent must be one of the other single_label heads {others}, "
                    f"got {head.parent!r}"
                )
        return self


def read_config(path: Path) -> TrainingConfig:
    """Reads and validates the TOML file, and the files of names that it names.

    Raises:
        ConfigError: as `read_toml`, or a file of names is unusable.
    """
    return with_all_names(read_toml(path, TrainingConfig))


def with_all_names(config: TrainingConfig) -> TrainingConfig:
    """The config with the content of the files of names that it names; see `with_names`."""
    return config.model_copy(update={"heads": [with_names(head) for head in config.heads]})


def with_names(head: HeadConfig) -> HeadConfig:
    """The head with the content of its file of names, so that the record of a training needs no file.

    Raises:
        ConfigError: the file cannot be read, or is no table of names.
    """
    if head.names is None or isinstance(head.names, dict):
        return head
    try:
        names = read_names(head.names) if isinstance(head.names, str) else head.names
    except TableError as error:
        raise ConfigError(f"heads: {head.name!r}: names: {error}") from error
    if isinstance(names, list):
        names = {str(number): name for number, name in enumerate(names)}
    return head.model_copy(update={"names": names, "unnamed": head.unnamed or "error"})


def read_toml(path: Path, kind: type[_Config]) -> _Config:
    """Reads and validates a TOML file.

    Raises:
        ConfigError: names the file, the field, the value and what is allowed.
    """
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        place = "" if path.is_absolute() else f"; paths are relative to {Path.cwd()}"
        raise ConfigError(f"{path}: no such file{place}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is not TOML ({error})") from error
    return validated(fields, kind, str(path))


def validated(fields: Any, kind: type[_Config], place: str) -> _Config:
    """Validates the fields of a config.

    Raises:
        ConfigError: begins with `place` and names the field, the value and what is allowed.
    """
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise ConfigError(f"{place}: {' '.join(describe(error).split())}") from error
