"""The training config is validated once, and every error is one line that names the field."""

from __future__ import annotations

from pathlib import Path

import pytest

from polyhead_training.config import EXAMPLE, TrainingConfig, read_config
from polyhead_training.errors import ConfigError

VALID = 'output = "o"\n[data]\ntrain = "t.csv"\n[[heads]]\nname = "a"\nkind = "single_label"\n'
REGRESSION = VALID.replace("single_label", "regression")


def write(folder: Path, text: str) -> Path:
    """The text as a TOML file."""
    path = folder / "config.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_example_is_a_valid_config(tmp_path: Path) -> None:
    """What --help shows can be used as it is."""
    config = read_config(write(tmp_path, EXAMPLE))
    assert [head.name for head in config.heads] == ["topic", "tags"]
    assert config.model.head == "Linear"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (VALID + "colour = 1\n", r"heads.0: unknown field 'colour' \(did you mean 'column'\?\); allowed are name"),
        ("epochs = 1\n" + VALID,
         r"toml: unknown field 'epochs' \(it goes into \[warm_start\] or into \[training\]\); allowed are outp"),
        (VALID + "[training]\nepoch = 1\n",
         r"training: unknown field 'epoch' \(did you mean 'epochs'\?\); allowed are epochs"),
        (VALID + "[training]\nseed = 1\n",
         r"training: unknown field 'seed' \(it goes to the top of the file, above the first \[table\]\); allowed"),
        (VALID + "[training]\nbatch_sise = 1\n", r"unknown field 'batch_sise' \(did you mean 'batch_size'\?\)"),
        (VALID + "[model]\nearly_stoping = {}\n",
         r"model: unknown field 'early_stoping' \(did you mean 'early_stopping'\? It goes into \[training\]\)"),
        (VALID + "[trainings]\n", r"unknown field 'trainings' \(did you mean 'training'\?\)"),
        (VALID + "zzzz = 1\n", "heads.0: unknown field 'zzzz'; allowed are name, kind, column"),
        ("training = 3\n" + VALID, "training: Input should be a valid dictionary"),
        (VALID.replace('output = "o"\n', ""), "output: this field is missing"),
        (VALID.replace("single_label", "one"), "heads.0.kind: Input should be .*got 'one'"),
        (VALID.replace('train = "t.csv"', ""), "data: give either train .* or hub"),
        (VALID + "[training]\nlearning_rate = -1\n", r"training.learning_rate: .*greater than 0 \(got -1\)"),
        (VALID + '[model]\npretrained = "gpt2"\ngpt2 = { n_layer = 2 }\n', "does not go with pretrained"),
        (VALID.replace('"t.csv"', "[]"), "data.train: must name at least one file"),
        (VALID.replace('"t.csv"', '"t.csv"\ntest = []'), "data.test: must name at least one file"),
        (VALID + "weight = inf\n", "heads.0.weight: Input should be a finite number"),
        (VALID + "[warm_start]\nepochs = nan\n", "warm_start.epochs: Input should be a"),
        (VALID + "class_weights = { a = inf }\n", "heads.0.class_weights.*finite number"),
        (VALID.replace("[[heads]]", '[[data.upsample]]\ncolumn = "a"\nvalues = ["b"]\ntimes = 10001\n[[heads]]'),
         "data.upsample.0.times: .*less than or equal to 10000"),
        (VALID + 'parent_of = { x = "y" }\n', "heads.0: parent_of goes with parent"),
        (VALID + 'parent = "a"\n', r"heads: 'a': parent must be one of the other single_label heads \[\], got 'a'"),
        (VALID + '[[heads]]\nname = "b"\nkind = "multi_label"\n[[heads]]\nname = "c"\nkind = "single_label"\n'
         'parent = "b"\n', r"heads: 'c': parent must be one of the other single_label heads \['a'\], got 'b'"),
        (VALID + '[[heads]]\nname = "a"\nkind = "regression"\n', "heads: names must be unique, 'a' occurs twice"),
        (REGRESSION + "y_range = [2, 1]\n", r"heads.0: y_range must be two numbers, the lower first, got \[2.0, 1.0\]"),
        (REGRESSION + 'separator = ";"\n', "heads.0: separator goes with kind single_label or multi_label, not regr"),
        (REGRESSION + 'label_transforms = ["strip"]\n', "heads.0: label_transforms goes with kind single_label or"),
        (VALID + 'columns = ["x"]\n', "heads.0.columns: .*at least 2"),
        (VALID + 'columns = ["x", "x"]\n', r"heads.0: columns must differ, got \['x', 'x'\]"),
        (VALID + 'column = "x"\ncolumns = ["x", "y"]\n', "heads.0: give either column or columns"),
        (VALID + 'columns = ["x", "y"]\npositions = ["x", "y"]\n', "heads.0: columns have a cell per label; positions"),
        (VALID + 'positions = ["x", "y"]\nnames = ["x", "y"]\n', "heads.0: positions says what vectors mean; names"),
        (VALID + 'pattern = "("\n', r"heads.0: pattern '\(' is no regular expression"),
        (VALID + 'pattern = "(a)(b)"\n', r"heads.0: pattern '\(a\)\(b\)' must have one group, or none"),
        (VALID + 'empty_cells = "none"\n', "heads.0.empty_cells: Input should be 'no_labels' or 'unknown'"),
        (VALID + "at_least = 0\n", "heads.0.at_least: .*greater than 0"),
        (REGRESSION + 'columns = ["x", "y"]\n', "heads.0: columns goes with kind single_label or multi_label"),
        (REGRESSION + 'names = ["x", "y"]\n', "heads.0: names goes with kind single_label or multi_label, not regress"),
        ('output = "o"\n[data]\ntrain = "t.csv"\n', "heads: this field is missing"),
        ("output = \n", "is not TOML"),
        (VALID.replace('"t.csv"', '"t.csv"\nheader = false'), "data: header = false needs the names of the columns"),
        (VALID.replace('"t.csv"', '"t.csv"\nbad_rows = "drop"'), "data.bad_rows: Input should be 'stop' or 'skip'"),
        (VALID.replace('"t.csv"', '"t.csv"\nformat = "xls"'), "data.format: Input should be 'csv', 'tsv'"),
        (VALID.replace('train = "t.csv"', 'hub = "a/b"\ndelimiter = ";"'), "delimiter says how files are read"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(tmp_path: Path, text: str, message: str) -> None:
    """Unknown, missing and wrong fields, and what is allowed."""
    with pytest.raises(ConfigError, match=message) as caught:
        read_config(write(tmp_path, text))
    assert "\n" not in str(caught.value)
    assert "config.toml" in str(caught.value)


def test_a_config_that_was_written_out_is_read_again(tmp_path: Path) -> None:
    """Defaults that a regression has no use for are no mistake when they are spelled out; nor is a byte order mark."""
    config = read_config(write(tmp_path, "\ufeff" + REGRESSION))
    assert TrainingConfig.model_validate_json(config.model_dump_json()) == config


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    """A config that is not there."""
    with pytest.raises(ConfigError, match=r"none\.toml: no such file"):
        read_config(tmp_path / "none.toml")
