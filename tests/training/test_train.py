"""``polyhead-train`` from a CSV to a checkpoint that predicts, and from a mistake to one line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from transformers import GPT2Config, GPT2Model
from typer.testing import CliRunner

from polyhead.checkpoint import read_checkpoint
from polyhead.export import check_golden
from polyhead.predictor import Predictor
from polyhead_training.train import app
from tests.tiny import tiny_tokenizer

CONFIG = """
output = "{folder}/out"
golden_rows = 8
[data]
train = "{folder}/rows.jsonl"
validation = "{folder}/rows.jsonl"
[model]
architecture = "{architecture}"
layer2concat = 2
max_length = 16
{model}
[training]
epochs = 150
batch_size = 8
learning_rate = 5e-3
[[heads]]
name = "topic"
kind = "single_label"
[[heads]]
name = "tags"
kind = "multi_label"
[[heads]]
name = "stars"
kind = "regression"
"""
FRESH = "gpt2 = { n_layer = 2, n_embd = 32, n_head = 2, vocab_size = 300, resid_pdrop = 0.0, embd_pdrop = 0.0 }"
ROWS = [
    {"text": f"{noun} {verb}", "topic": noun, "tags": [verb, noun], "stars": float(len(verb) - 4)}
    for noun in ("cats", "dogs")
    for verb in ("sleep", "run", "bark", "play")
]


def write_config(folder: Path, architecture: str = "base", model: str = FRESH) -> Path:
    """Eight rows and a config that overfits them."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    path = folder / "config.toml"
    path.write_text(CONFIG.format(folder=folder, architecture=architecture, model=model), encoding="utf-8")
    return path


@pytest.mark.parametrize("architecture", ["base", "hidden_state_concat"])
def test_eight_rows_are_learnt(tmp_path: Path, architecture: str) -> None:
    """The whole contract is in the folder, and the served answers are the labels of the rows."""
    result = CliRunner().invoke(app, [str(write_config(tmp_path, architecture))])
    assert result.exit_code == 0, result.output
    checkpoint = tmp_path / "out"
    assert sorted(path.name for path in checkpoint.iterdir()) == [
        "config.json", "golden.jsonl", "metrics.json", "model.safetensors", "report", "tokenizer.json",
    ]  # fmt: skip
    assert (checkpoint / "report" / "training.png").read_bytes().startswith(b"\x89PNG")
    predictor = Predictor.load(checkpoint)
    assert check_golden(predictor) < 1e-5
    for row, answer in zip(ROWS, predictor.predict([row["text"] for row in ROWS]), strict=True):
        heads = answer["heads"]
        assert heads["topic"]["labels"] == [row["topic"]]
        assert set(heads["tags"]["labels"]) == set(row["tags"])
        assert heads["stars"]["value"] == pytest.approx(row["stars"], abs=0.3)
    metrics = json.loads((checkpoint / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["validation"]["topic"]["accuracy"] == 1
    assert "step " in result.output
    assert "left" in result.output


def test_pretrained_weights_and_tokenizer_are_taken(tmp_path: Path) -> None:
    """A local GPT-2 through from_pretrained: its embeddings and tokenizer end in the checkpoint."""
    tokenizer = tiny_tokenizer()
    body = GPT2Model(
        GPT2Config(
            n_layer=2,
            n_embd=32,
            n_head=2,
            n_positions=32,
            vocab_size=tokenizer.get_vocab_size(),
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    body.save_pretrained(tmp_path / "gpt2")
    tokenizer.save(str(tmp_path / "gpt2" / "tokenizer.json"))
    config = write_config(tmp_path, model=f'pretrained = "{tmp_path}/gpt2"')
    config.write_text(config.read_text(encoding="utf-8").replace("5e-3", "1e-9"), encoding="utf-8")
    result = CliRunner().invoke(app, [str(config)])
    assert result.exit_code == 0, result.output
    checkpoint = read_checkpoint(tmp_path / "out")
    trained = checkpoint.tensors["body_model.wte.weight"]
    assert (trained - body.wte.weight).abs().max() < 1e-5
    assert checkpoint.tokenizer.get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("max_length = 16", "max_len = 16", "model.max_len: unknown field; allowed are architecture"),
        ("n_layer = 2", "n_layers = 2", "model.gpt2.n_layers: unknown field"),
        ("rows.jsonl", "nothing.jsonl", "nothing.jsonl: no such file"),
        ('name = "topic"', 'name = "subject"', "no column 'subject'"),
        ("n_head = 2", "n_head = 3", "model: .*divisible"),
        ("layer2concat = 2", "layer2concat = 9", "layer2concat must lie in 1 to n_layer"),
        ("layer2concat = 2", 'layer2concat = 2\nhead_class = "Nope"', "head_class 'Nope': must be one of"),
        (FRESH, 'pretrained = "/no/such/model"', "model.pretrained '/no/such/model': has no tokenizer"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    """Exit code 2, one line on stderr that names the place, and nothing written."""
    config = write_config(tmp_path, "hidden_state_concat")
    config.write_text(config.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    result = CliRunner().invoke(app, [str(config)])
    assert result.exit_code == 2
    errors = [line for line in result.stderr.splitlines() if line.startswith("polyhead-train: ")]
    assert len(errors) == 1
    assert re.search(message, errors[0]), errors
    assert not (tmp_path / "out").exists()


def test_the_example_can_be_printed() -> None:
    """--example prints a config and stops."""
    result = CliRunner().invoke(app, ["--example"])
    assert result.exit_code == 0
    assert "[[heads]]" in result.output
