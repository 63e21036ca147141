"""The memory that a micro-batch takes is known before it is computed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from polyhead.checkpoint import read_checkpoint
from polyhead.engine.cpu.forward import activation_bytes
from polyhead.errors import MachineError
from polyhead.predictor import Predictor
from tests.tiny import write_tiny_checkpoint

# Its own process, because only a whole process has a peak of memory. Prints by how much a micro-batch raises the peak.
MEASURE = """
import sys
from pathlib import Path
import torch
from polyhead.predictor import Predictor

def mark(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

torch.set_num_threads(1)
predictor = Predictor.load(sys.argv[1])
length, tokens = int(sys.argv[2]), int(sys.argv[3])
vocabulary = predictor.checkpoint.body.vocab_size
texts = [[n % vocabulary, n // vocabulary, *[0] * (length - 2)] for n in range(tokens // length)]
predictor._engine.logits(texts[:2])
Path("/proc/self/clear_refs").write_text("5")  # resets the peak
before = mark("VmRSS")
predictor._engine.logits(texts)
print(mark("VmHWM") - before)
"""


@pytest.mark.parametrize("length", [2, 48])
def test_bound_holds(tmp_path: Path, length: int) -> None:
    """A micro-batch of the whole token budget stays below the bound, and takes at least a quarter of it."""
    write_tiny_checkpoint(tmp_path, "hidden_state_concat", n_embd=512, n_layer=2)
    checkpoint = read_checkpoint(tmp_path)
    tokens = Predictor(checkpoint).token_budget
    command = [sys.executable, "-c", MEASURE, str(tmp_path), str(length), str(tokens)]
    used = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    bound = activation_bytes(checkpoint.body, tokens)
    assert bound / 4 < used < bound


def test_warm_up_says_what_fits(base_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte too little is an error with both numbers; exactly enough is no error."""
    predictor = Predictor.load(base_checkpoint)
    body = predictor.checkpoint.body
    needed = activation_bytes(body, predictor.token_budget) + activation_bytes(body, predictor.enough_tokens)
    monkeypatch.setattr("polyhead.predictor.available_memory_bytes", lambda: needed)
    assert predictor.warm_up() == predictor.token_budget
    monkeypatch.setattr("polyhead.predictor.available_memory_bytes", lambda: needed - 1)
    with pytest.raises(MachineError, match=r"MiB of memory, and \d+ MiB are left"):
        predictor.warm_up()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_warm_up_computes_on_cuda(base_checkpoint: Path) -> None:
    """A CUDA device computes the largest micro-batch before the first request."""
    predictor = Predictor.load(base_checkpoint, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    assert predictor.warm_up() == predictor.token_budget
    assert torch.cuda.max_memory_allocated() > predictor.token_budget * predictor.checkpoint.body.n_embd * 4
