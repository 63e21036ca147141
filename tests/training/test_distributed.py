"""Several processes train as one does on the same global batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import BatchSampler, SequentialSampler

from polyhead.schema import Head, Schema
from polyhead_training.model.losses import classification_loss, label_counts, loss_terms
from tests.training.tiny_run import history, rows, trained, weights, write_run

SCHEMA = Schema(
    [
        Head(name="topic", kind="single_label", labels=("a", "b", "c")),
        Head(name="tags", kind="multi_label", labels=("x", "y")),
        Head(name="stars", kind="regression"),
    ]
)


# Plain SGD is exact. Adam and Muon hide a gradient of the wrong scale, and magnify the rounding of a very small one.
@pytest.mark.parametrize(
    ("optim", "model", "tolerance"), [("sgd", "", 1e-6), ("sgd", 'long_texts = "windows"', 1e-6), ("muon", "", 3e-4)]
)
def test_two_processes_train_as_one(tmp_path: Path, optim: str, model: str, tolerance: float) -> None:
    """torchrun with two processes over gloo, batches of 2 accumulated twice, rows without labels: one process's losses
    and weights with four accumulated batches; and one voice speaks."""
    training = f'gradient_accumulation_steps = {{}}\neval_steps = 1\noptim = "{optim}"\nmax_grad_norm = 1e9'
    one, two = (
        write_run(tmp_path / name, training.format(steps), model, dropout=0.0)
        for name, steps in (("one", 4), ("two", 2))
    )
    # More rows to evaluate than one batch, of many lengths: the last batch is filled with repeats, which do not count.
    held = [row | {"text": " ".join([row["text"]] * (i % 7 + 1))} for i, row in enumerate(rows() * 5)][:75]
    for path in (one, two):
        (path.parent / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held), encoding="utf-8")
        text = path.read_text(encoding="utf-8").replace("batch_size = 4", "batch_size = 2")
        text = text.replace(f'validation = "{path.parent}/rows', f'validation = "{path.parent}/held')
        if model:
            text = text.replace("max_length = 12", "max_length = 4")  # every text has several windows
        path.write_text(text, encoding="utf-8")
    alone = trained(one)
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "-m", "polyhead_training.train_command", str(two)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("reading data") == 1
    together = tmp_path / "two" / "out"
    assert len(history(alone, "loss")) == 4
    assert history(together, "loss") == pytest.approx(history(alone, "loss"), rel=tolerance)
    assert history(together, "eval_loss") == pytest.approx(history(alone, "eval_loss"), rel=tolerance)
    expected = weights(alone)
    for name, tensor in weights(together).items():
        torch.testing.assert_close(tensor, expected[name], atol=tolerance, rtol=0)


@pytest.mark.parametrize("size", [1, 2, 5, 16])
def test_a_loss_does_not_depend_on_how_rows_are_dealt_out(size: int) -> None:
    """Divided by the labels of all rows, the parts' losses and gradients sum up to the whole's, whatever is missing."""
    torch.manual_seed(0)
    terms = loss_terms(SCHEMA)
    logits = torch.randn(16, SCHEMA.width, requires_grad=True)
    labels = torch.cat([torch.randint(0, 3, (16, 1)), torch.randint(0, 2, (16, 2)), torch.randn(16, 1)], 1).float()
    labels[torch.rand(16) < 0.4, 0] = torch.nan
    labels[torch.rand(16) < 0.4, 1:3] = torch.nan
    labels[:8, 3] = torch.nan
    counts = label_counts(labels, terms)
    whole = classification_loss(logits, labels, terms)
    (expected,) = torch.autograd.grad(whole, logits)
    parts = [
        classification_loss(logits[part], labels[part], terms, counts)
        for part in BatchSampler(SequentialSampler(range(16)), size, drop_last=False)
    ]
    (gradient,) = torch.autograd.grad(sum(parts), logits)
    torch.testing.assert_close(sum(parts), whole)
    torch.testing.assert_close(gradient, expected)
