"""The training config: one TOML file, validated once. ``EXAMPLE`` is what ``polyhead-train --help`` shows."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from polyhead.checkpoint import Architecture
from polyhead.errors import describe
from polyhead.schema import HeadKind
from polyhead_training.errors import ConfigError

EXAMPLE = """\
output = "runs/reviews"              # the checkpoint folder

[data]
train = "reviews.csv"                # .csv, .jsonl or .parquet: a path, a glob or a list of them
# validation = "..."                 # else a tenth of train, by a hash of the text
# test = "..."
# hub = "owner/name"                 # instead of files: its splits train, validation and test
text_column = "text"

[model]                              # from scratch, with a byte-level BPE of its own;
max_length = 256                     # or add: pretrained = "gpt2"
gpt2 = { n_layer = 2, n_embd = 192, n_head = 4, vocab_size = 8000 }

[[heads]]
name = "topic"
kind = "single_label"                # or multi_label, regression

[[heads]]
name = "tags"
kind = "multi_label"
column = "labels"                    # if it is not called as the head
separator = ";"                      # between labels in one CSV cell

[training]
epochs = 3
learning_rate = 1e-3
"""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(_Section):
    """Where the rows come from: files, or a data set of the hub."""

    train: str | list[str] | None = None
    validation: str | list[str] | None = None
    test: str | list[str] | None = None
    hub: str | None = None
    text_column: str = "text"

    @model_validator(mode="after")
    def _agree(self) -> DataConfig:
        if (self.train is None) == (self.hub is None):
            raise ValueError("give either train (files) or hub (a data set's name)")
        if self.hub is not None and (self.validation is not None or self.test is not None):
            raise ValueError("validation and test are files and go with train; a hub data set brings its own splits")
        return self


class HeadConfig(_Section):
    """One head and the column that holds its labels.

    Attributes:
        column: the head's name if not given.
        labels: in index order; if not given, the sorted labels of the training rows.
        separator: between the labels of a multi_label head where a cell is text.
        parent, parent_of: the level above in a taxonomy, as in the checkpoint.
    """

    name: str
    kind: HeadKind
    column: str | None = None
    labels: list[str] | None = None
    separator: str = Field(default=",", min_length=1)
    weight: float = Field(default=1.0, ge=0)
    parent: str | None = None
    parent_of: dict[str, str] | None = None


class ModelConfig(_Section):
    """Architecture, head and where the body's weights come from.

    Attributes:
        pretrained: a local path or hub name whose GPT-2 weights and tokenizer are taken; if not given, from scratch.
        gpt2: fields of transformers' GPT2Config for a model from scratch; ``vocab_size`` is also the tokenizer's.
    """

    architecture: Architecture = "base"
    layer2concat: int = Field(default=4, ge=1)
    head_class: str | None = None
    head_args: dict[str, Any] = {}
    max_length: int = Field(default=256, ge=1)
    pretrained: str | None = None
    gpt2: dict[str, Any] = {}

    @model_validator(mode="after")
    def _agree(self) -> ModelConfig:
        if self.pretrained is not None and self.gpt2:
            raise ValueError("gpt2 describes a model from scratch; it does not go with pretrained")
        return self

    @property
    def head(self) -> str:
        """The head class's name: ``Linear`` for base and ``ConcatHeadSimple`` for hidden_state_concat unless given."""
        return self.head_class or ("Linear" if self.architecture == "base" else "ConcatHeadSimple")


class FitConfig(_Section):
    """How transformers' Trainer fits; names and meanings are those of its TrainingArguments."""

    epochs: float = Field(default=3, gt=0)
    batch_size: int = Field(default=32, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    warmup_ratio: float = Field(default=0.05, ge=0, lt=1)
    weight_decay: float = Field(default=0.01, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    train_sampling_strategy: Literal["random", "group_by_length"] = "random"


class TrainingConfig(_Section):
    """The whole file."""

    output: Path
    seed: int = Field(default=0, ge=0)
    golden_rows: int = Field(default=256, ge=1)
    data: DataConfig
    model: ModelConfig = ModelConfig()
    heads: list[HeadConfig] = Field(min_length=1)
    training: FitConfig = FitConfig()


def read_config(path: Path) -> TrainingConfig:
    """Reads and validates the TOML file.

    Raises:
        ConfigError: names the file, the field, the value and what is allowed.
    """
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is not TOML ({error})") from error
    try:
        return TrainingConfig.model_validate(fields)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_with_allowed(error)}") from error


def _with_allowed(error: ValidationError) -> str:
    """Adds the section's known fields where an unknown one was found."""
    message = describe(error)
    unknown = [finding["loc"] for finding in error.errors() if finding["type"] == "extra_forbidden"]
    if unknown:
        sections = {"data": DataConfig, "model": ModelConfig, "heads": HeadConfig, "training": FitConfig}
        section = sections.get(str(unknown[0][0]), TrainingConfig) if len(unknown[0]) > 1 else TrainingConfig
        message += f"; allowed are {', '.join(section.model_fields)}"
    return message
