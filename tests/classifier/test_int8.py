"""8 bits lose less: channels are evened out, which changes nothing else, and on AMX the first blocks stay in bf16."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from polyhead.body import Body
from polyhead.checkpoint import Checkpoint, read_checkpoint
from polyhead.engine import Engine
from polyhead.engine.cpu import forward, layers
from polyhead.engine.cpu.int8 import even_channels
from polyhead.engine.cpu.kernels.amx import AMXProducts
from polyhead.engine.cpu.layers import block_precision
from polyhead.precision import Precision
from tests.tiny import write_tiny_checkpoint

LAYERS = 3
IDS = [[(7 * row + place) % 50 for place in range(length)] for row, length in enumerate([1, 3, 20, 31, 48])]


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A model in which 4 of 128 channels of each layer norm are 32 times as large; the next weights undo it."""
    path = tmp_path_factory.mktemp("uneven") / "checkpoint"
    write_tiny_checkpoint(path, n_embd=128, n_head=2, n_layer=LAYERS)
    checkpoint = read_checkpoint(path)
    factors = torch.ones(128)
    factors[[3, 50, 51, 127]] = 32
    for layer in range(LAYERS):
        for norm, linear in (("ln_1", "attn.c_attn"), ("ln_2", "mlp.c_fc")):
            prefix = f"body_model.h.{layer}"
            checkpoint.tensors[f"{prefix}.{norm}.weight"].mul_(factors)
            checkpoint.tensors[f"{prefix}.{norm}.bias"].mul_(factors)
            checkpoint.tensors[f"{prefix}.{linear}.weight"].div_(factors[:, None])
    return checkpoint


def test_half_of_the_unevenness_moves_to_the_weight() -> None:
    """A channel 16 times as large as the others is divided by 4; a value 64 times as large is divided by 8."""
    ones = torch.ones(4)
    gain = torch.tensor([1.0, 1.0, 1.0, 16.0])
    value_weight = torch.zeros(4, 4)
    value_weight[0] = torch.tensor([64.0, 1.0, 1.0, 1.0])  # values are multiples of the first channel
    tensors = {
        "h.0.ln_1.weight": ones, "h.0.ln_1.bias": 0 * ones, "h.0.ln_2.weight": gain, "h.0.ln_2.bias": 0 * ones,
        "h.0.attn.c_attn.weight": torch.cat([torch.ones(4, 8), value_weight], 1),
        "h.0.attn.c_attn.bias": torch.zeros(12), "h.0.attn.c_proj.weight": torch.ones(4, 4),
        "h.0.mlp.c_fc.weight": torch.ones(4, 16),
    }  # fmt: skip
    evened = even_channels(tensors, "h.0")
    assert evened["h.0.ln_2.weight"].tolist() == [1, 1, 1, 4]
    assert evened["h.0.mlp.c_fc.weight"][:, 0].tolist() == [1, 1, 1, 4]
    assert evened["h.0.attn.c_proj.weight"][:, 0].tolist() == [8, 1, 1, 1]
    # The first channel's row holds 8 in the first value column now, so no row of c_attn stands out by a factor of 2.
    assert (evened["h.0.attn.c_attn.weight"][0, 8:] * evened["h.0.ln_1.weight"][0]).tolist() == [8, 1, 1, 1]
    assert tensors["h.0.attn.c_attn.weight"][0, 8:].tolist() == [64, 1, 1, 1]  # the checkpoint's own stay


def test_evened_channels_compute_the_same_bits(uneven: Checkpoint) -> None:
    """Factors are powers of two, so in float32 not one bit of a logit changes."""
    tensors = dict(uneven.tensors)
    for layer in range(LAYERS):
        evened = even_channels(uneven.tensors_of("body_model"), f"h.{layer}")
        tensors |= {f"body_model.{name}": tensor for name, tensor in evened.items()}
    changed = [name for name in tensors if not tensors[name].equal(uneven.tensors[name])]
    assert {name.split(".", 3)[-1] for name in changed} >= {"ln_1.weight", "ln_2.bias", "mlp.c_fc.weight"}
    found = Engine(replace(uneven, tensors=tensors)).logits(IDS)
    np.testing.assert_array_equal(found, Engine(uneven).logits(IDS))


def test_large_channels_cost_int8_little(uneven: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels that are 32 times as large leave 8 steps for the others; evened out, the error is a third or less."""
    exact = Engine(uneven).logits(IDS)

    def error() -> float:
        return float(np.sqrt(((Engine(uneven, precision="int8").logits(IDS) - exact) ** 2).mean()))

    evened = error()
    monkeypatch.setattr(forward, "even_channels", lambda tensors, prefix: tensors)
    assert evened < error() / 3


@pytest.mark.parametrize(
    ("precision", "blocks", "has_amx", "n_inner", "kept"),
    [
        ("int8", 12, True, None, 3), ("int8", 4, True, None, 1), ("int8", 3, True, None, 0),
        ("fp32", 12, True, None, 0), ("int8", 12, False, None, 0), ("int8", 12, True, 500, 0),
    ],
)  # fmt: skip
def test_the_first_quarter_of_the_blocks_stays_in_bf16(
    monkeypatch: pytest.MonkeyPatch, precision: Precision, blocks: int, has_amx: bool, n_inner: int | None, kept: int
) -> None:
    """Only in an int8 model, and only on AMX if the model's widths fit its tiles: elsewhere it would cost a sixth."""
    monkeypatch.setattr(layers, "AMX", object() if has_amx else None)
    body = Body(vocab_size=9, n_positions=9, n_embd=128, n_layer=blocks, n_head=2, n_inner=n_inner)
    found = [block_precision(precision, layer, body) for layer in range(blocks)]
    assert found == ["bf16"] * kept + [precision] * (blocks - kept)


def test_kept_blocks_bring_int8_nearer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, amx_stand_in: Path) -> None:
    """A float32 residual passes through bf16 blocks and int8 blocks."""
    monkeypatch.setattr(layers, "AMX", AMXProducts(amx_stand_in))
    write_tiny_checkpoint(tmp_path / "c", n_embd=128, n_head=2, n_layer=4)
    checkpoint = read_checkpoint(tmp_path / "c")
    exact = Engine(checkpoint).logits(IDS)
    errors = []
    for blocks_per_kept in (4, 5):  # one block, none
        monkeypatch.setattr(layers, "BLOCKS_PER_KEPT", blocks_per_kept)
        found = Engine(checkpoint, precision="int8").logits(IDS)
        errors.append(float(np.sqrt(((found - exact) ** 2).mean())))
    assert errors[0] < errors[1]
