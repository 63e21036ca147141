"""The training config: one TOML file, validated once. ``polyhead-train --example`` prints ``EXAMPLE``."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from polyhead.schema import HeadKind
from polyhead_training.config.data import DataConfig
from polyhead_training.config.fit import CalibrationConfig, FitConfig, ReportConfig
from polyhead_training.config.heads import HeadConfig
from polyhead_training.config.model import LoraConfig, ModelConfig, WarmStartConfig
from polyhead_training.config.section import Section, read_toml

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
    return read_toml(path, TrainingConfig)
