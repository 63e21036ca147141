"""A run of seconds: sixteen rows, two heads of which not every row has a label, a model of one or two layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import Result
from safetensors.torch import load_file
from typer.testing import CliRunner

from polyhead_training.train_command import app

CONFIG = """
output = "{folder}/out"
golden_rows = 4
[data]
train = "{folder}/rows.jsonl"
validation = "{folder}/rows.jsonl"
{data}
[model]
max_length = 12
{model}
[training]
epochs = 2
batch_size = 4
learning_rate = 5e-3
{training}
[[heads]]
name = "topic"
kind = "single_label"
[[heads]]
name = "stars"
kind = "regression"
{more}
"""
TINY = (
    "gpt2 = {{ n_layer = {n_layer}, n_embd = 32, n_head = 2, vocab_size = 300, "
    "resid_pdrop = {dropout}, embd_pdrop = {dropout}, attn_pdrop = {dropout} }}"
)


def rows() -> list[dict[str, Any]]:
    """Every third row lacks its number."""
    words = ["sleep", "run", "bark", "play", "eat", "dig", "hide", "jump"]
    return [
        {"text": f"{noun} {word} well", "topic": noun, "stars": None if i % 3 == 0 else float(i % 5)}
        for noun in ("cats", "dogs")
        for i, word in enumerate(words)
    ]


def write_run(
    folder: Path,
    training: str = "",
    model: str = "",
    data: str = "",
    more: str = "",
    layers: int = 1,
    dropout: float = 0.1,
) -> Path:
    """The rows and a config; the texts stand in its sections, `more` at its end."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")
    if "pretrained" not in model:
        model = TINY.format(n_layer=layers, dropout=dropout) + "\n" + model
    path = folder / "config.toml"
    path.write_text(
        CONFIG.format(folder=folder, training=training, model=model, data=data, more=more), encoding="utf-8"
    )
    return path


def run(path: Path, *options: str) -> Result:
    """``polyhead-train`` in this process."""
    return CliRunner().invoke(app, [str(path), *options])


def trained(path: Path, *options: str) -> Path:
    """As `run`, which must end well; the checkpoint folder."""
    result = run(path, *options)
    assert result.exit_code == 0, result.output
    return path.parent / "out"


def weights(checkpoint: Path) -> dict[str, Any]:
    """The checkpoint's tensors."""
    return load_file(checkpoint / "model.safetensors")


def history(checkpoint: Path, name: str) -> list[float]:
    """What was logged under a name, in order."""
    entries = json.loads((checkpoint / "report" / "history.json").read_text(encoding="utf-8"))
    return [entry[name] for entry in entries if name in entry]


def metrics(checkpoint: Path) -> Any:
    """``metrics.json``."""
    return json.loads((checkpoint / "metrics.json").read_text(encoding="utf-8"))
