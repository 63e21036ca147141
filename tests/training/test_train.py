"""``polyhead-train`` from a CSV to a checkpoint that predicts, and from a mistake to one line."""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import GPT2LMHeadModel, GPT2Model
from typer.testing import CliRunner

from polyhead.checkpoint import read_checkpoint
from polyhead.predictor import Predictor
from polyhead_training.model.modeling import GPT2BaseForSequenceClassification
from polyhead_training.train_command import app
from tests.tiny import tiny_config, tiny_tokenizer, write_tiny_checkpoint

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
eval_steps = 75
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
        "config.json", "distribution.json", "golden.jsonl", "metrics.json", "model.safetensors", "report",
        "tokenizer.json",
    ]  # fmt: skip
    assert {"index.html", "history.json", "training.json"} <= {path.name for path in (checkpoint / "report").iterdir()}
    predictor = Predictor.load(checkpoint)
    assert predictor.check_golden() < 1e-5
    for row, answer in zip(ROWS, predictor.predict([row["text"] for row in ROWS]), strict=True):
        heads = answer["heads"]
        assert heads["topic"]["labels"] == [row["topic"]]
        assert set(heads["tags"]["labels"]) == set(row["tags"])
        assert heads["stars"]["value"] == pytest.approx(row["stars"], abs=0.3)
    metrics = json.loads((checkpoint / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["validation"]["topic"]["accuracy"] == 1
    expected = predictor.checkpoint.distribution
    assert expected is not None
    assert expected.texts == len(ROWS)
    assert expected.counts["answers"]["topic"] == Counter(row["topic"] for row in ROWS)
    assert sum(expected.counts["scores"]["stars"].values()) == len(ROWS)
    assert "training, 100 %: " in result.stderr
    assert all(part in result.stderr for part in (" of 150 steps", "loss ", "tokens/s ", " left"))


@pytest.mark.parametrize("kind", ["plain", "language_model", "library"])
def test_pretrained_weights_and_tokenizer_are_taken(tmp_path: Path, kind: str) -> None:
    """A local GPT-2, saved plain, with a language-model head or by that_nlp_library: its weights and tokenizer."""
    config = tiny_config(n_layer=2, n_head=2)
    model: Any = {
        "plain": GPT2Model,
        "language_model": GPT2LMHeadModel,
        "library": lambda config: GPT2BaseForSequenceClassification(config, head_class_sizes=[3]),
    }[kind](config)
    write_pretrained(tmp_path, model)
    path = write_config(tmp_path, model=f'pretrained = "{tmp_path}/gpt2"')
    path.write_text(path.read_text(encoding="utf-8").replace("5e-3", "1e-9"), encoding="utf-8")
    result = CliRunner().invoke(app, [str(path)])
    assert result.exit_code == 0, result.output
    checkpoint = read_checkpoint(tmp_path / "out")
    body = {"plain": lambda: model, "language_model": lambda: model.transformer, "library": lambda: model.body_model}[
        kind
    ]()
    for name, tensor in body.state_dict().items():
        assert (checkpoint.tensors[f"body_model.{name}"] - tensor).abs().max() < 1e-5
    assert checkpoint.tokenizer.get_vocab() == tiny_tokenizer().get_vocab()


def test_pretrained_weights_that_are_missing_are_an_error(tmp_path: Path) -> None:
    """Training never starts from random weights where pretrained ones were asked for."""
    model = GPT2Model(tiny_config(n_layer=2, n_head=2))
    write_pretrained(tmp_path, model)
    weights = tmp_path / "gpt2" / "model.safetensors"
    tensors = load_file(weights)
    save_file({name: t for name, t in tensors.items() if "c_fc" not in name}, weights, metadata={"format": "pt"})
    result = CliRunner().invoke(app, [str(write_config(tmp_path, model=f'pretrained = "{tmp_path}/gpt2"'))])
    assert result.exit_code == 2
    assert "lacks weights of a GPT-2, 'h.0.mlp.c_fc.bias' first" in result.stderr


def test_a_run_that_fails_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    """Weights that training drove to NaN do not take the place of good ones."""
    config = write_config(tmp_path)
    write_tiny_checkpoint(tmp_path / "out")
    before = (tmp_path / "out" / "golden.jsonl").read_bytes()
    config.write_text(config.read_text(encoding="utf-8").replace("5e-3", "1e30"), encoding="utf-8")
    result = CliRunner().invoke(app, [str(config)])
    assert result.exit_code == 2, result.output
    assert (tmp_path / "out" / "golden.jsonl").read_bytes() == before


def write_pretrained(folder: Path, model: Any) -> None:
    """A local folder as a hub name would give it."""
    model.save_pretrained(folder / "gpt2")
    tiny_tokenizer().save(str(folder / "gpt2" / "tokenizer.json"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "max_length = 16",
            "max_len = 16",
            r"model: unknown field 'max_len' \(did you mean 'max_length'\?\); allowed are arch",
        ),
        ("n_layer = 2", "n_layers = 2", r"model.gpt2.n_layers: unknown field \(did you mean 'n_layer'\?\)"),
        ("rows.jsonl", "nothing.jsonl", "nothing.jsonl: no such file"),
        ('name = "topic"', 'name = "subject"', "no column 'subject'"),
        ("n_head = 2", "n_head = 3", r"model.gpt2: n_embd \(32\) must be a multiple of n_head \(3\)"),
        ("layer2concat = 2", "layer2concat = 9", "layer2concat must lie in 1 to n_layer"),
        ("layer2concat = 2", 'layer2concat = 2\nhead_class = "Nope"', "head_class 'Nope': must be one of"),
        (FRESH, 'pretrained = "/no/such/model"', "model.pretrained '/no/such/model': no such folder"),
        (
            "n_head = 2",
            'n_head = 2, activation_function = "mish"',
            "model: activation_function must be one of .*got 'mish'",
        ),
        ("n_head = 2", "n_head = 2, add_cross_attention = true", "model.gpt2: add_cross_attention: .*got True"),
        ("n_head = 2", "n_head = 0", r"model.gpt2: n_head: .*greater than 0 \(got 0\)"),
        ("vocab_size = 300", 'vocab_size = "many"', "vocab_size: must be a whole number from 257, got 'many'"),
        ("layer2concat = 2", "layer2concat = 2\nhead_args = { last_hidden_size = 3 }", "unexpected keyword"),
        (
            "layer2concat = 2",
            "layer2concat = 2\nhead_args = { num_labels = 5 }",
            "model: scores must be 9 numbers, got 5",
        ),
        ("layer2concat = 2", 'layer2concat = 2\nhead_class = "Linear"', "Linear is for architecture base"),
        ('"hidden_state_concat"', '"base"\nhead_class = "ConcatHeadSimple"', "model: mat1 and mat2"),
        ("/out", "/rows.jsonl", "rows.jsonl: holds files that are no checkpoint"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    """Exit code 2, one line on stderr that names the place, and nothing written."""
    config = write_config(tmp_path, "hidden_state_concat")
    config.write_text(config.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    result = CliRunner().invoke(app, [str(config)])
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1, result.stderr
    assert re.search(f"^polyhead-train: .*{message}", result.stderr), result.stderr
    assert not (tmp_path / "out").exists()


def test_a_scratch_folder_that_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the system refuses is no traceback."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    result = CliRunner().invoke(app, [str(write_config(tmp_path))])
    assert result.exit_code == 2
    assert result.stderr.startswith("polyhead-train: [Errno 2] No such file or directory: ")
    assert result.stderr.count("\n") == 1


def test_the_example_can_be_printed() -> None:
    """--example prints a config and stops."""
    result = CliRunner().invoke(app, ["--example"])
    assert result.exit_code == 0
    assert "[[heads]]" in result.output
