"""The training config is validated once, and every error is one line that names the field."""

from __future__ import annotations

from pathlib import Path

import pytest

from polyhead_training.config import EXAMPLE, read_config
from polyhead_training.errors import ConfigError

VALID = 'output = "o"\n[data]\ntrain = "t.csv"\n[[heads]]\nname = "a"\nkind = "single_label"\n'


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
        (VALID + "colour = 1\n", "heads.0.colour: unknown field; allowed are name, kind, column"),
        ("epochs = 1\n" + VALID, "epochs: unknown field; allowed are output, seed"),
        (VALID + "[training]\nepoch = 1\n", "training.epoch: unknown field; allowed are epochs"),
        (VALID.replace('output = "o"\n', ""), "output: this field is missing"),
        (VALID.replace("single_label", "one"), "heads.0.kind: Input should be .*got 'one'"),
        (VALID.replace('train = "t.csv"', ""), "data: give either train .* or hub"),
        (VALID + "[training]\nlearning_rate = -1\n", r"training.learning_rate: .*greater than 0 \(got -1\)"),
        (VALID + '[model]\npretrained = "gpt2"\ngpt2 = { n_layer = 2 }\n', "does not go with pretrained"),
        ('output = "o"\n[data]\ntrain = "t.csv"\n', "heads: this field is missing"),
        ("output = \n", "is not TOML"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, text: str, message: str) -> None:
    """Unknown, missing and wrong fields, and what is allowed."""
    with pytest.raises(ConfigError, match=message) as caught:
        read_config(write(tmp_path, text))
    assert "\n" not in str(caught.value)
    assert "config.toml" in str(caught.value)


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    """A config that is not there."""
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read"):
        read_config(tmp_path / "none.toml")
